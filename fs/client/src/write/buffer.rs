//! What was written to one file and isn't committed: ranges of bytes that lie in the arena.
//!
//! Each write gets the next sequence number. A commit covers all ranges up to one number, so what is
//! committed is always a prefix of what was written. A range that is overwritten before it was committed is
//! gone from here, so a commit must not end between it and what replaced it: such numbers are no *cuts*.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use atoll_core::attributes::{KillPriv, Timestamp};
use atoll_core::limits::{BLOCK_BYTES, COMMIT_PIECES_MAX, SEGMENT_BYTES};
use atoll_proto::checksum;
use bytes::Bytes;
use tokio::time::Instant;

use crate::arena::DataBlock;

/// Bytes of one commit's data at most: what a stream sends before it syncs and commits.
pub const BATCH_BYTES_MAX: u64 = 16 << 20;
/// Ranges between two cuts at most; a write that would join more is preceded by a flush, so that what must be
/// committed together always fits into one commit.
pub const RANGES_JOINED_MAX: u64 = COMMIT_PIECES_MAX as u64 / 2;

/// How much one batch may take.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Ranges.
    pub ranges: usize,
    /// Bytes.
    pub bytes: u64,
    /// If there are ends of segments to stop at, stop at the last one, so that a stream's extents are as long as
    /// they can be.
    pub whole_segments: bool,
}

impl BatchLimits {
    /// What one commit takes.
    #[must_use]
    pub fn of_commit(whole_segments: bool) -> Self {
        BatchLimits { ranges: COMMIT_PIECES_MAX, bytes: BATCH_BYTES_MAX, whole_segments }
    }
}

/// Lets `Bytes` show a block and keep it.
struct Shown(Arc<DataBlock>);

impl AsRef<[u8]> for Shown {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// A run of bytes of one write.
struct DirtyRange {
    block: Arc<DataBlock>,
    /// Where in the block it begins.
    skip: usize,
    length: usize,
    sequence: u64,
}

impl DirtyRange {
    fn bytes(&self) -> Bytes {
        Bytes::from_owner(Shown(Arc::clone(&self.block))).slice(self.skip..self.skip + self.length)
    }

    fn part(&self) -> Part {
        Part { bytes: self.bytes(), origin: Some((Arc::clone(&self.block), self.skip)) }
    }
}

/// Bytes on their way into a chunk, with what is known of their checksums.
#[derive(Clone, Debug)]
pub struct Part {
    bytes: Bytes,
    /// The block that they lie in, and where in it they begin.
    origin: Option<(Arc<DataBlock>, usize)>,
}

impl Part {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The CRC-32C of each whole block of the bytes, counted from their beginning, as they were when the application
    /// wrote them; empty if that isn't known.
    #[must_use]
    pub fn block_sums(&self) -> &[u32] {
        let Some((block, skip)) = &self.origin else { return &[] };
        if !skip.is_multiple_of(checksum::BLOCK_BYTES) {
            return &[];
        }
        let first = skip / checksum::BLOCK_BYTES;
        let count = self.bytes.len() / checksum::BLOCK_BYTES;
        block.block_sums().get(first..first + count).unwrap_or(&[])
    }

    /// False if the bytes have changed in memory since the application wrote them.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        let blocks = self.bytes.chunks_exact(checksum::BLOCK_BYTES);
        blocks.zip(self.block_sums()).all(|(block, sum)| checksum::crc32c(block) == *sum)
    }
}

impl From<Bytes> for Part {
    fn from(bytes: Bytes) -> Part {
        Part { bytes, origin: None }
    }
}

/// A run of bytes of a file, within one segment, in the pieces in which it lies in memory.
#[derive(Clone, Debug)]
pub struct Run {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// The bytes.
    pub parts: Vec<Part>,
}

impl Run {
    /// The byte after its last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// All bytes in one piece; copies if they aren't.
    #[must_use]
    pub fn contiguous(&self) -> Bytes {
        match self.parts.as_slice() {
            [one] => one.bytes.clone(),
            parts => parts.iter().map(|part| &part.bytes[..]).collect::<Vec<_>>().concat().into(),
        }
    }
}

/// What one commit is to cover.
#[derive(Debug)]
pub struct Batch {
    /// The blocks that its bytes lie in, oldest first.
    blocks: Vec<Arc<DataBlock>>,
    /// By offset, without overlap.
    pub runs: Vec<Run>,
    /// All writes up to this number are in it, or were in a batch before.
    pub cut: u64,
    /// All writes up to this number were in a batch before.
    pub base: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of quota that it uses up at most.
    pub reservation: u64,
    /// When the last of it was written.
    pub mtime: Timestamp,
    /// What the file loses by it.
    pub kill_priv: KillPriv,
    /// The byte after the last one.
    pub end: u64,
}

