//! The metadata service, watched: what it says about files that this client has changed is noted, and that the
//! kernel's pages of them survive the change.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{Attributes, Timestamp, VolumeUse};
use atoll_core::commands::{ClientOp, Outcome, RENAME_EXCHANGE};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId};
use atoll_core::locks::LockChange;
use atoll_core::records::VolumeConfig;
use atoll_proto::metadata::{Answer, FileExtents, Query};

use super::complete::{Complete, Renaming};
use super::described::Described;
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
    described: Arc<Described>,
    complete: Arc<Complete>,
}

impl<M> Tracked<M> {
    pub(super) fn new(
        inner: Arc<M>,
        pages: Arc<Pages>,
        handles: Arc<Handles>,
        kept: Arc<Kept>,
        described: Arc<Described>,
        complete: Arc<Complete>,
    ) -> Self {
        Tracked { inner, pages, handles, kept, described, complete }
    }

    /// The service itself.
    #[must_use]
    pub fn inner(&self) -> &Arc<M> {
        &self.inner
    }

    /// What an operation names, and what its outcome describes, has changed; or may have, if there is none.
    fn note_changed(&self, named: [Option<InodeId>; 2], outcome: Option<&Outcome>) {
        let described = outcome.map_or([None; 2], Outcome::described).map(|attributes| Some(attributes?.ino));
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

/// A change that is under way. What is known of inodes and names that it concerns ends if it is given up before its outcome
/// is known.
struct Changing<'a> {
    described: &'a Described,
    /// `None`: the volume has other mounts, too, as far as was known when it began.
    renaming: Option<Renaming<'a>>,
    named: [Option<InodeId>; 2],
    /// It cuts this file off, whose blocks are freed by and by.
    cuts: Option<InodeId>,
    /// It exchanges two names, and describes one of the two inodes.
    exchanges: bool,
    asked: u64,
}

impl Changing<'_> {
    /// It is done: these descriptions came with its outcome. `keeps`: the volume is for this mount alone.
    fn done(mut self, keeps: bool, outcome: &Outcome, parents: &[Attributes]) {
        let named = std::mem::take(&mut self.named);
        if !keeps {
            return;
        }
        let mut left: Vec<InodeId> = named.into_iter().flatten().collect();
        if let Some(renaming) = self.renaming.take() {
            renaming.done(outcome);
            for attributes in parents.iter().chain(outcome.described().into_iter().flatten()) {
                left.retain(|ino| *ino != attributes.ino);
                self.described.learn(attributes, self.asked);
            }
        }
        left.into_iter().for_each(|ino| self.described.changed(ino));
        if let Some(ino) = self.cuts {
            self.described.may_change(ino);
        }
        if self.exchanges {
            self.described.forget_all();
        }
    }

    /// It has failed: it changed nothing if it was refused.
    fn failed(mut self, error: &ClientError) {
        // This one also stands for an outcome that isn't known.
        if let ClientError::Fs(error) = error
            && *error != FsError::Io
        {
            self.named = [None; 2];
            if let Some(renaming) = self.renaming.take() {
                renaming.refused(*error == FsError::Exists);
            }
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if self.exchanges && self.named != [None; 2] {
            self.described.forget_all();
        }
        self.named.into_iter().flatten().for_each(|ino| self.described.may_change(ino));
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
        ClientOp::SetAcl(op) => [Some(op.ino), None],
        ClientOp::SetXattr(op) => [Some(op.ino), None],
        ClientOp::RemoveXattr(op) => [Some(op.ino), None],
        ClientOp::Write(op) => [Some(op.ino), None],
        ClientOp::Append(op) => [Some(op.ino), None],
        ClientOp::Fallocate(op) => [Some(op.ino), None],
        ClientOp::CopyFileRange(op) => [Some(op.to), None],
        // Of the others the outcome says what they have changed, or they change nothing that the kernel keeps.
        _ => [None; 2],
    }
}

impl<M: Metadata> Tracked<M> {
    fn changing(&self, op: &ClientOp, named: [Option<InodeId>; 2]) -> Changing<'_> {
        let keeps = self.keeps();
        if let ClientOp::SetXattr(op) = op
            && keeps
        {
            self.described.sets_attribute(op.ino);
        }
        let cuts = match op {
            ClientOp::SetAttr(op) => op.changes.size.filter(|size| *size > 0).map(|_| op.ino),
            _ => None,
        };
        let exchanges = matches!(op, ClientOp::Rename(op) if op.flags & RENAME_EXCHANGE != 0);
        let (described, renaming) = (&*self.described, keeps.then(|| self.complete.begin(op)));
        Changing { described, renaming, named, cuts, exchanges, asked: described.number() }
    }

    /// The volume is for this mount alone.
    fn keeps(&self) -> bool {
        self.inner.config().exclusive
    }
}

impl<M: Metadata> Metadata for Tracked<M> {
    async fn execute(&self, op: ClientOp) -> Result<Outcome, ClientError> {
        let named = named_by(&op);
        let changing = self.changing(&op, named);
        let touched: Vec<InodeId> = match &op {
            ClientOp::Touch(op) => op.times.iter().map(|(ino, _)| *ino).collect(),
            _ => Vec::new(),
        };
        let done = self.inner.execute_described(op).await;
        touched.into_iter().for_each(|ino| self.described.changed(ino));
        match &done {
            Ok((outcome, parents)) => changing.done(self.keeps(), outcome, parents),
            Err(error) => changing.failed(error),
        }
        let outcome = done.map(|(outcome, _)| outcome);
        self.note_changed(named, outcome.as_ref().ok());
        self.note(outcome.as_ref());
        outcome
    }

    async fn execute_if(&self, op: ClientOp, wanted: Wanted) -> Result<Outcome, ClientError> {
        let named = named_by(&op);
        let changing = self.changing(&op, named);
        let outcome = self.inner.execute_if(op, wanted).await;
        match &outcome {
            Ok(outcome) => changing.done(self.keeps(), outcome, &[]),
            Err(error) => changing.failed(error),
        }
        self.note_changed(named, outcome.as_ref().ok());
        self.note(outcome.as_ref());
        outcome
    }

    async fn make(&self, op: ClientOp) -> Result<Made, ClientError> {
        let named = named_by(&op);
        let changing = self.changing(&op, named);
        let made = self.inner.make(op).await;
        match &made {
            Ok(made) => {
                self.described.made(made.attributes.ino, changing.asked);
                let outcome = Outcome::Inode(Box::new(made.attributes.clone()));
                changing.done(self.keeps(), &outcome, &made.parents);
            }
            Err(error) => changing.failed(error),
        }
        self.kept.note(named.into_iter().flatten().chain(made.as_ref().ok().map(|made| made.attributes.ino)));
        let made = made?;
        self.handles.learn(&made.attributes);
        self.pages.own_change(&made.attributes);
        Ok(made)
    }

    async fn sync(&self) -> Result<(), ClientError> {
        self.inner.sync().await
    }

    fn take_lost(&self) -> BTreeSet<InodeId> {
        self.inner.take_lost()
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

    fn answered(&self, request: u64) {
        self.inner.answered(request);
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
