//! A storage server as a whole.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atoll_core::ids::{ClusterId, ServerId};
use atoll_core::limits::CHUNK_BYTES;
use atoll_proto::server::{ServerOptions, serve_within};
use atoll_proto::transport::BindError;
use atoll_proto::{Address, ClusterKey, Encryption, Identity, Listener, Role};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::metrics::Metrics;
use crate::pool::IoPool;
use crate::registration::{Announcement, Registrar};
use crate::scrub;
use crate::service::StorageService;
use crate::store::{Store, StoreError, StoreOptions};
use crate::tasks::TaskWorkers;

/// Space kept for deleting on a full disk, unless said otherwise (bytes).
pub const BALLAST_BYTES: u64 = 16 << 20;
/// How fast the disk is scrubbed, unless said otherwise (bytes per second).
pub const SCRUB_BYTES_PER_S: u64 = 4 << 20;
/// How fast replicas are copied from peers, unless said otherwise (bytes per second).
pub const COPY_BYTES_PER_S: u64 = 128 << 20;
/// Bytes of requests of one connection that are read but not yet answered; then nothing more is read from it.
const CONNECTION_BYTES_IN_FLIGHT_MAX: usize = 32 << 20;

/// What a storage server has to know.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// Its folder: empty, or its own.
    pub data_dir: PathBuf,
    /// Where it listens; port 0 for any.
    pub listen: Address,
    /// Where others reach it, as [`Address`] prints it; what it listens at unless said otherwise.
    pub advertise: Option<String>,
    /// Where the metadata service is: any of its members.
    pub metadata: Vec<Address>,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// That cluster's key.
    pub key: ClusterKey,
    /// Whether connections are encrypted.
    pub encryption: Encryption,
    /// Clients in this process call it without a socket.
    pub in_process: bool,
    /// What placement may look at (node, zone, …).
    pub labels: BTreeMap<String, String>,
    /// Space kept for deleting on a full disk, bytes; 0 for none.
    pub ballast_bytes: u64,
    /// Data bytes of the chunks that are made here.
    pub chunk_bytes: u64,
    /// How fast the disk is scrubbed, bytes per second; 0 for never.
    pub scrub_bytes_per_s: u64,
    /// The pause after all of it was scrubbed.
    pub scrub_pause: Duration,
    /// How fast replicas are copied from peers, bytes per second; 0 for no limit.
    pub copy_bytes_per_s: u64,
    /// `false` leaves every sync of the disk out. **That loses acknowledged data when the power fails**: it is only
    /// there to show that the test which cuts the power can fail.
    pub sync: bool,
}

impl StorageConfig {
    /// With the defaults for everything that can have one.
    pub fn new(data_dir: impl Into<PathBuf>, listen: Address, cluster: ClusterId, key: ClusterKey) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen,
            advertise: None,
            metadata: Vec::new(),
            cluster,
            key,
            encryption: Encryption::default(),
            in_process: false,
            labels: BTreeMap::new(),
            ballast_bytes: BALLAST_BYTES,
            chunk_bytes: CHUNK_BYTES,
            scrub_bytes_per_s: SCRUB_BYTES_PER_S,
            scrub_pause: scrub::ROUND_PAUSE,
            copy_bytes_per_s: COPY_BYTES_PER_S,
            sync: true,
        }
    }
}

/// Why a server didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder can't be used.
    #[error("can't use the directory {folder}: {source}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system says.
        source: io::Error,
    },
    /// The folder isn't ours to serve.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address can't be listened at.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Nobody could reach what would be announced.
    #[error("{listen} means every address of this machine, and others need one: name it with --advertise")]
    NoAddress {
        /// Where it listens.
        listen: String,
    },
}

/// Starts storage servers.
#[derive(Debug)]
pub struct StorageServer;

