//! Which tasks a storage server gets, and what its reports about them mean.
//!
//! What a server has to do is in the records; they are the truth. This book, in the leader's memory, remembers
//! which of it was given out under which number, so that a task isn't given twice while it is carried out.
//! Pure: the time is an argument (since boot).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use atoll_core::commands::TaskDone as Done;
use atoll_core::ids::{ChunkId, Generation, ServerId};
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::TaskRecord;
use atoll_proto::registration::{NumberedTask, StorageTask, TASKS_MAX, TaskDone as Report};
use atoll_proto::storage::{ChunkRange, CopySource, StorageError, TRIM_RANGES_MAX};

/// A task without a report for so long is given again, under the same number.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Tasks of one server that have no report yet.
const OUTSTANDING_MAX: usize = TASKS_MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Delete,
    Seal,
    Trim,
    Copy,
}

#[derive(Clone, Debug)]
struct Issued {
    chunk: ChunkId,
    kind: Kind,
    task: StorageTask,
    given: Duration,
}

#[derive(Debug, Default)]
struct ServerBook {
    issued: BTreeMap<u64, Issued>,
    known: HashSet<(ChunkId, Kind)>,
}

/// What a report means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meaning {
    /// To be recorded as done.
    pub done: Vec<Done>,
    /// Chunks of which the server has no replica though it should.
    pub missing: Vec<ChunkId>,
    /// Chunks that the server has copied: generation of the copy.
    pub copied: Vec<(ChunkId, Generation)>,
    /// Chunks that it couldn't copy.
    pub not_copied: Vec<ChunkId>,
}

/// What one server has to do about one chunk, as the records say it.
#[derive(Clone, Debug)]
pub struct ChunkTasks {
    /// The chunk.
    pub chunk: ChunkId,
    /// The task.
    pub record: TaskRecord,
    /// If it says to trim: dead ranges that the server hasn't trimmed (first block, blocks).
    pub dead: Vec<(u64, u64)>,
}

/// The book of a leader.
#[derive(Debug, Default)]
pub struct TaskQueue {
    next: u64,
    servers: HashMap<ServerId, ServerBook>,
}

impl TaskQueue {
    /// The book of the leader of `term`: its numbers are none of an earlier leader's.
    #[must_use]
    pub fn begin(term: u64) -> TaskQueue {
        TaskQueue { next: (term << 32) | 1, servers: HashMap::new() }
    }

    /// A server has started anew: what it was told before is forgotten there.
    pub fn restarted(&mut self, server: ServerId) {
        self.servers.remove(&server);
    }

    /// Takes in how tasks ended.
    pub fn report(&mut self, server: ServerId, reports: &[Report]) -> Meaning {
        let mut meaning = Meaning::default();
        let Some(book) = self.servers.get_mut(&server) else { return meaning };
        for report in reports {
            let Some(issued) = book.issued.remove(&report.task) else { continue };
            book.known.remove(&(issued.chunk, issued.kind));
            interpret(&issued, &report.result, &mut meaning);
        }
        meaning
    }

    /// Has a server copy a sealed chunk. False if it has too much to do, or is doing that already.
    pub fn copy(
        &mut self,
        server: ServerId,
        chunk: ChunkId,
        generation: Generation,
        length: u64,
        from: Vec<CopySource>,
    ) -> bool {
        self.add(server, chunk, Kind::Copy, StorageTask::Copy { chunk, generation, length, from })
    }

    /// Chunks that a server is copying.
    #[must_use]
    pub fn is_copying(&self, server: ServerId, chunk: ChunkId) -> bool {
        self.servers.get(&server).is_some_and(|book| book.known.contains(&(chunk, Kind::Copy)))
    }

    /// Whether any server is copying a chunk.
    #[must_use]
    pub fn is_copied(&self, chunk: ChunkId) -> bool {
        self.servers.values().any(|book| book.known.contains(&(chunk, Kind::Copy)))
    }

    /// Copies that are under way.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.servers.keys().map(|server| self.copies_of(*server)).sum()
    }

    /// How many chunks a server is copying.
    #[must_use]
    pub fn copies_of(&self, server: ServerId) -> usize {
        self.servers
            .get(&server)
            .map_or(0, |book| book.issued.values().filter(|issued| issued.kind == Kind::Copy).count())
    }

    fn add(&mut self, server: ServerId, chunk: ChunkId, kind: Kind, task: StorageTask) -> bool {
        let book = self.servers.entry(server).or_default();
        if book.issued.len() >= OUTSTANDING_MAX || !book.known.insert((chunk, kind)) {
            return false;
        }
        // Given at the next heartbeat: before any time at all.
        book.issued.insert(self.next, Issued { chunk, kind, task, given: Duration::ZERO });
        self.next += 1;
        true
    }

    /// How many more tasks a server can take.
    #[must_use]
    pub fn room(&self, server: ServerId) -> usize {
        OUTSTANDING_MAX - self.servers.get(&server).map_or(0, |book| book.issued.len()).min(OUTSTANDING_MAX)
    }

    /// Takes in what the records say a server has to do, and returns what to tell it now.
    pub fn issue(&mut self, server: ServerId, tasks: &[ChunkTasks], now: Duration) -> Vec<NumberedTask> {
        for task in tasks {
            let chunk = task.chunk;
            if task.record.delete {
                self.add(server, chunk, Kind::Delete, StorageTask::Delete { chunk });
                continue;
            }
            if let Some((generation, length)) = task.record.seal {
                self.add(server, chunk, Kind::Seal, StorageTask::Seal { chunk, generation, length });
            }
            if task.record.trim && !task.dead.is_empty() {
                let ranges = task
                    .dead
                    .iter()
                    .take(TRIM_RANGES_MAX)
                    .map(|(first, blocks)| ChunkRange {
                        offset: first * BLOCK_BYTES,
                        length: blocks * BLOCK_BYTES,
                    })
                    .collect();
                self.add(server, chunk, Kind::Trim, StorageTask::Trim { chunk, ranges });
            }
        }
        let Some(book) = self.servers.get_mut(&server) else { return Vec::new() };
        let mut tasks = Vec::new();
        for (number, issued) in &mut book.issued {
            if issued.given == Duration::ZERO || now.saturating_sub(issued.given) > AGAIN_AFTER {
                issued.given = now;
                tasks.push(NumberedTask { number: *number, task: issued.task.clone() });
            }
        }
        tasks
    }
}

