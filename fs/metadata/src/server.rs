//! A metadata server as a whole: start, status, stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use atoll_core::ids::{ClusterId, MemberId};
use atoll_core::limits::{FEATURE_LEVEL, FEATURE_LEVEL_FIRST};
use atoll_core::query;
use atoll_core::records::VolumeConfig;
use atoll_proto::admin::TransferLeader;
use atoll_proto::metadata::{BootstrapRequest, ClusterStatus, MetadataError};
use atoll_proto::server::{ServerOptions, serve_within};
use atoll_proto::transport::{AddressError, BindError};
use atoll_proto::{Address, ClusterKey, Encryption, Identity, Listener, Role};
use atoll_raft::{Leadership, PeerError, ProposeError, RaftConfig, RaftError, RaftNode, RaftStatus};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::changes::ChangeFeed;
use crate::metrics::Metrics;
use crate::node::{Consensus, LeadersPlace, Node};
use crate::peers::Members;
use crate::proposer::{Log, Proposer};
use crate::reads::Reads;
use crate::rejoin::{self, Others};
use crate::servers::DEAD_AFTER;
use crate::service::Service;
use crate::state_machine::{Machine, MachineError};
use crate::store::ballast::Ballast;
use crate::store::folder::{Folder, FolderError};
use crate::store::records::{Backend, Records};
use crate::workers;

/// How long a session lives without a word, unless said otherwise.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(15);
/// Bytes that are kept free on the disk for the day it is full, unless said otherwise.
pub const BALLAST_BYTES: u64 = 64 << 20;
/// Bytes that are copied for repair and balance a second, unless said otherwise.
pub const REPAIR_BYTES_PER_SECOND: u64 = 100 << 20;
/// Bytes of log that a crash leaves to be replayed, at most.
const REPLAY_BYTES_MAX: u64 = 32 << 20;
/// How often it is looked whether something was found damaged.
const DAMAGE_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long stopping waits for the last user of the store.
const STOP_WAIT_MAX: Duration = Duration::from_secs(10);

/// How a metadata server runs.
#[derive(Clone, Debug)]
pub struct MetadataConfig {
    /// Its folder: empty, or its own.
    pub dir: PathBuf,
    /// Where it listens; port 0 for any.
    pub listen: Address,
    /// Where others reach it, as [`Address`] prints it; what it listens at unless said otherwise.
    pub advertise: Option<String>,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// That cluster's key.
    pub key: ClusterKey,
    /// Whether connections are encrypted.
    pub encryption: Encryption,
    /// Clients and storage servers in this process call it without a socket.
    pub in_process: bool,
    /// How long a session lives without a word.
    pub session_lifetime: Duration,
    /// A storage server that was silent for longer is given up: its replicas are made anew elsewhere.
    pub repair_after: Duration,
    /// Bytes that are copied for repair and balance, a second; 0: no limit.
    pub repair_bytes_per_second: u64,
    /// Bytes of snapshots that are read and sent to members that lag, a second; 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// Space kept for deleting on a full disk, bytes; 0 for none.
    pub ballast_bytes: u64,
    /// Interval of the leader's heartbeats.
    pub raft_heartbeat: Duration,
    /// The longer one is the length of the leader's lease; after it a member stands for election within a random time
    /// between the two.
    pub raft_election: (Duration, Duration),
    /// `false` leaves every sync of the log out. **That loses acknowledged changes when the power fails**: it is
    /// only there to prove that the power-cut test can fail.
    pub sync: bool,
    /// Bytes of one segment of the log; no command is larger than an eighth of it.
    pub segment_bytes: u32,
    /// Bytes of log that a crash leaves to be replayed, at most.
    pub replay_bytes: u64,
    /// Bytes of log that are kept longer, for members that lag.
    pub keep_log_bytes: u64,
    /// Where the records are kept.
    pub records: Backend,
    /// Where the log is instead of in the folder.
    #[cfg(feature = "simulation")]
    pub log_disk: Option<atoll_raft::SimDisk>,
}

