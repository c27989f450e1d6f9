//! Sessions: their beginning, their end, and what is kept for a successor.

use serde::{Deserialize, Serialize};

use crate::attributes::Timestamp;
use crate::chunks;
use crate::commands::{Context, Mutation, OpenedSession};
use crate::error::FsError;
use crate::ids::{SessionId, SlotId};
use crate::keys;
use crate::limits::{SESSION_SLOTS_MAX, SESSIONS_MAX};
use crate::locks;
use crate::records::{Record, SessionRecord, SlotRecord};
use crate::store::Family;
use crate::txn::{OpResult, Txn, take_number};

/// Begins a session.
///
/// Begins a session. One that it supersedes is ended, its last outcomes are told, and then it is forgotten.
///
/// A volume for one machine at a time is refused while another machine has a living session; the same machine's own ones
/// are ended, since it starts a client only when the one before is dead or was told to go. So no two machines ever write,
/// and a session that was lost while another machine took the volume never comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// What the client calls itself: its machine, a colon, and what the mount is called there.
    pub client: String,
    /// The process.
    pub incarnation: u64,
    /// The session that it takes the place of, to learn what became of its last operations.
    pub supersedes: Option<SessionId>,
}

impl Mutation for OpenSession {
    type Outcome = OpenedSession;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<OpenedSession> {
        let now = context.now;
        let OpenSession { ref client, incarnation, supersedes } = *self;
        let sessions = txn.collect_prefix(Family::System, &keys::sessions(), SESSIONS_MAX + 1)?;
        if sessions.len() >= SESSIONS_MAX {
            return Err(FsError::TooManySessions.into());
        }
        if txn.volume()?.config.exclusive {
            let mut own = Vec::new();
            for (key, value) in sessions {
                let record = SessionRecord::decode(&value)?;
                let Some(session) = keys::first_number(&key).map(SessionId) else { continue };
                if record.ended.is_some() || supersedes == Some(session) {
                    continue;
                }
                if machine(&record.client) != machine(client) {
                    return Err(FsError::Taken.into());
                }
                own.push(session);
            }
            for session in own {
                end(txn, now, session)?;
            }
        }
        let mut previous = Vec::new();
        if let Some(old) = supersedes {
            end(txn, now, old)?;
            let slots = txn.collect_prefix(Family::System, &keys::slots(old), SESSION_SLOTS_MAX as usize)?;
            for (key, value) in slots {
                let slot = SlotRecord::decode(&value)?;
                if let Some(number) = keys::second_number(&key) {
                    previous.push((SlotId(number as u32), slot.sequence, slot.outcome));
                }
            }
        }
        let volume = txn.volume_mut()?;
        let session = SessionId(take_number(&mut volume.next_session)?);
        let record = SessionRecord {
            client: client.to_owned(),
            incarnation,
            opened: now,
            ended: None,
            bytes_reserved: 0,
            journal_broken: false,
        };
        txn.put(Family::System, keys::session(session), &record);
        Ok(OpenedSession { session, previous })
    }
}

/// The machine in a client's name.
fn machine(client: &str) -> &str {
    client.split(':').next().unwrap_or(client)
}

/// Ends the asking session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseSession;

impl Mutation for CloseSession {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        end(txn, context.now, context.session)
    }
}

/// Ends a session that was silent for its lifetime, or was evicted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpireSession {
    /// Which.
    pub session: SessionId,
}

impl Mutation for ExpireSession {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        end(txn, context.now, self.session)
    }
}

/// Ends a session: it can commit nothing any more. Its chunks are sealed, its promises come back, its slots
/// stay until [`ForgetSession`].
pub(crate) fn end(txn: &mut Txn<'_>, now: Timestamp, session: SessionId) -> OpResult<()> {
    let key = keys::session(session);
    let Some(mut record) = txn.load::<SessionRecord>(Family::System, &key)? else { return Ok(()) };
    if record.ended.is_some() {
        return Ok(());
    }
    let reserved = std::mem::take(&mut record.bytes_reserved);
    let volume = txn.volume_mut()?;
    volume.bytes_reserved = volume.bytes_reserved.saturating_sub(reserved);
    record.ended = Some(now);
    txn.put(Family::System, key, &record);
    chunks::seal_all(txn, session)?;
    locks::release_all(txn, session)?;
    Ok(())
}

/// Forgets an ended session and its slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetSession {
    /// Which.
    pub session: SessionId,
}

impl Mutation for ForgetSession {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let session = self.session;
        let key = keys::session(session);
        let Some(record) = txn.load::<SessionRecord>(Family::System, &key)? else { return Ok(()) };
        if record.ended.is_none() {
            return Err(FsError::InvalidArgument.into());
        }
        for (slot, _) in
            txn.collect_prefix(Family::System, &keys::slots(session), SESSION_SLOTS_MAX as usize)?
        {
            txn.delete(Family::System, slot);
        }
        txn.delete(Family::System, key);
        Ok(())
    }
}
