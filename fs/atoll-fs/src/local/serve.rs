//! The process that serves a local cluster: servers, mount, and their orderly end.

use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_fuse::device::MountOptions;
use atoll_metadata::server::{MetadataConfig, MetadataServer, RunningMetadata};
use atoll_proto::handshake::Encryption;
use atoll_proto::transport::Address;
use atoll_storage::{StorageConfig, StorageHandle, StorageServer};
use prometheus_client::registry::Registry;

use crate::cli::LocalUpArgs;
use crate::cluster::serving_runtime;
use crate::exit::{Code, Failure, Outcome};
use crate::local::state::{self, Folder, Running};
use crate::mount::{MountConfig, Mounted, host_name};
use crate::servers::{metadata_failure, storage_failure};
use crate::{bootstrap, http, signals};

/// Threads for everything in the process but what blocks.
const THREADS: usize = 2;
/// How long the servers may take until the volume can be mounted.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that each server of a local cluster keeps aside for the day its disk is full.
const BALLAST_BYTES: u64 = 8 << 20;
/// Inline data is kept below this part of the capacity.
const INLINE_SHARE: u64 = 10;

/// The servers of a local cluster.
struct Servers {
    metadata: RunningMetadata,
    storage: Vec<StorageHandle>,
}

/// Serves until SIGTERM, or until the filesystem is unmounted.
///
/// # Errors
/// If it can't start, with a message that says what to do.
pub fn serve(args: &LocalUpArgs, folder: Folder, mountpoint: PathBuf) -> Outcome {
    let runtime = serving_runtime(THREADS)?;
    let result = runtime.block_on(run(args, &folder, mountpoint));
    // Blocking calls of a stopped server must not hold the process up.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

async fn run(args: &LocalUpArgs, folder: &Folder, mountpoint: PathBuf) -> Outcome {
    let asked_to_end = signals::listen()?;
    let mut registry = Registry::default();
    let servers = start(args, folder, &mut registry).await?;
    let config = MountConfig {
        cluster: folder.id,
        key: folder.key.clone(),
        encryption: Encryption::Off,
        addresses: vec![servers.metadata.address().parse().map_err(Failure::failed)?],
        host: host_name(),
        name: mountpoint.display().to_string(),
        behaviour: args.behaviour.clone(),
    };
    let noatime = args.behaviour.noatime;
    let options = MountOptions { noatime, ..MountOptions::new(folder.id) };
    let mounted = Arc::new(Mounted::start(config, mountpoint.clone(), options).await?);
    mounted.register_metrics(&mut registry);
    let watched = Arc::clone(&mounted);
    let http = http::serve("127.0.0.1:0", Arc::new(registry), Arc::new(move || watched.problem())).await?;
    let pid = std::process::id();
    let running = Running {
        pid,
        started: state::start_of(pid).unwrap_or(0),
        mountpoint,
        data: folder.path.clone(),
        metadata: servers.metadata.address().to_owned(),
        http,
    };
    state::announce(folder.id, &running)?;
    if let Some(descriptor) = args.ready_fd {
        // SAFETY: the parent made this descriptor for us and nobody else here knows of it.
        let mut parent = unsafe { std::fs::File::from_raw_fd(descriptor) };
        // A parent that is gone doesn't matter.
        let _ = parent.write_all(b"ready\n");
    }
    tracing::info!(mountpoint = %running.mountpoint.display(), "ready");

    tokio::select! {
        signal = asked_to_end => tracing::info!(signal, "stopping"),
        () = mounted.ended() => tracing::info!("the filesystem was unmounted, stopping"),
    }
    let result = mounted.shutdown().await;
    for server in servers.storage {
        server.shutdown().await;
    }
    servers.metadata.shutdown().await;
    state::withdraw(folder.id);
    result
}

async fn start(args: &LocalUpArgs, folder: &Folder, registry: &mut Registry) -> Result<Servers, Failure> {
    let sockets = state::socket_folder(folder.id)?;
    let socket = |name: &str| Address::Unix(sockets.join(name));
    let sync = !args.unsafe_no_sync;
    let config = MetadataConfig {
        encryption: Encryption::Off,
        in_process: true,
        ballast_bytes: BALLAST_BYTES,
        sync,
        ..MetadataConfig::new(folder.path.join("metadata"), socket("metadata"), folder.id, folder.key.clone())
    };
    let metadata = MetadataServer::start(config, registry).await.map_err(metadata_failure)?;
    let address: Address = metadata.address().parse().map_err(Failure::failed)?;
    let mut storage = Vec::new();
    for number in 0..folder.cluster.copies {
        let name = format!("storage-{number}");
        let config = StorageConfig {
            encryption: Encryption::Off,
            in_process: true,
            metadata: vec![address.clone()],
            ballast_bytes: BALLAST_BYTES,
            sync,
            ..StorageConfig::new(folder.path.join(&name), socket(&name), folder.id, folder.key.clone())
        };
        let server = StorageServer::start(config).await.map_err(storage_failure)?;
        server.register_metrics(registry.sub_registry_with_label(("server".into(), name.into())));
        storage.push(server);
    }
    let servers = Servers { metadata, storage };
    make_volume(&servers, folder).await?;
    Ok(servers)
}

/// Bootstraps (which changes nothing the second time) and waits until every storage server is known.
async fn make_volume(servers: &Servers, folder: &Folder) -> Outcome {
    let capacity = folder.cluster.capacity;
    let inline = (capacity / INLINE_SHARE).max(1 << 20);
    let mut config = bootstrap::config(capacity, None, folder.cluster.copies, inline);
    config.exclusive = !folder.cluster.shared;
    let began = Instant::now();
    let mut last = String::from("no reply");
    while began.elapsed() < START_TIMEOUT {
        match servers.metadata.bootstrap(config.clone()).await {
            Ok(()) if servers.storage.iter().all(StorageHandle::is_registered) => return Ok(()),
            Ok(()) => "a storage server has not registered".clone_into(&mut last),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(Failure::new(
        Code::Unreachable,
        format_args!("the servers were not ready within {} s: {last}", START_TIMEOUT.as_secs()),
    ))
}
