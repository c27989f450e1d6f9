//! A mount: the client, the session with the kernel, and their orderly end. And `atoll-fs mount`.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atoll_client::arena::{Adopted, Arena, ArenaConfig};
use atoll_client::client::{Client, ClientOptions, Notifier as KernelNotifier, Succession};
use atoll_client::metadata::Metadata;
use atoll_client::session::{MetadataClient, Predecessor, SessionError, SessionOptions};
use atoll_client::storage_pool::{PoolConfig, Storage, StoragePool};
use atoll_core::error::FsError;
use atoll_core::ids::{ClusterId, InodeId, SessionId};
use atoll_fuse::Layout;
use atoll_fuse::adapter::Adapter;
use atoll_fuse::bundle::Bundle;
use atoll_fuse::device::{self, Device, MountOptions};
use atoll_fuse::fuser_transport::FuserSession;
use atoll_fuse::notify::Notifier;
use atoll_fuse::session::{InitOptions, Session};
use atoll_proto::handshake::{ClusterKey, Encryption, Identity, Role};
use atoll_proto::metadata::StatusRequest;
use atoll_proto::transport::Address;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

use crate::cli::{MountArgs, MountBehaviour, Restriction, Transport};
use crate::cluster::{self, serving_runtime};
use crate::exit::{Code, Context, Failure, Outcome};
use crate::fstab::{Ready, Record};
use crate::mountpoint::{self, Found};
use crate::{http, metrics, served, signals};

/// Threads for everything but reading requests from the kernel.
pub const CLIENT_THREADS: usize = 2;
/// The smallest buffer that a mount works with (bytes).
const BUFFER_BYTES_MIN: u64 = 4 << 20;
/// How long a stopping mount waits for requests that are under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// This machine's name.
    pub host: String,
    /// What the session is called, after the machine's name.
    pub name: String,
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
    /// Where it is mounted and as what; `None` if another process mounted it, and takes it away.
    place: Option<(PathBuf, String)>,
}

/// A client that has its session with the cluster, and no mount yet.
pub struct ConnectedClient {
    client: Arc<Client<MetadataClient>>,
    arena: Arc<Arena>,
    behaviour: MountBehaviour,
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

    fn void(&self, ino: InodeId) -> BoxFuture<'_, ()> {
        async move {
            // A negative offset: no pages.
            let _ = self.0.inval_inode(ino.0, -1, 0).await;
        }
        .boxed()
    }
}

impl ConnectedClient {
    /// Opens a session and looks at the root. `predecessor`: the arena of a process that is dead, whose session this one
    /// continues.
    ///
    /// # Errors
    /// If the cluster can't be reached or refuses, or the arena can't be read.
    pub async fn connect(
        config: MountConfig,
        predecessor: Option<OwnedFd>,
    ) -> Result<ConnectedClient, Failure> {
        if let Some(arena) = predecessor {
            let adopted = Arena::adopt(arena).context("--takeover")?;
            let arena = Arc::clone(&adopted.arena);
            let client = take_over(&config, adopted).await?;
            return Ok(ConnectedClient { client, arena, behaviour: config.behaviour });
        }
        let bytes = config.behaviour.buffer.0;
        if bytes < BUFFER_BYTES_MIN {
            return Err(Failure::failed(format_args!(
                "--buffer {} is too small: the minimum is 4Mi",
                config.behaviour.buffer
            )));
        }
        let arena =
            Arena::create(ArenaConfig { data_bytes: bytes, ..ArenaConfig::default() }).context("--buffer")?;
        let client = connect(&config, Arc::clone(&arena)).await?;
        Ok(ConnectedClient { client, arena, behaviour: config.behaviour })
    }

    /// What this process has taken responsibility for: whoever keeps it can start a successor.
    pub fn arena(&self) -> BorrowedFd<'_> {
        self.arena.fd()
    }

    /// Serves a mount that another process made, whatever was done on it before.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn serve(self, bundle: Bundle) -> Result<Mounted, Failure> {
        let ended = Arc::new(tokio::sync::Notify::new());
        // Requests that come again close files, too.
        self.arena.take_responsibility();
        match serve_bundle(bundle, &self.client, &ended).await {
            Ok(kernel) => Ok(Mounted { client: self.client, kernel, ended, place: None }),
            Err(failure) => {
                self.arena.leave_to_successor();
                Err(failure)
            }
        }
    }

    /// Ends the session; nothing was written yet.
    pub async fn give_up(&self) {
        self.client.metadata().close().await;
    }
}

