//! One metadata server as its parts see it: the records, the way into the log, and, while it leads, the
//! leader's memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::commands::{Command, INTERNAL, Op, Outcome};
use atoll_core::ids::{ClusterId, MemberId, ServerId, SessionId, SlotId};
use atoll_core::keys;
use atoll_core::lock_waits::LockWaits;
use atoll_core::query::OpError;
use atoll_core::records::{Record, ServerRecord, SessionRecord};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::Identity;
use atoll_proto::metadata::MetadataError;
use atoll_raft::{Leadership, PeerError, RaftError, RaftStatus};
use bytes::Bytes;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::changes::Changes;
use crate::clock;
use crate::making::Making;
use crate::metrics::Metrics;
use crate::orders::OrderBook;
use crate::peers::Members;
use crate::proposer::{Log, Proposer};
use crate::repair::Progress;
use crate::servers::Servers;
use crate::sessions::Sessions;
use crate::state_machine::Machine;
use crate::workers::suspects::Suspects;

/// What this crate needs of replication.
pub trait Consensus: Log {
    /// Whether this member leads, and who does.
    fn leadership(&self) -> Leadership;

    /// For status pages.
    fn status(&self) -> RaftStatus;

    /// Founds the group with these members. To do it again changes nothing.
    fn bootstrap(&self, members: BTreeMap<u64, String>) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Adds a member that receives the log and doesn't vote; done when it has all of it. Leader only.
    fn add_learner(&self, member: u64, address: String) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Makes exactly these members vote; whoever votes no longer belongs to the group no more. Leader only.
    fn change_voters(&self, voters: BTreeSet<u64>) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Takes a member out that doesn't vote. Leader only.
    fn remove_learner(&self, member: u64) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Gives the office to a voter; done when this member leads no more. Leader only.
    fn transfer_leader(&self, to: u64) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Answers a request of another member.
    fn handle_peer(&self, kind: u16, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Makes everything durable that is applied now, so that a crash needs no log of it.
    fn flush(&self) -> BoxFuture<'_, Result<(), RaftError>>;
}

/// A mutation that is being carried out, for those who send it again meanwhile.
pub(crate) type InFlight = Shared<BoxFuture<'static, Result<Outcome, MetadataError>>>;

/// The leader's memory. Empty while this member doesn't lead.
#[derive(Default)]
pub(crate) struct Office {
    /// The term for which the rest was made.
    term: AtomicU64,
    /// Held while it is made.
    beginning: Mutex<()>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) servers: Mutex<Servers>,
    pub(crate) orders: Mutex<OrderBook>,
    pub(crate) repair: Mutex<Progress>,
    /// Replicas that are said to be bad, to be taken out once another one was found to be whole.
    pub(crate) suspects: Suspects,
    pub(crate) in_flight: Mutex<HashMap<(SessionId, SlotId, u64), InFlight>>,
    /// Who waits for which lock.
    pub(crate) lock_waits: Mutex<LockWaits>,
    /// The newest question of each session about its waits; older ones are over.
    pub(crate) lock_questions: Mutex<HashMap<SessionId, u64>>,
    /// Other members whose disks are full, as they said a moment ago.
    pub(crate) full: Mutex<BTreeSet<MemberId>>,
    /// Held by who changes the group: one at a time.
    pub(crate) membership: tokio::sync::Mutex<()>,
    /// Fires when a lock was let go of.
    pub(crate) locks_changed: Notify,
    /// Files that are being made and not yet known to be held open by who makes them.
    pub(crate) making: Making,
}

/// A metadata server.
pub struct Node {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    pub(crate) address: String,
    pub(crate) session_lifetime: Duration,
    /// A storage server that was silent for longer is given up.
    pub(crate) repair_after: Duration,
    /// Bytes that are copied for repair and balance, a second; 0: no limit.
    pub(crate) repair_bytes_per_second: u64,
    pub(crate) machine: Arc<Machine>,
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) proposer: Proposer,
    pub(crate) changes: Arc<Changes>,
    pub(crate) members: Arc<Members>,
    pub(crate) office: Office,
    /// The metadata disk has little room.
    pub(crate) disk_low: AtomicBool,
    /// So many of the group's disks have little room that what grows could not be committed; only the leader knows.
    pub(crate) group_low: AtomicBool,
    pub(crate) metrics: Metrics,
    /// How this server introduces itself to others.
    pub(crate) identity: Identity,
    pub(crate) stopping: CancellationToken,
}

/// The error of a query, as clients see it.
pub(crate) fn query_error(error: OpError) -> MetadataError {
    match error {
        OpError::Refused(error) => MetadataError::Fs(error),
        OpError::Store(error) => store_error(&error),
    }
}

pub(crate) fn store_error(error: &StoreError) -> MetadataError {
    tracing::error!(%error, "the metadata store failed");
    MetadataError::Failed(error.to_string())
}

impl Node {
    /// The term in which this member leads now.
    ///
    /// # Errors
    /// If it doesn't lead.
    pub(crate) fn lead(&self) -> Result<u64, MetadataError> {
        let leadership = self.consensus.leadership();
        if !leadership.is_leader {
            return Err(self.not_leader(leadership));
        }
        if self.office.term.load(Ordering::Acquire) != leadership.term {
            self.take_office(leadership.term).map_err(|error| store_error(&error))?;
        }
        Ok(leadership.term)
    }

    /// Checked after a reply was built from the records: they were the truth then only if this still holds.
    ///
    /// # Errors
    /// If this member doesn't lead in `term` any more.
    pub(crate) fn still_leads(&self, term: u64) -> Result<(), MetadataError> {
        let leadership = self.consensus.leadership();
        if leadership.is_leader && leadership.term == term {
            Ok(())
        } else {
            Err(self.not_leader(leadership))
        }
    }

