//! Gathers commands from everywhere into entries of the log.
//!
//! One task owns the way into the log: while entries are on their way, what comes meanwhile becomes the next
//! one. So a lone command goes at once, and a thousand at a time cost a few entries.

use std::collections::VecDeque;
use std::sync::Arc;

use atoll_core::commands::{Command, Outcome};
use atoll_core::error::FsError;
use atoll_core::ids::MemberId;
use atoll_proto::metadata::MetadataError;
use atoll_raft::ProposeError;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, poll};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;
use crate::state_machine::{self, Batch};

/// Commands in one entry.
pub const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes in one entry, above which no further command is added (a command of its own may be larger).
pub const BATCH_BYTES_MAX: usize = 512 << 10;
/// Entries that are on their way at the same time; what comes meanwhile is gathered.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 3;
/// Commands that wait to be proposed; who has a further one waits.
const QUEUE_COMMANDS_MAX: usize = 4096;
/// Bytes of commands that wait or are on their way; who has more waits.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// The way into the replicated log.
pub trait Log: Send + Sync + 'static {
    /// Proposes an entry as the leader of `term`, of no other one; its result when it is committed and applied. Entries take
    /// effect in the order of the first polls.
    fn propose(&self, term: u64, entry: Bytes) -> BoxFuture<'static, Result<Bytes, ProposeError>>;
}

/// Commands that go into one entry, one right behind the other.
struct Job {
    /// The term in which they were decided on.
    term: u64,
    commands: usize,
    encoded: Vec<u8>,
    done: oneshot::Sender<Result<Vec<Outcome>, MetadataError>>,
}

/// Proposes commands. Clones share the queue.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Job>,
    bytes: Arc<Semaphore>,
}

impl Proposer {
    /// Starts the task that proposes; it ends when the last clone is dropped.
    pub fn start<L: Log + ?Sized>(log: Arc<L>, metrics: Metrics) -> (Proposer, JoinHandle<()>) {
        let (queue, jobs) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let task = tokio::spawn(run(log, jobs, metrics));
        (Proposer { queue, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }, task)
    }

    /// Carries out one command, decided on in `term`: it isn't proposed in another one, though this member lead there, too.
    ///
    /// # Errors
    /// If it isn't known to have been carried out; what it is refused for is an outcome.
    pub async fn propose(&self, term: u64, command: &Command) -> Result<Outcome, MetadataError> {
        let outcomes = self.propose_together(term, std::slice::from_ref(command)).await?;
        outcomes.into_iter().next().ok_or_else(no_outcome)
    }

    /// Carries out several commands, in their order; they travel together as far as they fit.
    ///
    /// # Errors
    /// Of the first one that isn't known to have been carried out.
    pub async fn propose_all(&self, term: u64, commands: &[Command]) -> Result<Vec<Outcome>, MetadataError> {
        // In order: the futures are polled for the first time in the order of the commands.
        futures::future::try_join_all(commands.iter().map(|command| self.propose(term, command))).await
    }

    /// Carries out a few commands with nothing between them, all or none.
    ///
    /// # Errors
    /// If they aren't known to have been carried out.
    pub async fn propose_together(
        &self,
        term: u64,
        commands: &[Command],
    ) -> Result<Vec<Outcome>, MetadataError> {
        let encoded = commands.iter().fold(Vec::new(), state_machine::append_command);
        let bytes = encoded.len().min(QUEUE_BYTES_MAX) as u32;
        let _room = self.bytes.acquire_many(bytes).await.map_err(|_| stopped())?;
        let (done, outcomes) = oneshot::channel();
        let job = Job { term, commands: commands.len(), encoded, done };
        self.queue.send(job).await.map_err(|_| stopped())?;
        outcomes.await.map_err(|_| stopped())?
    }
}

fn no_outcome() -> MetadataError {
    MetadataError::Failed("a command has no outcome".into())
}

fn stopped() -> MetadataError {
    MetadataError::Failed("the server is stopping".into())
}

/// What a refused proposal means to who sent the command.
#[must_use]
pub fn proposal_error(error: ProposeError) -> MetadataError {
    match error {
        ProposeError::NotLeader { leader } => {
            MetadataError::NotLeader { leader: leader.map(|(member, address)| (MemberId(member), address)) }
        }
        ProposeError::OutcomeUnknown { .. } => MetadataError::LeadershipLost,
        ProposeError::TooLarge { .. } => MetadataError::Fs(FsError::InvalidArgument),
        ProposeError::Storage(reason) => MetadataError::Failed(reason),
        ProposeError::Stopped(reason) => MetadataError::Failed(reason),
    }
}

/// Who waits for how many outcomes.
type Waiting = Vec<(usize, oneshot::Sender<Result<Vec<Outcome>, MetadataError>>)>;

