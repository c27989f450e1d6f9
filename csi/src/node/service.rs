//! The RPCs: parse, take the volume, do it in a task that outlives the call.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{Credentials, Node, PublishRequest, StageRequest};
use crate::access::Capability;
use crate::budget;
use crate::csi::node_server::Node as NodeRpcs;
use crate::csi::node_service_capability::Rpc;
use crate::csi::node_service_capability::rpc::Type as Offer;
use crate::csi::volume_usage::Unit;
use crate::csi::{self, NodeServiceCapability, VolumeUsage};
use crate::error::CsiError;
use crate::health;
use crate::op_guard::Operations;
use crate::rpc::{Rpcs, budget};
use crate::target_path::NodePath;
use crate::volume_id::{self, FIELD_BYTES_MAX};

/// How long a call waits for its work, if its caller names no deadline; kubelet's is two minutes.
const WAIT_MAX: Duration = Duration::from_secs(100);
/// How much earlier than its caller's deadline a call answers, so that the reason arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);
/// How long a call waits for those of the same volume before it: many pods of a volume start at once.
const QUEUE_MAX: Duration = Duration::from_secs(30);
/// How long GetVolumeStats waits.
const STATS_WAIT: Duration = Duration::from_secs(4);

/// The node service.
pub struct NodeService {
    node: Arc<Node>,
    volumes_max: u32,
    operations: Operations,
    /// Paths whose use is being asked for: at most one call hangs on each.
    asked: Operations,
    rpcs: Arc<Rpcs>,
}

impl NodeService {
    /// Serves a node that takes so many volumes.
    pub fn new(node: Arc<Node>, volumes_max: u32, rpcs: Arc<Rpcs>) -> NodeService {
        let (operations, asked) = (Operations::queueing(QUEUE_MAX), Operations::default());
        rpcs.watch(&operations);
        rpcs.watch(&asked);
        NodeService { node, volumes_max, operations, asked, rpcs }
    }

    async fn stage(&self, request: csi::NodeStageVolumeRequest, wait: Duration) -> Result<(), CsiError> {
        id(&request.volume_id)?;
        let staging = NodePath::parse("staging_target_path", &request.staging_target_path)?;
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        let request = StageRequest {
            handle: volume_id::parse(&request.volume_id)?,
            staging,
            flags: capability.flags,
            credentials: Credentials::parse(&request.secrets)?,
        };
        let node = Arc::clone(&self.node);
        let key = request.handle.to_string();
        self.operations.run(&key, "staging", wait, async move { node.stage(&request).await }).await
    }

    async fn unstage(&self, request: csi::NodeUnstageVolumeRequest, wait: Duration) -> Result<(), CsiError> {
        id(&request.volume_id)?;
        let staging = NodePath::parse("staging_target_path", &request.staging_target_path)?;
        let handle = match volume_id::parse(&request.volume_id) {
            // It was never staged here.
            Err(CsiError::NotFound(_)) => return Ok(()),
            handle => handle?,
        };
        let node = Arc::clone(&self.node);
        let key = handle.to_string();
        self.operations
            .run(&key, "unstaging", wait, async move { node.unstage(&handle, &staging).await })
            .await
    }

