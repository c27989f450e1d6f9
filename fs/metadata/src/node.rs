//! One metadata server as its parts see it: the records, the way into the log, and, while it leads, the
//! leader's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use atoll_core::commands::{Op, ops};
use atoll_core::ids::{ChunkId, ClusterId, MemberId, SessionId};
use atoll_core::keys;
use atoll_core::query::{self, OpError};
use atoll_core::records::Record;
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::Identity;
use atoll_proto::metadata::MetadataError;
use atoll_raft::{Leadership, LogPosition, PeerError, RaftError, RaftStatus, StateMachine};
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::changes::ChangeFeed;
use crate::clock;
use crate::leader::{Leader, not_leader};
use crate::lock::Mutex;
use crate::metrics::Metrics;
use crate::peers::Members;
use crate::proposer::{Log, Proposer};
use crate::reads::{Lane, Reads};
use crate::state_machine::Machine;
use crate::store::records::Records;

/// How long nobody has asked for anything when storage servers are to be heard of less often.
const REST_AFTER: Duration = Duration::from_secs(5);
/// See [`Node::seconds_at_rest`].
const SECONDS_AT_REST_MAX: u32 = 5;

/// What this crate needs of replication.
pub trait Consensus: Log {
    /// Whether this member leads, and who does.
    fn leadership(&self) -> Leadership;

    /// The term in which this member leads and may answer, without saying who leads otherwise: asked twice for each question.
    fn leading_term(&self) -> Option<u64> {
        let leadership = self.leadership();
        leadership.is_leader.then_some(leadership.term)
    }

    /// Says that somebody is about to ask whether this member leads; `by_heartbeat`: somebody who does so whether there is
    /// anything to ask or not. True if it does and its lease was let lapse because nobody asked: see [`RaftNode::is_asked`].
    ///
    /// [`RaftNode::is_asked`]: atoll_raft::RaftNode::is_asked
    fn is_asked(&self, by_heartbeat: bool) -> bool;

    /// Renews a lease that was let lapse; done when it is renewed, or can't be.
    fn renew_lease(&self) -> BoxFuture<'_, ()>;

    /// Changes of leadership; not that a lease has lapsed for a moment.
    fn watch_leadership(&self) -> watch::Receiver<Leadership>;

    /// For status pages.
    fn status(&self) -> RaftStatus;

    /// Bootstraps the group with these members. To do it again changes nothing.
    fn bootstrap(&self, members: BTreeMap<u64, String>) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Adds a member that receives the log and doesn't vote; done when it has all of it. Leader only.
    fn add_learner(&self, member: u64, address: String) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Makes exactly these members vote; whoever votes no longer belongs to the group no more. Leader only.
    fn change_voters(&self, voters: BTreeSet<u64>) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Takes a member out that doesn't vote. Leader only.
    fn remove_learner(&self, member: u64) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Transfers leadership to a voter; done when this member is not the leader any more. Leader only.
    fn transfer_leader(&self, to: u64) -> BoxFuture<'_, Result<(), RaftError>>;

    /// Answers a request of another member.
    fn handle_peer(&self, kind: u16, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Makes everything durable that is applied now, so that a crash needs no log of it.
    fn flush(&self) -> BoxFuture<'_, Result<(), RaftError>>;
}

/// Where the leader's memory is while this member leads. Only [`Node`] puts it there and takes it away.
#[derive(Default)]
pub(crate) struct LeadersPlace {
    leader: Mutex<Option<Arc<Leader>>>,
    /// Held by who puts one there, or takes it away.
    changing: Mutex<()>,
    /// Fires when one was put there.
    taken: Notify,
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
    /// Where the leader is told what apply has written.
    pub(crate) changes: Arc<ChangeFeed>,
    pub(crate) reads: Reads,
    pub(crate) members: Arc<Members>,
    pub(crate) place: LeadersPlace,
    /// Peers that know less than this feature level are refused: the volume's, as this member knows it.
    pub(crate) feature_level: AtomicU32,
    /// The metadata disk has little room.
    pub(crate) disk_low: AtomicBool,
    /// When somebody has asked for something last, in milliseconds since boot; heartbeats don't count.
    pub(crate) asked: AtomicU64,
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
    /// The leader's memory, if this member leads now.
    ///
    /// # Errors
    /// If it doesn't lead.
    pub(crate) fn lead(&self) -> Result<Arc<Leader>, MetadataError> {
        let Some(term) = self.consensus.leading_term() else {
            return Err(not_leader(self.member, self.consensus.leadership()));
        };
        match self.leading() {
            Some(leader) if leader.term == term => Ok(leader),
            _ => self.become_leader(term),
        }
    }

    /// As [`lead`](Self::lead), for who isn't asked by anybody: the lease may have lapsed for that very reason.
    ///
    /// # Errors
    /// If this member doesn't lead.
    pub(crate) async fn lead_unasked(&self) -> Result<Arc<Leader>, MetadataError> {
        self.consensus.renew_lease().await;
        self.lead()
    }

    /// The leader's memory while this member leads, even while its lease has lapsed for a moment: for what is known to be so
    /// whoever leads (a session has ended, a connection was lost), and for those who only look.
    pub(crate) fn leading(&self) -> Option<Arc<Leader>> {
        self.place.leader.lock().clone()
    }

    /// Is done when this member has become the leader since this was asked for.
    pub(crate) fn became_leader(&self) -> Notified<'_> {
        self.place.taken.notified()
    }

    /// Reads the records where it may take long; see [`Reads`].
    ///
    /// # Errors
    /// If they can't be read.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        lane: Lane,
        read: impl FnOnce(&Records) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, MetadataError> {
        let store = self.machine.store();
        self.reads.run(lane, move || read(&store)).await?.map_err(|error| store_error(&error))
    }