fn interpret(issued: &Issued, result: &Result<(), StorageError>, meaning: &mut Meaning) {
    let chunk = issued.chunk;
    match (&issued.task, result) {
        (StorageTask::Delete { .. }, Ok(()) | Err(StorageError::NoSuchChunk)) => {
            meaning.done.push(Done::Deleted(chunk))
        }
        // A replica at a newer generation was sealed with that: the record asks for the newer seal, or has it.
        (StorageTask::Seal { generation, .. }, Ok(()) | Err(StorageError::StaleGeneration { .. })) => {
            meaning.done.push(Done::Sealed(chunk, *generation));
        }
        (
            StorageTask::Seal { .. },
            Err(
                StorageError::NoSuchChunk | StorageError::SealMismatch { .. } | StorageError::PastSeal { .. },
            ),
        ) => {
            meaning.missing.push(chunk);
        }
        (StorageTask::Trim { ranges, .. }, Ok(()) | Err(StorageError::NoSuchChunk)) => {
            let ranges = ranges.iter().map(|r| (r.offset / BLOCK_BYTES, r.length / BLOCK_BYTES)).collect();
            meaning.done.push(Done::Trimmed(chunk, ranges));
        }
        (StorageTask::Copy { generation, .. }, Ok(())) => meaning.copied.push((chunk, *generation)),
        (StorageTask::Copy { .. }, Err(error)) => {
            tracing::warn!(%chunk, %error, "copying a replica failed; it is retried");
            meaning.not_copied.push(chunk);
        }
        // The record still asks for it, so it is given again.
        (task, Err(error)) => {
            tracing::warn!(%chunk, task = ?task, %error, "a storage server failed a task; it is retried")
        }
        (_, Ok(())) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: ServerId = ServerId(5);
    const CHUNK: ChunkId = ChunkId(9);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    fn task() -> ChunkTasks {
        let task = TaskRecord { delete: false, seal: Some((Generation(2), 8192)), trim: true };
        ChunkTasks { chunk: CHUNK, record: task, dead: vec![(3, 2)] }
    }

    #[test]
    fn an_order_is_given_once_and_again_only_after_a_while() {
        let mut book = TaskQueue::begin(3);
        let first = book.issue(SERVER, &[task()], at(0));
        assert_eq!(first.len(), 2);
        assert!(first.iter().all(|task| task.number >> 32 == 3));
        assert!(book.issue(SERVER, &[task()], at(5)).is_empty());
        assert_eq!(book.issue(SERVER, &[task()], at(11)), first, "the same numbers");
        book.restarted(SERVER);
        assert_eq!(book.issue(SERVER, &[task()], at(12)).len(), 2);
    }

    #[test]
    fn reports_become_what_the_records_need() {
        let mut book = TaskQueue::begin(1);
        let tasks = book.issue(SERVER, &[task()], at(0));
        let reports: Vec<Report> =
            tasks.iter().map(|task| Report { task: task.number, result: Ok(()) }).collect();
        let meaning = book.report(SERVER, &reports);
        assert_eq!(meaning.done, [Done::Sealed(CHUNK, Generation(2)), Done::Trimmed(CHUNK, vec![(3, 2)])]);
        assert_eq!(book.report(SERVER, &reports), Meaning::default(), "a repeated report says nothing new");
    }

    #[test]
    fn a_missing_replica_is_told_and_a_deleted_one_is_deleted() {
        let mut book = TaskQueue::begin(1);
        let tasks = book.issue(SERVER, &[ChunkTasks { dead: Vec::new(), ..task() }], at(0));
        assert_eq!(tasks.len(), 1, "nothing to trim");
        let result = Err(StorageError::NoSuchChunk);
        let meaning = book.report(SERVER, &[Report { task: tasks[0].number, result: result.clone() }]);
        assert_eq!(meaning.missing, [CHUNK]);
        let delete = TaskRecord { delete: true, ..TaskRecord::default() };
        let tasks = book.issue(SERVER, &[ChunkTasks { chunk: CHUNK, record: delete, dead: vec![] }], at(0));
        let meaning = book.report(SERVER, &[Report { task: tasks[0].number, result }]);
        assert_eq!(meaning.done, [Done::Deleted(CHUNK)]);
    }

    #[test]
    fn a_failed_order_is_given_again() {
        let mut book = TaskQueue::begin(1);
        let tasks = book.issue(SERVER, &[task()], at(0));
        let failed = Report { task: tasks[1].number, result: Err(StorageError::DiskFailed("EIO".into())) };
        assert_eq!(book.report(SERVER, &[failed]), Meaning::default());
        let again = book.issue(SERVER, &[task()], at(1));
        assert_eq!(again.len(), 1);
        assert!(matches!(again[0].task, StorageTask::Trim { .. }));
    }
}
