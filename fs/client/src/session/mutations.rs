//! Carries mutations out, each once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use atoll_core::attributes::{Attributes, Timestamp};
use atoll_core::commands::{ClientOp, Command, Outcome, Reply};
use atoll_core::encode::USUAL_BYTES;
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SessionId};
use atoll_proto::metadata::{MutateReply, kind};
use atoll_proto::queries;
use bytes::Bytes;
use parking_lot::Mutex;
use tracing::Instrument;

use super::leader::Refusal;
use super::slots::Slot;
use super::{Asked, Fate, Inner, State, fate};
use crate::arena::{Origin, OutcomeRecord, OutcomeRoom};
use crate::metadata::{ClientError, Made, unexpected};
use crate::origin;

/// What came of a mutation.
pub(super) struct CarriedOut {
    pub outcome: Outcome,
    /// See [`MutateReply::parents`].
    pub parents: Vec<Attributes>,
    /// The session that it took effect in, if that is the present one.
    pub session: Option<SessionId>,
    /// When, by its own word.
    pub time: Timestamp,
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

/// Kinds of operations, see [`repeats_badly`].
const CREATE: u8 = 1;
const TMPFILE: u8 = 2;
/// What requests of the kernel's that are not answered have led to already, by their numbers. Such a request may come again: to
/// a successor of this process, or to this one, if it is sent again while it is answered.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    requests: Mutex<BTreeMap<u64, Led>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Led {
    kind: u8,
    outcome: Outcome,
    /// Where a successor finds it.
    _room: Option<OutcomeRoom>,
}

impl Unanswered {
    fn note(&self, request: u64, kind: u8, outcome: Outcome, room: Option<OutcomeRoom>) {
        let mut requests = self.requests.lock();
        requests.insert(request, Led { kind, outcome, _room: room });
        self.count.store(requests.len(), Ordering::Relaxed);
    }

    pub fn find(&self, request: u64, kind: u8) -> Option<Outcome> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let requests = self.requests.lock();
        let led = requests.get(&request)?;
        (led.kind == kind).then(|| led.outcome.clone())
    }

    /// The kernel has taken the reply to a request: it never comes again.
    pub fn answered(&self, request: u64) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut requests = self.requests.lock();
            requests.remove(&request);
            self.count.store(requests.len(), Ordering::Relaxed);
        }
    }

    /// Makes room: forgets the oldest one. It was given up by its caller before its outcome was known.
    fn forget_oldest(&self) {
        self.requests.lock().pop_first();
    }

    /// The files that these have made.
    pub fn made(&self) -> Vec<InodeId> {
        let made = |led: &Led| match &led.outcome {
            Outcome::Inode(attributes) if [CREATE, TMPFILE].contains(&led.kind) => Some(attributes.ino),
            _ => None,
        };
        self.requests.lock().values().filter_map(made).collect()
    }
}

/// Of operations that would fail, or do something else, if they were done twice: which kind it is. In arenas: numbers stay.
pub(super) fn repeats_badly(op: &ClientOp) -> Option<u8> {
    match op {
        ClientOp::Create(_) => Some(CREATE),
        ClientOp::Tmpfile(_) => Some(TMPFILE),
        ClientOp::Link(_) => Some(3),
        ClientOp::Unlink(_) => Some(4),
        ClientOp::Rename(_) => Some(5),
        ClientOp::SetXattr(_) => Some(6),
        ClientOp::RemoveXattr(_) => Some(7),
        ClientOp::Append(_) => Some(8),
        _ => None,
    }
}

impl Inner {
    /// What a request of the kernel's has led to already, when it was served before.
    fn done_before(&self, request: u64, kind: u8) -> Option<Outcome> {
        if !origin::is_first(kind) {
            return None;
        }
        self.unanswered.find(request, kind)
    }

    /// An operation of a request of the kernel's has taken effect: a successor of this process must know it until the request
    /// is answered. To be called before the operation's record is cleared.
    pub(super) fn note_done(&self, request: u64, kind: Option<u8>, outcome: &Outcome) {
        let Some(kind) = kind.filter(|_| !matches!(outcome, Outcome::Refused(_))) else { return };
        let encoded = postcard::to_extend(&(kind, outcome), Vec::with_capacity(USUAL_BYTES));
        let room = encoded.ok().and_then(|encoded| {
            self.arena.note_outcome(request, &encoded).or_else(|| {
                self.unanswered.forget_oldest();
                self.arena.note_outcome(request, &encoded)
            })
        });
        self.unanswered.note(request, kind, outcome.clone(), room);
    }