/// A running storage server. Dropping it stops it without waiting for anything.
pub struct StorageHandle {
    address: String,
    server: ServerId,
    incarnation: u64,
    store: Arc<Store>,
    metrics: Metrics,
    registered: Arc<AtomicBool>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl StorageServer {
    /// Starts a server on a folder of this machine. When this returns, it answers; it registers with the metadata
    /// service as soon as that can be reached.
    pub async fn start(config: StorageConfig) -> Result<StorageHandle, StartError> {
        if !config.sync {
            tracing::warn!(
                "nothing is synced to disk (--unsafe-no-sync): a power failure loses acknowledged data"
            );
        }
        let folder = config.data_dir.display().to_string();
        let disk = RealDisk::new(&config.data_dir, config.sync)
            .map_err(|source| StartError::Folder { folder, source })?;
        let listener = Listener::bind(&config.listen).await?;
        Self::start_on(config, Arc::new(disk), listener).await
    }

    /// As [`Self::start`], on any disk and listener; the configuration's folder and address aren't looked at.
    pub async fn start_on(
        config: StorageConfig,
        disk: Arc<dyn Disk>,
        listener: Listener,
    ) -> Result<StorageHandle, StartError> {
        let local_address = listener.local_address();
        let address = match &config.advertise {
            Some(address) => address.clone(),
            None if is_unspecified(&local_address) => {
                return Err(StartError::NoAddress { listen: local_address });
            }
            None => local_address.clone(),
        };
        let options = StoreOptions {
            cluster: config.cluster,
            ballast_bytes: config.ballast_bytes,
            chunk_bytes: config.chunk_bytes,
        };
        let opened = atoll_blocking::spawn(move || Store::open(disk, &options)).await;
        let store = Arc::new(opened.map_err(|error| StoreError::Io {
            doing: "open the directory",
            source: io::Error::other(error),
        })??);
        let identity = Identity {
            cluster: config.cluster,
            role: Role::Storage(store.identity().server),
            key: config.key,
            encryption: config.encryption,
        };
        let (metrics, pool, stop) = (Metrics::default(), IoPool::default(), CancellationToken::new());
        let service = Arc::new(StorageService::new(
            store.clone(),
            pool.clone(),
            metrics.clone(),
            identity.clone(),
            config.copy_bytes_per_s,
        ));
        let registered = Arc::new(AtomicBool::new(false));
        let announcement = Announcement {
            metadata: config.metadata,
            identity: identity.clone(),
            address,
            labels: config.labels,
        };
        let mut tasks = JoinSet::new();
        let workers = TaskWorkers::start(service.clone(), stop.clone(), &mut tasks);
        let registrar = Registrar::new(service.clone(), announcement, workers, registered.clone());
        let options = ServerOptions {
            request_bytes_in_flight: CONNECTION_BYTES_IN_FLIGHT_MAX,
            in_process: config.in_process,
            ..ServerOptions::default()
        };
        tasks.spawn(serve_within(listener, identity, service, options, stop.clone()));
        tasks.spawn(registrar.run(stop.clone()));
        let (rate, pause) = (config.scrub_bytes_per_s, config.scrub_pause);
        tasks.spawn(scrub::run(store.clone(), pool, metrics.clone(), rate, pause, stop.clone()));
        let (server, incarnation) = (store.identity().server, store.identity().incarnation);
        tracing::info!(%server, incarnation, address = local_address, chunks = store.len(), "storage server started");
        Ok(StorageHandle {
            address: local_address,
            server,
            incarnation,
            store,
            metrics,
            registered,
            stop,
            tasks,
        })
    }
}

impl StorageHandle {
    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Which server it is: written to its disk at its first start.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Counts the starts on this folder.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether the metadata service heard it lately.
    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// Asks [`Self::is_registered`], also after the handle has gone elsewhere: for a health endpoint.
    pub fn registration(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let registered = self.registered.clone();
        move || registered.load(Ordering::Relaxed)
    }

    /// How many replicas it keeps.
    pub fn chunks(&self) -> usize {
        self.store.len()
    }

    /// Makes its metrics part of a registry. Several servers of one process go under a label each.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Stops: takes nothing new, finishes what is being worked on, syncs, lets go of the folder.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let store = self.store.clone();
        if atoll_blocking::spawn(move || store.sync_all()).await.is_err() {
            tracing::warn!("the last sync did not finish");
        }
        tracing::info!(server = %self.server, "storage server stopped");
    }
}

impl Drop for StorageHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Whether an address is a wildcard, to listen at but not to connect to.
fn is_unspecified(address: &str) -> bool {
    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}