impl Batch {
    /// The batch is committed, or lost for good: its blocks are of no use to an adopter any more, even if somebody
    /// still looks at them. In order, so that an adopter that finds some of them replays a newer one over an
    /// older one and never the other way round.
    pub fn retire(&self) {
        self.blocks.iter().for_each(|block| block.retire());
    }

    /// The highest number of its blocks: an adopter that finds it committed knows by this which blocks were in it.
    #[must_use]
    pub fn last_order(&self) -> u64 {
        self.blocks.iter().map(|block| block.order()).max().unwrap_or(0)
    }
}

/// Ranges that don't overlap, by where they begin, and by when they were written: a batch takes the oldest ones, and looking
/// for them among all others would cost more the more there are.
#[derive(Default)]
struct Ranges {
    by_offset: BTreeMap<u64, DirtyRange>,
    /// The sequence number of each and where it begins.
    by_sequence: BTreeSet<(u64, u64)>,
}

impl Ranges {
    fn insert(&mut self, offset: u64, range: DirtyRange) {
        self.by_sequence.insert((range.sequence, offset));
        self.by_offset.insert(offset, range);
    }

    fn remove(&mut self, offset: u64) -> Option<DirtyRange> {
        let range = self.by_offset.remove(&offset)?;
        self.by_sequence.remove(&(range.sequence, offset));
        Some(range)
    }

    fn is_empty(&self) -> bool {
        self.by_offset.is_empty()
    }

    /// Those with a sequence number after `after` and up to `upto`, in the order of these numbers.
    fn written(&self, after: u64, upto: u64) -> impl Iterator<Item = (u64, &DirtyRange)> {
        let numbers = (Bound::Excluded((after, u64::MAX)), Bound::Included((upto, u64::MAX)));
        let offsets = self.by_sequence.range(numbers).map(|(_, offset)| *offset);
        offsets.filter_map(|offset| Some((offset, self.by_offset.get(&offset)?)))
    }
}

/// The dirty ranges of one file. No lock, no wait; the caller holds both.
#[derive(Default)]
pub struct DirtyFile {
    ranges: Ranges,
    /// Bytes in all ranges.
    bytes: u64,
    /// Bytes in ranges that are in no batch.
    fresh_bytes: u64,
    /// Bytes whose writer has reserved and not yet inserted them.
    claimed_bytes: u64,
    /// Bytes of quota held for fresh and claimed bytes; whole blocks.
    reserved: u64,
    last_sequence: u64,
    batched: u64,
    settled: u64,
    cuts: BTreeSet<u64>,
    mtime: Timestamp,
    kill_priv: KillPriv,
    /// The same of the batches that are under way.
    kill_priv_batched: KillPriv,
    oldest: Option<Instant>,
    newest: Option<Instant>,
}

impl DirtyFile {
    /// True if nothing waits for a commit.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.ranges.is_empty() && self.claimed_bytes == 0
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A batch is being written or committed.
    #[must_use]
    pub fn is_on_its_way(&self) -> bool {
        self.batched > self.settled && !self.ranges.is_empty()
    }

    /// Bytes at or behind `offset`.
    #[must_use]
    pub fn bytes_from(&self, offset: u64) -> u64 {
        let behind = |(start, range): (&u64, &DirtyRange)| {
            let end = *start + range.length as u64;
            end.saturating_sub(offset.max(*start))
        };
        self.ranges.by_offset.iter().rev().map(behind).take_while(|bytes| *bytes > 0).sum()
    }

    /// Bytes that are in no batch.
    #[must_use]
    pub fn fresh_bytes(&self) -> u64 {
        self.fresh_bytes
    }