impl MetadataConfig {
    /// The defaults for a member of `cluster` with its folder at `dir`.
    #[must_use]
    pub fn new(
        dir: impl Into<PathBuf>,
        listen: Address,
        cluster: ClusterId,
        key: ClusterKey,
    ) -> MetadataConfig {
        let raft = RaftConfig::new(0, "");
        MetadataConfig {
            dir: dir.into(),
            listen,
            advertise: None,
            cluster,
            key,
            encryption: Encryption::default(),
            in_process: false,
            session_lifetime: SESSION_LIFETIME,
            repair_after: DEAD_AFTER,
            repair_bytes_per_second: REPAIR_BYTES_PER_SECOND,
            snapshot_bytes_per_second: raft.snapshot_bytes_per_second,
            ballast_bytes: BALLAST_BYTES,
            raft_heartbeat: raft.heartbeat,
            raft_election: raft.election,
            sync: true,
            segment_bytes: raft.segment_bytes,
            replay_bytes: REPLAY_BYTES_MAX,
            keep_log_bytes: REPLAY_BYTES_MAX * 2,
            records: Backend::default(),
            #[cfg(feature = "simulation")]
            log_disk: None,
        }
    }
}

/// Why a metadata server didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its records.
    #[error(transparent)]
    State(#[from] MachineError),
    /// Its log.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// Its address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address that it is to tell others.
    #[error("the advertised address: {0}")]
    Advertise(#[from] AddressError),
    /// Its disk has damaged what it had, and the group can't help now.
    #[error(
        "{damage}. This member can be rebuilt from the others, but none of them is the leader now \
         ({others}): nothing was changed; start them, then this one"
    )]
    NobodyLeads {
        /// What is damaged.
        damage: String,
        /// The other members, as they were last known.
        others: String,
    },
    /// Its records are of a release that this program doesn't know.
    #[error(
        "the volume has feature level {found}, and this program knows levels up to {known}: run the version that raised it, \
         or a newer one; nothing was changed"
    )]
    NewerLevel {
        /// What the volume has.
        found: u32,
        /// What this program knows.
        known: u32,
    },
    /// The runtime is going down.
    #[error("stopped while starting")]
    Stopped,
}

impl StartError {
    /// Whether the disk no longer holds what was written to it.
    fn is_damage(&self) -> bool {
        match self {
            Self::State(error) => error.is_damage(),
            Self::Raft(error) => error.is_damage(),
            _ => false,
        }
    }
}

/// Starts metadata servers.
pub struct MetadataServer;

impl MetadataServer {
    /// Opens the folder, the records and the log, and serves. Metrics go to `registry`. A member of a group whose records
    /// or log are damaged becomes another member, which is made anew from the others.
    ///
    /// # Errors
    /// See [`StartError`]; nothing of somebody else's is touched.
    pub async fn start(
        config: MetadataConfig,
        registry: &mut Registry,
    ) -> Result<RunningMetadata, StartError> {
        let metrics = Metrics::register(registry);
        match MetadataServer::open(config.clone(), metrics.clone()).await {
            Err(error) if error.is_damage() => {
                if !become_new_member(&config, &error.to_string()).await? {
                    return Err(error);
                }
                MetadataServer::open(config, metrics).await
            }
            result => result,
        }
    }

