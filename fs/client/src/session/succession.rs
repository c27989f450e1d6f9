//! Continues the session of a process that is dead.
//!
//! 1. What it had sent, or was about to send, is sent once more, in its slot and with its number: the service does each once,
//!    and says what came of it. Before that no slot could be used, since its numbers have no gaps.
//! 2. The leader says what the session has ([`AdoptSession`](queries::AdoptSession)): open files, locks, quota. Chunks that
//!    the dead process wrote are sealed by then, so nothing that it knew of them is needed.
//! 3. From then on the session is this process's.
//!
//! If the session is lost by then, what was not committed is lost as in any session that is.

use std::collections::BTreeSet;
use std::ops::Range;

use atoll_core::commands::{ClientOp, NewPiece, Outcome, ops};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, SlotId};
use atoll_core::lock_table::Claim;
use atoll_proto::metadata::{Answer, AskRequest, MutateReply, MutateRequest, SessionState, kind};
use atoll_proto::queries;
use bytes::Bytes;

use super::journal::decode_entry;
use super::keeper::was_parted;
use super::leader::Refusal;
use super::mutations::repeats_badly;
use super::{Current, Inner, SessionError, State};
use crate::arena::{Adopted, JournalRecord, OpRecord, OutcomeRecord, SessionRecord};

/// Changes of locks that the dead process may have sent and the leader not seen yet have lower numbers than those of this one: once
/// it has made one, they are late.
const CHANGES_APART: u64 = 1 << 20;

/// What a dead process left in its arena of what its session had done.
#[derive(Debug)]
pub struct Predecessor {
    /// Its session.
    pub session: SessionRecord,
    ops: Vec<OpRecord>,
    outcomes: Vec<OutcomeRecord>,
    open: Vec<InodeId>,
    journal: Vec<JournalRecord>,
}

impl Predecessor {
    /// From an arena that was adopted; `None` if it has never had a session.
    pub fn of(adopted: &mut Adopted) -> Option<Predecessor> {
        let session = adopted.session?;
        let mut journal = std::mem::take(&mut adopted.journal);
        journal.retain(|record| record.session == session.session);
        Some(Predecessor {
            session,
            journal,
            ops: std::mem::take(&mut adopted.ops),
            outcomes: std::mem::take(&mut adopted.outcomes),
            open: adopted.handles.iter().map(|handle| handle.ino).collect(),
        })
    }
}

/// Data of the dead process that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The file.
    pub ino: InodeId,
    /// The bytes of the file.
    pub ranges: Vec<Range<u64>>,
    /// It was in blocks of up to this order.
    pub order: u64,
}

/// What a process finds that continues a session.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The session is lost, with all that wasn't committed and all locks; there is a new one.
    pub is_lost: bool,
    /// Others may have had a session in between.
    pub was_parted: bool,
    /// What became of data that was on its way.
    pub committed: Vec<Committed>,
    /// What is locked.
    pub locks: Vec<Claim>,
    /// The leader knows what is locked. Otherwise all locks are lost.
    pub locks_are_known: bool,
    /// Bytes of quota that are reserved.
    pub bytes_reserved: u64,
    /// Inodes of which something is lost.
    pub lost: BTreeSet<InodeId>,
}

/// What became of an operation.
enum Resolved {
    /// It has this outcome.
    Done(Outcome),
    /// The service didn't look at it: its number is free.
    Untouched,
    /// That will never be known.
    Unknown,
    /// The session is lost.
    Expired,
}

impl Inner {
    /// Continues a dead process's session.
    pub(super) async fn succeed(&self, predecessor: Predecessor) -> Result<Inherited, SessionError> {
        predecessor.outcomes.iter().for_each(|record| self.inherit_outcome(record));
        self.inherit_outcomes_of(&predecessor.journal);
        let opening = async {
            match self.inherit(&predecessor).await {
                Ok(inherited) => Ok(inherited),
                Err(Refusal::Fs(FsError::SessionExpired)) => self.succeed_lost(&predecessor).await,
                Err(Refusal::Fs(error)) => Err(SessionError::Refused(error)),
                Err(Refusal::Impossible(reason) | Refusal::Garbled(reason)) => {
                    Err(SessionError::Hopeless(reason))
                }
            }
        };
        self.in_connect_time(opening).await
    }

