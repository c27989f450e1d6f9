//! The servers and clients of a world: the real ones, on simulated disks and a simulated network.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::arena::{Arena, ArenaConfig};
use atoll_client::client::{Client, ClientOptions, Succession};
use atoll_client::metadata::Metadata;
use atoll_client::session::{MetadataClient, Predecessor, SessionOptions};
use atoll_client::storage_pool::{PoolConfig, Storage, StoragePool};
use atoll_core::ids::{ClusterId, MemberId, SessionId};
use atoll_core::records::VolumeConfig;
use atoll_metadata::store::folder::Folder;
use atoll_metadata::store::memory::SimulatedRecords;
use atoll_metadata::store::records::Backend;
use atoll_metadata::{MetadataConfig, MetadataServer, RunningMetadata};
use atoll_proto::admin::{ChangeMembers, MembersChange};
use atoll_proto::metadata::BootstrapRequest;
use atoll_proto::{
    Address, ClusterKey, ConnectOptions, Connection, Encryption, Identity, Listener, Role, RpcError,
};
use atoll_raft::SimDisk;
use atoll_storage::disk::faulty::FaultyDisk;
use atoll_storage::{StorageConfig, StorageHandle, StorageServer};
use prometheus_client::registry::Registry;
use rand::Rng;
use rand::rngs::StdRng;

use crate::network::{Network, seen_by};

/// The cluster of every world.
const CLUSTER: ClusterId = ClusterId(0x51);
/// How long a session lives without a word.
const SESSION_LIFETIME: Duration = Duration::from_secs(5);
/// After this time a storage server's replicas are made anew.
const REPAIR_AFTER: Duration = Duration::from_secs(15);
/// Small, so that a world of a few hundred operations has several of each.
const SEGMENT_BYTES: u32 = 512 << 10;
const CHUNK_BYTES: u64 = 1 << 20;
const ARENA_BYTES: u64 = 2 << 20;
const DISK_BYTES: u64 = 1 << 30;
/// How long a request of this module's own may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever changes the group.
const ADMIN: &str = "admin";
/// How long a change of the group may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A client's filesystem.
pub type FileSystem = Client<MetadataClient>;

fn key() -> ClusterKey {
    ClusterKey::new([7; 32])
}

/// Names of the metadata servers and of the storage servers.
pub fn metadata_name(number: usize) -> String {
    format!("m{number}")
}

/// As [`metadata_name`].
pub fn storage_name(number: usize) -> String {
    format!("s{number}")
}

/// As [`metadata_name`], of clients. What follows an `x` counts the processes of one.
pub fn client_name(number: usize) -> String {
    format!("c{number}")
}

fn address(name: &str) -> Address {
    Address::Tcp(format!("{name}:1"))
}

fn metadata_addresses(count: usize) -> Vec<Address> {
    (0..count).map(|number| address(&metadata_name(number))).collect()
}

/// A metadata server, running or not.
pub struct Member {
    name: String,
    id: MemberId,
    /// How often its disk was replaced.
    disks: u64,
    /// Where its folders are.
    parent: PathBuf,
    dir: PathBuf,
    log: SimDisk,
    records: SimulatedRecords,
    /// The server, while it runs.
    pub running: Option<RunningMetadata>,
}

impl Member {
    /// With an empty disk; its folder, which holds only small files that are always durable, is in `parent`.
    pub fn new(number: usize, parent: PathBuf) -> Result<Member, String> {
        let member = Member {
            name: metadata_name(number),
            id: MemberId(100 + number as u64),
            disks: 0,
            dir: parent.join(metadata_name(number)),
            parent,
            log: SimDisk::new(u64::MAX, false),
            records: SimulatedRecords::default(),
            running: None,
        };
        member.make_folder()?;
        Ok(member)
    }

    fn make_folder(&self) -> Result<(), String> {
        Folder::open(&self.dir, CLUSTER, self.id).map(drop).map_err(|error| error.to_string())
    }

    /// Gives it an empty disk, and with it another id. Returns who it was and who it is.
    pub fn replace_disk(&mut self) -> Result<(MemberId, MemberId), String> {
        let old = self.id;
        self.disks += 1;
        self.id = MemberId(old.0 + 1000);
        self.dir = self.parent.join(format!("{}-{}", self.name, self.disks));
        self.log = SimDisk::new(u64::MAX, false);
        self.records = SimulatedRecords::default();
        self.make_folder()?;
        Ok((old, self.id))
    }

    /// Starts it.
    pub async fn start(&mut self, network: &Network) -> Result<(), String> {
        network.know(Role::Metadata(self.id), &self.name);
        let config = MetadataConfig {
            encryption: Encryption::Off,
            session_lifetime: SESSION_LIFETIME,
            repair_after: REPAIR_AFTER,
            ballast_bytes: 0,
            segment_bytes: SEGMENT_BYTES,
            replay_bytes: u64::from(SEGMENT_BYTES),
            keep_log_bytes: 0,
            records: Backend::Simulated(self.records.clone()),
            log_disk: Some(self.log.clone()),
            ..MetadataConfig::new(&self.dir, address(&self.name), CLUSTER, key())
        };
        let started = MetadataServer::start(config, &mut Registry::default()).await;
        self.running = Some(started.map_err(|error| format!("{} doesn't start: {error}", self.name))?);
        Ok(())
    }

