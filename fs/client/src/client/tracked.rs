//! The metadata service, watched: what it says about files that this client has changed is noted, and that the
//! kernel's pages of them survive the change.

use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{Timestamp, VolumeUse};
use atoll_core::commands::{ClientOp, Outcome};
use atoll_core::ids::{InodeId, SessionId};
use atoll_core::locks::LockChange;
use atoll_core::records::VolumeConfig;
use atoll_proto::metadata::{Answer, FileExtents, Query};

use super::handles::Handles;
use super::kept::Kept;
use super::pages::Pages;
use crate::metadata::{ClientError, Hook, Made, Metadata, Wanted};

/// See the module.
pub struct Tracked<M> {
    inner: Arc<M>,
    pages: Arc<Pages>,
    handles: Arc<Handles>,
    kept: Arc<Kept>,
}

impl<M> Tracked<M> {
    pub(super) fn new(inner: Arc<M>, pages: Arc<Pages>, handles: Arc<Handles>, kept: Arc<Kept>) -> Self {
        Tracked { inner, pages, handles, kept }
    }

    /// The service itself.
    #[must_use]
    pub fn inner(&self) -> &Arc<M> {
        &self.inner
    }

    /// What an operation names, and what its outcome describes, has changed; or may have, if there is none.
    fn note_changed(&self, named: [Option<InodeId>; 2], outcome: Option<&Outcome>) {
        let described = match outcome {
            Some(
                Outcome::Inode(attributes)
                | Outcome::Appended(_, attributes)
                | Outcome::Allocated(_, attributes)
                | Outcome::Copied(_, attributes),
            ) => [Some(attributes.ino), None],
            Some(Outcome::Replaced(moved, replaced)) => [Some(moved.ino), Some(replaced.ino)],
            _ => [None; 2],
        };
        self.kept.note(named.into_iter().chain(described).flatten());
    }

    fn note(&self, outcome: Result<&Outcome, &ClientError>) {
        let Ok(outcome) = outcome else { return };
        match outcome {
            Outcome::Inode(attributes) => {
                self.pages.learn(attributes.ino, attributes.size);
                self.handles.learn(attributes);
                self.pages.own_change(attributes);
            }
            // It went past the kernel's pages: where the service chose; or they change when all of it is done, if it
            // is.
            Outcome::Appended(_, attributes)
            | Outcome::Allocated(_, attributes)
            | Outcome::Copied(_, attributes) => {
                self.pages.learn(attributes.ino, attributes.size);
                self.handles.learn(attributes);
            }
            _ => {}
        }
    }
}

/// The inodes that an operation of the kernel's names, and changes.
fn named_by(op: &ClientOp) -> [Option<InodeId>; 2] {
    match op {
        ClientOp::Create(op) => [Some(op.parent), None],
        ClientOp::Unlink(op) => [Some(op.parent), None],
        ClientOp::Rename(op) => [Some(op.parent), Some(op.new_parent)],
        ClientOp::Link(op) => [Some(op.parent), Some(op.ino)],
        ClientOp::SetAttr(op) => [Some(op.ino), None],
        ClientOp::SetXattr(op) => [Some(op.ino), None],
        ClientOp::RemoveXattr(op) => [Some(op.ino), None],
        // Of the others the outcome says what they have changed, or they change nothing that the kernel keeps.
        _ => [None; 2],
    }
}

impl<M: Metadata> Metadata for Tracked<M> {
    async fn execute(&self, op: ClientOp) -> Result<Outcome, ClientError> {
        let named = named_by(&op);
        let outcome = self.inner.execute(op).await;
        self.note_changed(named, outcome.as_ref().ok());
        self.note(outcome.as_ref());
        outcome
    }

    async fn execute_if(&self, op: ClientOp, wanted: Wanted) -> Result<Outcome, ClientError> {
        let named = named_by(&op);
        let outcome = self.inner.execute_if(op, wanted).await;
        self.note_changed(named, outcome.as_ref().ok());
        self.note(outcome.as_ref());
        outcome
    }

    async fn make(&self, op: ClientOp) -> Result<Made, ClientError> {
        let named = named_by(&op);
        let made = self.inner.make(op).await;
        self.kept.note(named.into_iter().flatten().chain(made.as_ref().ok().map(|made| made.attributes.ino)));
        let made = made?;
        self.handles.learn(&made.attributes);
        self.pages.own_change(&made.attributes);
        Ok(made)
    }

    async fn query(&self, query: Query) -> Result<Answer, ClientError> {
        self.inner.query(query).await
    }

    async fn change_locks(
        &self,
        change: LockChange,
        known_change: Option<u64>,
        segments: u32,
    ) -> Result<Option<FileExtents>, ClientError> {
        self.inner.change_locks(change, known_change, segments).await
    }

    fn session(&self) -> SessionId {
        self.inner.session()
    }

    fn incarnation(&self) -> u64 {
        self.inner.incarnation()
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn config(&self) -> Arc<VolumeConfig> {
        self.inner.config()
    }

    fn inline_allowed(&self) -> bool {
        self.inner.inline_allowed()
    }

    fn servers_version(&self) -> u64 {
        self.inner.servers_version()
    }

    fn volume(&self) -> VolumeUse {
        self.inner.volume()
    }

    fn valid_for(&self) -> Duration {
        self.inner.valid_for()
    }

    fn away_for(&self) -> Option<Duration> {
        self.inner.away_for()
    }

    fn is_open(&self, ino: InodeId) -> bool {
        self.handles.file(ino).is_some()
    }

    fn closed(&self, ino: InodeId) {
        self.inner.closed(ino);
    }

    fn closed_for_now(&self, ino: InodeId) {
        self.inner.closed_for_now(ino);
    }

    fn open_again(&self, ino: InodeId) -> bool {
        self.inner.open_again(ino)
    }

    fn unlinked(&self, ino: InodeId) {
        self.inner.unlinked(ino);
    }

    fn lost(&self, ino: InodeId) {
        self.pages.lost(ino);
    }

    fn subscribe(&self, hook: Hook) {
        self.inner.subscribe(hook);
    }
}
