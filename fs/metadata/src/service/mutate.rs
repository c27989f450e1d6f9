//! Mutations: each is carried out once, however often it is sent.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{Attributes, FileKind};
use atoll_core::commands::{
    ClientOp, Command, INTERNAL, Op, Outcome, RENAME_EXCHANGE, RENAME_NOREPLACE, ops,
};
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, ServerId, SessionId};
use atoll_core::keys;
use atoll_core::query::{self, OpError, load};
use atoll_core::records::{SessionRecord, SlotRecord, Superblock};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::metadata::{MetadataError, MutateReply, MutateRequest};
use futures::FutureExt;
use tracing::Instrument;

use crate::admission::{self, Facts};
use crate::changes::Work;
use crate::clock;
use crate::leader::{Leader, Unlinking};
use crate::node::{Node, query_error, store_error};
use crate::reads::Lane;
use crate::service::ask::HoldError;
use crate::sessions::OpenError;

/// How long a reservation waits for others to give back what they don't use.
const RESERVATION_WAIT_MAX: Duration = Duration::from_secs(8);
/// How often it looks.
const RESERVATION_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Segments that are freed in the entry that removes the last name: all of a small file. What is left of a larger one is
/// freed in the background.
pub(super) const SEGMENTS_WITH_UNLINK_MAX: u32 = 4;

impl Node {
    /// Carries a client's mutation out.
    pub(crate) async fn mutate(
        self: &Arc<Self>,
        request: MutateRequest,
    ) -> Result<MutateReply, MetadataError> {
        let MutateRequest { command, opens } = request;
        let begins = matches!(command.op, ClientOp::OpenSession(_));
        if command.session == INTERNAL && !begins || !admission::is_allowed(&command.op) {
            return Err(MetadataError::Fs(FsError::NotPermitted));
        }
        let leader = self.lead()?;
        let command = Command::from(command);
        if begins {
            let outcome = self.open_session(&leader, command).await?;
            return Ok(MutateReply { outcome, parents: Vec::new() });
        }
        self.note_heard(&leader, command.session)?;
        let identity = (command.session, command.slot, command.sequence);
        let parents = match &command.op {
            Op::Client(op) => op.directories(),
            _ => [None; 2],
        };
        let running = {
            let mut in_flight = leader.in_flight.lock();
            // Over since it was asked for: nobody would let go of what began here now.
            let Some(in_flight) = in_flight.as_mut() else {
                return Err(MetadataError::NotLeader { leader: None });
            };
            match in_flight.get(&identity) {
                // Sent again while it is carried out: what the leader decided about it stands.
                Some(running) => running.clone(),
                None => {
                    let (node, leader) = (self.clone(), leader.clone());
                    // See docs/tracing.md.
                    let span = tracing::debug_span!(
                        target: "atoll::trace", "lead", id = %command.id(), op = command.op.name()
                    );
                    let running = async move {
                        let outcome = node.carry_out(&leader, command, opens).await;
                        if let Some(in_flight) = leader.in_flight.lock().as_mut() {
                            in_flight.remove(&identity);
                        }
                        outcome
                    }
                    .instrument(span)
                    .boxed()
                    .shared();
                    in_flight.insert(identity, running.clone());
                    running
                }
            }
        };
        let outcome = running.await?;
        let parents = match outcome {
            Outcome::Refused(_) => Vec::new(),
            // It took effect, whether these can be read or not.
            _ => self.describe(parents).unwrap_or_default(),
        };
        Ok(MutateReply { outcome, parents })
    }

    /// These directories, if the kernel may keep attributes.
    fn describe(&self, directories: [Option<InodeId>; 2]) -> Result<Vec<Attributes>, MetadataError> {
        let mut described = Vec::new();
        if directories == [None; 2] {
            return Ok(described);
        }
        let store = self.machine.store();
        if !query::superblock(&*store).map_err(query_error)?.config.exclusive {
            return Ok(described);
        }
        for ino in directories.into_iter().flatten() {
            match query::inode(&*store, ino) {
                Ok(record) => described.push(record.attributes(ino)),
                // It is gone by now.
                Err(OpError::Refused(_)) => {}
                Err(error) => return Err(query_error(error)),
            }
        }
        Ok(described)
    }