impl Mounted {
    /// Connects, mounts, and waits until the mount is usable. `mountpoint` was looked at already.
    ///
    /// # Errors
    /// If the cluster can't be reached or refuses, or the mount can't be made.
    pub async fn start(
        config: MountConfig,
        mountpoint: PathBuf,
        options: MountOptions,
    ) -> Result<Mounted, Failure> {
        let connected = ConnectedClient::connect(config, None).await?;
        let ended = Arc::new(tokio::sync::Notify::new());
        let device = Device::open().context("can't open /dev/fuse (is the fuse module loaded?)")?;
        device.mount(&mountpoint, &options).map_err(Failure::failed)?;
        let ConnectedClient { client, behaviour, .. } = connected;
        match serve(&behaviour, &options, device, &client, &ended).await {
            Ok(kernel) => {
                device::read_ahead(&mountpoint);
                Ok(Mounted { client, kernel, ended, place: Some((mountpoint, options.source)) })
            }
            Err(failure) => {
                let _ = device::unmount(&mountpoint, true);
                Err(failure)
            }
        }
    }

    /// Completes when the filesystem was unmounted.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Why the mount can't serve right now.
    pub fn problem(&self) -> Option<String> {
        let status = self.client.metadata().status();
        status.waiting.map(|waiting| {
            let reason = status.problem.unwrap_or_else(|| "no reply".to_owned());
            format!("waiting for the cluster for {} s: {reason}", waiting.as_secs())
        })
    }

    /// Makes the mount's figures part of a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let requests = match &self.kernel {
            Kernel::Atoll(session) => session.lock().as_ref().map(Session::counters),
            Kernel::Fuser => None,
        };
        let registry = registry.sub_registry_with_prefix("atoll");
        registry.register_collector(Box::new(metrics::MountCollector {
            client: Arc::clone(&self.client),
            requests,
        }));
    }

    /// Writes out what is buffered; the mount continues to be served.
    ///
    /// # Errors
    /// If something could not be written out.
    pub async fn flush(&self) -> Outcome {
        let flushed = async {
            self.client.data().flush_all().await?;
            self.client.metadata().sync().await
        };
        flushed
            .await
            .map_err(|error| Failure::failed(format_args!("not all buffered data could be written: {error}")))
    }

    /// Writes everything out, takes the mount away and ends the session. If somebody still uses the mount it is
    /// detached: it is gone from the tree at once, and its users get errors from now on.
    ///
    /// # Errors
    /// If something could not be written out.
    pub async fn shutdown(&self) -> Outcome {
        let mut result = self.client.data().flush_all().await;
        if let Some((mountpoint, source)) = self.place.clone() {
            // Off the runtime: unmounting waits for requests that we answer.
            let unmounted = atoll_blocking::spawn(move || take_away(&mountpoint, &source)).await;
            match unmounted {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => tracing::warn!("{failure}"),
                Err(error) => tracing::warn!(%error, "unmounting"),
            }
        }
        if let Kernel::Atoll(session) = &self.kernel {
            let session = session.lock().take();
            if let Some(mut session) = session {
                let left = session.drain(DRAIN_TIMEOUT).await;
                if left > 0 {
                    tracing::warn!(left, "requests were still unanswered at the stop");
                }
            }
        }
        let stopped = self.client.stop().await;
        if result.is_ok() {
            result = stopped;
        }
        self.client.metadata().close().await;
        result
            .map_err(|error| Failure::failed(format_args!("not all buffered data could be written: {error}")))
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
    tracing::warn!(mountpoint = %mountpoint.display(), "the mount is in use; it is detached from its users");
    device::unmount(mountpoint, true).map_err(Failure::failed)
}

/// The host name: what this machine is called unless it is told otherwise.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

async fn connect(config: &MountConfig, arena: Arc<Arena>) -> Result<Arc<Client<MetadataClient>>, Failure> {
    match MetadataClient::connect(session_options(config), Arc::clone(&arena)).await {
        Ok(metadata) => client(config, metadata, arena, None).await,
        Err(error) => Err(no_session(config, error).await),
    }
}