    async fn open(config: MetadataConfig, metrics: Metrics) -> Result<RunningMetadata, StartError> {
        let changes = Arc::new(ChangeFeed::default());
        let (folder, machine, ballast) = {
            let (config, changes, metrics) = (config.clone(), changes.clone(), metrics.clone());
            atoll_blocking::spawn(move || open(&config, changes, metrics))
                .await
                .map_err(|_| StartError::Stopped)??
        };
        // A volume that isn't made yet has none.
        let found =
            query::superblock(&*machine.store()).map_or(FEATURE_LEVEL_FIRST, |volume| volume.feature_level);
        if found > FEATURE_LEVEL {
            return Err(StartError::NewerLevel { found, known: FEATURE_LEVEL });
        }
        let member = folder.member();
        let identity = Identity {
            cluster: config.cluster,
            role: Role::Metadata(member),
            key: config.key.clone(),
            encryption: config.encryption,
        };
        let listener = Listener::bind(&config.listen).await?;
        let address = listener.local_address();
        let advertise = match &config.advertise {
            Some(advertise) => advertise.parse::<Address>()?.to_string(),
            None => address.clone(),
        };
        let raft_config = RaftConfig {
            heartbeat: config.raft_heartbeat,
            election: config.raft_election,
            flush_log_bytes: config.replay_bytes,
            keep_log_bytes: config.keep_log_bytes,
            segment_bytes: config.segment_bytes,
            snapshot_bytes_per_second: config.snapshot_bytes_per_second,
            // Records that were never flushed and a log that is gone look like a new member.
            has_voted: folder.members().contains_key(&member),
            sync: config.sync,
            #[cfg(feature = "simulation")]
            disk: config.log_disk.clone(),
            ..RaftConfig::new(member.0, folder.raft())
        };
        let members = Arc::new(Members::new(identity.clone()));
        let raft = Arc::new(RaftNode::open(raft_config, machine.clone(), members.clone()).await?);
        let consensus: Arc<dyn Consensus> = Arc::new(Replication(raft.clone()));
        let (proposer, proposing) = Proposer::start(consensus.clone(), metrics.clone());
        let stopping = CancellationToken::new();
        let node = Arc::new(Node {
            cluster: config.cluster,
            member,
            address: advertise.clone(),
            session_lifetime: config.session_lifetime,
            repair_after: config.repair_after,
            repair_bytes_per_second: config.repair_bytes_per_second,
            machine,
            consensus,
            proposer,
            changes,
            reads: Reads::default(),
            members,
            place: LeadersPlace::default(),
            feature_level: AtomicU32::new(found),
            disk_low: AtomicBool::new(false),
            asked: AtomicU64::default(),
            metrics: metrics.clone(),
            identity: identity.clone(),
            stopping: stopping.clone(),
        });
        let tasks = TaskTracker::new();
        let options = ServerOptions { in_process: config.in_process, ..ServerOptions::default() };
        let service = Arc::new(Service::new(node.clone()));
        tasks.spawn(serve_within(listener, identity, service, options, stopping.clone()));
        workers::start(&node, ballast, &tasks);
        tasks.spawn(until(stopping.clone(), rejoin::note_members(node.clone(), folder.clone())));
        if !folder.replaces().is_empty() {
            tasks.spawn(until(stopping.clone(), rejoin::rejoin(node.clone(), folder.clone())));
        }
        tasks.close();
        tracing::info!(%member, cluster = %config.cluster, address, advertise, "metadata server started");
        Ok(RunningMetadata {
            config,
            metrics,
            folder,
            node,
            raft,
            tasks,
            proposing,
            stopping,
            address,
            advertise,
        })
    }
}

async fn until(stopping: CancellationToken, work: impl Future<Output = ()>) {
    stopping.run_until_cancelled(work).await;
}

/// Makes a folder whose records or log are damaged that of another member, once another one leads. `false` if there are no
/// others: then there is nothing to make it anew from.
async fn become_new_member(config: &MetadataConfig, damage: &str) -> Result<bool, StartError> {
    let folder = {
        let config = config.clone();
        let open = move || Folder::open(&config.dir, config.cluster, MemberId(rand::random()));
        atoll_blocking::spawn(open).await.map_err(|_| StartError::Stopped)??
    };
    let identity = Identity {
        cluster: config.cluster,
        role: Role::Metadata(folder.member()),
        key: config.key.clone(),
        encryption: config.encryption,
    };
    let others = Others::of(&folder, identity);
    if others.is_empty() {
        return Ok(false);
    }
    tracing::error!(
        member = %folder.member(), damage,
        "this metadata server's data is damaged; it is rebuilt from the others once one of them leads"
    );
    let Some(leader) = others.wait_for_leader().await else {
        return Err(StartError::NobodyLeads { damage: damage.to_owned(), others: others.shown() });
    };
    let new = MemberId(rand::random());
    tracing::error!(
        member = %folder.member(),
        %new,
        leader = %leader.member,
        "a new member, rebuilt from the others, replaces this one"
    );
    atoll_blocking::spawn(move || folder.replace_member(new)).await.map_err(|_| StartError::Stopped)??;
    Ok(true)
}

