//! The operations on the namespace: one a file. Each checks everything it can be refused for and changes the
//! records of a [`Txn`]; a refused one leaves nothing behind.

mod copy_file_range;
mod create;
mod fallocate;
mod link;
mod rename;
mod setattr;
mod unlink;
mod write;
mod xattr;

pub use copy_file_range::CopyFileRange;
pub use create::{Create, Tmpfile};
pub use fallocate::Fallocate;
pub use link::Link;
pub use rename::Rename;
pub use setattr::{SetAttr, Touch};
pub use unlink::Unlink;
pub use write::{Append, Relocate, Write};
pub use xattr::{RemoveXattr, SetAcl, SetXattr};

use crate::chunks::CreateChunk;
use crate::commands::{ClientOp, Command, Context, INTERNAL, Op, Outcome, projection};
use crate::error::FsError;
use crate::ids::{SlotId, journaled_inode};
use crate::keys;
use crate::limits::{NAME_BYTES_MAX, SESSION_SLOTS_MAX};
use crate::records::{SessionRecord, SlotRecord};
use crate::store::{Family, StoreError};
pub use crate::txn::Txn;
use crate::txn::{OpError, OpResult};

/// Carries out one command, once: a repeated `(session, slot, sequence)` gets the outcome that is stored.
///
/// A record that can't be read is a reason to refuse, too (`Io`): all members have the same one, and would all stop at
/// this command for ever. The check says which one it is.
///
/// # Errors
/// Only if the store fails; whatever a command is refused for is an [`Outcome`].
pub fn execute(txn: &mut Txn<'_>, command: &Command) -> Result<Outcome, StoreError> {
    // OpenSession comes before there is a session to hold slots; to repeat it makes a second session, and the
    // first one expires unused.
    let result = if command.session == INTERNAL || matches!(command.op, Op::Client(ClientOp::OpenSession(_)))
    {
        perform(txn, command)
    } else {
        once(txn, command)
    };
    match result {
        Ok(outcome) => {
            txn.keep();
            Ok(outcome)
        }
        Err(OpError::Refused(error)) => {
            txn.undo();
            Ok(Outcome::Refused(error))
        }
        Err(OpError::Store(StoreError::Damaged(_))) => {
            txn.undo();
            Ok(Outcome::Refused(FsError::Io))
        }
        Err(OpError::Store(error)) => {
            txn.undo();
            Err(error)
        }
    }
}

/// A hash of what is asked for, to tell a retry from another request in the same slot.
#[must_use]
pub fn request_hash(op: &Op) -> u64 {
    match op {
        Op::Refuse(refusal) => refusal.request,
        // A leader that proposes a command again may choose other servers for a new chunk: not part of the
        // request.
        Op::Client(ClientOp::CreateChunk(asked)) => {
            hash_of(&Op::from(CreateChunk { replicas: Vec::new(), ..asked.clone() }))
        }
        op => hash_of(op),
    }
}

/// A hash of the stored form of `value`.
#[must_use]
pub fn hash_of(value: &impl serde::Serialize) -> u64 {
    use std::hash::Hasher;
    let bytes = postcard::to_stdvec(value).unwrap_or_default();
    let mut hasher = siphasher::sip::SipHasher24::new();
    hasher.write(&bytes);
    hasher.finish()
}

/// Carries an operation out on what a client knows of the records: what comes of it here is what comes of it where all records
/// are. The session, its slots and its promises aren't looked at.
///
/// # Errors
/// [`StoreError::NotCached`] if it depends on a record that isn't known here; nothing is changed then.
pub fn execute_locally(txn: &mut Txn<'_>, op: &ClientOp, context: &Context) -> Result<Outcome, StoreError> {
    match op.apply(txn, context) {
        Ok(outcome) => {
            txn.keep();
            Ok(outcome)
        }
        Err(error) => {
            txn.undo();
            match error {
                OpError::Refused(error) => Ok(Outcome::Refused(error)),
                OpError::Store(error) => Err(error),
            }
        }
    }
}