async fn run<L: Log + ?Sized>(log: Arc<L>, mut jobs: mpsc::Receiver<Job>, metrics: Metrics) {
    let mut in_flight: FuturesUnordered<BoxFuture<'static, (Waiting, Result<Bytes, ProposeError>)>> =
        FuturesUnordered::new();
    let mut queued: VecDeque<Job> = VecDeque::new();
    let mut open = true;
    while open || !queued.is_empty() || !in_flight.is_empty() {
        if in_flight.len() < ENTRIES_IN_FLIGHT_MAX && !queued.is_empty() {
            let (term, entry, waiting) = gather(&mut queued);
            metrics.batch(waiting.iter().map(|(commands, _)| commands).sum());
            let mut proposal = log.propose(term, entry).map(move |result| (waiting, result)).boxed();
            // Polled here, so that entries enter the log in this order.
            match poll!(&mut proposal) {
                std::task::Poll::Ready((waiting, result)) => complete(waiting, result),
                std::task::Poll::Pending => in_flight.push(proposal),
            }
            continue;
        }
        tokio::select! {
            biased;
            Some((waiting, result)) = in_flight.next(), if !in_flight.is_empty() => complete(waiting, result),
            job = jobs.recv(), if open && queued.len() < BATCH_COMMANDS_MAX => match job {
                Some(job) => {
                    queued.push_back(job);
                    while queued.len() < BATCH_COMMANDS_MAX && let Ok(job) = jobs.try_recv() {
                        queued.push_back(job);
                    }
                }
                None => open = false,
            },
        }
    }
}

/// The next entry: commands of one term.
fn gather(queued: &mut VecDeque<Job>) -> (u64, Bytes, Waiting) {
    let mut batch = Batch::default();
    let mut waiting = Waiting::new();
    let term = queued.front().map_or(0, |job| job.term);
    while let Some(job) = queued.pop_front_if(|job| {
        waiting.is_empty()
            || (job.term == term
                && batch.commands() + job.commands <= BATCH_COMMANDS_MAX
                && batch.bytes() + job.encoded.len() <= BATCH_BYTES_MAX)
    }) {
        batch.add(job.commands, &job.encoded);
        waiting.push((job.commands, job.done));
    }
    (term, batch.finish(), waiting)
}