fn open(
    config: &MetadataConfig,
    changes: Arc<ChangeFeed>,
    metrics: Metrics,
) -> Result<(Arc<Folder>, Arc<Machine>, Ballast), StartError> {
    let folder = Arc::new(Folder::open(&config.dir, config.cluster, MemberId(rand::random()))?);
    let machine = Arc::new(Machine::open(folder.clone(), &config.records, changes, metrics)?);
    let mut ballast = Ballast::new(folder.path(), config.ballast_bytes);
    if let Err(error) = ballast.check() {
        tracing::warn!(%error, "the data directory can't be checked");
    }
    Ok((folder, machine, ballast))
}

/// A metadata server that runs. Dropping it without [`shutdown`](Self::shutdown) leaves it running.
pub struct RunningMetadata {
    config: MetadataConfig,
    metrics: Metrics,
    folder: Arc<Folder>,
    node: Arc<Node>,
    raft: Arc<RaftNode>,
    tasks: TaskTracker,
    proposing: JoinHandle<()>,
    stopping: CancellationToken,
    address: String,
    advertise: String,
}

impl RunningMetadata {
    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where others reach it.
    #[must_use]
    pub fn advertised_address(&self) -> &str {
        &self.advertise
    }

    /// Its id, as it is on its disk.
    #[must_use]
    pub fn member(&self) -> MemberId {
        self.node.member
    }

    /// Its records.
    #[must_use]
    pub fn records(&self) -> Arc<Records> {
        self.node.machine.store()
    }

    /// How many ranges of files are locked; only the leader knows.
    #[must_use]
    pub fn locked_ranges(&self) -> usize {
        self.node.leading().map_or(0, |leader| leader.locks.lock().table.len())
    }

    /// How the cluster is, as this member knows it.
    ///
    /// # Errors
    /// If the records can't be read.
    pub fn status(&self) -> Result<ClusterStatus, MetadataError> {
        self.node.status()
    }

    #[cfg(test)]
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Makes the volume, as a bootstrap request over the wire does. To do it again changes nothing.
    ///
    /// # Errors
    /// If the group is another one's, or has no leader.
    pub async fn bootstrap(&self, config: VolumeConfig) -> Result<(), MetadataError> {
        let request = BootstrapRequest { cluster: self.node.cluster, config, members: Vec::new() };
        self.node.bootstrap(request).await
    }

