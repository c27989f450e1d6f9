//! The node's calls as kubelet makes them, and a driver that can be killed in the middle of one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atoll_csi::csi;
use atoll_csi::csi::node_server::Node as NodeRpcs;
use atoll_csi::csi::volume_capability::access_mode::Mode;
use atoll_csi::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use atoll_csi::node::NodeService;
use atoll_csi::rpc::Rpcs;
use tonic::Code;

use super::{Machine, wait_until};

/// Names of the driver's threads for system calls.
const SYSTEM_CALLS: [&str; 5] = ["mount", "unmount", "bind", "stat", "statfs"];

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Stage,
    Unstage,
    /// At a target, by its number.
    Publish(usize),
    Unpublish(usize),
}

/// A call with all that it has to say.
#[derive(Clone, Debug)]
pub enum Request {
    Stage(csi::NodeStageVolumeRequest),
    Unstage(csi::NodeUnstageVolumeRequest),
    Publish(csi::NodePublishVolumeRequest),
    Unpublish(csi::NodeUnpublishVolumeRequest),
}

impl Call {
    pub fn request(self, machine: &Machine, volume: &str, staging: &Path, targets: &[PathBuf]) -> Request {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (volume_id, staging_target_path) = (volume.to_owned(), text(staging));
        let volume_capability = Some(csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        });
        let secrets = machine.secrets();
        match self {
            Call::Stage => Request::Stage(csi::NodeStageVolumeRequest {
                volume_id,
                staging_target_path,
                volume_capability,
                secrets,
                ..Default::default()
            }),
            Call::Unstage => {
                Request::Unstage(csi::NodeUnstageVolumeRequest { volume_id, staging_target_path })
            }
            Call::Publish(target) => Request::Publish(csi::NodePublishVolumeRequest {
                volume_id,
                staging_target_path,
                target_path: text(&targets[target]),
                volume_capability,
                secrets,
                ..Default::default()
            }),
            Call::Unpublish(target) => Request::Unpublish(csi::NodeUnpublishVolumeRequest {
                volume_id,
                target_path: text(&targets[target]),
            }),
        }
    }
}

/// The node plugin, with threads of its own.
pub struct Driver {
    runtime: tokio::runtime::Runtime,
    service: Arc<NodeService>,
}

impl Driver {
    pub fn start(machine: &Machine) -> Driver {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let service = Arc::new(NodeService::new(machine.node(), 64, Arc::new(Rpcs::default())));
        Driver { runtime, service }
    }

    /// Ends with whatever it is doing; another one takes its place.
    pub fn killed(self, machine: &Machine) -> Driver {
        self.runtime.shutdown_background();
        // As a process's system calls end with it.
        wait_until("its system calls have come back", || {
            let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
            names.into_iter().all(|name| !SYSTEM_CALLS.contains(&name.trim()))
        });
        Driver::start(machine)
    }

    /// What a call is answered; `None` if it isn't within the caller's patience.
    pub fn call(&self, request: Request, patience: Option<Duration>) -> Option<Code> {
        let call = answer(Arc::clone(&self.service), request);
        self.runtime.block_on(async move {
            match patience {
                None => Some(call.await),
                Some(patience) => tokio::time::timeout(patience, call).await.ok(),
            }
        })
    }

    /// Two calls at the same time.
    pub fn both(&self, one: Request, other: Request) -> [Code; 2] {
        let calls =
            [one, other].map(|request| self.runtime.spawn(answer(Arc::clone(&self.service), request)));
        calls.map(|call| self.runtime.block_on(call).unwrap())
    }

    /// Calls again and again, as kubelet does.
    pub fn until_ok(&self, mut request: impl FnMut() -> Request) {
        wait_until("the call succeeds", || self.call(request(), None) == Some(Code::Ok));
    }
}

async fn answer(service: Arc<NodeService>, request: Request) -> Code {
    fn code<T>(answer: Result<T, tonic::Status>) -> Code {
        match answer {
            Ok(_) => Code::Ok,
            Err(status) => {
                eprintln!("{status}");
                status.code()
            }
        }
    }
    match request {
        Request::Stage(request) => code(service.node_stage_volume(tonic::Request::new(request)).await),
        Request::Unstage(request) => code(service.node_unstage_volume(tonic::Request::new(request)).await),
        Request::Publish(request) => code(service.node_publish_volume(tonic::Request::new(request)).await),
        Request::Unpublish(request) => {
            code(service.node_unpublish_volume(tonic::Request::new(request)).await)
        }
    }
}
