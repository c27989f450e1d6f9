//! The RPCs: parse, take the volume, carry out what was decided, look again.

use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names::VolumeHandle;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Expansion, Growth, Removal, Step, Wanted, growth, judge, removal, unfit};
use crate::access::Capability;
use crate::clusters::{Clusters, CreateError, ResizeError};
use crate::csi::controller_server::Controller;
use crate::csi::controller_service_capability::Rpc;
use crate::csi::controller_service_capability::rpc::Type as Offer;
use crate::csi::validate_volume_capabilities_response::Confirmed;
use crate::csi::{
    self, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerServiceCapability,
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
};
use crate::error::{CsiError, Pending};
use crate::op_guard::Operations;
use crate::rpc::{Rpcs, budget};
use crate::volume_id;

/// How long a call waits for a cluster, if its caller names no deadline. Kept below the sidecar's --timeout.
const WAIT_MAX: Duration = Duration::from_secs(55);
/// How much earlier than its caller's deadline a call answers, so that the reason arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a call may take beyond its wait: a request to the API server that hangs.
const OVERTIME: Duration = Duration::from_secs(1);

/// The controller service.
pub struct ControllerService<C> {
    clusters: Arc<C>,
    operations: Operations,
    rpcs: Arc<Rpcs>,
}

impl<C: Clusters> ControllerService<C> {
    /// Serves volumes of this store.
    pub fn new(clusters: Arc<C>, rpcs: Arc<Rpcs>) -> ControllerService<C> {
        let operations = Operations::default();
        rpcs.watch(&operations);
        ControllerService { clusters, operations, rpcs }
    }

    /// CreateVolume.
    ///
    /// # Errors
    /// Once a cluster may have been made: [`CsiError::Pending`] alone.
    pub async fn create(&self, request: CreateVolumeRequest, wait: Duration) -> Result<Volume, CsiError> {
        let wanted = Wanted::parse(&request, self.clusters.namespace())?;
        let clusters = Arc::clone(&self.clusters);
        let key = wanted.handle.to_string();
        let work = async move { create(&*clusters, wanted, wait).await };
        self.operations.run(&key, "making", wait + OVERTIME, work).await
    }

    /// DeleteVolume.
    ///
    /// # Errors
    /// [`CsiError::Pending`] until it is gone.
    pub async fn remove(&self, id: &str, wait: Duration) -> Result<(), CsiError> {
        let handle = match volume_id::parse(id) {
            // No volume of ours was ever called so.
            Err(CsiError::NotFound(_)) => return Ok(()),
            handle => handle?,
        };
        if handle.namespace() != self.clusters.namespace() {
            return Err(CsiError::Precondition(format!(
                "volume {handle} was not created for a claim: delete FileSystemCluster {} in namespace {} \
                 yourself",
                handle.name(),
                handle.namespace()
            )));
        }
        let clusters = Arc::clone(&self.clusters);
        let key = handle.to_string();
        let work = async move { remove(&*clusters, &handle, wait).await };
        self.operations.run(&key, "deleting", wait + OVERTIME, work).await
    }

    /// ControllerExpandVolume: the volume's bytes afterwards. Mounts show it by themselves.
    ///
    /// # Errors
    /// [`CsiError::NotFound`], [`CsiError::OutOfRange`] if it can't be had, [`CsiError::Pending`] until it is.
    pub async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
        wait: Duration,
    ) -> Result<u64, CsiError> {
        if request.volume_id.is_empty() {
            return Err(CsiError::Missing("volume_id"));
        }
        let handle = volume_id::parse(&request.volume_id)?;
        let expansion = Expansion::parse(request.capacity_range.as_ref())?;
        if let Some(capability) = &request.volume_capability {
            Capability::parse_all(std::slice::from_ref(capability))?;
        }
        if handle.namespace() != self.clusters.namespace() {
            return Err(CsiError::Invalid(format!(
                "volume {handle} was not created for a claim: set spec.capacity of FileSystemCluster {} in namespace {} \
                 yourself",
                handle.name(),
                handle.namespace()
            )));
        }
        let clusters = Arc::clone(&self.clusters);
        let key = handle.to_string();
        let work = async move { expand(&*clusters, &handle, expansion, wait).await };
        self.operations.run(&key, "expanding", wait + OVERTIME, work).await
    }

    /// ValidateVolumeCapabilities.
    ///
    /// # Errors
    /// For an unknown volume; not for a capability that can't be had.
    pub async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, CsiError> {
        if request.volume_id.is_empty() {
            return Err(CsiError::Missing("volume_id"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(CsiError::Missing("volume_capabilities"));
        }
        let handle = volume_id::parse(&request.volume_id)?;
        let unknown = || CsiError::NotFound(format!("volume {handle} doesn't exist"));
        if handle.namespace() != self.clusters.namespace() {
            return Err(unknown());
        }
        let found = self.clusters.get(handle.name()).await?.ok_or_else(unknown)?;
        let refused = match Capability::parse_all(&request.volume_capabilities) {
            Ok(capabilities) => unfit(&found, &capabilities),
            Err(error) => Some(error.to_string()),
        };
        let confirmed = refused.is_none().then_some(Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        });
        Ok(ValidateVolumeCapabilitiesResponse { confirmed, message: refused.unwrap_or_default() })
    }
}