    /// A session that the leader's table doesn't have may still be alive: its making was committed by an entry
    /// whose proposer never heard of it.
    pub(super) fn note_heard(&self, leader: &Leader, session: SessionId) -> Result<(), MetadataError> {
        let now = clock::since_boot();
        if leader.sessions.lock().heard(session, now).is_ok() {
            return Ok(());
        }
        let record: Option<SessionRecord> =
            load(&*self.machine.store(), Family::System, &keys::session(session))
                .map_err(|e| store_error(&e))?;
        if record.is_some_and(|record| record.ended.is_none()) {
            leader.sessions.lock().opened(session, now);
        }
        // Else the command tells: an ended session's slots still answer for what it did.
        Ok(())
    }

    async fn carry_out(
        self: &Arc<Self>,
        leader: &Leader,
        mut command: Command,
        opens: bool,
    ) -> Result<Outcome, MetadataError> {
        let store = self.machine.store();
        let key = keys::slot(command.session, command.slot);
        let last: Option<SlotRecord> = load(&*store, Family::System, &key).map_err(|e| store_error(&e))?;
        if let Some(last) = last
            && last.sequence == command.sequence
            && !atoll_faults::planted("slots-dropped")
        {
            // Answered before what only the leader knows is asked again: it may have changed.
            leader.confirm()?;
            let Some(ino) = made_to_be_held(&command.op, opens, &last.outcome) else {
                return Ok(last.outcome);
            };
            return self.hold_made(leader, command.session, ino, last.outcome).await;
        }
        if let Op::Client(ClientOp::Reserve(ops::Reserve { bytes_min, .. })) = command.op {
            self.wait_for_room(leader, command.session, bytes_min).await?;
        }
        self.refuse_locked(&command)?;
        // Read before the command is on its way: its file gets this number or a higher one.
        let _making = match opens || matches!(command.op, Op::Client(ClientOp::Tmpfile(_))) {
            true => {
                let volume = query::superblock(&*store).map_err(query_error)?;
                Some(leader.making.begin(InodeId(volume.next_inode)))
            }
            false => None,
        };
        let disk_low = self.is_full(leader);
        if disk_low || admission::needs_facts(&command.op) {
            let volume = query::superblock(&*store).map_err(query_error)?;
            let facts = self.facts(leader, &command.op, &volume, disk_low);
            admission::admit(&mut command, &volume, &facts);
        }
        let extent_bytes = admission::extent_bytes(&command.op);
        if extent_bytes > 0 {
            leader.servers.lock().committed(extent_bytes);
        }
        if atoll_faults::planted("reply-before-commit")
            && let Op::Client(ClientOp::SetXattr(ops::SetXattr { ino, .. })) = command.op
            && let Ok(record) = query::inode(&*store, ino)
        {
            let (node, command) = (self.clone(), command.clone());
            tokio::spawn(async move {
                if let Ok(leader) = node.lead() {
                    let _ = leader.propose_command(&command).await;
                }
            });
            return Ok(Outcome::Inode(Box::new(record.attributes(ino))));
        }
        let outcome = match self.begin_unlinking(leader, &command.op)? {
            Some((ino, _unlinking)) => {
                let purge = ops::PurgeOrphan { ino, segments_max: SEGMENTS_WITH_UNLINK_MAX };
                leader.propose_command_and(&command, Op::from(purge)).await?
            }
            None => leader.propose_command(&command).await?,
        };
        if matches!(command.op, Op::Client(ClientOp::CloseSession(_))) && outcome == Outcome::Done {
            self.session_ended(command.session);
        }
        self.note_locks(command.session, &command.op, &outcome);
        let Some(ino) = made_to_be_held(&command.op, opens, &outcome) else { return Ok(outcome) };
        self.hold_made(leader, command.session, ino, outcome).await
    }