    /// The byte after the last dirty one, 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.by_offset.last_key_value().map_or(0, |(offset, range)| offset + range.length as u64)
    }

    /// When the last write was (by the leader's clock).
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }

    /// What is dirty leaves the file's mtime like this when it is committed, and takes nothing more away than `kill_priv`:
    /// attributes were set. Nothing is on its way meanwhile.
    pub fn set_noted(&mut self, kill_priv: KillPriv, mtime: Timestamp) {
        (self.mtime, self.kill_priv) = (mtime, kill_priv);
        self.kill_priv_batched = KillPriv::NONE;
        for range in self.ranges.by_offset.values() {
            range.block.set_noted(kill_priv, mtime);
        }
    }

    /// What the file loses by the writes that wait, those of batches that are under way included.
    #[must_use]
    pub fn kill_priv(&self) -> KillPriv {
        if self.ranges.is_empty() { KillPriv::NONE } else { self.kill_priv | self.kill_priv_batched }
    }

    /// The number of the last write.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// All writes up to this number are committed, or reported as lost.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// Since when something is in no batch.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.oldest
    }

    /// When the last write was.
    #[must_use]
    pub fn newest(&self) -> Option<Instant> {
        self.newest
    }

    /// Bytes of quota that are to be reserved before `more` bytes are written: with one block to spare, so that
    /// what is reserved can be divided between two commits.
    #[must_use]
    pub fn reservation_wanted(&self, more: u64) -> u64 {
        let all = self.fresh_bytes + self.claimed_bytes + more;
        (all.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES).saturating_sub(self.reserved)
    }

    /// Takes `granted` bytes of quota in and sets as many as it can of `wanted` bytes aside for a write that
    /// will follow; returns how many.
    pub fn claim(&mut self, granted: u64, wanted: u64) -> u64 {
        self.reserved += granted;
        let free = self.reserved.saturating_sub(self.fresh_bytes + self.claimed_bytes);
        let claimed = wanted.min(free);
        self.claimed_bytes += claimed;
        claimed
    }

    /// The write that claimed these bytes is done, or won't come.
    pub fn unclaim(&mut self, bytes: u64) {
        self.claimed_bytes -= bytes;
    }

    /// Adds `data` to the last write's block, if it was written directly behind it and nobody looks at that
    /// block. Returns how many bytes were taken.
    pub fn extend(
        &mut self,
        offset: u64,
        data: &[u8],
        now: Instant,
        mtime: Timestamp,
        kill_priv: KillPriv,
    ) -> usize {
        if self.last_sequence <= self.batched {
            return 0;
        }
        let limit = match self.ranges.by_offset.range(offset..).next() {
            Some((next, _)) => (*next - offset).min(data.len() as u64) as usize,
            None => data.len(),
        };
        let Some((start, range)) = self.ranges.by_offset.range_mut(..offset).next_back() else { return 0 };
        let ends_here = start + range.length as u64 == offset && !offset.is_multiple_of(SEGMENT_BYTES);
        if !ends_here || range.sequence != self.last_sequence {
            return 0;
        }
        let whole = range.skip + range.length == range.block.len();
        let Some(block) = Arc::get_mut(&mut range.block).filter(|_| whole) else { return 0 };
        // Before the bytes are there: whoever adopts them has to know.
        block.note(kill_priv, mtime);
        let taken = block.append(&data[..limit]);
        range.length += taken;
        self.bytes += taken as u64;
        self.fresh_bytes += taken as u64;
        if taken > 0 {
            self.mtime = mtime;
            self.kill_priv |= kill_priv;
            self.newest = Some(now);
        }
        taken
    }

    /// True if a write of this range would join more ranges between two cuts than a commit can hold.
    #[must_use]
    pub fn must_flush_before(&self, offset: u64, length: u64) -> bool {
        let oldest = self
            .overlapping(offset, offset + length)
            .map(|(_, range)| range.sequence)
            .filter(|sequence| *sequence > self.batched)
            .min();
        oldest.is_some_and(|oldest| {
            let joined_from = self.cuts.range(..oldest).next_back().map_or(self.batched, |cut| *cut);
            self.last_sequence - joined_from >= RANGES_JOINED_MAX
        })
    }

    /// Takes a write in. The block lies within one segment of the file.
    pub fn insert(&mut self, mut block: DataBlock, now: Instant, mtime: Timestamp, kill_priv: KillPriv) {
        block.note(kill_priv, mtime);
        let (offset, length) = (block.offset(), block.len());
        let replaced = self.remove(offset, offset + length as u64);
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        if let Some(oldest) = replaced {
            let joined: Vec<u64> = self.cuts.range(oldest..).copied().collect();
            for cut in joined {
                self.cuts.remove(&cut);
            }
        }
        self.cuts.insert(sequence);
        self.ranges.insert(offset, DirtyRange { block: Arc::new(block), skip: 0, length, sequence });
        self.bytes += length as u64;
        self.fresh_bytes += length as u64;
        self.mtime = mtime;
        self.kill_priv |= kill_priv;
        self.oldest.get_or_insert(now);
        self.newest = Some(now);
    }

    fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &DirtyRange)> {
        let first = match self.ranges.by_offset.range(..=start).next_back() {
            Some((offset, range)) if offset + range.length as u64 > start => *offset,
            _ => start,
        };
        self.ranges.by_offset.range(first..end.max(first)).map(|(offset, range)| (*offset, range))
    }

    /// Cuts a range out; returns the lowest number of a fresh write that lost bytes.
    fn remove(&mut self, start: u64, end: u64) -> Option<u64> {
        let touched: Vec<u64> = self.overlapping(start, end).map(|(offset, _)| offset).collect();
        let mut oldest: Option<u64> = None;
        for offset in touched {
            let Some(range) = self.ranges.remove(offset) else { continue };
            let range_end = offset + range.length as u64;
            let (cut_start, cut_end) = (offset.max(start), range_end.min(end));
            let lost = cut_end - cut_start;
            self.bytes -= lost;
            if range.sequence > self.batched {
                self.fresh_bytes -= lost;
                oldest = Some(oldest.map_or(range.sequence, |oldest| oldest.min(range.sequence)));
            }
            if cut_end < range_end {
                let right = DirtyRange {
                    block: Arc::clone(&range.block),
                    skip: range.skip + (cut_end - offset) as usize,
                    length: (range_end - cut_end) as usize,
                    sequence: range.sequence,
                };
                self.ranges.insert(cut_end, right);
            }
            if offset < cut_start {
                self.ranges.insert(offset, DirtyRange { length: (cut_start - offset) as usize, ..range });
            }
        }
        oldest
    }

    /// The dirty bytes within a range of the file, by offset.
    #[must_use]
    pub fn overlay(&self, start: u64, end: u64) -> Vec<(u64, Bytes)> {
        self.overlapping(start, end)
            .map(|(offset, range)| {
                let (from, to) = (offset.max(start), (offset + range.length as u64).min(end));
                (from, range.bytes().slice((from - offset) as usize..(to - offset) as usize))
            })
            .collect()
    }

    /// True if bytes of a range, before the last dirty one, aren't dirty.
    #[must_use]
    pub fn has_gap(&self, start: u64, end: u64) -> bool {
        let end = end.min(self.end());
        if start >= end {
            return false;
        }
        let dirty: u64 = self
            .overlapping(start, end)
            .map(|(offset, range)| (offset + range.length as u64).min(end) - offset.max(start))
            .sum();
        dirty < end - start
    }

    /// The next batch: as much as `limits` allow, more only if that must be committed together. `None` if everything
    /// is in a batch.
    pub fn next_batch(&mut self, limits: BatchLimits) -> Option<Batch> {
        let cut = self.choose_cut(limits)?;
        let mut runs: Vec<Run> = Vec::new();
        let mut blocks: Vec<Arc<DataBlock>> = Vec::new();
        let mut bytes = 0;
        let mut chosen: Vec<_> = self.ranges.written(self.batched, cut).collect();
        chosen.sort_unstable_by_key(|(offset, _)| *offset);
        for (offset, range) in chosen {
            let length = range.length as u64;
            bytes += length;
            blocks.push(Arc::clone(&range.block));
            match runs.last_mut() {
                Some(last) if last.end() == offset && !offset.is_multiple_of(SEGMENT_BYTES) => {
                    last.length += length;
                    last.parts.push(range.part());
                }
                _ => runs.push(Run { offset, length, parts: vec![range.part()] }),
            }
        }
        blocks.sort_by_key(|block| block.order());
        blocks.dedup_by_key(|block| block.order());
        let reservation = self.reserved.min(bytes.next_multiple_of(BLOCK_BYTES));
        self.reserved -= reservation;
        self.fresh_bytes -= bytes;
        let base = std::mem::replace(&mut self.batched, cut);
        let all = cut == self.last_sequence;
        self.oldest = if all { None } else { self.newest };
        let end = runs.last().map_or(0, Run::end);
        let (mtime, kill_priv) = (self.mtime, self.kill_priv);
        self.kill_priv_batched |= kill_priv;
        if all {
            self.kill_priv = KillPriv::NONE;
        }
        Some(Batch { blocks, runs, cut, base, bytes, reservation, mtime, kill_priv, end })
    }

    fn choose_cut(&self, limits: BatchLimits) -> Option<u64> {
        let mut fresh = self.ranges.written(self.batched, u64::MAX).peekable();
        fresh.peek()?;
        let (mut ranges, mut bytes) = (0, 0);
        let mut fitting = None;
        let mut aligned = None;
        while let Some(sequence) = fresh.peek().map(|(_, range)| range.sequence) {
            let mut at_segment_end = false;
            while let Some((offset, range)) = fresh.next_if(|(_, range)| range.sequence == sequence) {
                let length = range.length as u64;
                ranges += 1;
                bytes += length;
                at_segment_end |= (offset + length).is_multiple_of(SEGMENT_BYTES);
            }
            if fitting.is_some() && (ranges > limits.ranges || bytes > limits.bytes) {
                break;
            }
            // The last of all ranges ends a batch whatever happened to the cuts behind it.
            let next = fresh.peek().map_or(self.last_sequence + 1, |(_, next)| next.sequence);
            if let Some(cut) = self.cuts.range(sequence..next).next_back() {
                fitting = Some(*cut);
                if at_segment_end {
                    aligned = fitting;
                }
            }
        }
        let best = if limits.whole_segments { aligned.or(fitting) } else { fitting };
        best.or(Some(self.last_sequence))
    }

    /// The batch up to `cut` is committed, or lost for good: its ranges go. Returns their blocks, oldest first, to
    /// be dropped outside of any lock.
    #[must_use]
    pub fn settle(&mut self, cut: u64) -> Vec<Arc<DataBlock>> {
        let gone: Vec<u64> = self.ranges.written(0, cut).map(|(offset, _)| offset).collect();
        let mut blocks = Vec::with_capacity(gone.len());
        for offset in gone {
            if let Some(range) = self.ranges.remove(offset) {
                self.bytes -= range.length as u64;
                if range.sequence > self.batched {
                    self.fresh_bytes -= range.length as u64;
                }
                blocks.push(range.block);
            }
        }
        self.settled = self.settled.max(cut);
        self.batched = self.batched.max(cut);
        if self.settled == self.batched {
            self.kill_priv_batched = KillPriv::NONE;
        }
        self.cuts = self.cuts.split_off(&(cut + 1));
        blocks.sort_by_key(|block| block.order());
        blocks
    }

    /// Nothing is on its way. If nothing is left either, all writes are done with.
    pub fn settle_vanished(&mut self) {
        if self.ranges.is_empty() {
            self.settled = self.last_sequence;
            self.batched = self.last_sequence;
            self.kill_priv_batched = KillPriv::NONE;
            self.cuts.clear();
        }
    }

    /// The batch could not be committed now: its ranges, and those of all later batches, are fresh again.
    pub fn unbatch(&mut self, batch: &Batch, now: Instant) {
        if batch.cut <= self.settled {
            return;
        }
        self.reserved += batch.reservation;
        self.kill_priv |= batch.kill_priv;
        if self.batched > batch.base {
            self.batched = batch.base.max(self.settled);
            self.fresh_bytes =
                self.ranges.written(self.batched, u64::MAX).map(|(_, range)| range.length as u64).sum();
        }
        if self.fresh_bytes > 0 {
            self.oldest.get_or_insert(now);
        }
    }

    /// Gives up everything. Returns the blocks (to be dropped in their order) and the quota that was held.
    #[must_use]
    pub fn discard(&mut self) -> (Vec<Arc<DataBlock>>, u64) {
        let blocks = self.settle(self.last_sequence);
        self.oldest = None;
        self.kill_priv = KillPriv::NONE;
        (blocks, std::mem::take(&mut self.reserved))
    }

    /// As [`discard`](Self::discard), but nothing if a write is under way.
    #[must_use]
    pub fn discard_unless_claimed(&mut self) -> (Vec<Arc<DataBlock>>, u64) {
        if self.claimed_bytes > 0 { (Vec::new(), 0) } else { self.discard() }
    }

    /// Quota that is held for nothing: once no fresh byte is left.
    #[must_use]
    pub fn take_unused_reservation(&mut self) -> u64 {
        if self.fresh_bytes == 0 && self.claimed_bytes == 0 { std::mem::take(&mut self.reserved) } else { 0 }
    }

    /// A truncation: what lies beyond `size` is gone. (What was dirty before it was flushed before it; this is
    /// for what was written in between.)
    #[must_use]
    pub fn truncate(&mut self, size: u64) -> bool {
        let end = self.end();
        if end <= size {
            return false;
        }
        self.remove(size, end);
        if self.ranges.is_empty() {
            // The truncation takes the same away.
            self.kill_priv = KillPriv::NONE;
        }
        true
    }
}

#[cfg(test)]
mod tests;