    async fn inherit(&self, predecessor: &Predecessor) -> Result<Inherited, Refusal> {
        let session = predecessor.session.session;
        let current = Current { id: session, epoch: 1 };
        let mut committed = Vec::new();
        let of_session = |op: &&OpRecord| op.session == session && op.slot != SlotId(0);
        let pending: Vec<&OpRecord> = predecessor.ops.iter().filter(of_session).collect();
        let resolved = futures::future::join_all(pending.iter().map(|op| self.resolve(op))).await;
        let mut slots = Vec::with_capacity(pending.len());
        for (op, resolved) in pending.into_iter().zip(resolved) {
            let (sequence, is_lost) = match resolved {
                None => (op.sequence, false),
                Some(Resolved::Done(outcome)) => {
                    committed.extend(self.note_resolved(op, outcome));
                    (op.sequence, false)
                }
                Some(Resolved::Untouched) => (op.sequence.saturating_sub(1), false),
                Some(Resolved::Unknown) => (op.sequence, true),
                Some(Resolved::Expired) => return Err(Refusal::Fs(FsError::SessionExpired)),
            };
            slots.push((op.slot, sequence, is_lost));
            self.arena.clear_op(op.slot, op.session, sequence);
        }
        let mut lost = BTreeSet::new();
        if atoll_faults::planted("successor-skips-journal") {
            // As if it were empty.
        } else if let Err(refusal) = self.send_inherited(session, &predecessor.journal).await {
            match refusal {
                Refusal::Fs(FsError::JournalBroken) => lost = self.lost_of(&predecessor.journal, 0),
                refusal => return Err(refusal),
            }
        }
        committed.extend(self.committed_in(&predecessor.journal, u64::MAX));
        let state = self.session_state(current).await?;
        // Only now: in another session all slots begin anew.
        for (slot, sequence, is_lost) in slots {
            self.slots.inherit(slot, current.epoch, sequence, is_lost);
        }
        let SessionState { open, locks, last_change, is_told, bytes_reserved } = state;
        let made = self.unanswered.made();
        self.open_files.lock().inherit(predecessor.open.iter().copied(), &open, &made, is_told);
        // Higher than any count of another process's: those begin at 0, or at a time before this.
        let telling = self.incarnation >> 12;
        self.held_locks.lock().inherit(&locks, last_change + CHANGES_APART, telling);
        self.heartbeat(session, 0).await?;
        self.begin_journal(current).await?;
        self.begin_with(current);
        tracing::info!(%session, locks = locks.len(), open = predecessor.open.len(), "session taken over");
        Ok(Inherited {
            is_lost: false,
            was_parted: false,
            committed,
            locks,
            locks_are_known: is_told,
            bytes_reserved,
            lost,
        })
    }

    async fn session_state(&self, current: Current) -> Result<SessionState, Refusal> {
        let request = AskRequest { session: current.id, query: queries::AdoptSession.into() };
        let garbled = |error: &dyn std::fmt::Display| Refusal::Garbled(error.to_string());
        let message = postcard::to_allocvec(&request).map_err(|error| garbled(&error))?;
        let reply = self.service.call(kind::ASK, &Bytes::from(message)).await?;
        match postcard::from_bytes(&reply) {
            Ok(Answer::Session(state)) => Ok(state),
            other => Err(garbled(&format!("unexpected reply {other:?}"))),
        }
    }

    /// The session is lost: a new one learns what became of the last operations.
    async fn succeed_lost(&self, predecessor: &Predecessor) -> Result<Inherited, SessionError> {
        let lost = predecessor.session.session;
        tracing::warn!(
            session = %lost,
            "the session of the previous process is lost: what was not committed is lost, and affected open files return EIO"
        );
        self.open_files.lock().inherit(predecessor.open.iter().copied(), &[], &[], false);
        let current = self.open(Some(lost)).await?;
        let was_parted = was_parted(lost, current.id);
        let outcomes = self.lost.lock().back().cloned();
        let mut committed = Vec::new();
        for op in predecessor.ops.iter().filter(|op| op.session == lost && op.pending.is_some()) {
            let known = outcomes.as_ref().and_then(|known| known.outcome(op.slot, op.sequence));
            committed.extend(known.and_then(|outcome| self.note_resolved(op, outcome)));
            self.arena.clear_op(op.slot, op.session, op.sequence);
        }
        let done = outcomes.as_ref().map_or(0, |known| Self::committed_of(&known.outcomes));
        committed.extend(self.committed_in(&predecessor.journal, done));
        let lost = self.lost_of(&predecessor.journal, done);
        let beat = async {
            self.tell_all(current.id, Vec::new()).await?;
            self.heartbeat(current.id, 0).await?;
            self.begin_journal(current).await
        };
        let beat = beat.await;
        match beat {
            Ok(()) => {}
            Err(Refusal::Fs(error)) => return Err(SessionError::Refused(error)),
            Err(Refusal::Impossible(reason) | Refusal::Garbled(reason)) => {
                return Err(SessionError::Hopeless(reason));
            }
        }
        self.begin_with(current);
        Ok(Inherited { is_lost: true, was_parted, committed, lost, ..Inherited::default() })
    }

