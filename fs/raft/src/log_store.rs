//! The log: what is in it, what of it is in memory, and how to read it. Writing is in
//! [`crate::writer`].

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::account::Account;
use crate::disk::{Disk, DiskFile};
use crate::error::LogError;
use crate::files::{Files, Maker, Prepared, is_spare};
use crate::record::{self, Kind};
use crate::recovery::find_segments;
use crate::room::WaitForRoom;
use crate::segment::SegmentIndex;
use crate::types::{LogPosition, MemberId};
use crate::vote::{self, VoteRecord};
use crate::writer::{Queue, Writer};

/// Payload of recent entries kept in memory, in bytes; what isn't written yet is kept beyond it.
/// Readers that are further behind read from disk.
pub(crate) const CACHE_BYTES_MAX: usize = 4 << 20;
/// Entries in the cache, which bounds what entries without much payload take.
const CACHE_ENTRIES_MAX: usize = 16 << 10;
/// Bytes read from a segment at once.
const READ_BYTES: u32 = 256 << 10;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) position: LogPosition,
    /// One of the kinds that are entries.
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
}

/// Called when entries are durable, or couldn't be made so.
pub(crate) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// How to open a log.
#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    pub(crate) dir: PathBuf,
    pub(crate) member: MemberId,
    pub(crate) segment_bytes: u32,
}

/// A segment in use.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) sequence: u64,
    pub(crate) index: SegmentIndex,
}

/// What the log consists of now.
#[derive(Debug)]
pub(crate) struct State {
    /// By sequence; the last one is being written.
    pub(crate) segments: VecDeque<Segment>,
    /// The last entry that is no longer here.
    pub(crate) base: Option<LogPosition>,
    /// The last entry, written or not.
    pub(crate) last: Option<LogPosition>,
    /// Index after the last entry that is written.
    pub(crate) written: u64,
    /// Consecutive entries up to `last`.
    pub(crate) cache: VecDeque<LogEntry>,
    pub(crate) cache_bytes: usize,
    pub(crate) account: Account,
    pub(crate) vote: Option<VoteRecord>,
}

impl State {
    pub(crate) fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// Index of the first entry that is here.
    fn first(&self) -> u64 {
        self.base.map_or(0, |base| base.index + 1)
    }

    /// Drops written entries from the cache while it is too large.
    pub(crate) fn evict(&mut self) {
        while self.cache_bytes > CACHE_BYTES_MAX || self.cache.len() > CACHE_ENTRIES_MAX {
            match self.cache.front() {
                Some(front) if front.position.index < self.written => {
                    self.cache_bytes -= front.payload.len();
                    self.cache.pop_front();
                }
                _ => break,
            }
        }
    }

    /// The entries after `position` are void.
    pub(crate) fn truncate(&mut self, position: Option<LogPosition>) {
        let next = position.map_or(0, |p| p.index + 1);
        for segment in &mut self.segments {
            segment.index.cut(next);
        }
        while self.cache.back().is_some_and(|back| back.position.index >= next) {
            if let Some(back) = self.cache.pop_back() {
                self.cache_bytes -= back.payload.len();
            }
        }
        self.last = position;
        self.written = self.written.min(next);
        if self.base.is_some_and(|base| base.index >= next) {
            self.base = position;
        }
        self.account.truncate(position);
    }

    /// All entries are void, the log goes on after `position`.
    pub(crate) fn jump(&mut self, position: LogPosition) {
        for segment in &mut self.segments {
            segment.index.offsets.clear();
        }
        self.cache.clear();
        self.cache_bytes = 0;
        self.base = Some(position);
        self.last = Some(position);
        self.written = position.index + 1;
        self.account.jump(position);
    }
}

/// What writer, readers and callers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) member: MemberId,
    pub(crate) dir: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) state: Mutex<State>,
    pub(crate) queue: Queue,
    pub(crate) files: Files,
    /// Room left in the segment that is being written, in bytes.
    pub(crate) room: AtomicU64,
    /// [`Account::total`], for reading without the lock.
    pub(crate) total: AtomicU64,
    /// What was found damaged.
    damage: OnceLock<String>,
    /// The vote waits here for room on a full disk.
    pub(crate) waiting: WaitForRoom,
}

/// Where consecutive entries are in one file.
struct Places {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    sequence: u64,
    /// Index and offset of each.
    entries: Vec<(u64, u32)>,
}

/// The log of one member, with its vote. All methods may be called from any thread; those that
/// write are called one after the other, as openraft does.
#[derive(Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    segment_bytes: u32,
}

