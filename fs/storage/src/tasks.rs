//! Carries out the tasks that the leader issues.

use std::collections::HashSet;
use std::sync::Arc;

use atoll_blocking::Pace;
use atoll_proto::registration::{NumberedTask, StorageTask, TASKS_MAX, TaskDone};
use atoll_proto::storage::{CopyChunk, SealChunk, StorageError};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::service::StorageService;

/// Tasks that wait; what is more is dropped, since a task is repeated until it was carried out.
const TASKS_WAITING_MAX: usize = 2 * TASKS_MAX;
/// Outcomes that wait for a heartbeat; the oldest are dropped (then the task comes again, and does no harm).
const OUTCOMES_WAITING_MAX: usize = 4 * TASKS_MAX;
/// Deletes, trims and seals in a second: each is a few writes to the disk.
const QUICK_TASKS_PER_SECOND: u64 = 500;
/// Copies and scrubs at once.
const LONG_TASKS_AT_ONCE: usize = 2;

/// The tasks that wait or run, and what became of others.
pub(crate) struct TaskWorkers {
    quick: mpsc::Sender<NumberedTask>,
    long: mpsc::Sender<NumberedTask>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Numbers that wait or run: a repetition of them is nothing new.
    taken: HashSet<u64>,
    done: Vec<TaskDone>,
}

impl TaskWorkers {
    /// Starts the workers among `tasks`. They end with `stop`: quick tasks that run are carried out, long ones are
    /// dropped (they come again, and an unfinished copy is cleaned up).
    pub(crate) fn start(
        service: Arc<StorageService>,
        stop: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let pace = Arc::new(Pace::new(QUICK_TASKS_PER_SECOND));
        let (quick, quick_tasks) = mpsc::channel(TASKS_WAITING_MAX);
        let (long, long_tasks) = mpsc::channel(TASKS_WAITING_MAX);
        let worker = Worker { service, state: state.clone(), stop };
        tasks.spawn(worker.clone().work(Arc::new(tokio::sync::Mutex::new(quick_tasks)), Some(pace)));
        let long_tasks = Arc::new(tokio::sync::Mutex::new(long_tasks));
        for _ in 0..LONG_TASKS_AT_ONCE {
            tasks.spawn(worker.clone().work(long_tasks.clone(), None));
        }
        Self { quick, long, state }
    }

    /// Takes tasks, without waiting for them.
    pub(crate) fn take(&self, tasks: Vec<NumberedTask>) {
        for task in tasks {
            let queue = match &task.task {
                StorageTask::Copy { .. } | StorageTask::Scrub { .. } => &self.long,
                _ => &self.quick,
            };
            let number = task.number;
            if !self.state.lock().taken.insert(number) {
                continue;
            }
            if queue.try_send(task).is_err() {
                self.state.lock().taken.remove(&number);
            }
        }
    }

    /// Outcomes that weren't reported yet, at most so many.
    pub(crate) fn outcomes(&self, limit: usize) -> Vec<TaskDone> {
        let mut state = self.state.lock();
        let count = state.done.len().min(limit);
        state.done.drain(..count).collect()
    }

    /// Puts back outcomes that weren't heard.
    pub(crate) fn put_back(&self, outcomes: Vec<TaskDone>) {
        let mut state = self.state.lock();
        let newer = std::mem::replace(&mut state.done, outcomes);
        state.done.extend(newer);
        state.bound();
    }
}

impl State {
    fn bound(&mut self) {
        let excess = self.done.len().saturating_sub(OUTCOMES_WAITING_MAX);
        self.done.drain(..excess);
    }
}

#[derive(Clone)]
struct Worker {
    service: Arc<StorageService>,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl Worker {
    async fn work(
        self,
        queue: Arc<tokio::sync::Mutex<mpsc::Receiver<NumberedTask>>>,
        pace: Option<Arc<Pace>>,
    ) {
        loop {
            let next = async { queue.lock().await.recv().await };
            let task = tokio::select! {
                () = self.stop.cancelled() => return,
                task = next => task,
            };
            let Some(NumberedTask { number, task }) = task else { return };
            if let Some(pace) = &pace {
                pace.take(1).await;
            }
            let result = tokio::select! {
                () = self.stop.cancelled(), if pace.is_none() => return,
                result = self.carry_out(task.clone()) => result,
            };
            if let Err(error) = &result {
                tracing::warn!(
                    task = ?task, %error,
                    "a task failed; the metadata servers issue it again if it is still needed"
                );
            }
            let mut state = self.state.lock();
            state.taken.remove(&number);
            state.done.push(TaskDone { task: number, result });
            state.bound();
        }
    }

    async fn carry_out(&self, task: StorageTask) -> Result<(), StorageError> {
        match task {
            StorageTask::Trim { chunk, ranges } => self.service.trim(chunk, ranges).await,
            StorageTask::Delete { chunk } => self.service.delete(chunk).await,
            StorageTask::Seal { chunk, generation, length } => {
                self.service.seal(SealChunk { chunk, generation, length }).await
            }
            StorageTask::Copy { chunk, generation, length, from } => {
                self.service.copy(CopyChunk { chunk, generation, length, from }).await
            }
            // What it finds is reported with the news.
            StorageTask::Scrub { chunk } => self.service.scrub(chunk).await.map(drop),
            other => Err(StorageError::Invalid(format!("this program doesn't know the task {other:?}"))),
        }
    }
}