    /// What a predecessor of this process has noted so.
    pub(super) fn inherit_outcome(&self, record: &OutcomeRecord) {
        match postcard::from_bytes(&record.outcome) {
            Ok((kind, outcome)) => {
                let room = self.arena.adopt_outcome(record);
                self.unanswered.note(record.request, kind, outcome, Some(room));
            }
            Err(error) => tracing::error!(%error, "an outcome of the previous process can't be decoded"),
        }
    }

    /// Makes a file that is open from then on.
    pub(super) async fn make(self: &Arc<Self>, slot: Slot, op: ClientOp) -> Result<Made, ClientError> {
        let making = BeingMade { number: self.open_files.lock().begin_making(), inner: Arc::clone(self) };
        let sessions_lost = self.sessions_lost.load(Ordering::SeqCst);
        let CarriedOut { outcome, parents, session, .. } =
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
        self: &Arc<Self>,
        slot: Slot,
        op: ClientOp,
        opens: bool,
        asked: &Asked,
    ) -> Result<CarriedOut, ClientError> {
        let in_slot = self.begin_in_slot(&op);
        self.journal_committed(in_slot.after()).await?;
        self.hold_before_removal(&op).await;
        let done = self.send(slot, op, opens, asked).await;
        in_slot.done(done.as_ref().map(|done| (&done.outcome, done.session, done.time)));
        done
    }

    async fn send(
        &self,
        slot: Slot,
        op: ClientOp,
        opens: bool,
        asked: &Asked,
    ) -> Result<CarriedOut, ClientError> {
        let fate = fate(&op);
        let repeats_badly = repeats_badly(&op).filter(|_| asked.origin.request != 0);
        if let Some(kind) = repeats_badly
            && let Some(outcome) = self.done_before(asked.origin.request, kind)
        {
            let time = self.clock.now();
            return Ok(CarriedOut { outcome, parents: Vec::new(), session: None, time });
        }
        let origin = Origin { request: repeats_badly.map_or(0, |_| asked.origin.request), ..asked.origin };
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
            if self.arena.record_op(slot.id(), current.id, command.sequence, origin, &message).is_err() {
                slot.take_back(current.epoch);
                tracing::error!(bytes = message.len(), "a mutation is longer than a slot of the arena");
                return Err(FsError::InvalidArgument.into());
            }
            // What the leader and apply have, too: see docs/tracing.md.
            let span = tracing::debug_span!(
                target: "atoll::trace", "mutation", id = %command.id(), op = command.op.name()
            );
            let answer = tokio::select! {
                answer = self.service.call(kind::MUTATE, &message).instrument(span) => answer,
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
                    // A successor counts on from what the service has seen.
                    let is_seen = matches!(refusal, Refusal::Garbled(_));
                    let last = command.sequence - u64::from(!is_seen);
                    self.arena.clear_op(slot.id(), current.id, last);
                    return Err(refused(refusal, slot, current.epoch));
                }
            };
            if outcome == Outcome::Refused(FsError::SessionExpired) {
                let lost = self.replaced(current.id).await?;
                let known = lost.and_then(|lost| lost.outcome(slot.id(), command.sequence));
                match (fate, known) {
                    (Fate::Repeat | Fate::Keep, Some(outcome)) => {
                        self.note_done(origin.request, repeats_badly, &outcome);
                        self.arena.clear_op(slot.id(), current.id, command.sequence);
                        let outcome = outcome.into_result()?;
                        let time = command.time;
                        return Ok(CarriedOut { outcome, parents: Vec::new(), session: None, time });
                    }
                    (Fate::Repeat, None) => continue,
                    (Fate::Keep, None) | (Fate::Forget, _) => {
                        self.arena.clear_op(slot.id(), current.id, command.sequence);
                        return Err(ClientError::SessionLost);
                    }
                }
            }
            self.note_done(origin.request, repeats_badly, &outcome);
            self.arena.clear_op(slot.id(), current.id, command.sequence);
            if outcome == Outcome::Refused(FsError::BadSequence) {
                tracing::error!(slot = slot.id().0, sequence = command.sequence, "a slot is out of sequence");
                slot.retire();
                return Err(FsError::Io.into());
            }
            let (outcome, session) = (outcome.into_result()?, Some(current.id));
            return Ok(CarriedOut { outcome, parents, session, time: command.time });
        }
    }
}