    async fn publish(&self, request: csi::NodePublishVolumeRequest, wait: Duration) -> Result<(), CsiError> {
        id(&request.volume_id)?;
        let target = NodePath::parse("target_path", &request.target_path)?;
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            return Err(CsiError::Precondition(
                "staging_target_path is missing: a volume must be staged before it is published".to_owned(),
            ));
        }
        let staging = NodePath::parse("staging_target_path", &request.staging_target_path)?;
        let credentials =
            (!request.secrets.is_empty()).then(|| Credentials::parse(&request.secrets)).transpose()?;
        let request = PublishRequest {
            handle: volume_id::parse(&request.volume_id)?,
            staging,
            target,
            access: capability.access,
            flags: capability.flags,
            read_only: request.readonly,
            credentials,
        };
        let node = Arc::clone(&self.node);
        let key = request.handle.to_string();
        self.operations.run(&key, "publishing", wait, async move { node.publish(&request).await }).await
    }

    async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
        wait: Duration,
    ) -> Result<(), CsiError> {
        id(&request.volume_id)?;
        let target = NodePath::parse("target_path", &request.target_path)?;
        let node = Arc::clone(&self.node);
        let key = request.volume_id;
        let work = {
            let volume = key.clone();
            async move { node.unpublish(&volume, &target).await }
        };
        self.operations.run(&key, "unpublishing", wait, work).await
    }

    async fn stats(&self, request: csi::NodeGetVolumeStatsRequest) -> Result<Vec<VolumeUsage>, CsiError> {
        id(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(CsiError::Missing("volume_path"));
        }
        let path = PathBuf::from(request.volume_path);
        let node = Arc::clone(&self.node);
        let (key, volume) = (path.display().to_string(), request.volume_id);
        let usage = self
            .asked
            .run(&key, "statfs", STATS_WAIT, async move { node.usage(&volume, &path).await })
            .await?;
        let row = |unit: Unit, (total, available, used): (u64, u64, u64)| VolumeUsage {
            unit: unit.into(),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            available: i64::try_from(available).unwrap_or(i64::MAX),
            used: i64::try_from(used).unwrap_or(i64::MAX),
        };
        Ok(vec![row(Unit::Bytes, usage.bytes), row(Unit::Inodes, usage.inodes)])
    }
}

/// A volume's id, whether or not it is one of ours.
fn id(text: &str) -> Result<(), CsiError> {
    if text.is_empty() {
        return Err(CsiError::Missing("volume_id"));
    }
    if text.len() > FIELD_BYTES_MAX {
        return Err(CsiError::Invalid(format!("volume_id has more than {FIELD_BYTES_MAX} bytes")));
    }
    Ok(())
}

#[tonic::async_trait]
impl NodeRpcs for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work = async { self.stage(request, wait).await.map(|()| csi::NodeStageVolumeResponse {}) };
        self.rpcs.serve("NodeStageVolume", &volume, work).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work = async { self.unstage(request, wait).await.map(|()| csi::NodeUnstageVolumeResponse {}) };
        self.rpcs.serve("NodeUnstageVolume", &volume, work).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work = async { self.publish(request, wait).await.map(|()| csi::NodePublishVolumeResponse {}) };
        self.rpcs.serve("NodePublishVolume", &volume, work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work =
            async { self.unpublish(request, wait).await.map(|()| csi::NodeUnpublishVolumeResponse {}) };
        self.rpcs.serve("NodeUnpublishVolume", &volume, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id.clone();
        let work = async {
            let usage = self.stats(request).await?;
            Ok(csi::NodeGetVolumeStatsResponse { usage })
        };
        self.rpcs.serve("NodeGetVolumeStats", &volume, work).await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let volume = request.into_inner().volume_id;
        let work = async {
            id(&volume)?;
            let volume_health = Some(self.node.health(&volume).await?);
            Ok(csi::NodeGetVolumeHealthResponse { volume_health })
        };
        self.rpcs.serve("NodeGetVolumeHealth", &volume, work).await
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        let work = async {
            let backend_health = health::of_node(self.node.finder.problem().await);
            Ok(csi::NodeGetStorageHealthResponse { backend_health })
        };
        self.rpcs.serve("NodeGetStorageHealth", "", work).await
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        Err(CsiError::Unimplemented("NodeExpandVolume").into())
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let offers = [
            Offer::StageUnstageVolume,
            Offer::GetVolumeStats,
            Offer::SingleNodeMultiWriter,
            Offer::GetVolumeHealth,
            Offer::GetStorageHealth,
        ];
        let capabilities = offers
            .into_iter()
            .map(|offer| NodeServiceCapability {
                r#type: Some(csi::node_service_capability::Type::Rpc(Rpc { r#type: offer.into() })),
            })
            .collect();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node.name.clone(),
            max_volumes_per_node: budget::volumes(self.node.finder.memory().await, self.volumes_max).into(),
            accessible_topology: None,
        }))
    }
}