    /// What is known besides the records that `op` is judged by.
    fn facts(&self, leader: &Leader, op: &Op, volume: &Superblock, disk_low: bool) -> Facts {
        let now = clock::since_boot();
        let config = &volume.config;
        let candidates = match op {
            Op::Client(ClientOp::CreateChunk(_)) => {
                leader.servers.lock().candidates(usize::from(config.copies_min), now)
            }
            _ => Vec::new(),
        };
        let room = match op {
            Op::Client(ClientOp::Reserve(_)) => {
                leader.servers.lock().room(config.copies, config.chunk_bytes, now)
            }
            _ => None,
        };
        Facts { candidates, room, disk_low, seed: rand::random() }
    }

    /// The inode whose last name `op` removes, if it can be freed in the same entry: nobody holds it, and nobody can before
    /// it is known whether the name is gone. By the records of now: if another command comes between, there is nothing to
    /// free, or what is freed has lost its name to that one.
    fn begin_unlinking<'a>(
        &self,
        leader: &'a Leader,
        op: &Op,
    ) -> Result<Option<(InodeId, Unlinking<'a>)>, MetadataError> {
        let (parent, name) = match op {
            Op::Client(ClientOp::Unlink(ops::Unlink { parent, name, .. })) => (*parent, name),
            Op::Client(ClientOp::Rename(ops::Rename { new_parent, new_name, flags, .. }))
                if flags & (RENAME_EXCHANGE | RENAME_NOREPLACE) == 0 =>
            {
                (*new_parent, new_name)
            }
            _ => return Ok(None),
        };
        let store = self.machine.store();
        let found = query::superblock(&*store).and_then(|volume| {
            let Some(found) = query::find_entry(&*store, volume.hash_key, parent, name)? else {
                return Ok(None);
            };
            let record = query::inode(&*store, found.ino)?;
            Ok((record.is_directory() || record.nlink == 1).then_some(found.ino))
        });
        let ino = match found {
            Ok(Some(ino)) => ino,
            // The command will say so.
            Ok(None) | Err(OpError::Refused(_)) => return Ok(None),
            Err(OpError::Store(error)) => return Err(store_error(&error)),
        };
        Ok(leader.begin_unlinking(ino).map(|unlinking| (ino, unlinking)))
    }

    /// A file that is made to be opened, or has no name, is held open by its maker from the start. If that can't be any
    /// more the outcome is `Stale`: another leader has made it, and freed it before its maker could tell.
    async fn hold_made(
        &self,
        leader: &Leader,
        session: SessionId,
        ino: InodeId,
        outcome: Outcome,
    ) -> Result<Outcome, MetadataError> {
        if atoll_faults::planted("create-unheld") {
            return Ok(outcome);
        }
        let store = self.machine.store();
        let held = loop {
            match self.hold(leader, &*store, session, ino) {
                Err(HoldError::Refused(OpenError::Unlinking)) => leader.until_unlinked(ino).await,
                held => break held.map_err(MetadataError::from),
            }
            // Where it was removed by a leader that is none any more.
            leader.not_over()?;
        };
        // Read after it was registered: what is unlinked from now on is kept.
        let held = held.and_then(|_| query::inode(&*store, ino).map_err(query_error));
        match held {
            Ok(_) => {
                // Held in the memory of a leader that is none any more, it would be held by nobody.
                leader.confirm()?;
                Ok(outcome)
            }
            Err(MetadataError::Fs(FsError::Stale)) => {
                self.let_go_of(leader, session, &[ino]);
                Ok(Outcome::Refused(FsError::Stale))
            }
            // What the session did is told to its successor, which then opens the file.
            Err(MetadataError::Fs(FsError::SessionExpired)) => Ok(Outcome::Refused(FsError::SessionExpired)),
            Err(MetadataError::Fs(error)) => {
                tracing::warn!(%ino, %error, "a new file could not be recorded as open in its session");
                Ok(outcome)
            }
            Err(error) => Err(error),
        }
    }

    async fn open_session(&self, leader: &Leader, command: Command) -> Result<Outcome, MetadataError> {
        let outcome = leader.propose_command(&command).await?;
        if let Outcome::Session(session, _) = &outcome {
            leader.sessions.lock().opened(*session, clock::since_boot());
            let mut over = Vec::new();
            if let Op::Client(ClientOp::OpenSession(ops::OpenSession { supersedes: Some(old), .. })) =
                command.op
            {
                over.push(old);
            }
            let volume = query::superblock(&*self.machine.store()).map_err(query_error)?;
            if volume.config.exclusive {
                // There is one at a time, and this is it.
                over.extend(leader.sessions.lock().others(*session));
            }
            for old in over {
                self.session_ended(old);
            }
        }
        Ok(outcome)
    }

    /// Before a reservation is refused, others are asked to give back what they don't use, and what was deleted
    /// is waited for.
    async fn wait_for_room(
        &self,
        leader: &Leader,
        session: SessionId,
        bytes_min: u64,
    ) -> Result<(), MetadataError> {
        let give_up = clock::since_boot() + RESERVATION_WAIT_MAX;
        loop {
            let is_granted = match self.may_be_granted(leader, session, bytes_min).map_err(query_error)? {
                Grant::Now => true,
                Grant::Later => false,
                // What is done leaves marks in the store that a scan has to go through.
                Grant::UnlessTrimmed(servers) => {
                    !self.read(Lane::Request, move |records| has_orders(records, &servers)).await?
                }
            };
            if is_granted || clock::since_boot() > give_up {
                return Ok(());
            }
            leader.sessions.lock().recall_reservations(session);
            tokio::time::sleep(RESERVATION_POLL_INTERVAL).await;
        }
    }

    /// Whether there is room, or waiting won't make any.
    fn may_be_granted(&self, leader: &Leader, session: SessionId, bytes_min: u64) -> query::OpResult<Grant> {
        let store = self.machine.store();
        let volume = query::superblock(&*store)?;
        let (room, alive) = {
            let servers = leader.servers.lock();
            let now = clock::since_boot();
            (servers.room(volume.config.copies, volume.config.chunk_bytes, now), servers.alive(now))
        };
        let disks_full = room.is_some_and(|room| bytes_min > room.saturating_sub(volume.bytes_reserved));
        if bytes_min <= volume.volume_use().bytes_free() && !disks_full {
            return Ok(Grant::Now);
        }
        // What others have promised data for becomes used, not free.
        let others = volume.bytes_reserved.saturating_sub(own_reservation(&*store, session)?);
        let may_come = others > 0 && (disks_full || bytes_min <= volume.volume_use().bytes_free() + others);
        if may_come
            || leader.changes.is_pending(Work::Orphans)
            || leader.changes.is_pending(Work::Truncations)
        {
            return Ok(Grant::Later);
        }
        Ok(match (disks_full, leader.changes.is_pending(Work::Sweeps)) {
            (false, _) => Grant::Now,
            (true, true) => Grant::Later,
            // On the disks, what is deleted is gone only when the servers have done it.
            (true, false) => Grant::UnlessTrimmed(alive),
        })
    }
}

