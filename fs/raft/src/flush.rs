//! When the state machine is flushed, what of the log may be dropped then, and when proposals
//! have to wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::group::Raft;
use crate::log_store::LogStore;
use crate::types::{LogPosition, StateMachine};

/// Log kept for a follower that is receiving a snapshot, in bytes: with more than this the log is
/// dropped all the same, and that follower will need another snapshot.
const SNAPSHOT_HOLD_LOG_BYTES_MAX: u64 = 1 << 30;
/// A flush that failed is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What those who wait for a flush look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Flushes so far, failed ones too.
    attempts: u64,
    /// Why the last one failed.
    failure: Option<String>,
    stopped: bool,
}

/// Keeps account of what is flushed. The rule: at half of `flush_log_bytes` of log since the last
/// flush there is a flush, at the whole of it proposals wait.
pub(crate) struct Flushing {
    store: Arc<LogStore>,
    machine: Arc<dyn StateMachine>,
    flush_log_bytes: u64,
    keep_log_bytes: u64,
    /// The log's running count of bytes at the last flush.
    flushed_bytes: AtomicU64,
    /// There are other members who may lag.
    followers: AtomicBool,
    /// Snapshots being sent.
    sending: AtomicUsize,
    /// Up to here the log may be dropped.
    droppable: Mutex<Option<LogPosition>>,
    wake: Notify,
    progress: watch::Sender<Progress>,
}

/// While it lives, the log is not dropped.
pub(crate) struct LogHold(Arc<Flushing>);

impl Drop for LogHold {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Flushing {
    pub(crate) fn new(
        store: Arc<LogStore>,
        machine: Arc<dyn StateMachine>,
        flush_log_bytes: u64,
        keep_log_bytes: u64,
    ) -> Arc<Self> {
        let this = Self {
            flushed_bytes: AtomicU64::new(store.bytes_at(machine.flushed().map(|p| p.index))),
            store,
            machine,
            flush_log_bytes,
            keep_log_bytes,
            followers: AtomicBool::new(false),
            sending: AtomicUsize::new(0),
            droppable: Mutex::new(None),
            wake: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
        };
        Arc::new(this)
    }

    /// Bytes of log since the last flush; cheap.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.store.total_bytes().saturating_sub(self.flushed_bytes.load(Ordering::Acquire))
    }

    /// Something was applied; cheap.
    pub(crate) fn note_applied(&self) {
        if self.unflushed_bytes() >= self.flush_log_bytes / 2 {
            self.wake.notify_one();
        }
    }

    /// The state is durable up to `position` (after a flush, or after a snapshot was installed).
    pub(crate) fn note_flushed(&self, position: Option<LogPosition>) {
        let bytes = self.store.bytes_at(position.map(|p| p.index));
        self.flushed_bytes.fetch_max(bytes, Ordering::AcqRel);
    }

    /// Whether other members may need parts of the log.
    pub(crate) fn set_followers(&self, followers: bool) {
        self.followers.store(followers, Ordering::Release);
    }

    /// Up to where the log may be dropped; what openraft is told to be in a snapshot.
    pub(crate) fn droppable(&self) -> Option<LogPosition> {
        *self.droppable.lock()
    }

    /// Keeps the log for one snapshot that is being sent.
    pub(crate) fn hold_log(self: &Arc<Self>) -> LogHold {
        self.sending.fetch_add(1, Ordering::AcqRel);
        LogHold(self.clone())
    }

    /// Waits until a command may be added to the log; an error if flushing fails.
    pub(crate) async fn admit(&self) -> Result<(), String> {
        if self.unflushed_bytes() < self.flush_log_bytes {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        loop {
            {
                let now = progress.borrow_and_update();
                if now.stopped || self.unflushed_bytes() < self.flush_log_bytes {
                    return Ok(());
                }
                if let Some(failure) = &now.failure {
                    return Err(format!("the state can't be flushed: {failure}"));
                }
            }
            self.wake.notify_one();
            if progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Why flushing fails, if it does.
    pub(crate) fn failure(&self) -> Option<String> {
        self.progress.borrow().failure.clone()
    }

    /// Flushes now. Blocks.
    pub(crate) fn flush(&self) -> Result<Option<LogPosition>, String> {
        let result = self.machine.flush().map_err(|e| e.to_string());
        if let Ok(position) = &result {
            self.note_flushed(*position);
        }
        self.progress.send_modify(|progress| {
            progress.attempts += 1;
            progress.failure = result.as_ref().err().cloned();
        });
        result
    }

    /// Lets everybody go who waits.
    pub(crate) fn stop(&self) {
        self.progress.send_modify(|progress| progress.stopped = true);
        self.wake.notify_one();
    }

    fn is_due(&self) -> bool {
        let applied = self.machine.applied().position;
        self.unflushed_bytes() >= self.flush_log_bytes / 2 && applied > self.machine.flushed()
    }

    /// Flushes whenever it's due, until stopped.
    pub(crate) async fn run(self: Arc<Self>, raft: Raft) {
        loop {
            self.wake.notified().await;
            while !self.progress.borrow().stopped && self.is_due() {
                let this = self.clone();
                match atoll_blocking::spawn(move || this.flush()).await {
                    Ok(Ok(Some(position))) => self.drop_log(position, &raft).await,
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => {
                        tracing::error!("can't flush the state: {error}");
                        tokio::time::sleep(RETRY).await;
                    }
                    // The runtime is going down.
                    Err(_) => return,
                }
            }
            if self.progress.borrow().stopped {
                return;
            }
        }
    }

    /// The state is durable up to `flushed`: decides what of the log is no longer needed, and
    /// tells openraft, which drops it when no follower is reading there.
    async fn drop_log(&self, flushed: LogPosition, raft: &Raft) {
        let (base, _) = self.store.ends();
        let before = self.store.bytes_at(base.map(|b| b.index));
        let kept = self.store.bytes_at(Some(flushed.index)).saturating_sub(before);
        if self.sending.load(Ordering::Acquire) > 0 && kept < SNAPSHOT_HOLD_LOG_BYTES_MAX {
            return;
        }
        let keep = if self.followers.load(Ordering::Acquire) { self.keep_log_bytes } else { 0 };
        let Some(droppable) = self.store.position_before(flushed, keep) else {
            return;
        };
        {
            let mut last = self.droppable.lock();
            if last.is_some_and(|last| last >= droppable) {
                return;
            }
            *last = Some(droppable);
        }
        if let Err(error) = raft.trigger().snapshot().await {
            tracing::debug!("the log isn't dropped: {error}");
        }
    }
}