fn complete(waiting: Waiting, result: Result<Bytes, ProposeError>) {
    let outcomes = match result.map_err(proposal_error) {
        Ok(bytes) => {
            state_machine::decode_outcomes(&bytes).map_err(|error| MetadataError::Failed(error.to_string()))
        }
        Err(error) => Err(error),
    };
    match outcomes {
        Ok(outcomes) => {
            let mut outcomes = outcomes.into_iter();
            for (commands, done) in waiting {
                let own: Vec<Outcome> = outcomes.by_ref().take(commands).collect();
                let _ = done.send(if own.len() == commands { Ok(own) } else { Err(no_outcome()) });
            }
        }
        Err(error) => {
            for (_, done) in waiting {
                let _ = done.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use atoll_core::attributes::Timestamp;
    use atoll_core::commands::{INTERNAL, Op, ServiceOp, ops};
    use atoll_core::ids::{InodeId, SlotId};
    use parking_lot::Mutex;

    use super::*;

    /// Keeps entries until they are let through; the outcome of the command for inode n is `Reserved(n)`.
    #[derive(Default)]
    struct FakeLog {
        entries: Mutex<Vec<Vec<Command>>>,
        terms: Mutex<Vec<u64>>,
        held: Mutex<Vec<oneshot::Sender<()>>>,
        most_in_flight: AtomicUsize,
        fail: Mutex<Option<ProposeError>>,
    }

    impl Log for FakeLog {
        fn propose(&self, term: u64, entry: Bytes) -> BoxFuture<'static, Result<Bytes, ProposeError>> {
            self.terms.lock().push(term);
            if let Some(error) = self.fail.lock().clone() {
                return futures::future::ready(Err(error)).boxed();
            }
            let commands = state_machine::decode_batch(&entry).unwrap();
            let outcomes: Vec<Outcome> = commands
                .iter()
                .map(|command| match command.op {
                    Op::Service(ServiceOp::PurgeOrphan(ops::PurgeOrphan { ino, .. })) => {
                        Outcome::Reserved(ino.0)
                    }
                    _ => Outcome::Done,
                })
                .collect();
            self.entries.lock().push(commands);
            let (go, gone) = oneshot::channel();
            self.held.lock().push(go);
            self.most_in_flight.fetch_max(self.held.lock().len(), Ordering::Relaxed);
            async move {
                let _ = gone.await;
                Ok(state_machine::encode_outcomes(&outcomes))
            }
            .boxed()
        }
    }

    fn command(number: u64, extra: usize) -> Command {
        let op = if extra == 0 {
            Op::from(ops::PurgeOrphan { ino: InodeId(number), segments_max: 1 })
        } else {
            Op::from(ops::RemoveXattr { ino: InodeId(number), name: vec![0; extra].into() })
        };
        Command {
            session: INTERNAL,
            slot: SlotId(0),
            sequence: 0,
            time: Timestamp::default(),
            expect: None,
            op,
        }
    }

    #[tokio::test]
    async fn what_comes_while_entries_are_on_their_way_becomes_one_entry() {
        let log = Arc::new(FakeLog::default());
        let (proposer, _) = Proposer::start(log.clone(), Metrics::default());
        let mut tasks = Vec::new();
        for number in 0..200 {
            let proposer = proposer.clone();
            tasks.push(tokio::spawn(async move { proposer.propose(1, &command(number, 0)).await }));
            if number < 10 {
                // Let the first ones go alone.
                tokio::task::yield_now().await;
            }
        }
        while log.held.lock().len() < ENTRIES_IN_FLIGHT_MAX {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(log.held.lock().len(), ENTRIES_IN_FLIGHT_MAX);
        while tasks.iter().any(|task| !task.is_finished()) {
            log.held.lock().clear();
            tokio::task::yield_now().await;
        }
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), Ok(Outcome::Reserved(number as u64)));
        }
        let entries = log.entries.lock().len();
        assert!(entries < 50, "{entries} entries for 200 commands");
        assert!(log.most_in_flight.load(Ordering::Relaxed) <= ENTRIES_IN_FLIGHT_MAX);
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_bytes_and_keeps_the_order() {
        let log = Arc::new(FakeLog::default());
        let (proposer, _) = Proposer::start(log.clone(), Metrics::default());
        let commands: Vec<Command> = (0..12).map(|number| command(number, 200 << 10)).collect();
        let all = tokio::spawn({
            let proposer = proposer.clone();
            let commands = commands.clone();
            async move { proposer.propose_all(1, &commands).await }
        });
        while !all.is_finished() {
            log.held.lock().clear();
            tokio::task::yield_now().await;
        }
        assert_eq!(all.await.unwrap().unwrap().len(), 12);
        let entries = log.entries.lock();
        assert!(entries.iter().all(|entry| entry.len() <= 2), "200 KiB each, 512 KiB at most");
        assert_eq!(entries.iter().flatten().cloned().collect::<Vec<_>>(), commands);
    }

    #[tokio::test]
    async fn an_entry_is_of_one_term_and_what_belongs_together_is_in_one() {
        let log = Arc::new(FakeLog::default());
        let (proposer, _) = Proposer::start(log.clone(), Metrics::default());
        // What keeps the others waiting, so that they are gathered.
        let mut first = Vec::new();
        for number in 1..=ENTRIES_IN_FLIGHT_MAX {
            let proposer = proposer.clone();
            first.push(tokio::spawn(async move { proposer.propose(1, &command(0, 0)).await }));
            while log.held.lock().len() < number {
                tokio::task::yield_now().await;
            }
        }
        let mut later = Vec::new();
        for term in [1, 1, 2, 2, 1] {
            let proposer = proposer.clone();
            let pair = [command(10, 0), command(11, 0)];
            later.push(tokio::spawn(async move { proposer.propose_together(term, &pair).await }));
            // They are queued in this order.
            tokio::task::yield_now().await;
        }
        while !later.iter().all(tokio::task::JoinHandle::is_finished) {
            log.held.lock().clear();
            tokio::task::yield_now().await;
        }
        for task in later {
            assert_eq!(task.await.unwrap(), Ok(vec![Outcome::Reserved(10), Outcome::Reserved(11)]));
        }
        for task in first {
            task.await.unwrap().unwrap();
        }
        let sizes: Vec<usize> = log.entries.lock().iter().map(Vec::len).collect();
        let terms = log.terms.lock().clone();
        assert_eq!((sizes, terms), (vec![1, 1, 1, 4, 4, 2], vec![1, 1, 1, 1, 2, 1]));
    }

    #[tokio::test]
    async fn everyone_is_told_why_it_failed() {
        let log = Arc::new(FakeLog::default());
        *log.fail.lock() = Some(ProposeError::NotLeader { leader: Some((7, "host:1".into())) });
        let (proposer, _) = Proposer::start(log.clone(), Metrics::default());
        let expected = MetadataError::NotLeader { leader: Some((MemberId(7), "host:1".into())) };
        assert_eq!(proposer.propose(1, &command(1, 0)).await, Err(expected));
        *log.fail.lock() = Some(ProposeError::OutcomeUnknown { leader: None });
        assert_eq!(proposer.propose(1, &command(1, 0)).await, Err(MetadataError::LeadershipLost));
    }
}
