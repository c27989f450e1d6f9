//! A state machine and a transport for tests.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::node::RaftNode;
use crate::types::{
    AppliedEntry, AppliedPayload, AppliedState, LogPosition, MemberId, PeerTransport, StateMachine,
    StateMachineError,
};

/// A bound for things that must happen at all.
pub(crate) const HANG: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    position: Option<LogPosition>,
    membership: Option<Vec<u8>>,
    commands: Vec<Bytes>,
}

/// Keeps every command, in memory; flushing writes all of it to a file.
#[derive(Debug)]
pub(crate) struct ListMachine {
    dir: PathBuf,
    now: Mutex<Content>,
    flushed: Mutex<Option<LogPosition>>,
    pub(crate) flushes: AtomicU64,
    pub(crate) installs: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    /// Applying fails from now on.
    pub(crate) apply_fails: AtomicBool,
    /// Flushing fails with this.
    pub(crate) broken: Mutex<Option<String>>,
}

impl ListMachine {
    pub(crate) fn open(dir: &Path) -> Arc<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let now: Content = match std::fs::read(dir.join("state")) {
            Ok(bytes) => postcard::from_bytes(&bytes).unwrap(),
            Err(_) => Content::default(),
        };
        Arc::new(Self {
            dir: dir.to_owned(),
            flushed: Mutex::new(now.position),
            now: Mutex::new(now),
            flushes: AtomicU64::new(0),
            installs: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            apply_fails: AtomicBool::new(false),
            broken: Mutex::new(None),
        })
    }

    pub(crate) fn commands(&self) -> Vec<Bytes> {
        self.now.lock().commands.clone()
    }

    fn write(&self, content: &Content) {
        std::fs::write(self.dir.join("new"), postcard::to_stdvec(content).unwrap()).unwrap();
        std::fs::rename(self.dir.join("new"), self.dir.join("state")).unwrap();
    }
}

impl StateMachine for ListMachine {
    fn applied(&self) -> AppliedState {
        let now = self.now.lock();
        AppliedState { position: now.position, membership: now.membership.clone() }
    }

    fn apply(&self, entries: Vec<AppliedEntry>) -> Result<Vec<Bytes>, StateMachineError> {
        if self.apply_fails.load(Ordering::Relaxed) {
            return Err(StateMachineError::new("it can't be done"));
        }
        let mut now = self.now.lock();
        let mut results = Vec::new();
        for entry in entries {
            let expected = now.position.map_or(0, |p| p.index + 1);
            if entry.position.index != expected {
                return Err(StateMachineError::new(format!("{} instead of {expected}", entry.position)));
            }
            now.position = Some(entry.position);
            match entry.payload {
                AppliedPayload::Normal(command) => {
                    results.push(Bytes::from([b"did ", &command[..]].concat()));
                    now.commands.push(command);
                }
                AppliedPayload::Blank => {}
                AppliedPayload::Membership(membership) => now.membership = Some(membership),
            }
        }
        Ok(results)
    }

    fn flush(&self) -> Result<Option<LogPosition>, StateMachineError> {
        if let Some(error) = &*self.broken.lock() {
            return Err(StateMachineError::new(error.clone()));
        }
        let content = self.now.lock().clone();
        let mut flushed = self.flushed.lock();
        self.write(&content);
        *flushed = content.position;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(*flushed)
    }

    fn flushed(&self) -> Option<LogPosition> {
        *self.flushed.lock()
    }

    fn checkpoint(&self, dir: &Path) -> Result<AppliedState, StateMachineError> {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        let content = self.now.lock().clone();
        std::fs::create_dir_all(dir.join("sub")).map_err(StateMachineError::new)?;
        let bytes = postcard::to_stdvec(&content).map_err(StateMachineError::new)?;
        std::fs::write(dir.join("sub/state"), bytes).map_err(StateMachineError::new)?;
        std::fs::write(dir.join("empty"), b"").map_err(StateMachineError::new)?;
        Ok(AppliedState { position: content.position, membership: content.membership })
    }

    fn verify(
        &self,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> Result<(), StateMachineError>,
    ) -> Result<(), StateMachineError> {
        let bytes = std::fs::read(dir.join("sub/state")).map_err(StateMachineError::new)?;
        pace(bytes.len() as u64)?;
        let _: Content = postcard::from_bytes(&bytes).map_err(StateMachineError::new)?;
        Ok(())
    }

    fn install(&self, dir: &Path) -> Result<(), StateMachineError> {
        self.installs.fetch_add(1, Ordering::Relaxed);
        assert!(dir.join("empty").exists());
        let bytes = std::fs::read(dir.join("sub/state")).map_err(StateMachineError::new)?;
        let content: Content = postcard::from_bytes(&bytes).map_err(StateMachineError::new)?;
        self.write(&content);
        *self.flushed.lock() = content.position;
        *self.now.lock() = content;
        Ok(())
    }
}

/// Carries requests between nodes in this process.
#[derive(Default)]
pub(crate) struct Hub {
    nodes: RwLock<HashMap<MemberId, Arc<RaftNode>>>,
    cut: RwLock<HashSet<MemberId>>,
    /// Chunks of snapshots that came through.
    pub(crate) chunks: AtomicU64,
    /// So many may; no limit without.
    pub(crate) chunks_max: Mutex<Option<u64>>,
}

impl Hub {
    pub(crate) fn put(&self, member: MemberId, node: Arc<RaftNode>) {
        self.nodes.write().insert(member, node);
    }

    pub(crate) fn remove(&self, member: MemberId) -> Option<Arc<RaftNode>> {
        self.nodes.write().remove(&member)
    }

    /// Cuts a member off from all others, or no longer.
    pub(crate) fn cut(&self, member: MemberId, cut: bool) {
        if cut {
            self.cut.write().insert(member);
        } else {
            self.cut.write().remove(&member);
        }
    }
}

/// One member's way to the others.
pub(crate) struct Link {
    pub(crate) hub: Arc<Hub>,
    pub(crate) from: MemberId,
}

impl PeerTransport for Link {
    fn call<'a>(
        &'a self,
        to: MemberId,
        addr: &'a str,
        kind: u16,
        payload: Bytes,
    ) -> BoxFuture<'a, io::Result<Bytes>> {
        Box::pin(async move {
            assert_eq!(addr, format!("member-{to}"));
            let cut = || {
                let cut = self.hub.cut.read();
                cut.contains(&to) || cut.contains(&self.from)
            };
            let node = self.hub.nodes.read().get(&to).cloned();
            let Some(node) = node.filter(|_| !cut()) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            if kind == crate::wire::kind::SNAPSHOT_CHUNK {
                let before = self.hub.chunks.fetch_add(1, Ordering::SeqCst);
                if self.hub.chunks_max.lock().is_some_and(|max| before >= max) {
                    self.hub.chunks.fetch_sub(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
            let answer = node.handle_peer(kind, payload).await.map_err(io::Error::other)?;
            if cut() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(answer) }
        })
    }
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANG, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
