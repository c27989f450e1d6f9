//! What the leader of one term knows beside the records.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use atoll_core::commands::{Command, INTERNAL, Op, Outcome};
use atoll_core::ids::{InodeId, MemberId, ServerId, SessionId, SlotId};
use atoll_core::keys;
use atoll_core::records::{ServerRecord, SessionRecord};
use atoll_core::store::StoreError;
use atoll_proto::fsck::FsckReply;
use atoll_proto::metadata::{MetadataError, RepairStatus};
use atoll_raft::Leadership;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::changes::Changes;
use crate::clock;
use crate::file_locks::FileLocks;
use crate::lock::Mutex;
use crate::making::Making;
use crate::node::{Consensus, Node, collect};
use crate::proposer::Proposer;
use crate::repair::Progress;
use crate::servers::Servers;
use crate::sessions::Sessions;
use crate::tasks::TaskQueue;
use crate::workers::mover::Mover;
use crate::workers::suspects::Suspects;

/// A mutation that is being carried out, for those who send it again meanwhile.
pub(crate) type InFlight = Shared<BoxFuture<'static, Result<Outcome, MetadataError>>>;

/// Mutations by what makes each of them one: session, slot and sequence.
pub(crate) type AllInFlight = HashMap<(SessionId, SlotId, u64), InFlight>;

/// The memory of the leader of one term, and its way to propose what it decides.
///
/// Built whole from the records when this member becomes the leader ([`Leader::from_records`]), and dropped whole when that
/// leadership is over: nothing of it survives into a later term. Whoever reads or changes it got it from [`Node::lead`]. A
/// task that is still at work when its term has ended keeps the value of that term, which nobody else looks at any more;
/// the leader of the next term, here or elsewhere, doesn't see what is done to it.
///
/// Who has answered from the records, or has noted something here that an answer promises, calls [`Leader::confirm`]
/// before it answers: only then this was the leader's memory and those were the newest records at that moment.
///
/// Lock order, of those that are ever held together: `mover`, `servers`, `tasks`, `repair`, then what [`Suspects`] has in it;
/// `locks`, then `sessions`. Each of the others is taken alone. None but `membership` and `mover` is held across an `await`;
/// `sessions` is held while one record is looked up. [`reads`](crate::reads) says which reads of the records may be done on a
/// thread that tasks run on. Tests check the order ([`lock`](crate::lock)).
pub(crate) struct Leader {
    /// The term in which this member leads.
    pub(crate) term: u64,
    member: MemberId,
    consensus: Arc<dyn Consensus>,
    proposer: Proposer,
    /// Files that are being made and not yet known to be held open by who makes them.
    pub(crate) making: Making,
    /// What there is to do for the workers.
    pub(crate) changes: Arc<Changes>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) servers: Mutex<Servers>,
    pub(crate) tasks: Mutex<TaskQueue>,
    pub(crate) repair: Mutex<Progress>,
    /// Replicas that are said to be bad, to be taken out once another one was found to be whole.
    pub(crate) suspects: Suspects,
    /// Writes what moves into chunks. Held while bytes move.
    pub(crate) mover: tokio::sync::Mutex<Mover>,
    /// The check of the volume that runs, or the last one.
    pub(crate) fsck: Mutex<FsckReply>,
    /// `None` once this leadership is over. Each of these holds this value, so it lives for as long as they are here.
    pub(crate) in_flight: Mutex<Option<AllInFlight>>,
    /// Who has locked what, and who waits for that. What is in here belongs to sessions that are in `sessions`: who adds
    /// something makes sure of that while holding this.
    pub(crate) locks: Mutex<FileLocks>,
    /// Fires when a session has told this leader what it holds, or has ended.
    pub(crate) told: Notify,
    /// Other members whose disks are full, as they said a moment ago.
    pub(crate) full: Mutex<BTreeSet<MemberId>>,
    /// So many of the group's disks have little room that what grows could not be committed.
    pub(crate) group_low: AtomicBool,
    /// Fires when the last name of an inode [was removed, or wasn't](Unlinking).
    unlinked: Notify,
    /// Held by who changes the group: one at a time.
    pub(crate) membership: tokio::sync::Mutex<()>,
    over: CancellationToken,
}

