//! A member of the group.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_blocking::Pace;
use bytes::Bytes;
use openraft::async_runtime::{Instant, WatchReceiver};
use openraft::errors::{
    ClientWriteError, Fatal, ForwardToLeader, InitializeError, RaftError as OpenraftError,
};
use openraft::impls::ProgressResponder;
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{BasicNode, ChangeMembers, Config, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{Mutex as FairMutex, Semaphore, watch};

use crate::clock::BootInstant;
use crate::error::{LogError, PeerError, ProposeError, RaftError, StateMachineFailure};
use crate::flush::Flushing;
use crate::group::{Command, Group, Raft};
use crate::leadership::{View, watch_leadership};
use crate::log_store::{LogConfig, LogStore};
use crate::machine::Machine;
use crate::network::Network;
use crate::peer::PeerService;
use crate::pulse::{self, Pulse};
use crate::raft_log::RaftLog;
use crate::snapshot::{Sending, Snapshots};
use crate::types::{
    Leadership, LogPosition, MemberId, PeerStatus, PeerTransport, RaftConfig, RaftStatus, Role, StateMachine,
};

/// Entries sent to a follower in one request, beside the bound on their bytes.
const APPEND_ENTRIES_MAX: u64 = 4096;
/// Unit in which commands under way are counted, in bytes.
const PERMIT_BYTES: u64 = 1 << 10;
/// A transfer of leadership is given up after this time.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10);
/// Smallest segment that can be configured, in bytes.
const SEGMENT_BYTES_MIN: u32 = 16 << 10;

/// A running member: owns the log, drives the state machine, talks to the other members.
///
/// Must be made and used within a tokio runtime. [`shutdown`](Self::shutdown) has to be called
/// before it's dropped, or its tasks go on until the runtime ends.
pub struct RaftNode {
    config: RaftConfig,
    raft: Raft,
    store: Arc<LogStore>,
    machine: Arc<dyn StateMachine>,
    machine_failure: Arc<OnceLock<String>>,
    flushing: Arc<Flushing>,
    snapshots: Arc<Snapshots>,
    sending: Arc<Sending>,
    peers: PeerService,
    view: Arc<View>,
    leadership: watch::Receiver<Leadership>,
    /// Held by the one who enters a command.
    turn: FairMutex<()>,
    /// Bytes of commands that are under way, in permits of [`PERMIT_BYTES`]: a quarter of a
    /// segment, which is what the log keeps room for on a full disk.
    under_way: Semaphore,
    stopped: AtomicBool,
    lock: Mutex<Option<File>>,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("config", &self.config).finish_non_exhaustive()
    }
}

fn openraft_config(config: &RaftConfig) -> Result<Config, RaftError> {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let settings = Config {
        cluster_name: "atoll".into(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(config.election.0),
        election_timeout_max: millis(config.election.1),
        max_payload_entries: APPEND_ENTRIES_MAX,
        // What is dropped is decided where the state is flushed.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        enable_pre_vote: Some(true),
        // A leader that was restarted stands for election like anybody else: what it had
        // committed but not flushed isn't in its state yet.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    settings.validate().map_err(|e| RaftError::Config(e.to_string()))
}

fn check(config: &RaftConfig) -> Result<(), RaftError> {
    let bad = |why: String| Err(RaftError::Config(why));
    if config.segment_bytes < SEGMENT_BYTES_MIN || !config.segment_bytes.is_multiple_of(4096) {
        return bad(format!(
            "segments of {} bytes: must be a multiple of 4096, and at least {SEGMENT_BYTES_MIN}",
            config.segment_bytes
        ));
    }
    if config.flush_log_bytes < u64::from(config.segment_bytes) {
        return bad(format!(
            "a flush after {} bytes of log: must be at least a segment ({} bytes)",
            config.flush_log_bytes, config.segment_bytes
        ));
    }
    Ok(())
}

fn lock_dir(config: &RaftConfig) -> Result<File, RaftError> {
    let io = |action, e| RaftError::Log(LogError::io(action, &config.dir, e));
    create_dir_durably(&config.dir, config.sync).map_err(|e| io("make", e))?;
    let path = config.dir.join("LOCK");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| RaftError::Log(LogError::io("open", &path, e)))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RaftError::InUse { dir: config.dir.clone() }),
        Err(TryLockError::Error(e)) => Err(io("lock", e)),
    }
}

