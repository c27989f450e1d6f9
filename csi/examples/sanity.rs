//! The driver as csi-sanity wants it: controller, node plugin and mount host in one process, without Kubernetes. The store of
//! clusters is in memory, but each cluster is real: a metadata server, a storage server and their disks, on loopback
//! addresses of its own; and mounts are real mounts. Needs root. `hack/csi-sanity.sh` runs it.
//!
//! ```console
//! sanity SOCKET FOLDER ATOLL-FS CLUSTER-ID    # FOLDER/key holds the key of all clusters
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::Quantity;
use atoll_crds::names::{VolumeHandle, ports};
use atoll_crds::v1alpha1::{ConditionType, FileSystemCluster, FileSystemClusterStatus};
use atoll_csi::clusters::{Clusters, CreateError, ResizeError};
use atoll_csi::controller::ControllerService;
use atoll_csi::csi::controller_server::ControllerServer;
use atoll_csi::csi::identity_server::IdentityServer;
use atoll_csi::csi::node_server::NodeServer;
use atoll_csi::error::Pending;
use atoll_csi::holder::Keeper;
use atoll_csi::identity::IdentityService;
use atoll_csi::mount_host::client::Finder;
use atoll_csi::mount_host::{SOCKET, Supervisor, SupervisorConfig};
use atoll_csi::node::{Node, NodeService};
use atoll_csi::rpc::Rpcs;
use atoll_csi::server;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// The first loopback address of a cluster's servers; each cluster has the next one.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([127, 77, 0, 1]);

/// Clusters of processes.
struct LocalClusters {
    program: PathBuf,
    folder: PathBuf,
    id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clusters: BTreeMap<String, (FileSystemCluster, Local)>,
    made: u32,
}

/// The processes of one cluster.
struct Local {
    address: Ipv4Addr,
    folder: PathBuf,
    processes: Vec<Child>,
}