impl LogStore {
    /// Opens the log in a folder, or makes one there. Reads all of it; blocks.
    pub(crate) fn open(config: &LogConfig, disk: Arc<dyn Disk>) -> Result<Self, LogError> {
        let dir = &config.dir;
        let names = disk.list(dir).map_err(|e| LogError::io("read", dir, e))?;
        let vote = vote::read(&*disk, dir, &names, config.member)?;
        let mut found = find_segments(dir, &*disk, &names, config.member)?;
        let mut spares: Vec<PathBuf> =
            names.iter().filter(|name| is_spare(name)).map(|name| dir.join(name)).collect();

        let maker = Maker {
            disk: disk.clone(),
            dir: dir.clone(),
            member: config.member,
            segment_bytes: config.segment_bytes,
        };
        if found.segments.is_empty() {
            let made = maker.make(1, None)?;
            found.push_empty(made);
        }
        // The last one with anything in it is written on; the one after it is the next.
        let active = found.segments.iter().rposition(|segment| !segment.empty).unwrap_or(0);
        let mut unused: VecDeque<Prepared> =
            found.segments.split_off(active + 1).into_iter().map(Prepared::from).collect();
        let fits = |next: &mut Prepared| next.segment_bytes == config.segment_bytes;
        let next = unused.pop_front_if(fits);
        // Of another size than is wanted now, or made ready before its predecessor was first
        // written.
        for extra in unused.into_iter().rev() {
            disk.remove(&extra.path).map_err(|e| LogError::io("remove", &extra.path, e))?;
            disk.sync_dir(dir).map_err(|e| LogError::io("sync", dir, e))?;
        }
        let mut kept = Vec::new();
        for spare in spares.drain(..) {
            let usable = kept.len() < 2
                && disk
                    .open(&spare)
                    .and_then(|file| file.len())
                    .is_ok_and(|len| len == u64::from(config.segment_bytes) && !spare.ends_with("spare-new"));
            if usable {
                kept.push(spare);
            } else {
                disk.remove(&spare).map_err(|e| LogError::io("remove", &spare, e))?;
            }
        }

        let last_segment = &found.segments[active];
        let active = Prepared {
            path: last_segment.path.clone(),
            file: last_segment.file.clone(),
            sequence: last_segment.sequence,
            segment_bytes: last_segment.segment_bytes,
            chain: last_segment.chain,
        };
        let end = last_segment.end;
        let prepare = next.is_none().then_some(active.sequence + 1);
        let next_index = found.last.map_or(0, |last| last.index + 1);
        let state = State {
            segments: found.segments.into_iter().map(|s| s.segment).collect(),
            base: found.base,
            last: found.last,
            written: next_index,
            cache: VecDeque::new(),
            cache_bytes: 0,
            account: found.account,
            vote,
        };
        let files = Files::start(maker, next, kept)?;
        if let Some(sequence) = prepare {
            files.prepare(sequence);
        }
        let shared = Arc::new(Shared {
            member: config.member,
            dir: dir.clone(),
            disk,
            room: AtomicU64::new(u64::from(active.segment_bytes - end)),
            total: AtomicU64::new(state.account.total()),
            state: Mutex::new(state),
            queue: Queue::default(),
            files,
            damage: OnceLock::new(),
            waiting: WaitForRoom::default(),
        });
        let writer = Writer::new(shared.clone(), active, end);
        if atoll_blocking::is_simulated() {
            tokio::spawn(writer.run_simulated());
            return Ok(Self { shared, writer: Mutex::new(None), segment_bytes: config.segment_bytes });
        }
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run())
            .map_err(|e| LogError::io("start a thread for", dir, e))?;
        Ok(Self { shared, writer: Mutex::new(Some(thread)), segment_bytes: config.segment_bytes })
    }

    /// What waits for room on a full disk fails, now and later.
    pub(crate) fn stop_waiting(&self) {
        self.shared.waiting.give_up();
    }

    /// Waits for what is queued, then ends the threads. Later calls fail. Blocks.
    pub(crate) fn close(&self) {
        self.stop_waiting();
        self.shared.queue.close();
        // First, since the writer may be waiting there for room on a full disk.
        self.shared.files.stop();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes the log panicked");
        }
    }

    /// The last entry that is no longer in the log, and the last one that is.
    pub(crate) fn ends(&self) -> (Option<LogPosition>, Option<LogPosition>) {
        let state = self.shared.state.lock();
        (state.base, state.last)
    }

    pub(crate) fn vote(&self) -> Option<VoteRecord> {
        self.shared.state.lock().vote
    }

    /// Largest payload of an entry.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        self.segment_bytes as usize / 8
    }

    /// Appends entries: they can be read at the return, and `done` is called when they are
    /// durable.
    pub(crate) fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), LogError> {
        let max = self.payload_bytes_max();
        {
            let mut state = self.shared.state.lock();
            let mut last = state.last;
            for entry in &entries {
                if entry.payload.len() > max {
                    return Err(LogError::EntryTooLarge {
                        bytes: entry.payload.len() as u64,
                        max: max as u64,
                    });
                }
                if last.map_or(0, |last| last.index + 1) != entry.position.index {
                    return Err(LogError::NotConsecutive { got: entry.position, last });
                }
                last = Some(entry.position);
            }
            for entry in &entries {
                state.cache_bytes += entry.payload.len();
                state.cache.push_back(entry.clone());
            }
            state.last = last;
        }
        self.shared.queue.append(entries, done)
    }

    /// Makes a vote durable.
    pub(crate) fn save_vote(&self, vote: VoteRecord) -> oneshot::Receiver<Result<(), LogError>> {
        self.shared.queue.vote(vote)
    }

    /// Voids the entries after `position`, durably. Nothing else may be written until it's done.
    pub(crate) fn truncate_after(
        &self,
        position: Option<LogPosition>,
    ) -> oneshot::Receiver<Result<(), LogError>> {
        if position.map_or(0, |p| p.index + 1) >= self.shared.state.lock().next() {
            let (done, result) = oneshot::channel();
            // The receiver is right here.
            let _ = done.send(Ok(()));
            return result;
        }
        self.shared.queue.mark(Kind::Truncate, position)
    }

    /// Drops the entries up to `position`. If the log ends before it, the log goes on after it,
    /// durably at the end of the receiver that is returned. Otherwise files are dropped in the
    /// background, and a crash may bring some of the entries back.
    pub(crate) fn purge(&self, position: LogPosition) -> Option<oneshot::Receiver<Result<(), LogError>>> {
        let mut state = self.shared.state.lock();
        if state.base.is_some_and(|base| base.index >= position.index) {
            return None;
        }
        if position.index >= state.next() {
            drop(state);
            return Some(self.shared.queue.mark(Kind::Jump, Some(position)));
        }
        state.base = Some(position);
        while state.cache.front().is_some_and(|front| {
            front.position.index <= position.index && front.position.index < state.written
        }) {
            if let Some(front) = state.cache.pop_front() {
                state.cache_bytes -= front.payload.len();
            }
        }
        state.account.purge(position.index);
        self.shared.drop_segments(&mut state);
        None
    }

    /// The entries from `from` to before `to` that are in the log: all of them, or as many as
    /// fit into `bytes_max` (at least one). `None` if that needs the disk: then [`Self::read`].
    pub(crate) fn read_cached(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<LogEntry>> {
        let state = self.shared.state.lock();
        let from = from.max(state.first());
        let to = to.min(state.next());
        if from >= to {
            return Some(Vec::new());
        }
        let cached = state.cache.front()?.position.index;
        let skip = usize::try_from(from.checked_sub(cached)?).ok()?;
        let count = usize::try_from(to - from).ok()?;
        let mut bytes = 0;
        let mut entries = Vec::with_capacity(count.min(1024));
        for entry in state.cache.range(skip..skip + count) {
            bytes += entry.payload.len() + record::HEADER_BYTES;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }

    /// As [`Self::read_cached`], from the disk if need be. Blocks.
    pub(crate) fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<LogEntry>, LogError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut from = from;
        loop {
            if let Some(rest) = self.read_cached(from, to, bytes_max.saturating_sub(bytes)) {
                // `read_cached` gives at least one, which is one too many if there are others.
                if entries.is_empty() || bytes < bytes_max {
                    entries.extend(rest);
                }
                return Ok(entries);
            }
            let Some(places) = self.places(from, to, READ_BYTES) else {
                return Ok(entries);
            };
            if !entries.is_empty() && places.entries[0].0 != from {
                // Purged in between: what was read before is gone, too.
                entries.clear();
                bytes = 0;
            }
            for entry in read_places(&places).inspect_err(|error| self.shared.note_damage(error))? {
                bytes += entry.payload.len() + record::HEADER_BYTES;
                if bytes > bytes_max && !entries.is_empty() {
                    return Ok(entries);
                }
                from = entry.position.index + 1;
                entries.push(entry);
            }
            if from >= to || bytes >= bytes_max {
                return Ok(entries);
            }
        }
    }

    /// Places of consecutive entries in one file, from `from` on, before `to`, within about
    /// `bytes`.
    fn places(&self, from: u64, to: u64, bytes: u32) -> Option<Places> {
        let state = self.shared.state.lock();
        let from = from.max(state.first());
        let to = to.min(state.next());
        if from >= to {
            return None;
        }
        let segment = state.segments.iter().find(|s| s.index.offset_of(from).is_some())?;
        let start = segment.index.offset_of(from)?;
        let entries = (from..to.min(segment.index.end()))
            .map_while(|index| Some((index, segment.index.offset_of(index)?)))
            .take_while(|(_, offset)| offset - start < bytes)
            .collect();
        Some(Places {
            path: segment.path.clone(),
            file: segment.file.clone(),
            sequence: segment.sequence,
            entries,
        })
    }

    /// Bytes of log after the entry at `index` (all there are, for `None`), within about 1 MiB.
    #[cfg(test)]
    pub(crate) fn bytes_after(&self, index: Option<u64>) -> u64 {
        self.total_bytes() - self.bytes_at(index)
    }

    /// Running count of bytes when the entry at `index` was written.
    pub(crate) fn bytes_at(&self, index: Option<u64>) -> u64 {
        let state = self.shared.state.lock();
        index.map_or(0, |index| state.account.at(index))
    }

    /// Running count of bytes; cheap.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.shared.total.load(Ordering::Acquire)
    }

    /// The last position not after `upto` that leaves `keep` bytes of log up to it.
    pub(crate) fn position_before(&self, upto: LogPosition, keep: u64) -> Option<LogPosition> {
        self.shared.state.lock().account.position_before(upto, keep)
    }

    /// Bytes of segment files, spares left out.
    pub(crate) fn file_bytes(&self) -> u64 {
        (self.shared.state.lock().segments.len() as u64 + 1) * u64::from(self.segment_bytes)
    }

    /// What was found damaged since the log was opened, if anything.
    pub(crate) fn damage(&self) -> Option<String> {
        self.shared.damage.get().cloned()
    }

    /// Why no more commands should be accepted, if so: the next segment can't be made, and half of
    /// this one is used. What is accepted but not yet written is at most a quarter of a segment,
    /// so it finds room, and the group's own entries do for a long time.
    pub(crate) fn refusal(&self) -> Option<LogError> {
        if self.shared.room.load(Ordering::Acquire) >= u64::from(self.segment_bytes) / 2 {
            return None;
        }
        match self.shared.files.state() {
            (true, _) => None,
            (false, error) => error,
        }
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn note_damage(&self, error: &LogError) {
        if error.is_damage() {
            // The first one is enough.
            let _ = self.damage.set(error.to_string());
        }
    }

    /// Lets go of the oldest segments, as far as none of their entries is in the log any more.
    pub(crate) fn drop_segments(&self, state: &mut State) {
        while state.segments.len() > 1 {
            let first = state.first();
            match state.segments.front() {
                Some(segment) if segment.index.offsets.is_empty() || segment.index.end() <= first => {}
                _ => break,
            }
            // A segment in which nothing counts any more may hold what was truncated away later
            // than the one behind it was begun; the base covers it then, or nothing does.
            if let Some(segment) = state.segments.pop_front() {
                self.files.recycle(segment.path, segment.file, segment.sequence);
            }
        }
    }
}