/// Makes a folder and the missing ones above it, so that a power cut can't take them away again
/// with all that was synced in them.
fn create_dir_durably(dir: &Path, sync: bool) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return std::fs::create_dir(dir),
    };
    create_dir_durably(parent, sync)?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    if sync { File::open(parent)?.sync_all() } else { Ok(()) }
}

/// Everything that blocks, at the start: the lock, the log, left-overs.
pub(crate) fn open_log(config: &RaftConfig) -> Result<(File, Arc<LogStore>), RaftError> {
    let lock = lock_dir(config)?;
    Snapshots::clean(&config.dir).map_err(|e| LogError::io("clean", &config.dir, e))?;
    let log =
        LogConfig { dir: config.dir.clone(), member: config.member, segment_bytes: config.segment_bytes };
    if !config.sync {
        tracing::warn!(
            "the log is never synced (--unsafe-no-sync): a power failure loses acknowledged changes"
        );
    }
    Ok((lock, Arc::new(LogStore::open(&log, config.disk())?)))
}

fn check_state(config: &RaftConfig, store: &LogStore, machine: &dyn StateMachine) -> Result<(), RaftError> {
    let applied = machine.applied().position;
    let last = store.ends().1;
    // The first entry of a new group is written before its first vote.
    let has_voted = config.has_voted || applied.is_some() || last.is_some_and(|last| last.index > 0);
    if store.vote().is_none() && has_voted {
        return Err(RaftError::VoteMissing { dir: config.dir.clone() });
    }
    match store.ends() {
        (Some(base), _) if applied.is_none_or(|applied| applied.index < base.index) => {
            Err(RaftError::StateBehindLog { state: applied, log: base })
        }
        _ => Ok(()),
    }
}

fn stopped(error: &Fatal<Group>) -> String {
    match error {
        Fatal::Stopped => "it was shut down".into(),
        other => other.to_string(),
    }
}

fn leader_of(forward: ForwardToLeader<Group>) -> Option<(MemberId, String)> {
    let id = forward.leader_id?;
    Some((id, forward.leader_node.map_or_else(String::new, |node| node.addr)))
}