/// When what is reserved may be granted, or refused.
enum Grant {
    /// There is room, or waiting won't make any.
    Now,
    /// Others may give something back.
    Later,
    /// Now, unless one of these servers has still to delete or trim something.
    UnlessTrimmed(Vec<ServerId>),
}

/// The file that an operation has made to be held open by its maker from the start, if that is what it has done.
fn made_to_be_held(op: &Op, opens: bool, outcome: &Outcome) -> Option<InodeId> {
    match (op, outcome) {
        (Op::Client(ClientOp::Tmpfile(_)), Outcome::Inode(made)) => Some(made.ino),
        (Op::Client(ClientOp::Create(_)), Outcome::Inode(made)) if opens && made.kind() == FileKind::File => {
            Some(made.ino)
        }
        _ => None,
    }
}

/// Whether one of these servers has still to delete or trim something.
fn has_orders(store: &dyn Read, servers: &[ServerId]) -> Result<bool, StoreError> {
    let mut found = false;
    for server in servers {
        let prefix = keys::tasks(*server);
        store.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |_, _| {
            found = true;
            ControlFlow::Break(())
        })?;
    }
    Ok(found)
}

fn own_reservation(store: &dyn Read, session: SessionId) -> Result<u64, StoreError> {
    let record: Option<SessionRecord> = load(store, Family::System, &keys::session(session))?;
    Ok(record.map_or(0, |record| record.bytes_reserved))
}

#[cfg(test)]
mod tests;