/// An entry of a session's journal, each once and in their order: what comes again is done already, what comes before the one
/// before it comes again later. Once one has another outcome than its application was told, the application may rest on what
/// isn't there: none of those that follow is carried out any more.
fn journaled(txn: &mut Txn<'_>, command: &Command, mut session: SessionRecord) -> OpResult<Outcome> {
    if session.ended.is_some() {
        return Err(FsError::SessionExpired.into());
    }
    if session.journal_broken {
        return Err(FsError::JournalBroken.into());
    }
    let slot_key = keys::slot(command.session, command.slot);
    let last: Option<SlotRecord> = txn.load(Family::System, &slot_key)?;
    let last = last.map_or(0, |slot| slot.sequence);
    let applied_twice = atoll_faults::planted("journal-applied-twice");
    if command.sequence <= last && !applied_twice {
        return Ok(Outcome::Done);
    }
    if last.checked_add(1) != Some(command.sequence) && !applied_twice {
        return Err(FsError::BadSequence.into());
    }
    let outcome = outcome_of(txn, command)?;
    if command.expect.is_some_and(|expected| expected != projection(&outcome)) {
        txn.undo();
        session.journal_broken = true;
        txn.put(Family::System, keys::session(command.session), &session);
        return Ok(Outcome::Refused(FsError::JournalBroken));
    }
    let done = SlotRecord { sequence: command.sequence, hash: 0, outcome: Outcome::Done };
    txn.put(Family::System, slot_key, &done);
    Ok(outcome)
}

/// The slot table (as in NFSv4.1): a slot holds its last operation's sequence number, hash and outcome, errors
/// too; using the slot again acknowledges it.
fn once(txn: &mut Txn<'_>, command: &Command) -> OpResult<Outcome> {
    let session_key = keys::session(command.session);
    let Some(session) = txn.load::<SessionRecord>(Family::System, &session_key)? else {
        return Err(FsError::SessionExpired.into());
    };
    if command.slot.0 >= SESSION_SLOTS_MAX {
        return Err(FsError::InvalidArgument.into());
    }
    if command.slot == SlotId(0) {
        return journaled(txn, command, session);
    }
    let slot_key = keys::slot(command.session, command.slot);
    let last: Option<SlotRecord> = txn.load(Family::System, &slot_key)?;
    let hash = request_hash(&command.op);
    let last_sequence = last.as_ref().map_or(0, |slot| slot.sequence);
    if let Some(last) = last
        && last.sequence == command.sequence
        && !atoll_faults::planted("slots-dropped")
    {
        return if last.hash == hash { Ok(last.outcome) } else { Err(FsError::BadSequence.into()) };
    }
    if session.ended.is_some() {
        return Err(FsError::SessionExpired.into());
    }
    let again = atoll_faults::planted("slots-dropped") && command.sequence == last_sequence;
    if last_sequence.checked_add(1) != Some(command.sequence) && !again {
        return Err(FsError::BadSequence.into());
    }
    let outcome = outcome_of(txn, command)?;
    txn.put(
        Family::System,
        slot_key,
        &SlotRecord { sequence: command.sequence, hash, outcome: outcome.clone() },
    );
    Ok(outcome)
}

/// What comes of a command, a refusal included, which leaves nothing behind. A record that can't be read is a reason to refuse.
fn outcome_of(txn: &mut Txn<'_>, command: &Command) -> OpResult<Outcome> {
    let error = match perform(txn, command) {
        Ok(outcome) => return Ok(outcome),
        Err(OpError::Refused(error)) => error,
        Err(OpError::Store(StoreError::Damaged(_))) => FsError::Io,
        Err(error) => return Err(error),
    };
    txn.undo();
    Ok(Outcome::Refused(error))
}

fn perform(txn: &mut Txn<'_>, command: &Command) -> OpResult<Outcome> {
    let journaled = match command.slot {
        SlotId(0) if command.session != INTERNAL => journaled_inode(command.session, command.sequence),
        _ => None,
    };
    let context = Context { session: command.session, now: command.time, journaled };
    match &command.op {
        Op::Client(op) => op.apply(txn, &context),
        // From the wire none can come; this is the second bolt on the door.
        Op::Service(_) if command.session != INTERNAL => Err(FsError::NotPermitted.into()),
        Op::Service(op) => op.apply(txn, &context),
        Op::Refuse(refusal) => Err(refusal.error.into()),
    }
}

/// Refuses what can't be a name.
pub(crate) fn check_name(name: &[u8]) -> OpResult<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong.into());
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(FsError::InvalidArgument.into());
    }
    Ok(())
}
