//! Carries mutations out, each once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_core::attributes::Attributes;
use atoll_core::commands::{ClientOp, Command, Outcome, Reply};
use atoll_core::encode::USUAL_BYTES;
use atoll_core::error::FsError;
use atoll_core::ids::SessionId;
use atoll_proto::metadata::{MutateReply, kind};
use atoll_proto::queries;
use bytes::Bytes;

use super::leader::Refusal;
use super::slots::Slot;
use super::{Asked, Fate, Inner, State, fate};
use crate::metadata::{ClientError, Made, unexpected};

/// What came of a mutation.
pub(super) struct CarriedOut {
    pub outcome: Outcome,
    /// See [`MutateReply::parents`].
    pub parents: Vec<Attributes>,
    /// The session that it took effect in, if that is the present one.
    pub session: Option<SessionId>,
}

/// A file that is being made to be opened, until what became of it is known.
struct BeingMade {
    number: u64,
    inner: Arc<Inner>,
}

impl Drop for BeingMade {
    fn drop(&mut self) {
        if self.inner.open_files.lock().end_making(self.number) {
            self.inner.kick.notify_one();
        }
    }
}

/// The service did not look at the mutation.
fn refused(refusal: Refusal, slot: Slot, epoch: u64) -> ClientError {
    match refusal {
        Refusal::Fs(error) => {
            slot.take_back(epoch);
            error.into()
        }
        Refusal::Impossible(reason) => {
            tracing::error!(
                reason,
                "the metadata server can't decode a mutation: this is a bug, please report it"
            );
            slot.take_back(epoch);
            FsError::Io.into()
        }
        Refusal::Garbled(reason) => {
            tracing::error!(reason, "the outcome of a mutation can't be decoded");
            FsError::Io.into()
        }
    }
}

impl Inner {
    /// Makes a file that is open from then on.
    pub(super) async fn make(self: &Arc<Self>, slot: Slot, op: ClientOp) -> Result<Made, ClientError> {
        let making = BeingMade { number: self.open_files.lock().begin_making(), inner: Arc::clone(self) };
        let sessions_lost = self.sessions_lost.load(Ordering::SeqCst);
        let CarriedOut { outcome, parents, session } =
            self.carry_out(slot, op, true, &self.asked(None)).await?;
        let attributes = Box::<Attributes>::from_outcome(outcome).ok_or_else(unexpected)?;
        let ino = attributes.ino;
        self.open_files.lock().made(ino);
        let made = Made::new(*attributes, {
            let inner = Arc::clone(self);
            move |kept| {
                if inner.open_files.lock().settle(ino, kept) {
                    inner.close_notices.notify_one();
                }
                inner.is_held(ino, sessions_lost);
            }
        });
        let made = made.in_directories(parents);
        drop(making);
        let is_held = matches!(*self.state.borrow(), State::Open(current) if Some(current.id) == session);
        if !is_held {
            // A session that is lost held it, or is said to be by now. If others have removed it since, it is one of the things
            // that are lost with a session: to make another one would be to make it twice.
            match self.question(&queries::Open { ino, segments: 0 }.into()).await {
                Err(ClientError::Fs(FsError::Stale)) => return Err(ClientError::SessionLost),
                answer => answer?,
            };
        }
        Ok(made)
    }

    /// Sends one mutation, in its slot, until its outcome is known, and the session that it took effect in if that is the
    /// present one. `opens`: if it makes a file the session holds that.
    pub(super) async fn carry_out(
        &self,
        slot: Slot,
        op: ClientOp,
        opens: bool,
        asked: &Asked,
    ) -> Result<CarriedOut, ClientError> {
        let fate = fate(&op);
        let mut command = Command {
            session: SessionId(0),
            slot: slot.id(),
            sequence: 0,
            time: self.clock.now(),
            expect: None,
            op,
        };
        loop {
            let current = self.current().await?;
            if asked.is_void(fate, current) {
                return Err(ClientError::SessionLost);
            }
            command.session = current.id;
            command.sequence = slot.next(current.epoch);
            // The same bytes as a `MutateRequest`, without moving the command into one.
            let message = match postcard::to_extend(&(&command, opens), Vec::with_capacity(USUAL_BYTES)) {
                Ok(bytes) => Bytes::from(bytes),
                Err(error) => {
                    slot.take_back(current.epoch);
                    tracing::error!(%error, "a mutation can't be encoded");
                    return Err(FsError::InvalidArgument.into());
                }
            };
            if self.arena.record_op(slot.id(), current.id, command.sequence, &message).is_err() {
                slot.take_back(current.epoch);
                tracing::error!(bytes = message.len(), "a mutation is longer than a slot of the arena");
                return Err(FsError::InvalidArgument.into());
            }
            let answer = tokio::select! {
                answer = self.service.call(kind::MUTATE, &message) => answer,
                () = self.token.cancelled() => return Err(ClientError::Stopped),
            };
            let refused_with = |error| MutateReply { outcome: Outcome::Refused(error), parents: Vec::new() };
            let MutateReply { outcome, parents } = match answer {
                Ok(reply) => postcard::from_bytes(&reply).unwrap_or_else(|error| {
                    tracing::error!(%error, "the outcome of a mutation can't be decoded");
                    refused_with(FsError::Io)
                }),
                Err(Refusal::Fs(FsError::SessionExpired)) => refused_with(FsError::SessionExpired),
                Err(refusal) => {
                    self.arena.clear_op(slot.id(), current.id, command.sequence);
                    return Err(refused(refusal, slot, current.epoch));
                }
            };
            if outcome == Outcome::Refused(FsError::SessionExpired) {
                let lost = self.replaced(current.id).await?;
                let known = lost.and_then(|lost| lost.outcome(slot.id(), command.sequence));
                match (fate, known) {
                    (Fate::Repeat | Fate::Keep, Some(outcome)) => {
                        self.arena.clear_op(slot.id(), current.id, command.sequence);
                        let outcome = outcome.into_result()?;
                        return Ok(CarriedOut { outcome, parents: Vec::new(), session: None });
                    }
                    (Fate::Repeat, None) => continue,
                    (Fate::Keep, None) | (Fate::Forget, _) => {
                        self.arena.clear_op(slot.id(), current.id, command.sequence);
                        return Err(ClientError::SessionLost);
                    }
                }
            }
            self.arena.clear_op(slot.id(), current.id, command.sequence);
            if outcome == Outcome::Refused(FsError::BadSequence) {
                tracing::error!(slot = slot.id().0, sequence = command.sequence, "a slot is out of sequence");
                slot.retire();
                return Err(FsError::Io.into());
            }
            return Ok(CarriedOut { outcome: outcome.into_result()?, parents, session: Some(current.id) });
        }
    }
}
