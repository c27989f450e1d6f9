//! A mount: the client, the session with the kernel, and their orderly end. And `atoll-fs mount`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::arena::{Arena, ArenaConfig};
use atoll_client::client::{Client, ClientOptions, Notifier as KernelNotifier};
use atoll_client::session::{MetadataClient, SessionError, SessionOptions};
use atoll_client::storage_pool::{PoolConfig, Storage, StoragePool};
use atoll_core::ids::{ClusterId, InodeId, SessionId};
use atoll_fuse::Layout;
use atoll_fuse::adapter::Adapter;
use atoll_fuse::bundle::Bundle;
use atoll_fuse::device::{self, Device, MountOptions};
use atoll_fuse::fuser_transport::FuserSession;
use atoll_fuse::notify::Notifier;
use atoll_fuse::session::{InitOptions, Session};
use atoll_proto::handshake::{ClusterKey, Encryption, Identity, Role};
use atoll_proto::transport::Address;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

use crate::cli::{MountArgs, MountBehaviour, Transport};
use crate::cluster::{self, runtime};
use crate::exit::{Code, Context, Failure, Outcome};
use crate::mountpoint::{self, Found};
use crate::{http, metrics, signals};

/// Threads for everything but reading requests from the kernel.
const CLIENT_THREADS: usize = 2;
/// The smallest buffer that a mount works with (bytes).
const BUFFER_BYTES_MIN: u64 = 4 << 20;
/// How long a stopping mount waits for requests that are under way.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// What a mount needs.
pub struct MountConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its key.
    pub key: ClusterKey,
    /// Policy of encryption.
    pub encryption: Encryption,
    /// Metadata servers.
    pub addresses: Vec<Address>,
    /// Where to mount; looked at already.
    pub mountpoint: PathBuf,
    /// How it behaves.
    pub behaviour: MountBehaviour,
}

/// The session with the kernel, by whichever program.
enum Kernel {
    Atoll(Mutex<Option<Session>>),
    /// It ends with the mount and needs nothing to be kept.
    Fuser,
}

/// A mounted filesystem.
pub struct Mounted {
    client: Arc<Client<MetadataClient>>,
    kernel: Kernel,
    ended: Arc<tokio::sync::Notify>,
    mountpoint: PathBuf,
    source: String,
}

/// Notifications, as the client asks for them.
struct Invalidate(Notifier);

impl KernelNotifier for Invalidate {
    fn invalidate(&self, ino: InodeId, offset: u64, length: u64) -> BoxFuture<'_, ()> {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        // For the kernel a length of 0 or less means "to the end".
        let length = i64::try_from(length).unwrap_or(0);
        async move {
            // ENOENT: the kernel doesn't know the inode, so it keeps nothing of it.
            let _ = self.0.inval_inode(ino.0, offset, length).await;
        }
        .boxed()
    }
}

impl Mounted {
    /// Connects, mounts, and waits until the mount is usable.
    ///
    /// # Errors
    /// If the cluster can't be reached or refuses, or the mount can't be made.
    pub async fn start(config: MountConfig) -> Result<Mounted, Failure> {
        let bytes = config.behaviour.buffer.0;
        if bytes < BUFFER_BYTES_MIN {
            return Err(Failure::failed(format_args!(
                "--buffer {} is too small: 4Mi at least",
                config.behaviour.buffer
            )));
        }
        let arena =
            Arena::create(ArenaConfig { data_bytes: bytes, ..ArenaConfig::default() }).context("--buffer")?;
        let client = connect(&config, arena).await?;
        let ended = Arc::new(tokio::sync::Notify::new());
        let options = MountOptions::new(config.cluster);
        let device = Device::open().context("can't open /dev/fuse (is the fuse module loaded?)")?;
        device.mount(&config.mountpoint, &options).map_err(Failure::failed)?;
        let mounted = serve(&config, &options, device, &client, &ended).await;
        let kernel = match mounted {
            Ok(kernel) => kernel,
            Err(failure) => {
                let _ = device::unmount(&config.mountpoint, true);
                return Err(failure);
            }
        };
        Ok(Mounted { client, kernel, ended, mountpoint: config.mountpoint, source: options.source })
    }

    /// Completes when the filesystem was unmounted.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Why the mount can't serve right now.
    pub fn problem(&self) -> Option<String> {
        let status = self.client.metadata().status();
        status.waiting.map(|waiting| {
            let reason = status.problem.unwrap_or_else(|| "no answer".to_owned());
            format!("waiting for the cluster for {} s: {reason}", waiting.as_secs())
        })
    }

    /// Makes the mount's figures part of a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(metrics::MountCollector(Arc::clone(&self.client))));
    }

    /// Writes everything out, takes the mount away and ends the session. If somebody still uses the mount it is
    /// detached: it is gone from the tree at once, and its users get errors from now on.
    ///
    /// # Errors
    /// If something could not be written out.
    pub async fn shutdown(&self) -> Outcome {
        let mut result = self.client.data().flush_all().await;
        let (mountpoint, source) = (self.mountpoint.clone(), self.source.clone());
        // Off the runtime: unmounting waits for requests that we answer.
        let unmounted = tokio::task::spawn_blocking(move || take_away(&mountpoint, &source)).await;
        match unmounted {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => tracing::warn!("{failure}"),
            Err(error) => tracing::warn!(%error, "unmounting"),
        }
        if let Kernel::Atoll(session) = &self.kernel {
            let session = session.lock().take();
            if let Some(mut session) = session {
                let left = session.drain(DRAIN_PATIENCE).await;
                if left > 0 {
                    tracing::warn!(left, "requests were not answered before the end");
                }
            }
        }
        let stopped = self.client.stop().await;
        if result.is_ok() {
            result = stopped;
        }
        self.client.metadata().close().await;
        result.map_err(|error| Failure::failed(format_args!("not everything could be written out: {error}")))
    }
}

