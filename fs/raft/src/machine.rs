//! The state machine as openraft wants it.
//!
//! openraft knows snapshots; here a snapshot that openraft "builds" is nothing but the fact that
//! the state is durable up to a position, which lets it drop the log up to there. Files are made
//! only when a snapshot is to be sent.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StoredMembership};

use crate::flush::Flushing;
use crate::group::{
    Entry, Group, GroupLogId, GroupStoredMembership, decode_stored_membership, encode_stored_membership,
};
use crate::snapshot::{SnapshotData, Snapshots};
use crate::types::{AppliedEntry, AppliedPayload, LogPosition, StateMachine};

/// Entries given to the state machine at once.
const APPLY_ENTRIES_MAX: usize = 1024;
/// Payload given to the state machine at once, in bytes (or one entry, if that is larger).
const APPLY_BYTES_MAX: usize = 1 << 20;
/// From this much payload on, in bytes, the thread tells the async runtime that it will be busy.
/// Telling costs about as much as applying a small command.
const APPLY_BYTES_BUSY: usize = 128 << 10;

/// Our state machine behind openraft's trait.
pub(crate) struct Machine {
    inner: Arc<dyn StateMachine>,
    flushing: Arc<Flushing>,
    snapshots: Arc<Snapshots>,
    /// Before the node runs, openraft asks for the current snapshot to find out its position only.
    running: Arc<AtomicBool>,
    /// Why applying failed.
    failure: Arc<OnceLock<String>>,
}

/// A run of entries, and who waits for them.
#[derive(Default)]
struct Run {
    entries: Vec<AppliedEntry>,
    responders: Vec<(bool, Option<ApplyResponder<Group>>)>,
    bytes: usize,
}

impl Run {
    fn push(&mut self, entry: Entry, responder: Option<ApplyResponder<Group>>) {
        let position = LogPosition::from(entry.log_id);
        let payload = match entry.payload {
            EntryPayload::Blank => AppliedPayload::Blank,
            EntryPayload::Normal(command) => {
                self.bytes += command.0.len();
                AppliedPayload::Normal(command.0)
            }
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id), membership);
                AppliedPayload::Membership(encode_stored_membership(&stored))
            }
        };
        self.responders.push((matches!(payload, AppliedPayload::Normal(_)), responder));
        self.entries.push(AppliedEntry { position, payload });
    }
}

impl Machine {
    pub(crate) fn new(
        inner: Arc<dyn StateMachine>,
        flushing: Arc<Flushing>,
        snapshots: Arc<Snapshots>,
        running: Arc<AtomicBool>,
    ) -> Self {
        Self { inner, flushing, snapshots, running, failure: Arc::default() }
    }

    /// Why applying failed, once it has. Known before those who wait for their commands are let go, while openraft
    /// tells it some time later.
    pub(crate) fn failure(&self) -> Arc<OnceLock<String>> {
        self.failure.clone()
    }

    fn fail(&self, error: io::Error) -> io::Error {
        // The first one is the cause.
        let _ = self.failure.set(error.to_string());
        error
    }

    fn apply_run(&self, run: Run) -> io::Result<()> {
        let results = if run.bytes >= APPLY_BYTES_BUSY {
            atoll_blocking::in_place(|| self.inner.apply(run.entries))
        } else {
            self.inner.apply(run.entries)
        };
        let mut results = results.map_err(|e| self.fail(io::Error::other(e)))?.into_iter();
        for (is_command, responder) in run.responders {
            let result = if is_command {
                let missing = || self.fail(io::Error::other("the state machine gave too few results"));
                results.next().ok_or_else(missing)?
            } else {
                Bytes::new()
            };
            if let Some(responder) = responder {
                responder.send(result);
            }
        }
        self.flushing.note_applied();
        Ok(())
    }
}

impl RaftStateMachine<Group> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Flushed;

    async fn applied_state(&mut self) -> io::Result<(Option<GroupLogId>, GroupStoredMembership)> {
        let applied = self.inner.applied();
        let membership = decode_stored_membership(applied.membership.as_deref())?;
        Ok((applied.position.map(GroupLogId::from), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Group>>> + Unpin + OptionalSend,
    {
        let mut run = Run::default();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            run.push(entry, responder);
            if run.bytes >= APPLY_BYTES_MAX || run.entries.len() >= APPLY_ENTRIES_MAX {
                self.apply_run(std::mem::take(&mut run))?;
            }
        }
        if run.entries.is_empty() { Ok(()) } else { self.apply_run(run) }
    }

    async fn get_snapshot_builder(&mut self) -> Flushed {
        Flushed { inner: self.inner.clone(), flushing: self.flushing.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Group>,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData::Received(received) = snapshot else {
            return Err(io::Error::other("only a snapshot that was received can be installed"));
        };
        let inner = self.inner.clone();
        atoll_blocking::spawn(move || {
            let done = inner.install(received.path());
            drop(received);
            done
        })
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
        let expected = meta.last_log_id.map(LogPosition::from);
        let applied = self.inner.applied().position;
        let flushed = self.inner.flushed();
        if applied != expected || flushed != expected {
            return Err(io::Error::other(format!(
                "a snapshot at {expected:?} was installed, but the state is at {applied:?}, durable at {flushed:?}"
            )));
        }
        self.flushing.note_flushed(flushed);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Group, SnapshotData>>> {
        if self.running.load(Ordering::Acquire) {
            return Ok(Some(self.snapshots.checkpoint(self.inner.clone(), &self.flushing).await?));
        }
        let (last_log_id, last_membership) = self.applied_state().await?;
        Ok(last_log_id.map(|id| SnapshotOf::<Group, SnapshotData> {
            meta: SnapshotMetaOf::<Group> { last_log_id: Some(id), last_membership },
            snapshot: SnapshotData::Position,
        }))
    }
}

/// "Builds" a snapshot: says up to where the log may be dropped.
pub(crate) struct Flushed {
    inner: Arc<dyn StateMachine>,
    flushing: Arc<Flushing>,
}

impl RaftSnapshotBuilder<Group> for Flushed {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Group, SnapshotData>> {
        let position = self.flushing.droppable().or_else(|| self.inner.flushed());
        // Of this snapshot only the position is used.
        Ok(SnapshotOf::<Group, SnapshotData> {
            meta: SnapshotMetaOf::<Group> {
                last_log_id: position.map(GroupLogId::from),
                last_membership: GroupStoredMembership::default(),
            },
            snapshot: SnapshotData::Position,
        })
    }
}