impl Drop for Local {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl LocalClusters {
    fn command(&self, verb: &str, server: Option<(&Path, Ipv4Addr, u16, u16)>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb).args(["--cluster", &self.id, "--key-file"]).arg(self.folder.join("key"));
        if let Some((data, address, port, http)) = server {
            command.arg("--data").arg(data.join(verb)).args(["--ballast", "1Mi"]);
            command.args(["--listen", &format!("{address}:{port}"), "--http", &format!("{address}:{http}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts the servers of a cluster and makes its volume.
    fn start(&self, cluster: &FileSystemCluster, address: Ipv4Addr) -> io::Result<Local> {
        let folder = self.folder.join("clusters").join(cluster.name_str());
        std::fs::create_dir_all(&folder)?;
        let mut local = Local { address, folder: folder.clone(), processes: Vec::new() };
        let metadata = format!("{address}:{}", ports::METADATA);
        let server = (&*folder, address, ports::METADATA, ports::METADATA_HTTP);
        local.processes.push(self.command("metadata", Some(server)).spawn()?);
        let server = (&*folder, address, ports::STORAGE, ports::STORAGE_HTTP);
        local.processes.push(self.command("storage", Some(server)).args(["--metadata", &metadata]).spawn()?);
        Ok(local)
    }

    /// Makes the volume, once the servers are up.
    async fn bootstrap(self: Arc<Self>, name: String, capacity: String, address: Ipv4Addr) {
        let metadata = format!("{address}:{}", ports::METADATA);
        loop {
            let mut command = self.command("bootstrap", None);
            command.args(["--metadata", &metadata, "--capacity", &capacity, "--copies", "1"]);
            command.stderr(Stdio::null());
            let done = tokio::task::spawn_blocking(move || command.status()).await;
            if matches!(&done, Ok(Ok(status)) if status.success()) {
                break;
            }
            if !self.state.lock().clusters.contains_key(&name) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some((cluster, _)) = self.state.lock().clusters.get_mut(&name) {
            let capacity = Some(cluster.spec.capacity.clone());
            cluster.status = Some(FileSystemClusterStatus { capacity, ..ready(&self.id) });
        }
    }

    fn address(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let local =
            state.clusters.get(name).map(|(_, local)| format!("{}:{}", local.address, ports::METADATA));
        local.into_iter().collect()
    }
}

fn ready(id: &str) -> FileSystemClusterStatus {
    FileSystemClusterStatus {
        cluster_id: Some(id.to_owned()),
        conditions: vec![Condition {
            type_: ConditionType::Ready.as_str().to_owned(),
            status: "True".to_owned(),
            reason: "Serving".to_owned(),
            message: String::new(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }],
        ..FileSystemClusterStatus::default()
    }
}

/// The store with what it needs to start tasks.
struct Store(Arc<LocalClusters>);

impl Clusters for Store {
    fn namespace(&self) -> &str {
        "atoll-volumes"
    }

    async fn get(&self, name: &str) -> Result<Option<FileSystemCluster>, Pending> {
        Ok(self.0.state.lock().clusters.get(name).map(|(cluster, _)| cluster.clone()))
    }

    async fn find(&self, handle: &VolumeHandle) -> Result<Option<FileSystemCluster>, Pending> {
        match handle.namespace() == self.namespace() {
            true => self.get(handle.name()).await,
            false => Ok(None),
        }
    }

    async fn list(&self) -> Result<Vec<FileSystemCluster>, Pending> {
        Ok(self.0.state.lock().clusters.values().map(|(cluster, _)| cluster.clone()).collect())
    }

    async fn create(&self, cluster: &FileSystemCluster) -> Result<FileSystemCluster, CreateError> {
        let name = cluster.name_str().to_owned();
        let mut made = cluster.clone();
        made.metadata.uid = Some(name.clone());
        let address = {
            let mut state = self.0.state.lock();
            if state.clusters.contains_key(&name) {
                return Err(CreateError::Exists);
            }
            let address = Ipv4Addr::from(FIRST_ADDRESS + state.made);
            state.made += 1;
            let local = self.0.start(cluster, address);
            let local =
                local.map_err(|error| CreateError::Pending(Pending::Unavailable(error.to_string())))?;
            state.clusters.insert(name.clone(), (made.clone(), local));
            address
        };
        let capacity = cluster.spec.capacity.as_str().to_owned();
        tokio::spawn(Arc::clone(&self.0).bootstrap(name, capacity, address));
        Ok(made)
    }

    /// The operator's part, which raises the quota, isn't here: what is asked for is there at once.
    async fn resize(&self, cluster: &FileSystemCluster, bytes: u64) -> Result<(), ResizeError> {
        if let Some((found, _)) = self.0.state.lock().clusters.get_mut(cluster.name_str()) {
            let capacity = Quantity::from_bytes(bytes);
            found.status.get_or_insert_default().capacity = Some(capacity.clone());
            found.spec.capacity = capacity;
        }
        Ok(())
    }

    async fn confirm_deletion(&self, name: &str, id: &str) -> Result<(), Pending> {
        if let Some((cluster, _)) = self.0.state.lock().clusters.get_mut(name) {
            cluster.spec.deletion_confirmation = Some(id.to_owned());
        }
        Ok(())
    }

    async fn delete(&self, name: &str, _uid: &str) -> Result<(), Pending> {
        let removed = self.0.state.lock().clusters.remove(name);
        // It takes a moment for the processes to end.
        let _ = tokio::task::spawn_blocking(move || drop(removed)).await;
        Ok(())
    }

    async fn changed(&self, _name: &str, at_most: Duration) {
        tokio::time::sleep(Duration::from_millis(20).min(at_most)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, folder, program, id] = &arguments[..] else {
        return Err("usage: sanity SOCKET FOLDER ATOLL-FS CLUSTER-ID".into());
    };
    let socket = server::endpoint_path(socket)?;
    let (folder, program) = (PathBuf::from(folder), PathBuf::from(program));
    let host = folder.join("host");
    std::fs::create_dir_all(&host)?;
    let keeping = folder.join("holder");
    let keeper = Keeper::start(&keeping)?;
    let supervisor = Supervisor::start(SupervisorConfig {
        socket: host.join(SOCKET),
        holder: keeping.clone(),
        program: program.clone(),
        clients_max: 64,
        memory: None,
        client_timeout: Duration::from_secs(60),
        environment: Vec::new(),
    })?;
    let clusters =
        Arc::new(LocalClusters { program, folder, id: id.clone(), state: Mutex::new(State::default()) });
    let found = Arc::clone(&clusters);
    let node = Node {
        name: "sanity".to_owned(),
        finder: Finder::folder(host, keeping),
        addresses: Arc::new(move |handle| found.address(handle.name())),
    };
    let rpcs = Arc::new(Rpcs::default());
    let controller = ControllerService::new(Arc::new(Store(Arc::clone(&clusters))), Arc::clone(&rpcs));
    let router = Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(Arc::clone(&rpcs))))
        .add_service(ControllerServer::new(controller))
        .add_service(NodeServer::new(NodeService::new(Arc::new(node), 64, rpcs)));
    let stop = CancellationToken::new();
    let (asked, mut terminate) = (stop.clone(), signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        terminate.recv().await;
        asked.cancel();
    });
    server::serve(router, &socket, stop).await?;
    let left = supervisor.clients();
    tokio::task::spawn_blocking(move || supervisor.stop(Duration::ZERO)).await?;
    let clusters = std::mem::take(&mut clusters.state.lock().clusters);
    let kept = keeper.volumes();
    if !left.is_empty() || !kept.is_empty() || !clusters.is_empty() {
        return Err(
            format!("left behind: mounts {left:?}, kept {kept:?}, clusters {:?}", clusters.keys()).into()
        );
    }
    Ok(())
}