impl RaftNode {
    /// Opens the log (or makes one) and starts this member. A group that was founded goes on; the
    /// only voter of a group leads at once, others take part in elections after the length of a
    /// lease. A new member waits for [`bootstrap`](Self::bootstrap), or for a leader.
    pub async fn open(
        config: RaftConfig,
        machine: Arc<dyn StateMachine>,
        transport: Arc<dyn PeerTransport>,
    ) -> Result<Self, RaftError> {
        check(&config)?;
        let settings = Arc::new(openraft_config(&config)?);
        let opened = BootInstant::now();
        let (lock, store) = {
            let config = config.clone();
            let open = atoll_blocking::spawn(move || open_log(&config));
            open.await.map_err(|e| RaftError::Stopped(e.to_string()))??
        };
        check_state(&config, &store, &*machine)?;
        let vote = store.vote();
        let applied = machine.applied().position;
        let is_new = vote.is_none() && store.ends().1.is_none() && applied.is_none();

        let flushing =
            Flushing::new(store.clone(), machine.clone(), config.flush_log_bytes, config.keep_log_bytes);
        let snapshots = Snapshots::new(config.dir.clone(), store.clone());
        let running = Arc::new(AtomicBool::new(false));
        let log = RaftLog::new(store.clone(), machine.clone());
        let state = Machine::new(machine.clone(), flushing.clone(), snapshots.clone(), running.clone());
        let machine_failure = state.failure();
        let sending = Arc::new(Sending::default());
        let network = Network {
            member: config.member,
            transport,
            append_timeout: config.election.1,
            snapshots: snapshots.clone(),
            pace: Arc::new(Pace::new(config.snapshot_bytes_per_second)),
            sending: sending.clone(),
        };
        let raft = Raft::build(config.member, settings, network, log, state)
            .await
            .map_err(|e| RaftError::Stopped(stopped(&e)))?;
        running.store(true, Ordering::Release);
        raft.runtime_config().elect(false);
        raft.run();
        tokio::spawn(flushing.clone().run(raft.clone()));

        let me = config.member;
        let alone = raft
            .with_raft_state(move |state| {
                let membership = state.membership_state.effective();
                membership.voter_ids().eq([me])
            })
            .await
            .map_err(|e| RaftError::Stopped(stopped(&e)))?;
        // The only voter can't have promised anything to another leader, unless that one made it
        // the only voter a moment ago: then the vote isn't for itself.
        let quiet = if is_new || (alone && vote.is_none_or(|vote| vote.node == me)) {
            Duration::ZERO
        } else {
            config.election.1
        };
        let quiet_until = opened + quiet;
        pulse::start_elections(&raft, quiet_until, alone);

        let view = Arc::new(View {
            member: config.member,
            metrics: raft.metrics(),
            lease: config.election.1,
            given_away_term: AtomicU64::new(u64::MAX),
        });
        let leadership = watch_leadership(&raft, view.clone(), flushing.clone());
        let pulse = Arc::new(Pulse::default());
        pulse.start(raft.clone(), &config);
        let peers = PeerService {
            member: config.member,
            dir: config.dir.clone(),
            raft: raft.clone(),
            store: store.clone(),
            flushing: flushing.clone(),
            quiet_until,
            receiving: Arc::default(),
            pulse,
        };
        peers.receiving.start_cleaning(config.dir.clone());
        let permits = u64::from(config.segment_bytes) / 4 / PERMIT_BYTES;
        Ok(Self {
            turn: FairMutex::new(()),
            under_way: Semaphore::new(permits as usize),
            config,
            raft,
            store,
            machine,
            machine_failure,
            flushing,
            snapshots,
            sending,
            peers,
            view,
            leadership,
            stopped: AtomicBool::new(false),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Bootstraps the group with these voters and their addresses, this node among them. Does nothing
    /// if this node belongs to a group already. Each of them may be told to do so, with
    /// the same list, or one of them alone.
    pub async fn bootstrap(&self, members: BTreeMap<MemberId, String>) -> Result<(), RaftError> {
        if !members.contains_key(&self.config.member) {
            return Err(RaftError::NotAMember { member: self.config.member });
        }
        let members: BTreeMap<_, _> =
            members.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(OpenraftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(OpenraftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(RaftError::NotAMember { member: self.config.member })
            }
            Err(OpenraftError::Fatal(e)) => Err(RaftError::Stopped(stopped(&e))),
        }
    }

    /// Has a command committed and applied, and returns what the state machine says to it. Many
    /// calls may be under way at once; they are carried out in the order in which they were first
    /// polled.
    ///
    /// If the returned future is dropped, the command may be carried out all the same.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        self.enter(command, None).await
    }

    /// As [`propose`](Self::propose), by the leader of `term` alone: what was decided in one term is not entered in another
    /// one, even if this node leads in both.
    pub async fn propose_in(&self, term: u64, command: Bytes) -> Result<Bytes, ProposeError> {
        self.enter(command, Some(term)).await
    }

    async fn enter(&self, command: Bytes, term: Option<u64>) -> Result<Bytes, ProposeError> {
        let max = self.config.command_bytes_max();
        if command.len() > max as usize {
            return Err(ProposeError::TooLarge { bytes: command.len(), max });
        }
        let (_permit, answer) = {
            // One after the other up to openraft's queue, or those who wait here would lose their
            // places.
            let _turn = self.turn.lock().await;
            self.admit().await?;
            let permits = (command.len() as u64).div_ceil(PERMIT_BYTES).max(1) as u32;
            let permit = self.under_way.acquire_many(permits).await.map_err(|_| self.stopped_error())?;
            let (responder, answer) = ProgressResponder::complete_only();
            let write = self.raft.write(Command(command)).responder(responder);
            let sent = match term {
                Some(term) => write.with_leader(CommittedLeaderId::new(term)).await,
                None => write.await,
            };
            sent.map_err(|e| ProposeError::Stopped(stopped(&e)))?;
            (permit, answer)
        };
        match answer.await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: leader_of(forward) })
            }
            Ok(Err(ClientWriteError::LogEntryDiscarded(forward))) => {
                Err(ProposeError::OutcomeUnknown { leader: leader_of(forward) })
            }
            // Neither is about commands.
            Ok(Err(
                e @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
            )) => Err(ProposeError::Storage(e.to_string())),
            // The core is gone, with everything that was under way.
            Err(_) => Err(self.stopped_error()),
        }
    }

    /// Waits until the log may take another command, or says why it can't.
    async fn admit(&self) -> Result<(), ProposeError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(self.stopped_error());
        }
        if let Some(why) = self.store.refusal() {
            return Err(ProposeError::Storage(why.to_string()));
        }
        self.flushing.admit().await.map_err(ProposeError::Storage)
    }

    fn stopped_error(&self) -> ProposeError {
        let metrics = self.view.metrics.borrow_watched();
        ProposeError::Stopped(match &metrics.running_state {
            Err(e) if !matches!(e, Fatal::Stopped) => stopped(e),
            // openraft hasn't said so yet, or says only that it ended.
            _ => self.machine_failure.get().cloned().unwrap_or_else(|| "it was shut down".into()),
        })
    }

    /// What of the log was found damaged since the start, if anything.
    pub fn log_damage(&self) -> Option<String> {
        self.store.damage()
    }

    /// Whether this node may answer reads at this moment, and who leads.
    pub fn leadership(&self) -> Leadership {
        self.view.leadership()
    }

    /// The term in which this node leads and may answer reads at this moment. Cheap: called for each read, after its
    /// answer was made, so that the lease covers the moment at which the state was read.
    pub fn leading_term(&self) -> Option<u64> {
        self.view.leading_term()
    }

    /// Says that somebody is about to ask whether this node may answer reads. Cheap. True if it leads and has let its lease
    /// lapse because nobody asked: then it has to be [renewed](Self::renew_lease) first.
    pub fn is_asked(&self, by_heartbeat: bool) -> bool {
        let pulse = &self.peers.pulse;
        if !by_heartbeat {
            pulse.asked();
        }
        pulse.lapses() && self.view.lacks_lease()
    }

    /// Renews a lease that was let lapse because nobody asked; done when it is renewed, or can't be within the time of one.
    pub async fn renew_lease(&self) {
        if !self.peers.pulse.lapses() || !self.view.lacks_lease() {
            return;
        }
        let mut metrics = self.raft.metrics();
        self.peers.pulse.want();
        let renewed = async {
            while self.view.lacks_lease() {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        // A leader that nobody acknowledges is none to those who ask.
        let _ = tokio::time::timeout(self.config.election.1, renewed).await;
    }

    /// Changes of leadership, including the moment at which a new leader is ready to serve. A
    /// lease that runs out doesn't show here, only in [`leadership`](Self::leadership).
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// The state of this member.
    pub fn status(&self) -> RaftStatus {
        let metrics = self.view.metrics.borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<MemberId> = membership.voter_ids().collect();
        let now = BootInstant::now();
        let members = membership
            .nodes()
            .map(|(id, node)| {
                let matched = metrics.replication.as_ref().and_then(|r| r.get(id).cloned().flatten());
                let acked = metrics.heartbeat.as_ref().and_then(|h| h.get(id).cloned().flatten());
                let status = PeerStatus {
                    addr: node.addr.clone(),
                    voter: voters.contains(id),
                    matched: matched.map(LogPosition::from),
                    last_ack: acked.map(|at| now - at.into_inner()),
                    snapshot: self.sending.to(*id),
                };
                (*id, status)
            })
            .collect();
        let failure = match &metrics.running_state {
            Ok(()) | Err(Fatal::Stopped) => None,
            Err(e) => Some(e.to_string()),
        };
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        };
        let (purged, last_log) = self.store.ends();
        let refusing = self.store.refusal().map(|e| e.to_string()).or_else(|| self.flushing.failure());
        RaftStatus {
            member: self.config.member,
            role,
            term: metrics.current_term,
            leader: self.leadership().leader,
            members,
            membership_changing: membership.get_joint_config().len() > 1
                || metrics.membership_config.log_id() != metrics.committed_membership_config.log_id(),
            last_log,
            committed: metrics.local_committed.map(LogPosition::from),
            applied: metrics.last_applied.map(LogPosition::from),
            flushed: self.machine.flushed(),
            purged,
            unflushed_log_bytes: self.flushing.unflushed_bytes(),
            log_file_bytes: self.store.file_bytes(),
            refusing,
            failure,
        }
    }

    /// Adds a member that receives the log and doesn't vote, and waits until it has all that the
    /// log holds now. Its id must be new. Only on the leader.
    pub async fn add_learner(&self, member: MemberId, addr: String) -> Result<(), RaftError> {
        let added = self.raft.add_learner(member, BasicNode { addr }, false).await;
        let target = added.map_err(membership_error)?.log_id;
        let mut metrics = self.raft.metrics();
        loop {
            {
                let now = metrics.borrow_and_update();
                if let Err(e) = &now.running_state {
                    return Err(RaftError::Stopped(stopped(e)));
                }
                let Some(replication) = &now.replication else {
                    drop(now);
                    return Err(RaftError::NotLeader { leader: self.leadership().leader });
                };
                if replication.get(&member).is_some_and(|matched| *matched >= Some(target)) {
                    return Ok(());
                }
            }
            if metrics.changed().await.is_err() {
                return Err(RaftError::Stopped("it was shut down".into()));
            }
        }
    }

    /// Makes exactly these members the voters; each must be a member already. Who votes no longer
    /// stays on as a learner with `keep_removed`, and is no member otherwise. Only on the leader.
    pub async fn change_membership(
        &self,
        voters: BTreeSet<MemberId>,
        keep_removed: bool,
    ) -> Result<(), RaftError> {
        let changed = self.raft.change_membership(voters, keep_removed).await;
        changed.map(drop).map_err(membership_error)
    }

    /// Takes members out that don't vote. Only on the leader.
    pub async fn remove_learners(&self, members: BTreeSet<MemberId>) -> Result<(), RaftError> {
        let change = ChangeMembers::RemoveNodes(members);
        let changed = self.raft.change_membership(change, false).await;
        changed.map(drop).map_err(membership_error)
    }

    /// Gives leadership to a voter, and waits until this node leads no longer. Only on the leader,
    /// which answers no more reads from here on.
    pub async fn transfer_leader(&self, to: MemberId) -> Result<(), RaftError> {
        self.renew_lease().await;
        let now = self.leadership();
        if now.leader.as_ref().map(|(id, _)| *id) != Some(self.config.member) {
            return Err(RaftError::NotLeader { leader: now.leader });
        }
        if to == self.config.member {
            return Ok(());
        }
        {
            let metrics = self.view.metrics.borrow_watched();
            if !metrics.membership_config.voter_ids().any(|id| id == to) {
                return Err(RaftError::Membership(format!("member {to} has no vote")));
            }
        }
        // First this, then the transfer: in between nobody else can be elected.
        self.view.given_away_term.store(now.term, Ordering::Release);
        self.raft.trigger().transfer_leader(to).await.map_err(|e| RaftError::Stopped(stopped(&e)))?;
        let mut leadership = self.leadership.clone();
        let changed = leadership.wait_for(|l| l.term > now.term);
        match tokio::time::timeout(TRANSFER_TIMEOUT, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(RaftError::Stopped("it was shut down".into())),
            Err(_) => Err(RaftError::TimedOut {
                what: "the transfer of leadership",
                seconds: TRANSFER_TIMEOUT.as_secs(),
            }),
        }
    }

    /// Carries out a request that another member has sent through its [`PeerTransport`], and
    /// returns the answer to send back. The caller has checked that a member has sent it.
    pub async fn handle_peer(&self, kind: u16, payload: Bytes) -> Result<Bytes, PeerError> {
        self.peers.handle(kind, payload).await
    }

    /// Makes everything durable that is applied now, so that a restart has less to apply again and
    /// the log can be dropped up to here. This happens without being asked, too, at half of
    /// [`RaftConfig::flush_log_bytes`].
    pub async fn flush(&self) -> Result<Option<LogPosition>, RaftError> {
        self.flushing
            .flush_and_drop(&self.raft)
            .await
            .map_err(|e| RaftError::Stopped(e.to_string()))?
            .map_err(|e| StateMachineFailure(e).into())
    }

    /// What waits for room on a full disk fails, now and later: the node is going to stop. [`shutdown`](Self::shutdown)
    /// does it too; whoever waits for others before that call has to do it earlier.
    pub fn stop_waiting(&self) {
        self.store.stop_waiting();
        self.machine.stop_waiting();
    }

    /// Stops: no more commands, the state machine flushed, the log closed. Calling it again does
    /// nothing. What was proposed and not answered may have been carried out.
    pub async fn shutdown(&self) {
        if self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        self.under_way.close();
        self.stop_waiting();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!("Raft did not stop cleanly: {error}");
        }
        self.flushing.stop();
        self.snapshots.stop();
        let receiving = self.peers.receiving.stop();
        let (flushing, store) = (self.flushing.clone(), self.store.clone());
        let closed = atoll_blocking::spawn(move || {
            if let Some(receiving) = receiving {
                receiving.close();
            }
            if let Err(error) = flushing.flush() {
                tracing::error!(
                    "the metadata store could not be flushed at the stop; the next start replays the log: \
                     {error}"
                );
            }
            store.close();
        });
        if let Err(error) = closed.await {
            tracing::error!("the log was not closed cleanly: {error}");
        }
        self.lock.lock().take();
    }
}

fn membership_error(error: OpenraftError<Group, ClientWriteError<Group>>) -> RaftError {
    match error {
        OpenraftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            RaftError::NotLeader { leader: leader_of(forward) }
        }
        OpenraftError::APIError(other) => RaftError::Membership(other.to_string()),
        OpenraftError::Fatal(e) => RaftError::Stopped(stopped(&e)),
    }
}
