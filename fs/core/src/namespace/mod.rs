//! The operations on the namespace: one a file. Each checks everything it can be refused for and changes the
//! records of a [`Txn`]; a refused one leaves nothing behind.

mod allocate;
mod copy;
mod create;
mod link;
mod rename;
mod set_attributes;
mod unlink;
mod write;
mod xattr;

use crate::chunks;
use crate::commands::{Command, INTERNAL, Op, Outcome};
use crate::error::FsError;
use crate::fsck;
use crate::ids::SlotId;
use crate::keys;
use crate::limits::{NAME_BYTES_MAX, SESSION_SLOTS_MAX};
use crate::locks;
use crate::purge;
use crate::records::{SessionRecord, SlotRecord};
use crate::sessions;
use crate::store::{Family, StoreError};
pub use crate::txn::Txn;
use crate::txn::{OpError, OpResult};
use crate::volume;

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
    let result = if command.session == INTERNAL || matches!(command.op, Op::OpenSession { .. }) {
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
        Op::Refuse { request, .. } => *request,
        // A leader that proposes a command again may choose other servers for a new chunk: not part of the
        // request.
        Op::CreateChunk { kind, incarnation, .. } => {
            hash_of(&Op::CreateChunk { kind: *kind, incarnation: *incarnation, replicas: Vec::new() })
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

/// The slot table (as in NFSv4.1): a slot holds its last operation's sequence number, hash and outcome, errors
/// too; using the slot again acknowledges it.
fn once(txn: &mut Txn<'_>, command: &Command) -> OpResult<Outcome> {
    let session_key = keys::session(command.session);
    let Some(mut session) = txn.load::<SessionRecord>(Family::System, &session_key)? else {
        return Err(FsError::SessionExpired.into());
    };
    if command.slot.0 >= SESSION_SLOTS_MAX {
        return Err(FsError::InvalidArgument.into());
    }
    let slot_key = keys::slot(command.session, command.slot);
    let last: Option<SlotRecord> = txn.load(Family::System, &slot_key)?;
    let hash = request_hash(&command.op);
    let last_sequence = last.as_ref().map_or(0, |slot| slot.sequence);
    if let Some(last) = last
        && last.sequence == command.sequence
        && !atoll_mutants::makes("slots-dropped")
    {
        return if last.hash == hash { Ok(last.outcome) } else { Err(FsError::BadSequence.into()) };
    }
    if session.ended.is_some() {
        return Err(FsError::SessionExpired.into());
    }
    let again = atoll_mutants::makes("slots-dropped") && command.sequence == last_sequence;
    if last_sequence.checked_add(1) != Some(command.sequence) && !again {
        return Err(FsError::BadSequence.into());
    }
    let journal = command.slot == SlotId(0);
    if journal && session.journal_broken {
        return Err(FsError::JournalBroken.into());
    }
    let mut outcome = match perform(txn, command) {
        Ok(outcome) => outcome,
        Err(OpError::Refused(error)) => {
            txn.undo();
            Outcome::Refused(error)
        }
        Err(OpError::Store(StoreError::Damaged(_))) => {
            txn.undo();
            Outcome::Refused(FsError::Io)
        }
        Err(error) => return Err(error),
    };
    if journal && command.expect.is_some_and(|expected| expected != hash_of(&outcome)) {
        // The application was told something else already: what follows in the journal may rest on it.
        txn.undo();
        session.journal_broken = true;
        txn.put(Family::System, session_key, &session);
        outcome = Outcome::Refused(FsError::JournalBroken);
    }
    txn.put(
        Family::System,
        slot_key,
        &SlotRecord { sequence: command.sequence, hash, outcome: outcome.clone() },
    );
    Ok(outcome)
}

/// The table of operations.
fn perform(txn: &mut Txn<'_>, command: &Command) -> OpResult<Outcome> {
    let now = command.time;
    let session = command.session;
    let internal = session == INTERNAL;
    match &command.op {
        Op::Create { .. } => create::create(txn, now, &command.op),
        Op::Link { ino, parent, name } => link::link(txn, now, *ino, *parent, name),
        Op::Unlink { parent, name, directory } => unlink::unlink(txn, now, *parent, name, *directory),
        Op::CreateUnnamed { .. } => create::create_unnamed(txn, now, &command.op),
        Op::Rename { parent, name, new_parent, new_name, flags, whiteout } => {
            rename::rename(txn, now, (*parent, name), (*new_parent, new_name), *flags, *whiteout)
        }
        Op::SetAttributes { ino, changes } => set_attributes::set_attributes(txn, now, *ino, changes),
        Op::Touch { times } => set_attributes::touch(txn, times),
        Op::Write { ino, pieces, mtime, kill_priv, reservation } => {
            write::write(txn, session, *ino, pieces, *mtime, *kill_priv, *reservation)
        }
        Op::Append { ino, data, length, kill_priv, reservation } => {
            write::append(txn, session, now, *ino, data, *length, *kill_priv, *reservation)
        }
        Op::Allocate { .. } => allocate::allocate(txn, now, &command.op),
        Op::SetXattr { ino, name, value, mode } => xattr::set(txn, now, *ino, name, value, *mode),
        Op::RemoveXattr { ino, name } => xattr::remove(txn, now, *ino, name),
        Op::SetAcl { ino, default, value, kill_sgid } => {
            xattr::set_acl(txn, now, *ino, *default, value.as_ref(), *kill_sgid)
        }
        Op::CopyRange { from, offset, to, to_offset, length, kill_priv } => {
            copy::copy_range(txn, now, (*from, *offset), (*to, *to_offset), *length, *kill_priv)
        }
        Op::SetLock(request) => locks::set(txn, session, request),
        Op::ReleaseLocks { ino, scope } => locks::release(txn, session, *ino, *scope),
        Op::CreateChunk { kind, incarnation, replicas } => {
            chunks::create(txn, session, *kind, *incarnation, replicas)
        }
        Op::SealChunk { chunk } => chunks::seal(txn, session, *chunk),
        Op::ShrinkChunk { chunk, generation, without } => {
            chunks::shrink(txn, session, *chunk, *generation, without)
        }
        Op::Reserve { bytes, bytes_min } => volume::reserve(txn, session, *bytes, *bytes_min),
        Op::Unreserve { bytes } => volume::unreserve(txn, session, *bytes),
        Op::OpenSession { client, incarnation, supersedes } => {
            sessions::open(txn, now, client, *incarnation, *supersedes)
        }
        Op::CloseSession => sessions::end(txn, now, session),
        Op::Refuse { error, .. } => Err((*error).into()),
        // The service refuses these from the wire; this is the second bolt on the door.
        _ if !internal => Err(FsError::NotPermitted.into()),
        Op::Bootstrap { cluster, hash_key, config } => {
            volume::bootstrap(txn, now, *cluster, *hash_key, config)
        }
        Op::Configure { config } => volume::configure(txn, config),
        Op::PutServer { server, address, labels } => volume::put_server(txn, now, *server, address, labels),
        Op::ChangeServer { server, change } => volume::change_server(txn, *server, *change),
        Op::ExpireSession { session } => sessions::end(txn, now, *session),
        Op::ForgetSession { session } => sessions::forget(txn, *session),
        Op::PurgeOrphan { ino, segments_max } => purge::orphan(txn, *ino, *segments_max as usize),
        Op::PurgeTruncated { ino, segments_max } => purge::truncated(txn, *ino, *segments_max as usize),
        Op::SweepChunk { chunk } => chunks::sweep(txn, *chunk),
        Op::OrdersDone { server, done } => chunks::orders_done(txn, *server, done),
        Op::DeleteStray { server, chunks } => chunks::delete_stray(txn, *server, chunks),
        Op::Relocate { ino, segment, expected, chunk, generation, offset } => {
            write::relocate(txn, *ino, *segment, expected, (*chunk, *generation, *offset))
        }
        Op::SetReplicas { chunk, generation, replicas } => {
            chunks::set_replicas(txn, *chunk, *generation, replicas)
        }
        Op::Fsck { kind, subject } => fsck::repair(txn, now, *kind, subject),
        Op::FsckTotals(corrections) => fsck::totals(txn, corrections),
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