    /// Whether it works: it takes part in its group and its log takes entries. Why not, otherwise.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn health(&self) -> Result<(), String> {
        health(&self.raft)
    }

    /// [`health`](Self::health) for a health endpoint, which may outlive this server and doesn't keep it.
    pub fn health_probe(&self) -> impl Fn() -> Result<(), String> + Send + Sync + use<> {
        let raft = Arc::downgrade(&self.raft);
        move || match raft.upgrade() {
            Some(raft) => health(&raft),
            None => Err("stopped".into()),
        }
    }

    /// Waits until records or log are found damaged while another member leads, or can: then this one is to be
    /// [made anew](Self::rebuild). What is damaged, for people. Without other members it waits for ever, and serves what
    /// it can.
    pub async fn damaged(&self) -> String {
        let mut told = false;
        loop {
            tokio::time::sleep(DAMAGE_POLL_INTERVAL).await;
            let Some(damage) = self.node.machine.damage().or_else(|| self.raft.log_damage()) else {
                continue;
            };
            let others = Others::of(&self.folder, self.node.identity.clone());
            if others.is_empty() {
                continue;
            }
            if self.node.lead_unasked().await.is_ok()
                && let Err(error) = self.node.transfer_leadership(TransferLeader { to: None }).await
                && !std::mem::replace(&mut told, true)
            {
                tracing::warn!(
                    %error,
                    "this leader's records are damaged, and no other member can become the leader: start the \
                     other metadata servers"
                );
            }
            if others.leader().await.is_some() {
                return damage;
            }
        }
    }

    /// Stops, and starts as another member, which is made anew from the others.
    ///
    /// # Errors
    /// As [`MetadataServer::start`].
    pub async fn rebuild(self, damage: &str) -> Result<RunningMetadata, StartError> {
        let (config, metrics) = (self.config.clone(), self.metrics.clone());
        self.shutdown().await;
        if let Err(error) = become_new_member(&config, damage).await {
            tracing::warn!(%error, "the damaged data could not be set aside; starting with what is there");
        }
        MetadataServer::open(config, metrics).await
    }

    /// Lets another member lead, if this one does and another one can: for an orderly stop, after which nobody has to wait for
    /// an election. Without one this changes nothing.
    pub async fn transfer_leadership(&self) {
        if self.node.lead_unasked().await.is_ok()
            && self.node.consensus.status().members.len() > 1
            && let Err(error) = self.node.transfer_leadership(TransferLeader { to: None }).await
        {
            tracing::info!(
                %error,
                "leadership could not be transferred before the stop; the other members elect a leader after \
                 a timeout"
            );
        }
    }

    /// Stops: answers what it is working on, makes everything durable, and lets go of its folder.
    pub async fn shutdown(self) {
        let RunningMetadata { folder, node, raft, tasks, proposing, stopping, .. } = self;
        stopping.cancel();
        raft.stop_waiting();
        tasks.wait().await;
        raft.shutdown().await;
        // What was given up halfway holds the leader's memory, which holds it.
        node.step_down();
        let machine = Arc::downgrade(&node.machine);
        drop((node, raft, folder));
        let _ = proposing.await;
        // Whoever opens the folder next must find it free.
        let last_user = async {
            while machine.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(STOP_WAIT_MAX, last_user).await.is_err() {
            tracing::warn!("the metadata store is still in use after stopping");
        }
        tracing::info!("metadata server stopped");
    }
}

fn health(raft: &RaftNode) -> Result<(), String> {
    let status = raft.status();
    status.failure.or(status.refusing).map_or(Ok(()), Err)
}

/// [`RaftNode`] as this crate wants it.
struct Replication(Arc<RaftNode>);

impl Log for Replication {
    fn propose(&self, term: u64, entry: Bytes) -> BoxFuture<'static, Result<Bytes, ProposeError>> {
        let raft = self.0.clone();
        async move { raft.propose_in(term, entry).await }.boxed()
    }
}

impl Consensus for Replication {
    fn leadership(&self) -> Leadership {
        self.0.leadership()
    }

    fn leading_term(&self) -> Option<u64> {
        self.0.leading_term()
    }

    fn is_asked(&self, by_heartbeat: bool) -> bool {
        self.0.is_asked(by_heartbeat)
    }

    fn renew_lease(&self) -> BoxFuture<'_, ()> {
        self.0.renew_lease().boxed()
    }

    fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.0.watch_leadership()
    }

    fn status(&self) -> RaftStatus {
        self.0.status()
    }

    fn bootstrap(&self, members: BTreeMap<u64, String>) -> BoxFuture<'_, Result<(), RaftError>> {
        self.0.bootstrap(members).boxed()
    }

    fn add_learner(&self, member: u64, address: String) -> BoxFuture<'_, Result<(), RaftError>> {
        self.0.add_learner(member, address).boxed()
    }

    fn change_voters(&self, voters: BTreeSet<u64>) -> BoxFuture<'_, Result<(), RaftError>> {
        self.0.change_membership(voters, false).boxed()
    }

    fn remove_learner(&self, member: u64) -> BoxFuture<'_, Result<(), RaftError>> {
        self.0.remove_learners(BTreeSet::from([member])).boxed()
    }

    fn transfer_leader(&self, to: u64) -> BoxFuture<'_, Result<(), RaftError>> {
        self.0.transfer_leader(to).boxed()
    }

    fn handle_peer(&self, kind: u16, payload: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        self.0.handle_peer(kind, payload).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), RaftError>> {
        async { self.0.flush().await.map(|_| ()) }.boxed()
    }
}