/// Continues for a process that is dead.
async fn take_over(
    config: &MountConfig,
    mut adopted: Adopted,
) -> Result<Arc<Client<MetadataClient>>, Failure> {
    let arena = Arc::clone(&adopted.arena);
    if adopted.damaged > 0 {
        tracing::error!(
            records = adopted.damaged,
            "records of the previous process are damaged; what they described is lost"
        );
    }
    // It died before it had a session: then it had nothing.
    let Some(predecessor) = Predecessor::of(&mut adopted) else { return connect(config, arena).await };
    let (metadata, inherited) =
        match MetadataClient::succeed(session_options(config), Arc::clone(&arena), predecessor).await {
            Ok(succeeded) => succeeded,
            Err(error) => return Err(no_session(config, error).await),
        };
    let takeovers = metadata.takeovers();
    tracing::info!(
        takeovers,
        handles = adopted.handles.len(),
        blocks = adopted.data.len(),
        session_lost = inherited.is_lost,
        "continuing for the previous process"
    );
    let succession = Succession { inherited, handles: adopted.handles, data: adopted.data, takeovers };
    client(config, metadata, arena, Some(succession)).await
}

fn session_options(config: &MountConfig) -> SessionOptions {
    SessionOptions {
        encryption: config.encryption,
        timeout: timeout(config),
        ..SessionOptions::new(
            config.addresses.clone(),
            config.cluster,
            config.key.clone(),
            format!("{}:{}", config.host, config.name),
        )
    }
}

fn timeout(config: &MountConfig) -> Option<Duration> {
    config.behaviour.timeout.map(|seconds| Duration::from_secs(seconds.into()))
}

async fn no_session(config: &MountConfig, error: SessionError) -> Failure {
    let code = match &error {
        SessionError::Refused(FsError::Taken) => return taken(config).await,
        SessionError::Away { .. } => Code::Unreachable,
        SessionError::Hopeless(_) => Code::Refused,
        SessionError::NoAddress | SessionError::Refused(_) => Code::Failed,
    };
    Failure::new(code, error)
}

async fn client(
    config: &MountConfig,
    metadata: MetadataClient,
    arena: Arc<Arena>,
    succession: Option<Succession>,
) -> Result<Arc<Client<MetadataClient>>, Failure> {
    let mut client_options = ClientOptions::for_arena(config.behaviour.buffer.0);
    client_options.data.timeout = timeout(config);
    client_options.access_times = !config.behaviour.noatime;
    let pool = PoolConfig {
        identity: Identity {
            cluster: config.cluster,
            role: Role::Client(SessionId(0)),
            key: config.key.clone(),
            encryption: config.encryption,
        },
        labels: BTreeMap::from([("host".to_owned(), config.host.clone())]),
        local: HashMap::new(),
    };
    let client = Client::new(
        Arc::new(metadata),
        |metadata| Arc::new(StoragePool::new(Arc::clone(metadata), pool)) as Arc<dyn Storage>,
        Arc::clone(&arena),
        client_options,
    );
    client.warm_up().await.context("the root directory can't be read")?;
    if let Some(succession) = succession {
        client.succeed(&arena, succession).await.context("unwritten data of the previous process")?;
    }
    Ok(client)
}

/// Says which machine has a volume that is for one at a time.
async fn taken(config: &MountConfig) -> Failure {
    let identity = (config.cluster, config.key.clone(), config.encryption);
    let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
    let status = cluster::ask::<StatusRequest>(identity, &addresses, &StatusRequest).await;
    let sessions = status.map(|status| status.sessions).unwrap_or_default();
    let holder = sessions.iter().filter_map(|session| session.client.split(':').next()).next_back();
    let holder = holder.map_or_else(|| "another machine".to_owned(), |machine| format!("'{machine}'"));
    Failure::new(
        Code::Taken,
        format_args!(
            "the volume is for one machine at a time, and {holder} uses it until it is unmounted there"
        ),
    )
}

fn init_options(client: &Client<MetadataClient>) -> InitOptions {
    // Where no other mount has locks the kernel's are enough, and no lock is a request.
    let locks = !client.keeps_locks_in_the_kernel();
    InitOptions { posix_acl: true, locks, ..InitOptions::default() }
}

/// This library can't tell `flock` from record locks, so the kernel keeps locks itself; and it doesn't let the server
/// apply the umask, which access control lists need.
fn fuser_options() -> InitOptions {
    InitOptions { locks: false, ..InitOptions::default() }
}