    /// Its power goes: what it had not synced is lost, in part.
    pub async fn cut_power(&mut self, network: &Network, random: &mut StdRng) {
        network.kill(&self.name);
        self.log = self.log.after_power_cut(random, u64::MAX);
        self.records = self.records.after_power_cut();
        if let Some(running) = self.running.take() {
            // Nothing of it reaches a disk or another node any more; this only ends its tasks.
            running.shutdown().await;
        }
    }
}

/// A storage server, running or not.
pub struct StorageNode {
    name: String,
    members: usize,
    /// Its disk.
    pub disk: FaultyDisk,
    /// The server, while it runs.
    pub running: Option<StorageHandle>,
}

impl StorageNode {
    /// With an empty disk.
    pub fn new(number: usize, members: usize, seed: u64) -> StorageNode {
        StorageNode {
            name: storage_name(number),
            members,
            disk: FaultyDisk::new(seed, DISK_BYTES),
            running: None,
        }
    }

    /// Starts it.
    pub async fn start(&mut self, network: &Network) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("{} doesn't start: {error}", self.name);
        let listener = Listener::bind(&address(&self.name)).await.map_err(|error| failed(&error))?;
        let config = StorageConfig {
            encryption: Encryption::Off,
            metadata: metadata_addresses(self.members),
            labels: BTreeMap::from([("host".to_owned(), self.name.clone())]),
            ballast_bytes: 0,
            chunk_bytes: CHUNK_BYTES,
            ..StorageConfig::new(PathBuf::new(), address(&self.name), CLUSTER, key())
        };
        let started = StorageServer::start_on(config, Arc::new(self.disk.clone()), listener).await;
        let running = started.map_err(|error| failed(&error))?;
        network.know(Role::Storage(running.server()), &self.name);
        self.running = Some(running);
        Ok(())
    }

    /// The disk is full, or isn't any more.
    pub fn fill(&self, full: bool) {
        self.disk.set_capacity(if full { 0 } else { DISK_BYTES });
    }

    /// One bit of a replica flips, if there is any.
    pub fn flip(&self, random: &mut StdRng) {
        let chunks: Vec<String> =
            self.disk.files().into_iter().filter(|path| path.ends_with(".chunk")).collect();
        if chunks.is_empty() {
            return;
        }
        let path = &chunks[random.random_range(0..chunks.len())];
        let length = self.disk.contents(path).map_or(0, |content| content.len() as u64);
        if length > 0 {
            self.disk.flip_bit(path, random.random_range(0..length), random.random_range(0..8));
        }
    }

    /// Its power goes: what it had not synced is lost, in part.
    pub async fn cut_power(&mut self, network: &Network) {
        network.kill(&self.name);
        self.disk.power_off_after(0);
        if let Some(running) = self.running.take() {
            running.shutdown().await;
        }
        self.disk.power_on();
    }
}

/// Makes the group and the volume, which is for one mount if it is `exclusive`.
pub async fn bootstrap(members: usize, copies: u8, exclusive: bool) -> Result<(), String> {
    let config = VolumeConfig {
        bytes_total: 1 << 30,
        inodes_total: 100_000,
        copies,
        copies_min: 2,
        inline_file_bytes: 2048,
        inline_budget_bytes: 64 << 10,
        chunk_bytes: CHUNK_BYTES,
        exclusive,
        ..VolumeConfig::default()
    };
    let first_members = (0..members)
        .map(|number| (MemberId(100 + number as u64), address(&metadata_name(number)).to_string()))
        .collect();
    let request = BootstrapRequest { cluster: CLUSTER, config, members: first_members };
    let options = ConnectOptions::new(admin());
    let connection = Connection::connect(&address(&metadata_name(0)), &options)
        .await
        .map_err(|error| error.to_string())?;
    let asked = connection.call_within::<BootstrapRequest>(&request, (), TIMEOUT).await;
    asked.map(|_| ()).map_err(|error| error.to_string())
}

fn admin() -> Identity {
    Identity { cluster: CLUSTER, role: Role::Admin, key: key(), encryption: Encryption::Off }
}