impl Leader {
    /// The leader of `term`, as the records of `node` make it at `now`: sessions and storage servers, and the locks of mounts
    /// of earlier builds; not files.
    ///
    /// # Errors
    /// If they can't be read.
    pub(crate) fn from_records(node: &Node, term: u64, now: Duration) -> Result<Leader, StoreError> {
        let store = node.machine.store();
        let snapshot = store.snapshot();
        let sessions: Vec<SessionId> = collect::<SessionRecord>(&snapshot, &keys::sessions())?
            .into_iter()
            .filter(|(_, record)| record.ended.is_none())
            .map(|(id, _)| SessionId(id))
            .collect();
        let locks = FileLocks::from_records(&snapshot, &sessions)?;
        let servers: Vec<(ServerId, ServerRecord)> = collect::<ServerRecord>(&snapshot, &keys::servers())?
            .into_iter()
            .map(|(id, record)| (ServerId(id), record))
            .collect();
        tracing::info!(
            term,
            sessions = sessions.len(),
            storage_servers = servers.len(),
            "this metadata server became the leader"
        );
        Ok(Leader {
            term,
            member: node.member,
            consensus: node.consensus.clone(),
            proposer: node.proposer.clone(),
            making: Making::default(),
            changes: Arc::default(),
            sessions: Mutex::new(Sessions::begin(term, node.session_lifetime, now, sessions)),
            servers: Mutex::new(Servers::begin(term, now, node.repair_after, servers)),
            tasks: Mutex::new(TaskQueue::begin(term)),
            repair: Mutex::default(),
            suspects: Suspects::default(),
            mover: tokio::sync::Mutex::default(),
            fsck: Mutex::default(),
            in_flight: Mutex::new(Some(HashMap::new())),
            locks: Mutex::new(locks),
            told: Notify::new(),
            full: Mutex::default(),
            group_low: AtomicBool::new(false),
            unlinked: Notify::new(),
            membership: tokio::sync::Mutex::default(),
            over: CancellationToken::new(),
        })
    }

    /// Checked after a reply was built from the records: they were the truth then only if this still holds.
    ///
    /// # Errors
    /// If this member doesn't lead in this term any more, or its lease has lapsed.
    pub(crate) fn confirm(&self) -> Result<(), MetadataError> {
        match self.consensus.leading_term() {
            Some(term) if term == self.term => Ok(()),
            _ => Err(not_leader(self.member, self.consensus.leadership())),
        }
    }

    /// As [`confirm`](Self::confirm), for who isn't asked by anybody: the lease may have lapsed for that very reason.
    ///
    /// # Errors
    /// As [`confirm`](Self::confirm).
    pub(crate) async fn confirm_unasked(&self) -> Result<(), MetadataError> {
        self.consensus.renew_lease().await;
        self.confirm()
    }

    /// Whether this leadership has ended, for good. A lease that lapsed for a moment is no change of leader.
    pub(crate) fn is_over(&self) -> bool {
        is_over(self.term, self.member, &self.consensus.leadership())
    }

    /// # Errors
    /// If this leadership [is over](Self::is_over).
    pub(crate) fn not_over(&self) -> Result<(), MetadataError> {
        let leadership = self.consensus.leadership();
        match is_over(self.term, self.member, &leadership) {
            false => Ok(()),
            true => Err(not_leader(self.member, leadership)),
        }
    }

