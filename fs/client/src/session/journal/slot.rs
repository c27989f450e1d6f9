//! What goes past the journal, in slots, and keeps its order with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_core::attributes::Timestamp;
use atoll_core::commands::{ClientOp, Context, Outcome, RENAME_EXCHANGE, ops, projection};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId};
use atoll_proto::queries;

use super::ops::{Scope, can_be_journaled, name_removed, scope};
use super::{Keeping, Position};
use crate::metadata::ClientError;
use crate::session::Inner;

/// A change that is carried out in a slot, until its outcome is known. Until then nothing that it may concern is carried out
/// here.
pub(in crate::session) struct InSlot {
    inner: Arc<Inner>,
    op: Option<ClientOp>,
    scope: Scope,
    /// What has to be committed before it is sent.
    after: Option<Position>,
}

impl Drop for InSlot {
    fn drop(&mut self) {
        let mut state = self.inner.journal.state.lock();
        if self.op.take().is_some() {
            // Nobody knows what became of it.
            match (self.scope, &mut state.keeping) {
                (Scope::Inode { ino, .. }, Some(keeping)) => keeping.cache.forget(ino),
                (Scope::Names, Some(keeping)) => keeping.cache.forget_all(),
                _ => {}
            }
        }
        match self.scope {
            Scope::Nothing | Scope::Times => {}
            Scope::Inode { ino, .. } => {
                if let Some(count) = state.busy.get_mut(&ino) {
                    *count -= 1;
                    if *count == 0 {
                        state.busy.remove(&ino);
                    }
                }
            }
            Scope::Names => state.renaming -= 1,
        }
    }
}

impl InSlot {
    /// What has to be committed before it is sent.
    pub fn after(&self) -> Option<Position> {
        self.after
    }

    /// It is done, at this time by its own word, or refused: what is known here is as of then.
    pub fn done(mut self, done: Result<(&Outcome, Option<SessionId>, Timestamp), &ClientError>) {
        let Some(op) = self.op.take() else { return };
        let mut state = self.inner.journal.state.lock();
        let Some(keeping) = &mut state.keeping else { return };
        match done {
            Err(ClientError::Fs(error)) if *error != FsError::Io => {}
            Ok((outcome, session, time)) if session == Some(keeping.current.id) => {
                keeping.follow(op, self.scope, outcome, time);
            }
            _ => match self.scope {
                Scope::Nothing | Scope::Times => {}
                Scope::Inode { ino, .. } => keeping.cache.forget(ino),
                Scope::Names => keeping.cache.forget_all(),
            },
        }
    }
}

impl Keeping {
    /// The service has carried an operation out: so it is here.
    pub(super) fn follow(&mut self, op: ClientOp, scope: Scope, outcome: &Outcome, now: Timestamp) {
        match scope {
            Scope::Nothing => {}
            Scope::Times => {
                if let ClientOp::Touch(op) = &op {
                    op.times.iter().for_each(|(ino, time)| self.cache.read_at(*ino, *time));
                }
            }
            Scope::Inode { ino, content } => match (&op, outcome.described()[0]) {
                (ClientOp::SetXattr(_) | ClientOp::RemoveXattr(_) | ClientOp::SetAcl(_), _) | (_, None) => {
                    self.cache.forget(ino);
                }
                (_, Some(attributes)) => self.cache.patch(attributes, content),
            },
            Scope::Names => self.follow_names(op, outcome, now),
        }
    }

    fn follow_names(&mut self, op: ClientOp, outcome: &Outcome, now: Timestamp) {
        let directories = op.directories();
        let made = match (op, outcome.described()[0]) {
            (ClientOp::Create(op), Some(made)) => {
                let ino = Some(made.ino);
                self.cache.begin_inode(made.ino);
                (ClientOp::from(ops::Create { ino, ..op }), ino)
            }
            (op, _) => (op, None),
        };
        let (op, journaled) = made;
        let context = Context { session: self.current.id, now, journaled };
        let followed = match can_be_journaled(&op) {
            true => self.carry_out(&op, &context, &HashMap::new()),
            false => None,
        };
        match followed {
            Some(done) if projection(&done.outcome) == projection(outcome) => self.cache.write(done.writes),
            // The second inode is in no outcome.
            _ if matches!(&op, ClientOp::Rename(op) if op.flags & RENAME_EXCHANGE != 0) => {
                self.cache.forget_all();
            }
            _ => {
                let inodes = outcome.described().into_iter().flatten().map(|attributes| attributes.ino);
                directories.into_iter().flatten().chain(inodes).for_each(|ino| self.cache.forget(ino));
            }
        }
    }
}

impl Inner {
    /// A mutation is about to be carried out in a slot.
    pub(in crate::session) fn begin_in_slot(self: &Arc<Self>, op: &ClientOp) -> InSlot {
        let scope = scope(op);
        let mut state = self.journal.state.lock();
        let after = match scope {
            Scope::Nothing => None,
            _ => state.position(),
        };
        match scope {
            Scope::Nothing | Scope::Times => {}
            Scope::Inode { ino, .. } => {
                state.begun += 1;
                *state.busy.entry(ino).or_default() += 1;
            }
            Scope::Names => {
                state.begun += 1;
                state.renaming += 1;
            }
        }
        let is_kept = state.keeping.is_some();
        InSlot { inner: Arc::clone(self), op: is_kept.then(|| op.clone()), scope, after }
    }

    /// Before a name goes in a slot: the service is to know that the file which it names is open here.
    pub(in crate::session) async fn hold_before_removal(&self, op: &ClientOp) {
        let Some((parent, name)) = name_removed(op) else { return };
        let found = {
            let state = self.journal.state.lock();
            let Some(keeping) = &state.keeping else { return };
            keeping.find(parent, name)
        };
        let unheld = self.open_files.lock().unheld();
        let inodes: Vec<InodeId> = match found {
            Ok(None) => return,
            Ok(Some(ino)) => unheld.into_iter().filter(|unheld| *unheld == ino).collect(),
            Err(_) => unheld,
        };
        for ino in inodes {
            let sessions_lost = self.sessions_lost.load(Ordering::SeqCst);
            if self.question(&queries::Open { ino, segments: 0 }.into()).await.is_ok() {
                self.is_held(ino, sessions_lost);
            }
        }
    }
}