    /// What requests of the kernel's have led to by entries of the journal.
    fn inherit_outcomes_of(&self, journal: &[JournalRecord]) {
        for record in journal.iter().filter(|record| record.origin.request != 0) {
            match postcard::from_bytes::<(u8, Outcome)>(&record.outcome) {
                Ok((kind, outcome)) => self.note_done(record.origin.request, Some(kind), &outcome),
                Err(error) => tracing::error!(%error, "an outcome of the previous process can't be decoded"),
            }
        }
    }

    /// Data that entries of the journal have committed, up to one of them.
    fn committed_in(&self, journal: &[JournalRecord], until: u64) -> Vec<Committed> {
        let write = |record: &JournalRecord| match decode_entry(record)?.op {
            ClientOp::Write(ops::Write { ino, pieces, .. }) => {
                let range = |piece: &NewPiece| piece.offset..piece.offset + piece.length;
                let ranges = pieces.iter().map(range).collect();
                Some(Committed { ino, ranges, order: record.origin.order })
            }
            _ => None,
        };
        journal.iter().filter(|record| record.sequence <= until).filter_map(write).collect()
    }

    /// Inodes that entries of the journal after one of them were about: they are lost.
    fn lost_of(&self, journal: &[JournalRecord], done: u64) -> BTreeSet<InodeId> {
        let lost = journal.iter().filter(|record| record.sequence > done);
        let inodes: BTreeSet<InodeId> = lost
            .filter_map(decode_entry)
            .flat_map(|entry| super::journal::inodes_of(&entry.op))
            .flatten()
            .collect();
        if !inodes.is_empty() {
            tracing::error!(
                inodes = inodes.len(),
                "operations that were not synced are lost with the previous process"
            );
        }
        inodes
    }

    fn begin_with(&self, current: Current) {
        self.last_session.store(current.id.0, std::sync::atomic::Ordering::Relaxed);
        self.note_session(current.id);
        self.state.send_replace(State::Open(current));
    }

    /// Sends an operation once more, if what became of it isn't known.
    async fn resolve(&self, op: &OpRecord) -> Option<Resolved> {
        let message = Bytes::from(op.pending.clone()?);
        let resolved = match self.service.call(kind::MUTATE, &message).await {
            Ok(reply) => match postcard::from_bytes::<MutateReply>(&reply) {
                Ok(MutateReply { outcome: Outcome::Refused(FsError::SessionExpired), .. }) => {
                    Resolved::Expired
                }
                Ok(MutateReply { outcome: Outcome::Refused(FsError::BadSequence), .. }) => Resolved::Unknown,
                Ok(MutateReply { outcome, .. }) => Resolved::Done(outcome),
                Err(error) => {
                    tracing::error!(%error, "the outcome of a mutation can't be decoded");
                    Resolved::Unknown
                }
            },
            Err(Refusal::Fs(FsError::SessionExpired)) => Resolved::Expired,
            Err(Refusal::Fs(_) | Refusal::Impossible(_)) => Resolved::Untouched,
            Err(Refusal::Garbled(reason)) => {
                tracing::error!(reason, "the outcome of a mutation can't be decoded");
                Resolved::Unknown
            }
        };
        Some(resolved)
    }

    /// Takes note of an outcome; of a write that is committed, what was in it.
    fn note_resolved(&self, op: &OpRecord, outcome: Outcome) -> Option<Committed> {
        if matches!(outcome, Outcome::Refused(_)) {
            return None;
        }
        let request: MutateRequest = match postcard::from_bytes(op.pending.as_deref()?) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%error, "an operation of the previous process can't be decoded");
                return None;
            }
        };
        if let Some(kind) = repeats_badly(&request.command.op)
            && op.origin.request != 0
        {
            // The operation's record goes now.
            self.note_done(op.origin.request, Some(kind), &outcome);
            return None;
        }
        match request.command.op {
            ClientOp::Write(ops::Write { ino, pieces, .. }) => {
                let range = |piece: &NewPiece| piece.offset..piece.offset + piece.length;
                Some(Committed { ino, ranges: pieces.iter().map(range).collect(), order: op.origin.order })
            }
            _ => None,
        }
    }
}