    /// Is done when this leadership has been noticed to be over.
    pub(crate) fn ended(&self) -> WaitForCancellationFuture<'_> {
        self.over.cancelled()
    }

    /// This leadership is over: whoever waits for something in it goes away, and mutations that were given up halfway, which
    /// hold this value as it holds them, are let go of.
    pub(crate) fn retire(&self) {
        self.over.cancel();
        let in_flight = self.in_flight.lock().take();
        drop(in_flight);
        self.locks.lock().wake_all();
        self.told.notify_waiters();
    }

    /// If nobody holds `ino`, nobody can before what is returned is dropped: for who removes its last name and frees it in
    /// one entry.
    pub(crate) fn begin_unlinking(&self, ino: InodeId) -> Option<Unlinking<'_>> {
        // Before the sessions are asked: who makes a file is among them when it is no more among these.
        let begun = !self.making.may_be(ino) && self.sessions.lock().begin_unlinking(ino);
        // Made only then: one that is dropped ends what somebody else has begun.
        begun.then(|| Unlinking { leader: self, ino })
    }

    /// Waits while the last name of `ino` is being removed.
    pub(crate) async fn until_unlinked(&self, ino: InodeId) {
        while self.sessions.lock().is_unlinking(ino) {
            let unlinked = self.unlinked.notified();
            tokio::pin!(unlinked);
            unlinked.as_mut().enable();
            if !self.sessions.lock().is_unlinking(ino) {
                return;
            }
            tokio::select! {
                () = unlinked => {}
                () = self.ended() => return,
            }
        }
    }

    /// How far repair is.
    pub(crate) fn repair_status(&self) -> RepairStatus {
        let copying = self.tasks.lock().copies() as u64;
        self.repair.lock().status(copying, clock::since_boot())
    }

    /// Proposes something of the service's own. What was decided from the memory of one term isn't proposed in another one.
    ///
    /// # Errors
    /// If it isn't known to have been carried out.
    pub(crate) async fn propose(&self, op: Op) -> Result<Outcome, MetadataError> {
        self.not_over()?;
        self.proposer.propose(self.term, &internal(op)).await
    }

    /// Proposes what a client has sent, in this term: what is promised about it is promised by this memory.
    ///
    /// # Errors
    /// If it isn't known to have been carried out.
    pub(crate) async fn propose_command(&self, command: &Command) -> Result<Outcome, MetadataError> {
        self.proposer.propose(self.term, command).await
    }

    /// As [`propose_command`](Self::propose_command), with something of the service's own right behind it; nobody sees the
    /// one without the other.
    ///
    /// # Errors
    /// If it isn't known to have been carried out.
    pub(crate) async fn propose_command_and(
        &self,
        command: &Command,
        op: Op,
    ) -> Result<Outcome, MetadataError> {
        let both = [command.clone(), internal(op)];
        let outcomes = self.proposer.propose_together(self.term, &both).await?;
        outcomes.into_iter().next().ok_or_else(|| MetadataError::Failed("a command has no outcome".into()))
    }

    /// Proposes what a client has sent, in this order and with nothing in between.
    ///
    /// # Errors
    /// If it isn't known to have been carried out.
    pub(crate) async fn propose_together(&self, commands: &[Command]) -> Result<Vec<Outcome>, MetadataError> {
        self.proposer.propose_together(self.term, commands).await
    }

    /// Proposes several things of the service's own, in order; as [`propose`](Self::propose).
    ///
    /// # Errors
    /// If one isn't known to have been carried out.
    pub(crate) async fn propose_all(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, MetadataError> {
        self.not_over()?;
        let commands: Vec<Command> = ops.into_iter().map(internal).collect();
        self.proposer.propose_all(self.term, &commands).await
    }
}

/// An inode whose last name is being removed, until this is dropped; who opens it waits.
pub(crate) struct Unlinking<'a> {
    leader: &'a Leader,
    ino: InodeId,
}

impl Drop for Unlinking<'_> {
    fn drop(&mut self) {
        self.leader.sessions.lock().unlinked(self.ino);
        self.leader.unlinked.notify_waiters();
    }
}

/// Whether the leadership of `member` in `term` has ended.
fn is_over(term: u64, member: MemberId, now: &Leadership) -> bool {
    let led_by_other = now.leader.as_ref().is_some_and(|(leader, _)| *leader != member.0);
    now.term != term || led_by_other
}

/// Where a client of `member`, which doesn't lead, is sent.
pub(crate) fn not_leader(member: MemberId, leadership: Leadership) -> MetadataError {
    // A leader that has only just been elected, or whose lease has lapsed, is no one to send a client to.
    let other = leadership.leader.filter(|(leader, _)| *leader != member.0);
    MetadataError::NotLeader { leader: other.map(|(leader, address)| (MemberId(leader), address)) }
}

pub(crate) fn internal(op: Op) -> Command {
    Command { session: INTERNAL, slot: SlotId(0), sequence: 0, time: clock::now(), expect: None, op }
}

#[cfg(test)]
mod tests;