async fn serve(
    behaviour: &MountBehaviour,
    options: &MountOptions,
    device: Device,
    client: &Arc<Client<MetadataClient>>,
    ended: &Arc<tokio::sync::Notify>,
) -> Result<Kernel, Failure> {
    let readers = usize::from(behaviour.readers);
    if behaviour.transport == Transport::Fuser {
        let (runtime, ended) = (Handle::current(), Arc::clone(ended));
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
                tracing::warn!(%error, "the FUSE session ended with an error");
            }
            ended.notify_one();
        });
        return Ok(Kernel::Fuser);
    }
    let bundle = Bundle::new(device, readers, Layout::default(), options).context("/dev/fuse")?;
    serve_bundle(bundle, client, ended).await
}

async fn serve_bundle(
    bundle: Bundle,
    client: &Arc<Client<MetadataClient>>,
    ended: &Arc<tokio::sync::Notify>,
) -> Result<Kernel, Failure> {
    let ended = Arc::clone(ended);
    let session =
        Session::start(bundle, init_options(client), Adapter::new(Arc::clone(client)), &Handle::current())
            .context("/dev/fuse")?;
    session.ready().await.context("the kernel did not initialize the mount")?;
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
    let Some(mountpoint) = &args.mountpoint else { return served::run(&args) };
    let mut ready = Ready::new(args.ready_fd);
    let result = run_at(&args, mountpoint, &mut ready);
    ready.ended(&result);
    result
}

fn run_at(args: &MountArgs, mountpoint: &Path, ready: &mut Ready) -> Outcome {
    let Some(key_file) = &args.key_file else {
        return Err(Failure::failed("--key-file is missing: name the file with the cluster's key"));
    };
    let (id, key) = (cluster::id(&args.cluster)?, cluster::key(key_file)?);
    let (mountpoint, found) = mountpoint::prepare(mountpoint, id, false)?;
    if found == Found::OursAlive {
        return Err(Failure::refused(format_args!(
            "{} is already a mount of this cluster: unmount it first",
            mountpoint.display()
        )));
    }
    let config = args.config(id, key, &mountpoint.display().to_string())?;
    let options = args.mount_options(id);
    let runtime = serving_runtime(CLIENT_THREADS)?;
    // Not before: the record of a process that serves a mount here is its own.
    let record = args.record.as_deref().map(Record::hold).transpose()?;
    let result = runtime.block_on(async {
        let asked_to_end = signals::listen()?;
        let mounted = Arc::new(Mounted::start(config, mountpoint.clone(), options).await?);
        serve_http(args, &mounted).await?;
        ready.ready();
        tracing::info!(mountpoint = %mountpoint.display(), "mounted");
        tokio::select! {
            signal = asked_to_end => tracing::info!(signal, "stopping"),
            () = mounted.ended() => tracing::info!("the filesystem was unmounted, stopping"),
        }
        mounted.shutdown().await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    if let Some(record) = record {
        record.close(&result);
    }
    result
}

/// Serves metrics and health if there is an address for them.
///
/// # Errors
/// If the address can't be listened on.
pub async fn serve_http(args: &MountArgs, mounted: &Arc<Mounted>) -> Outcome {
    let Some(listen) = &args.http else { return Ok(()) };
    let mut registry = Registry::default();
    mounted.register_metrics(&mut registry);
    let watched = Arc::clone(mounted);
    http::serve(listen, Arc::new(registry), Arc::new(move || watched.problem())).await?;
    Ok(())
}

impl MountArgs {
    /// How the kernel is told to mount.
    fn mount_options(&self, cluster: ClusterId) -> MountOptions {
        let is = |restriction| self.options.contains(&restriction);
        MountOptions {
            read_only: is(Restriction::Ro),
            nosuid: is(Restriction::Nosuid),
            nodev: is(Restriction::Nodev),
            noexec: is(Restriction::Noexec),
            noatime: self.behaviour.noatime,
            context: self.context.clone(),
            ..MountOptions::new(cluster)
        }
    }

    /// What the client is told. `name` is what the session is called unless the flags say otherwise.
    ///
    /// # Errors
    /// If an address is none.
    pub fn config(&self, cluster: ClusterId, key: ClusterKey, name: &str) -> Result<MountConfig, Failure> {
        Ok(MountConfig {
            cluster,
            key,
            encryption: cluster::encryption(self.encrypt),
            addresses: cluster::addresses(&self.metadata.metadata)?,
            host: self.host.clone().unwrap_or_else(host_name),
            name: self.name.clone().unwrap_or_else(|| name.to_owned()),
            behaviour: self.behaviour.clone(),
        })
    }
}
