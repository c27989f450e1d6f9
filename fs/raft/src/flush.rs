//! When the state machine is flushed, what of the log may be dropped then, and when proposals
//! have to wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;

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
    ///
    /// Only a flush is waited for that has something to flush. After a restart all of a full log may be entries that
    /// nobody knows yet to be committed: that is found out by adding to it, and nothing else makes it shorter.
    pub(crate) async fn admit(&self) -> Result<(), String> {
        if self.unflushed_bytes() < self.flush_log_bytes {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        loop {
            {
                let now = progress.borrow_and_update();
                let flushes = self.machine.applied().position > self.machine.flushed();
                if now.stopped || !flushes || self.unflushed_bytes() < self.flush_log_bytes {
                    return Ok(());
                }
                if let Some(failure) = &now.failure {
                    return Err(format!("the metadata store can't be flushed: {failure}"));
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
                match self.flush_and_drop(&raft).await {
                    Ok(Ok(Some(_))) => {}
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => {
                        tracing::error!("can't flush the metadata store: {error}");
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

    /// Flushes, and drops the log that is no longer needed then: whoever flushes before it is due has to do both, or nobody
    /// drops anything. The outer error: the runtime is going down.
    pub(crate) async fn flush_and_drop(
        self: &Arc<Self>,
        raft: &Raft,
    ) -> Result<Result<Option<LogPosition>, String>, JoinError> {
        let this = self.clone();
        let flushed = atoll_blocking::spawn(move || this.flush()).await?;
        if let Ok(Some(position)) = &flushed {
            self.drop_log(*position, raft).await;
        }
        Ok(flushed)
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
            tracing::debug!("old log segments can't be removed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::disk::RealDisk;
    use crate::log_store::{LogConfig, LogEntry};
    use crate::record::Kind;
    use crate::test_support::{HANG, ListMachine};
    use crate::types::{AppliedEntry, AppliedPayload};

    const SEGMENT_BYTES: u32 = 64 << 10;

    /// A log with more than may be left unflushed, none of it applied, as after a restart.
    async fn full_log(dir: &std::path::Path) -> (Arc<LogStore>, Vec<LogEntry>) {
        let config = LogConfig { dir: dir.to_owned(), member: 1, segment_bytes: SEGMENT_BYTES };
        let store = Arc::new(LogStore::open(&config, Arc::new(RealDisk { sync: false })).unwrap());
        let entries: Vec<LogEntry> = (0..20)
            .map(|index| LogEntry {
                position: LogPosition { term: 1, index },
                kind: Kind::Normal,
                payload: Bytes::from(vec![7; 4000]),
            })
            .collect();
        for entry in &entries {
            let (done, appended) = tokio::sync::oneshot::channel();
            store.append(vec![entry.clone()], Box::new(move |result| drop(done.send(result)))).unwrap();
            appended.await.unwrap().unwrap();
        }
        (store, entries)
    }

    #[tokio::test]
    async fn entries_that_can_not_be_flushed_yet_keep_no_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let (store, entries) = full_log(dir.path()).await;
        let machine = ListMachine::open(&dir.path().join("machine"));
        let flushing = Flushing::new(store.clone(), machine.clone(), u64::from(SEGMENT_BYTES), 0);
        assert!(flushing.unflushed_bytes() > u64::from(SEGMENT_BYTES));
        tokio::time::timeout(HANG, flushing.admit()).await.expect("nothing is waited for").unwrap();
        // Once they are applied there is something to flush, and that is waited for.
        let applied = entries.into_iter().map(|entry| AppliedEntry {
            position: entry.position,
            payload: AppliedPayload::Normal(entry.payload),
        });
        machine.apply(applied.collect()).unwrap();
        let admitted = flushing.admit();
        tokio::pin!(admitted);
        assert!(futures::poll!(&mut admitted).is_pending());
        flushing.flush().unwrap();
        tokio::time::timeout(HANG, admitted).await.expect("it was flushed").unwrap();
        store.close();
    }
}