async fn create<C: Clusters>(clusters: &C, wanted: Wanted, wait: Duration) -> Result<Volume, CsiError> {
    let deadline = Instant::now() + wait;
    loop {
        let found = clusters.get(wanted.handle.name()).await?;
        let waits_for = match judge(found.as_ref(), &wanted, Timestamp::now())? {
            Step::Ready => {
                return Ok(Volume {
                    volume_id: wanted.handle.to_string(),
                    capacity_bytes: i64::try_from(wanted.capacity_bytes).unwrap_or(i64::MAX),
                    ..Volume::default()
                });
            }
            Step::Make => match clusters.create(&wanted.cluster).await {
                Ok(_) | Err(CreateError::Exists) => continue,
                Err(CreateError::Refused(why)) => return Err(CsiError::Invalid(why)),
                Err(CreateError::Pending(pending)) => return Err(pending.into()),
            },
            Step::Wait(pending) => pending,
            Step::GiveUp(why) => {
                let left = deadline.saturating_duration_since(Instant::now());
                remove(clusters, &wanted.handle, left).await?;
                return Err(CsiError::Exhausted(why));
            }
        };
        wait_until(clusters, wanted.handle.name(), deadline, waits_for).await?;
    }
}

async fn remove<C: Clusters>(clusters: &C, handle: &VolumeHandle, wait: Duration) -> Result<(), CsiError> {
    let deadline = Instant::now() + wait;
    let name = handle.name();
    loop {
        match removal(clusters.get(name).await?.as_ref()) {
            Removal::Gone => return Ok(()),
            Removal::Confirm { id } => clusters.confirm_deletion(name, &id).await?,
            Removal::Delete { uid } => clusters.delete(name, &uid).await?,
            Removal::Wait(pending) => wait_until(clusters, name, deadline, pending).await?,
        }
    }
}

async fn expand<C: Clusters>(
    clusters: &C,
    handle: &VolumeHandle,
    expansion: Expansion,
    wait: Duration,
) -> Result<u64, CsiError> {
    let deadline = Instant::now() + wait;
    let name = handle.name();
    loop {
        let found = clusters.get(name).await?;
        let found = found.ok_or_else(|| CsiError::NotFound(format!("volume {handle} doesn't exist")))?;
        match growth(&found, expansion)? {
            Growth::Done(bytes) => return Ok(bytes),
            Growth::Ask(bytes) => match clusters.resize(&found, bytes).await {
                Ok(()) => {}
                Err(ResizeError::Refused(why)) => return Err(CsiError::OutOfRange(why)),
                Err(ResizeError::Pending(pending)) => return Err(pending.into()),
            },
            Growth::Wait(pending) => wait_until(clusters, name, deadline, pending).await?,
        }
    }
}

/// Waits for a change, or says what was waited for once the time is up.
async fn wait_until<C: Clusters>(
    clusters: &C,
    name: &str,
    deadline: Instant,
    waits_for: Pending,
) -> Result<(), CsiError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(waits_for.into());
    }
    clusters.changed(name, left).await;
    Ok(())
}

/// Methods that nobody should call. `async_trait` doesn't see into a macro, so this writes what it would.
macro_rules! not_offered {
    ($($method:ident: $request:ident => $response:ident, $name:literal;)*) => {
        $(fn $method<'a, 'b>(
            &'a self,
            _: Request<csi::$request>,
        ) -> BoxFuture<'b, Result<Response<csi::$response>, Status>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(CsiError::Unimplemented($name).into()) })
        })*
    };
}

#[tonic::async_trait]
impl<C: Clusters> Controller for ControllerService<C> {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let request = request.into_inner();
        let name = request.name.clone();
        let work = async { Ok(CreateVolumeResponse { volume: Some(self.create(request, wait).await?) }) };
        self.rpcs.serve("CreateVolume", &name, work).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let id = request.into_inner().volume_id;
        let work = async { self.remove(&id, wait).await.map(|()| DeleteVolumeResponse {}) };
        self.rpcs.serve("DeleteVolume", &id, work).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let wait = budget(request.metadata(), WAIT_MAX, ANSWER_MARGIN);
        let request = request.into_inner();
        let id = request.volume_id.clone();
        let work = async {
            let bytes = self.expand(request, wait).await?;
            Ok(ControllerExpandVolumeResponse {
                capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
                node_expansion_required: false,
            })
        };
        self.rpcs.serve("ControllerExpandVolume", &id, work).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.rpcs.serve("ValidateVolumeCapabilities", &id, self.validate(request)).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let offers = [Offer::CreateDeleteVolume, Offer::ExpandVolume, Offer::SingleNodeMultiWriter];
        let capabilities = offers
            .into_iter()
            .map(|offer| ControllerServiceCapability {
                r#type: Some(csi::controller_service_capability::Type::Rpc(Rpc { r#type: offer.into() })),
            })
            .collect();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    not_offered! {
        controller_publish_volume: ControllerPublishVolumeRequest => ControllerPublishVolumeResponse, "ControllerPublishVolume";
        controller_unpublish_volume: ControllerUnpublishVolumeRequest => ControllerUnpublishVolumeResponse, "ControllerUnpublishVolume";
        list_volumes: ListVolumesRequest => ListVolumesResponse, "ListVolumes";
        get_capacity: GetCapacityRequest => GetCapacityResponse, "GetCapacity";
        create_snapshot: CreateSnapshotRequest => CreateSnapshotResponse, "CreateSnapshot";
        delete_snapshot: DeleteSnapshotRequest => DeleteSnapshotResponse, "DeleteSnapshot";
        list_snapshots: ListSnapshotsRequest => ListSnapshotsResponse, "ListSnapshots";
        get_snapshot: GetSnapshotRequest => GetSnapshotResponse, "GetSnapshot";
        controller_get_volume: ControllerGetVolumeRequest => ControllerGetVolumeResponse, "ControllerGetVolume";
        controller_modify_volume: ControllerModifyVolumeRequest => ControllerModifyVolumeResponse, "ControllerModifyVolume";
    }
}
