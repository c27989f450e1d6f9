//! Reading what will be asked for next. Chunks never change, so what was read ahead is right for as long as
//! the map names its place; it needs no invalidation, only an end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::ids::ChunkId;
use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::chunk_reader::ReadError;

/// Bytes ahead of a reader when it begins to look sequential.
pub const WINDOW_BYTES_MIN: u64 = 512 << 10;
/// Bytes ahead of one reader at most.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Bytes of one request ahead.
pub const AHEAD_REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Reads this far (bytes) from where the last one ended still belong to the stream: the kernel's own
/// requests overtake one another.
const SLACK_BYTES: u64 = 1 << 20;
/// A file whose first read is at least this long (bytes) is taken for one that is read to its end.
const FIRST_READ_BYTES_MIN: u64 = 64 << 10;
/// What was read ahead and not asked for goes after this long.
pub const UNUSED_AFTER: Duration = Duration::from_secs(10);
/// Unit of the budget for all that is read ahead (bytes).
pub const BUDGET_UNIT_BYTES: u64 = 4096;

/// Blocks of a chunk that are being read, or were, before somebody asked.
pub struct Ahead {
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte in it.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
    /// The end of the range of the file that they hold.
    pub file_end: u64,
    /// The bytes, once they are there.
    pub bytes: OnceCell<Result<Bytes, ReadError>>,
    used: AtomicU64,
    since: Instant,
    _budget: OwnedSemaphorePermit,
}

impl Ahead {
    /// A range that is about to be read.
    #[must_use]
    pub fn new(chunk: ChunkId, start: u64, end: u64, file_end: u64, budget: OwnedSemaphorePermit) -> Self {
        Ahead {
            chunk,
            start,
            end,
            file_end,
            bytes: OnceCell::new(),
            used: AtomicU64::new(0),
            since: Instant::now(),
            _budget: budget,
        }
    }
}

/// What a read finds.
pub enum Found {
    /// These blocks hold the beginning of the range, up to this byte of the chunk.
    Ahead(Arc<Ahead>, u64),
    /// Nothing holds the range before this byte of the chunk.
    Nothing(u64),
}

/// What is ahead of the reader of one file.
#[derive(Default)]
pub struct Readahead {
    /// Where the next read begins if it goes on like this.
    next: u64,
    /// Bytes read in order.
    streak: u64,
    /// Up to here something was asked for ahead (byte of the file).
    planned: u64,
    ahead: VecDeque<Arc<Ahead>>,
    /// Somebody plans at this moment.
    planning: bool,
}

impl Readahead {
    /// Takes note of a read and says which range of the file is to be read ahead now, if any. Whoever gets one
    /// plans it and calls [`planned`](Self::planned).
    pub fn observe(&mut self, offset: u64, length: u64, file_size: u64) -> Option<(u64, u64)> {
        let end = offset + length;
        // A tolerance no larger than what was read in order: random reads of a small file are no stream.
        let follows = offset == self.next && self.next > 0;
        let near = offset.abs_diff(self.next) <= SLACK_BYTES.min(self.streak) && self.streak > 0;
        let begins = offset == 0 && length >= FIRST_READ_BYTES_MIN;
        if !follows && !near {
            // A reader that jumps: nothing that was read for where it was is of use.
            *self = Readahead { planning: self.planning, ..Readahead::default() };
            if !begins {
                self.next = end;
                return None;
            }
        }
        self.next = self.next.max(end);
        self.streak = self.streak.saturating_add(length);
        self.ahead.retain(|ahead| {
            ahead.file_end + SLACK_BYTES > self.next
                && ahead.used.load(Ordering::Relaxed) < ahead.end - ahead.start
        });
        let window = (self.streak * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let target = (self.next + window).min(file_size);
        let from = self.planned.max(self.next);
        // In steps, so that requests are large and planning is rare; the last step may be short.
        let enough = target.saturating_sub(from) >= (window / 2).min(AHEAD_REQUEST_BYTES_MAX);
        let last = target == file_size && target > from;
        if self.planning || !(enough || last) {
            return None;
        }
        self.planning = true;
        Some((from, target))
    }

    /// A plan was carried out: up to `to` of the file is asked for.
    pub fn planned(&mut self, to: u64, ahead: Vec<Arc<Ahead>>) {
        self.planning = false;
        self.planned = self.planned.max(to);
        self.ahead.extend(ahead);
    }

    /// What there is of a range of a chunk.
    pub fn find(&mut self, chunk: ChunkId, start: u64, end: u64) -> Found {
        let mut limit = end;
        let mut found = None;
        for (index, ahead) in self.ahead.iter().enumerate().filter(|(_, ahead)| ahead.chunk == chunk) {
            if ahead.start <= start && start < ahead.end {
                found = Some(index);
                limit = ahead.end.min(end);
                break;
            }
            if ahead.start > start {
                limit = limit.min(ahead.start);
            }
        }
        let Some(index) = found else { return Found::Nothing(limit) };
        let ahead = Arc::clone(&self.ahead[index]);
        let used = ahead.used.fetch_add(limit - start, Ordering::Relaxed) + (limit - start);
        if used >= ahead.end - ahead.start {
            self.ahead.remove(index);
        }
        Found::Ahead(ahead, limit)
    }

    /// Lets go of blocks that can't be had.
    pub fn drop_failed(&mut self, failed: &Arc<Ahead>) {
        self.ahead.retain(|ahead| !Arc::ptr_eq(ahead, failed));
    }

    /// Lets go of what nobody asked for in a while.
    pub fn expire(&mut self, now: Instant) {
        self.ahead.retain(|ahead| now.saturating_duration_since(ahead.since) < UNUSED_AFTER);
        if self.ahead.is_empty() && !self.planning {
            self.planned = 0;
        }
    }

    /// True if nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Readahead { planning: self.planning, ..Readahead::default() };
    }
}

#[cfg(test)]
mod tests;