fn read_places(places: &Places) -> Result<Vec<LogEntry>, LogError> {
    let (Some(&(_, start)), Some(&(_, last))) = (places.entries.first(), places.entries.last()) else {
        return Ok(Vec::new());
    };
    let read_at = |length: usize| -> Result<Vec<u8>, LogError> {
        let mut bytes = vec![0; length];
        let read = places
            .file
            .read_at(&mut bytes, u64::from(start))
            .map_err(|e| LogError::io("read", &places.path, e))?;
        bytes.truncate(read);
        Ok(bytes)
    };
    // Only the last header says how long its record is.
    let tail = (last - start) as usize;
    let mut bytes = read_at(tail + record::HEADER_BYTES)?;
    if let Some(header) = record::decode_header(&bytes, tail, usize::MAX) {
        bytes = read_at(tail + record::record_bytes(header.payload_bytes as usize))?;
    }
    let bytes = Bytes::from(bytes);
    let mut entries = Vec::with_capacity(places.entries.len());
    for &(index, offset) in &places.entries {
        let damaged = || {
            LogError::damaged(
                &places.path,
                u64::from(offset),
                format!("entry {index} was written there, and can't be read back"),
            )
        };
        let at = (offset - start) as usize;
        let (header, payload) = record::decode(&bytes, at, places.sequence).ok_or_else(damaged)?;
        let position = header.position.filter(|p| p.index == index && header.kind.is_entry());
        entries.push(LogEntry {
            position: position.ok_or_else(damaged)?,
            kind: header.kind,
            payload: bytes.slice_ref(payload),
        });
    }
    Ok(entries)
}