fn take_away(mountpoint: &std::path::Path, source: &str) -> Result<(), Failure> {
    let mount = device::find_mount(mountpoint).context("mount table")?;
    if mount.is_none_or(|mount| mount.source != source) {
        return Ok(());
    }
    if device::unmount(mountpoint, false).is_ok() {
        return Ok(());
    }
    tracing::warn!(mountpoint = %mountpoint.display(), "in use: detaching the mount from under its users");
    device::unmount(mountpoint, true).map_err(Failure::failed)
}

async fn connect(config: &MountConfig, arena: Arc<Arena>) -> Result<Arc<Client<MetadataClient>>, Failure> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let timeout = config.behaviour.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    let options = SessionOptions {
        encryption: config.encryption,
        timeout,
        ..SessionOptions::new(
            config.addresses.clone(),
            config.cluster,
            config.key.clone(),
            format!("{host}:{}", config.mountpoint.display()),
        )
    };
    let metadata = MetadataClient::connect(options, Arc::clone(&arena)).await.map_err(|error| {
        let code = match &error {
            SessionError::Away { .. } => Code::Unreachable,
            SessionError::Hopeless(_) => Code::Refused,
            SessionError::NoAddress | SessionError::Refused(_) => Code::Failed,
        };
        Failure::new(code, error)
    })?;
    let mut client_options = ClientOptions::for_arena(config.behaviour.buffer.0);
    client_options.data.timeout = timeout;
    let pool = PoolConfig {
        identity: Identity {
            cluster: config.cluster,
            role: Role::Client(SessionId(0)),
            key: config.key.clone(),
            encryption: config.encryption,
        },
        labels: BTreeMap::from([("host".to_owned(), host)]),
        local: HashMap::new(),
    };
    let client = Client::new(
        Arc::new(metadata),
        |metadata| Arc::new(StoragePool::new(Arc::clone(metadata), pool)) as Arc<dyn Storage>,
        arena,
        client_options,
    );
    client.warm_up().await.context("the root directory can't be read")?;
    Ok(client)
}

fn init_options() -> InitOptions {
    InitOptions { posix_acl: true, ..InitOptions::default() }
}

/// This library can't tell `flock` from record locks, so the kernel keeps locks itself; and it doesn't let the server
/// apply the umask, which access control lists need.
fn fuser_options() -> InitOptions {
    InitOptions { locks: false, ..InitOptions::default() }
}

async fn serve(
    config: &MountConfig,
    options: &MountOptions,
    device: Device,
    client: &Arc<Client<MetadataClient>>,
    ended: &Arc<tokio::sync::Notify>,
) -> Result<Kernel, Failure> {
    let runtime = Handle::current();
    let readers = usize::from(config.behaviour.readers);
    let ended = Arc::clone(ended);
    if config.behaviour.transport == Transport::Fuser {
        let session = FuserSession::start(
            device,
            readers,
            options.default_permissions,
            fuser_options(),
            Arc::clone(client),
            &runtime,
        )
        .context("fuser")?;
        session.ready().await.context("fuser")?;
        let watched = session.watch();
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::warn!(%error, "the session with the kernel ended");
            }
            ended.notify_one();
        });
        return Ok(Kernel::Fuser);
    }
    let bundle = Bundle::new(device, readers, Layout::default(), options).context("/dev/fuse")?;
    let session = Session::start(bundle, init_options(), Adapter::new(Arc::clone(client)), &runtime)
        .context("/dev/fuse")?;
    session.ready().await.context("the kernel did not begin")?;
    client.set_notifier(Arc::new(Invalidate(session.notifier().clone())));
    let watched = session.watch();
    tokio::spawn(async move {
        watched.await;
        ended.notify_one();
    });
    Ok(Kernel::Atoll(Mutex::new(Some(session))))
}

/// `atoll-fs mount`
///
/// # Errors
/// With a message that says what to do.
pub fn run(args: MountArgs) -> Outcome {
    let (id, key, encryption) = cluster::identity(&args.cluster)?;
    let addresses = cluster::addresses(&args.metadata.metadata)?;
    let (mountpoint, found) = mountpoint::prepare(&args.mountpoint, id, false)?;
    if found == Found::OursAlive {
        return Err(Failure::refused(format_args!(
            "{} is a mount of this cluster already: unmount it first",
            mountpoint.display()
        )));
    }
    let runtime = runtime(CLIENT_THREADS)?;
    let result = runtime.block_on(async {
        let asked_to_end = signals::listen()?;
        let config =
            MountConfig { cluster: id, key, encryption, addresses, mountpoint, behaviour: args.behaviour };
        let mounted = Arc::new(Mounted::start(config).await?);
        if let Some(listen) = &args.http {
            let mut registry = Registry::with_prefix("atoll");
            mounted.register_metrics(&mut registry);
            let watched = Arc::clone(&mounted);
            http::serve(listen, Arc::new(registry), Arc::new(move || watched.problem())).await?;
        }
        tracing::info!(mountpoint = %mounted.mountpoint.display(), "mounted");
        tokio::select! {
            signal = asked_to_end => tracing::info!(signal, "stopping"),
            () = mounted.ended() => tracing::info!("the filesystem was unmounted, stopping"),
        }
        mounted.shutdown().await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}