    /// What seals the chunks that a session is writing.
    ///
    /// # Errors
    /// If the records can't be read.
    pub(crate) async fn seals_of(&self, lane: Lane, session: SessionId) -> Result<Vec<Op>, MetadataError> {
        let written = move |records: &Records| {
            let mut seals = Vec::new();
            let prefix = keys::written_by(session);
            records.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, _| {
                let chunk = keys::second_number(key).map(ChunkId);
                seals.extend(chunk.map(|chunk| Op::from(ops::SealChunk { chunk })));
                ControlFlow::Continue(())
            })?;
            Ok(seals)
        };
        self.read(lane, written).await
    }

    fn become_leader(&self, term: u64) -> Result<Arc<Leader>, MetadataError> {
        // Who comes meanwhile isn't kept on its thread: to a client it is as if the election were not over.
        let Some(_one) = self.place.changing.try_lock() else {
            return Err(MetadataError::NotLeader { leader: None });
        };
        match self.leading() {
            Some(leader) if leader.term == term => return Ok(leader),
            // Who asked had looked before the latest election.
            Some(leader) if leader.term > term => return Err(MetadataError::NotLeader { leader: None }),
            _ => {}
        }
        let leader = atoll_blocking::in_place(|| Leader::from_records(self, term, clock::since_boot()));
        let leader = Arc::new(leader.map_err(|error| store_error(&error))?);
        if let Ok(volume) = query::superblock(&*self.machine.store()) {
            self.feature_level.fetch_max(volume.feature_level, Ordering::Relaxed);
        }
        self.changes.begin(leader.changes.clone());
        let earlier = self.place.leader.lock().replace(leader.clone());
        if let Some(earlier) = earlier {
            earlier.retire();
        }
        self.place.taken.notify_waiters();
        Ok(leader)
    }

    /// Whether the leader's memory is there if this member leads, and isn't otherwise.
    pub(crate) fn is_settled(&self) -> bool {
        let now = self.consensus.leadership();
        let leads = now.leader.is_some_and(|(leader, _)| leader == self.member.0);
        match self.leading() {
            Some(leader) => leads && leader.term == now.term,
            None => !leads,
        }
    }

    /// Called when leadership changes: a member that leads no more lets go of the leader's memory.
    pub(crate) fn step_down_if_over(&self) {
        let Some(leader) = self.leading() else { return };
        if !leader.is_over() {
            return;
        }
        // Looked at again soon.
        let Some(_one) = self.place.changing.try_lock() else { return };
        let is_this = self.leading().is_some_and(|now| Arc::ptr_eq(&now, &leader));
        // Where it leads again the next one takes the place of this one.
        if !is_this || self.consensus.leadership().is_leader {
            return;
        }
        tracing::info!(term = leader.term, "this metadata server is no longer the leader");
        self.step_down();
    }

    /// Lets go of the leader's memory, if there is one.
    pub(crate) fn step_down(&self) {
        let leader = self.place.leader.lock().take();
        self.changes.end();
        if let Some(leader) = leader {
            leader.retire();
        }
    }

    /// Somebody asks for something.
    pub(crate) fn note_asked(&self) {
        self.asked.store(clock::since_boot().as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether nobody has asked for anything for a while.
    pub(crate) fn rests(&self, now: Duration) -> bool {
        now >= Duration::from_millis(self.asked.load(Ordering::Relaxed)) + REST_AFTER
    }

    /// Whether what makes the records grow is to be refused.
    pub(crate) fn is_full(&self, leader: &Leader) -> bool {
        self.disk_low.load(Ordering::Relaxed) || leader.group_low.load(Ordering::Relaxed)
    }

    /// Is done at the next whole second of this server's; see [`clock::until_next`].
    pub(crate) async fn next_second(&self) {
        self.next_of_seconds(1).await;
    }

    /// The same of the next one that is a multiple of so many.
    pub(crate) async fn next_of_seconds(&self, seconds: u32) {
        tokio::time::sleep(clock::until_next(seconds, self.member.0, clock::since_boot())).await;
    }

    /// Is done when something was applied since `position` was the last, or at the next whole second that is a multiple of so
    /// many.
    pub(crate) async fn until_grown(&self, position: &mut Option<LogPosition>, seconds: u32) {
        let grew = self.machine.grew();
        tokio::pin!(grew);
        grew.as_mut().enable();
        if self.has_grown(position) {
            return;
        }
        tokio::select! {
            () = grew => {}
            () = self.next_of_seconds(seconds) => {}
        }
    }

    /// Seconds between looks at what depends on the clock where nobody asks for anything: a session is found to have expired so
    /// late at most.
    pub(crate) fn seconds_at_rest(&self) -> u32 {
        (self.session_lifetime / 3).as_secs().clamp(1, u64::from(SECONDS_AT_REST_MAX)) as u32
    }

    /// Whether something was applied since it was last asked with this `position`.
    pub(crate) fn has_grown(&self, position: &mut Option<LogPosition>) -> bool {
        let now = self.machine.applied().position;
        std::mem::replace(position, now) != now
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
        let leader = self.leading();
        self.metrics.size("leads", u64::from(leader.is_some()));
        let repair = leader.as_ref().map(|leader| leader.repair_status()).unwrap_or_default();
        self.metrics.size("repair_chunks_left", repair.chunks_left);
        self.metrics.size("repair_bytes_left", repair.bytes_left);
        self.metrics.size("repair_copying", repair.copying);
        let sessions = leader.map_or(0, |leader| leader.sessions.lock().len());
        self.metrics.size("sessions", sessions as u64);
    }
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