/// Lets a member take the place of another one, which has lost its disk, whoever leads now.
pub async fn replace_member(
    members: usize,
    number: usize,
    (old, new): (MemberId, MemberId),
    network: &Network,
) -> Result<(), String> {
    network.begin(ADMIN);
    let options = ConnectOptions::new(admin());
    let address_of = |number| Address::Tcp(seen_by(&metadata_name(number), ADMIN));
    let change = MembersChange::Replace { old, new, address: address(&metadata_name(number)).to_string() };
    let mut last = String::new();
    for asked in (0..members).cycle().take(200) {
        let connection = Connection::connect(&address_of(asked), &options).await;
        let answer = match connection {
            Ok(connection) => {
                let request = ChangeMembers { change: change.clone() };
                connection.call_within::<ChangeMembers>(&request, (), CHANGE_TIMEOUT).await
            }
            Err(error) => Err(RpcError::NotSent { reason: error.to_string() }),
        };
        match answer {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("{}: {error}", metadata_name(asked)),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(format!("member {new} doesn't get the place of {old}: {last}"))
}

/// A mount without a kernel.
pub struct Mount {
    /// What the kernel would talk to.
    pub files: Arc<FileSystem>,
    /// The way to the storage servers, for who looks at replicas.
    pub pool: Arc<dyn Storage>,
    name: String,
    arena: Arc<Arena>,
}

/// What a client has left whose process was killed.
pub struct Left(OwnedFd);

impl Mount {
    /// Opens a session.
    pub async fn connect(name: &str, members: usize, network: &Network) -> Result<Mount, String> {
        network.begin(name);
        let config = ArenaConfig { op_slots: 16, data_bytes: ARENA_BYTES };
        let arena = Arena::create(config).map_err(|error| error.to_string())?;
        let options = options(name, members);
        let metadata =
            MetadataClient::connect(options, Arc::clone(&arena)).await.map_err(|error| error.to_string())?;
        Mount::over(name, network, metadata, arena).await
    }

    /// Continues for a client whose process was killed. The second value: its session is lost.
    pub async fn succeed(
        name: &str,
        members: usize,
        network: &Network,
        Left(arena): Left,
    ) -> Result<(Mount, bool), String> {
        network.begin(name);
        let mut adopted = Arena::adopt(arena).map_err(|error| error.to_string())?;
        if adopted.damaged > 0 {
            return Err(format!("{} records of its arena are damaged", adopted.damaged));
        }
        let arena = Arc::clone(&adopted.arena);
        let predecessor = Predecessor::of(&mut adopted).ok_or("its arena has no session")?;
        let options = options(name, members);
        let (metadata, inherited) = MetadataClient::succeed(options, Arc::clone(&arena), predecessor)
            .await
            .map_err(|error| error.to_string())?;
        let (takeovers, is_lost) = (metadata.takeovers(), inherited.is_lost);
        let succession = Succession { inherited, handles: adopted.handles, data: adopted.data, takeovers };
        let mount = Mount::over(name, network, metadata, Arc::clone(&arena)).await?;
        mount.files.succeed(&arena, succession).await.map_err(|error| error.to_string())?;
        arena.take_responsibility();
        Ok((mount, is_lost))
    }

    async fn over(
        name: &str,
        network: &Network,
        metadata: MetadataClient,
        arena: Arc<Arena>,
    ) -> Result<Mount, String> {
        let metadata = Arc::new(metadata);
        let known = Arc::downgrade(&metadata);
        network.know_session(name, move || known.upgrade().map(|metadata| Metadata::session(&*metadata)));
        let pool_config = PoolConfig {
            identity: Identity {
                cluster: CLUSTER,
                role: Role::Client(SessionId(0)),
                key: key(),
                encryption: Encryption::Off,
            },
            labels: BTreeMap::from([("host".to_owned(), name.to_owned())]),
            local: HashMap::new(),
        };
        let kept = Rc::new(std::cell::RefCell::new(None));
        let files = Client::new(
            metadata,
            |metadata| {
                let pool: Arc<dyn Storage> = Arc::new(StoragePool::new(Arc::clone(metadata), pool_config));
                *kept.borrow_mut() = Some(Arc::clone(&pool));
                pool
            },
            Arc::clone(&arena),
            ClientOptions::for_arena(ARENA_BYTES),
        );
        files.warm_up().await.map_err(|error| error.to_string())?;
        let pool = kept.borrow_mut().take().ok_or("no pool was asked for")?;
        Ok(Mount { files, pool, name: name.to_owned(), arena })
    }

    /// Its process is killed, and somebody keeps what it had in its arena.
    pub fn die(&self, network: &Network) -> Result<Left, String> {
        let left = self.arena.copy().map_err(|error| error.to_string())?;
        network.end(&self.name);
        network.forget_session(&self.name);
        Ok(Left(left))
    }

    /// Its process is killed: what it had not sent is gone.
    pub fn kill(self, network: &Network) {
        network.end(&self.name);
    }

    /// Writes everything out and ends the session.
    pub async fn close(self) -> Result<(), String> {
        self.files.stop().await.map_err(|error| error.to_string())?;
        self.files.metadata().close().await;
        Ok(())
    }
}

fn options(name: &str, members: usize) -> SessionOptions {
    let addresses = (0..members).map(|number| Address::Tcp(seen_by(&metadata_name(number), name))).collect();
    SessionOptions {
        encryption: Encryption::Off,
        connect_timeout: Duration::from_secs(60),
        // Every other client's mutations wait for one another, so that what waits outlives sessions, too.
        mutations_in_flight: if name.ends_with(['1', '3', '5', '7', '9']) { 1 } else { 64 },
        // All of one machine: a volume for one mount is given from each process to the next one.
        ..SessionOptions::new(addresses, CLUSTER, key(), format!("machine:{name}"))
    }
}

/// A time between these two.
pub fn some_time(random: &mut StdRng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(random.random_range(from_ms..to_ms))
}
