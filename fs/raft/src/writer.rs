//! The one thread that writes the log. It takes all that is queued, writes it at once, makes it
//! durable with one `fdatasync`, and then says so to everybody who waits: while one batch
//! becomes durable the next one gathers.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::error::LogError;
use crate::files::Prepared;
use crate::log_store::{Done, LogEntry, Segment, Shared};
use crate::record::{self, Kind};
use crate::segment::{HEADER_BYTES, SegmentIndex};
use crate::types::LogPosition;
use crate::vote::{self, VoteRecord};

/// Payload written at once, in bytes (or one append, if that is larger): what else is queued
/// waits for the next batch, so that nobody waits for a whole queue.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Payloads of at least this size, in bytes, are written from where they are; smaller ones are
/// copied together.
const COPY_BYTES_MAX: usize = 32 << 10;
/// Buffer kept between batches, in bytes.
const BUFFER_KEPT_BYTES: usize = 256 << 10;

type Waiter = oneshot::Sender<Result<(), LogError>>;

enum Job {
    Append { entries: Vec<LogEntry>, done: Done },
    Mark { kind: Kind, position: Option<LogPosition>, done: Waiter },
    Vote { vote: VoteRecord, done: Waiter },
}

impl Job {
    fn finish(self, result: Result<(), LogError>) {
        match self {
            Job::Append { done, .. } => done(result),
            Job::Mark { done, .. } | Job::Vote { done, .. } => {
                // Whoever asked may have gone.
                let _ = done.send(result);
            }
        }
    }
}

#[derive(Default)]
struct Jobs {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What is to be written, in order. Not bounded itself: openraft appends what
/// [`crate::RaftNode`] let in, which is bounded in bytes, and waits for everything else.
#[derive(Default)]
pub(crate) struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
    /// The same for a simulation, where a task writes.
    changed_task: Notify,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    fn push(&self, job: Job) -> Result<(), Job> {
        let mut jobs = self.jobs.lock();
        if jobs.closed {
            return Err(job);
        }
        jobs.jobs.push_back(job);
        drop(jobs);
        self.changed.notify_one();
        self.changed_task.notify_one();
        Ok(())
    }

    pub(crate) fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<(), LogError> {
        self.push(Job::Append { entries, done }).map_err(|_| LogError::Closed)
    }

    pub(crate) fn mark(
        &self,
        kind: Kind,
        position: Option<LogPosition>,
    ) -> oneshot::Receiver<Result<(), LogError>> {
        let (done, result) = oneshot::channel();
        if let Err(job) = self.push(Job::Mark { kind, position, done }) {
            job.finish(Err(LogError::Closed));
        }
        result
    }

    pub(crate) fn vote(&self, vote: VoteRecord) -> oneshot::Receiver<Result<(), LogError>> {
        let (done, result) = oneshot::channel();
        if let Err(job) = self.push(Job::Vote { vote, done }) {
            job.finish(Err(LogError::Closed));
        }
        result
    }

    pub(crate) fn close(&self) {
        self.jobs.lock().closed = true;
        self.changed.notify_one();
        self.changed_task.notify_one();
    }

    /// The next appends, as many as make a batch, or the next one of the others. `None` at the
    /// end.
    fn take(&self) -> Option<Vec<Job>> {
        let mut jobs = self.jobs.lock();
        while jobs.jobs.is_empty() {
            if jobs.closed {
                return None;
            }
            self.changed.wait(&mut jobs);
        }
        Some(Queue::batch(&mut jobs))
    }

    /// As [`take`](Self::take), in a task of a simulation. The batch is taken when it is written, not before.
    async fn take_simulated(&self) -> Option<Vec<Job>> {
        loop {
            let (empty, closed) = {
                let jobs = self.jobs.lock();
                (jobs.jobs.is_empty(), jobs.closed)
            };
            match (empty, closed) {
                (true, true) => return None,
                (true, false) => self.changed_task.notified().await,
                (false, _) => {
                    tokio::time::sleep(atoll_blocking::simulated_delay().unwrap_or_default()).await;
                    return Some(Queue::batch(&mut self.jobs.lock()));
                }
            }
        }
    }