    fn not_leader(&self, leadership: Leadership) -> MetadataError {
        // A leader that has only just been elected, or whose lease has lapsed, is no one to send a client to.
        let other = leadership.leader.filter(|(member, _)| *member != self.member.0);
        MetadataError::NotLeader { leader: other.map(|(member, address)| (MemberId(member), address)) }
    }

    /// Makes the leader's memory from the records: sessions and storage servers, not files.
    fn take_office(&self, term: u64) -> Result<(), StoreError> {
        let _one = self.office.beginning.lock();
        if self.office.term.load(Ordering::Acquire) == term {
            return Ok(());
        }
        let store = self.machine.store();
        let snapshot = store.snapshot();
        let now = clock::since_boot();
        let sessions: Vec<SessionId> = collect::<SessionRecord>(&snapshot, &keys::sessions())?
            .into_iter()
            .filter(|(_, record)| record.ended.is_none())
            .map(|(id, _)| SessionId(id))
            .collect();
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
        *self.office.sessions.lock() = Sessions::begin(term, self.session_lifetime, now, sessions);
        *self.office.servers.lock() = Servers::begin(term, now, self.repair_after, servers);
        *self.office.orders.lock() = OrderBook::begin(term);
        *self.office.repair.lock() = Progress::default();
        self.office.suspects.clear();
        self.office.full.lock().clear();
        self.group_low.store(false, Ordering::Relaxed);
        self.office.in_flight.lock().clear();
        *self.office.lock_waits.lock() = LockWaits::default();
        self.changes.begin();
        self.office.term.store(term, Ordering::Release);
        Ok(())
    }

    /// Whether what makes the records grow is to be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.disk_low.load(Ordering::Relaxed) || self.group_low.load(Ordering::Relaxed)
    }

    /// Called now and then: a member that leads no more lets go of the leader's memory.
    pub(crate) fn leave_office_if_over(&self) {
        let term = self.office.term.load(Ordering::Acquire);
        let leadership = self.consensus.leadership();
        // A lease that lapsed for a moment is no change of leader.
        let led_by_other = leadership.leader.as_ref().is_some_and(|(member, _)| *member != self.member.0);
        if term == 0 || (leadership.term == term && !led_by_other) {
            return;
        }
        let _one = self.office.beginning.lock();
        if self.office.term.load(Ordering::Acquire) != term || leadership.is_leader {
            return;
        }
        tracing::info!(term, "this metadata server is no longer the leader");
        self.office.term.store(0, Ordering::Release);
        self.changes.end();
        *self.office.sessions.lock() = Sessions::default();
        *self.office.servers.lock() = Servers::default();
        *self.office.orders.lock() = OrderBook::default();
        self.office.suspects.clear();
        self.office.full.lock().clear();
        self.office.in_flight.lock().clear();
        *self.office.lock_waits.lock() = LockWaits::default();
        self.office.lock_questions.lock().clear();
    }

    /// Proposes something of the service's own.
    ///
    /// # Errors
    /// If it isn't known to have been carried out.
    pub(crate) async fn propose(&self, op: Op) -> Result<Outcome, MetadataError> {
        self.proposer.propose(&internal(op)).await
    }

    /// Proposes several things of the service's own, in order.
    ///
    /// # Errors
    /// If one isn't known to have been carried out.
    pub(crate) async fn propose_all(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, MetadataError> {
        let commands: Vec<Command> = ops.into_iter().map(internal).collect();
        self.proposer.propose_all(&commands).await
    }

    /// Bytes of RocksDB in memory and on disk, to the metrics.
    pub(crate) fn measure(&self) {
        let sizes = self.machine.store().sizes();
        self.metrics.size("memtable_bytes", sizes.memtables);
        self.metrics.size("block_cache_bytes", sizes.cache);
        self.metrics.size("table_bytes", sizes.tables);
        let raft = self.consensus.status();
        self.metrics.size("raft_term", raft.term);
        self.metrics.size("raft_applied", raft.applied.map_or(0, |position| position.index));
        self.metrics.size("raft_flushed", raft.flushed.map_or(0, |position| position.index));
        self.metrics.size("raft_log_bytes", raft.log_file_bytes);
        self.metrics.size("raft_unflushed_bytes", raft.unflushed_log_bytes);
        self.metrics.size("leads", u64::from(self.consensus.leadership().is_leader));
        let copying = self.office.orders.lock().copies() as u64;
        let repair = self.office.repair.lock().status(copying, clock::since_boot());
        self.metrics.size("repair_chunks_left", repair.chunks_left);
        self.metrics.size("repair_bytes_left", repair.bytes_left);
        self.metrics.size("repair_copying", repair.copying);
        self.metrics.size("sessions", self.office.sessions.lock().len() as u64);
    }
}

fn internal(op: Op) -> Command {
    Command { session: INTERNAL, slot: SlotId(0), sequence: 0, time: clock::now(), expect: None, op }
}

/// All records of a range of the system family, by the number in their key.
pub(crate) fn collect<R: Record>(from: &dyn Read, prefix: &[u8]) -> Result<Vec<(u64, R)>, StoreError> {
    let mut found = Vec::new();
    let mut failed = None;
    from.scan(Family::System, prefix, &prefix_end(prefix), &mut |key, value| {
        match (keys::first_number(key), R::decode(value)) {
            (Some(number), Ok(record)) => found.push((number, record)),
            (None, _) => {}
            (_, Err(error)) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(found), Err)
}