    fn batch(jobs: &mut Jobs) -> Vec<Job> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(job) = jobs.jobs.front() {
            let Job::Append { entries, .. } = job else {
                break;
            };
            bytes += entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
            if bytes > BATCH_BYTES_MAX && !taken.is_empty() {
                break;
            }
            taken.extend(jobs.jobs.pop_front());
        }
        if taken.is_empty() {
            taken.extend(jobs.jobs.pop_front());
        }
        taken
    }
}

/// Part of a batch: a range of the buffer, or a payload as it is.
enum Part {
    Buffer(usize),
    Payload(Bytes),
}

/// The thread's own things.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    active: Prepared,
    /// Where the next record goes.
    end: u32,
    /// CRC of the last record.
    chain: u32,
    /// The next record has to be a `Continue` mark.
    mark: bool,
    /// The last entry that was written.
    last: Option<LogPosition>,
    /// Set by the first failure: nothing is written after it, since what a failed write or sync
    /// has left on disk is unknown, and syncing again would report success without being one.
    failed: Option<LogError>,
    batch: Batch,
}

#[derive(Default)]
struct Batch {
    /// Offset of its first record.
    start: u32,
    buffer: Vec<u8>,
    parts: Vec<Part>,
    entries: Vec<(LogPosition, u32, u32)>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, active: Prepared, end: u32) -> Self {
        let last = shared.state.lock().last;
        let chain = active.chain;
        let batch = Batch { start: end, ..Batch::default() };
        Self { shared, active, end, chain, mark: true, last, failed: None, batch }
    }

    pub(crate) fn run(mut self) {
        while let Some(jobs) = self.shared.queue.take() {
            self.take_turn(jobs);
        }
    }

    /// As [`run`](Self::run), as a task.
    pub(crate) async fn run_simulated(mut self) {
        let shared = self.shared.clone();
        while let Some(jobs) = shared.queue.take_simulated().await {
            self.take_turn(jobs);
        }
    }

    fn take_turn(&mut self, jobs: Vec<Job>) {
        let result = match &self.failed {
            Some(failed) => Err(failed.clone()),
            None => self.carry_out(&jobs),
        };
        if let Err(error) = &result
            && self.failed.is_none()
        {
            tracing::error!("the Raft log can't be written any more: {error}");
            self.failed = Some(error.clone());
        }
        for job in jobs {
            job.finish(result.clone());
        }
    }

    fn carry_out(&mut self, jobs: &[Job]) -> Result<(), LogError> {
        for job in jobs {
            match job {
                Job::Append { entries, .. } => {
                    for entry in entries {
                        self.push_entry(entry)?;
                    }
                }
                Job::Mark { kind, position, .. } => {
                    self.make_room(record::record_bytes(0))?;
                    self.push(*kind, *position, &Bytes::new());
                    self.last = *position;
                }
                Job::Vote { vote, .. } => {
                    if atoll_faults::planted("vote-not-saved") {
                        self.shared.state.lock().vote = Some(*vote);
                        return Ok(());
                    }
                    let shared = &self.shared;
                    // Of the new file nothing counts before all of it does.
                    let write = || vote::write(&*shared.disk, &shared.dir, shared.member, *vote);
                    shared.waiting.until(LogError::is_full, write)?;
                    self.shared.state.lock().vote = Some(*vote);
                    return Ok(());
                }
            }
        }
        self.write_batch()?;
        if let [Job::Mark { kind, position, .. }] = jobs {
            let mut state = self.shared.state.lock();
            match (kind, position) {
                (Kind::Jump, Some(position)) => state.jump(*position),
                _ => state.truncate(*position),
            }
            self.shared.drop_segments(&mut state);
        }
        Ok(())
    }

    fn push_entry(&mut self, entry: &LogEntry) -> Result<(), LogError> {
        let bytes = record::record_bytes(entry.payload.len());
        self.make_room(bytes)?;
        self.batch.entries.push((entry.position, self.end, bytes as u32));
        self.push(entry.kind, Some(entry.position), &entry.payload);
        self.last = Some(entry.position);
        Ok(())
    }

    /// Goes on to the next segment if a record of `bytes` doesn't fit into this one, and puts the
    /// mark before it that is due.
    fn make_room(&mut self, bytes: usize) -> Result<(), LogError> {
        let mark_bytes = if self.mark { record::record_bytes(size_of::<u64>()) } else { 0 };
        if self.end as usize + mark_bytes + bytes > self.active.segment_bytes as usize {
            // An entry is at most an eighth of a segment, so it fits into the next one.
            self.write_batch()?;
            self.roll()?;
        }
        if self.mark {
            self.mark = false;
            // Randomly keyed by the standard library, and never keyed the same twice.
            let nonce = std::hash::RandomState::new().build_hasher().finish().to_le_bytes();
            self.push(Kind::Continue, self.last, &Bytes::copy_from_slice(&nonce));
        }
        Ok(())
    }

    /// Everything before is durable: begin the next segment.
    fn roll(&mut self) -> Result<(), LogError> {
        let next = self.shared.files.take_next()?;
        self.shared.files.prepare(next.sequence + 1);
        self.shared.state.lock().segments.push_back(Segment {
            path: next.path.clone(),
            file: next.file.clone(),
            sequence: next.sequence,
            index: SegmentIndex::default(),
        });
        self.end = HEADER_BYTES;
        self.batch.start = HEADER_BYTES;
        self.chain = next.chain;
        self.active = next;
        self.mark = true;
        Ok(())
    }

    fn push(&mut self, kind: Kind, position: Option<LogPosition>, payload: &Bytes) {
        let (header, crc) = record::encode_header(
            self.active.sequence,
            self.chain,
            self.batch.start,
            kind,
            position,
            payload,
        );
        let bytes = record::record_bytes(payload.len());
        let padding = bytes - record::HEADER_BYTES - payload.len();
        let batch = &mut self.batch;
        batch.buffer.extend_from_slice(&header);
        if payload.len() < COPY_BYTES_MAX {
            batch.buffer.extend_from_slice(payload);
        } else {
            batch.parts.push(Part::Buffer(batch.buffer.len()));
            batch.parts.push(Part::Payload(payload.clone()));
        }
        batch.buffer.resize(batch.buffer.len() + padding, 0);
        self.chain = crc;
        self.end += bytes as u32;
    }

    /// Writes the batch, makes it durable, and lets readers know where its entries are.
    fn write_batch(&mut self) -> Result<(), LogError> {
        let batch = &mut self.batch;
        if batch.buffer.is_empty() {
            return Ok(());
        }
        batch.parts.push(Part::Buffer(batch.buffer.len()));
        let mut slices = Vec::with_capacity(batch.parts.len());
        let mut from = 0;
        for part in &batch.parts {
            match part {
                Part::Buffer(to) => {
                    slices.push(&batch.buffer[from..*to]);
                    from = *to;
                }
                Part::Payload(payload) => slices.push(payload),
            }
        }
        let file = &self.active.file;
        file.write_at(&slices, u64::from(batch.start))
            .map_err(|e| LogError::io("write", &self.active.path, e))?;
        if !atoll_faults::planted("log-sync-skipped") {
            file.sync().map_err(|e| LogError::io("sync", &self.active.path, e))?;
        }

        let room = u64::from(self.active.segment_bytes - self.end);
        self.shared.room.store(room, Ordering::Release);
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        for (position, offset, bytes) in batch.entries.drain(..) {
            if let Some(segment) = state.segments.back_mut() {
                segment.index.push(position.index, offset);
            }
            state.account.add(position, u64::from(bytes));
            state.written = position.index + 1;
        }
        self.shared.total.store(state.account.total(), Ordering::Release);
        state.evict();

        batch.parts.clear();
        batch.buffer.clear();
        batch.buffer.shrink_to(BUFFER_KEPT_BYTES);
        batch.start = self.end;
        Ok(())
    }
}
