//! The RPCs: parse, take the volume, carry out what was decided, look again.

use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names::VolumeHandle;
use atoll_crds::v1alpha1::FileSystemCluster;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::listing::{self, PageRequest};
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
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeHealth,
};
use crate::error::{CsiError, Pending};
use crate::health;
use crate::op_guard::Operations;
use crate::rpc::{Rpcs, budget};
use crate::volume_id;

/// How long a call waits for a cluster, if its caller names no deadline. Kept below the sidecar's --timeout.
const WAIT_MAX: Duration = Duration::from_secs(55);
/// How much earlier than its caller's deadline a call answers, so that the reason arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a call may take beyond its wait: a request to the API server that hangs.
const OVERTIME: Duration = Duration::from_secs(1);

/// A volume of a list.
type Listed = (VolumeHandle, FileSystemCluster);

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

    /// Calls that are still at work, also those whose callers have gone.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.operations.under_way()
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

    /// The cluster of a volume, also of one that was made by hand.
    async fn find(&self, id: &str) -> Result<(VolumeHandle, FileSystemCluster), CsiError> {
        let handle = volume_id::parse(id)?;
        match self.clusters.find(&handle).await? {
            Some(found) => Ok((handle, found)),
            None => Err(CsiError::NotFound(format!("volume {handle} doesn't exist"))),
        }
    }

    /// The volumes that were made for claims, by name.
    async fn all(&self) -> Result<impl Iterator<Item = (String, Listed)>, CsiError> {
        let namespace = self.clusters.namespace();
        let found = self.clusters.list().await?.into_iter().filter(listing::is_volume);
        Ok(found.filter_map(move |cluster| {
            let name = cluster.name_str().to_owned();
            let handle = VolumeHandle::new(namespace, &name).ok()?;
            Some((name, (handle, cluster)))
        }))
    }

    /// ListVolumes.
    ///
    /// # Errors
    /// [`Pending::Restart`] for a token that can't be continued from.
    pub async fn list(&self, request: csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, CsiError> {
        let page = PageRequest::parse(request.max_entries, &request.starting_token)?.of(self.all().await?);
        let entry = |(handle, cluster): &Listed| csi::list_volumes_response::Entry {
            volume: Some(listing::volume(handle, cluster)),
            status: None,
        };
        Ok(csi::ListVolumesResponse {
            entries: page.entries.iter().map(entry).collect(),
            next_token: page.next_token,
        })
    }

    /// ControllerGetVolume, also of a volume that was made by hand.
    ///
    /// # Errors
    /// [`CsiError::NotFound`].
    pub async fn volume(&self, id: &str) -> Result<Volume, CsiError> {
        let (handle, found) = self.find(id).await?;
        match listing::is_volume(&found) {
            true => Ok(listing::volume(&handle, &found)),
            false => Err(CsiError::NotFound(format!("volume {handle} has not been made yet"))),
        }
    }

    /// ControllerGetVolumeHealth, also of a volume that was made by hand.
    ///
    /// # Errors
    /// [`CsiError::NotFound`].
    pub async fn health(&self, id: &str) -> Result<VolumeHealth, CsiError> {
        let (handle, found) = self.find(id).await?;
        Ok(health::of_cluster(&handle.to_string(), &found))
    }

    /// ControllerListVolumeHealth: the volumes with which something is wrong.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn list_health(
        &self,
        request: csi::ControllerListVolumeHealthRequest,
    ) -> Result<csi::ControllerListVolumeHealthResponse, CsiError> {
        let request = PageRequest::parse(request.max_entries, &request.starting_token)?;
        let healths = self.all().await?.map(|(name, (handle, found))| {
            let health = health::of_cluster(&handle.to_string(), &found);
            (name, health)
        });
        let page = request.of(healths.filter(|(_, health)| !health.health_statuses.is_empty()));
        Ok(csi::ControllerListVolumeHealthResponse { entries: page.entries, next_token: page.next_token })
    }

    /// ValidateVolumeCapabilities, also of a volume that was made by hand.
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
        let (_, found) = self.find(&request.volume_id).await?;
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
        let offers = [
            Offer::CreateDeleteVolume,
            Offer::ListVolumes,
            Offer::GetVolume,
            Offer::ExpandVolume,
            Offer::SingleNodeMultiWriter,
            Offer::GetVolumeHealth,
            Offer::ListVolumeHealth,
        ];
        let capabilities = offers
            .into_iter()
            .map(|offer| ControllerServiceCapability {
                r#type: Some(csi::controller_service_capability::Type::Rpc(Rpc { r#type: offer.into() })),
            })
            .collect();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        self.rpcs.serve("ListVolumes", "", self.list(request.into_inner())).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        let work = async {
            let status = csi::controller_get_volume_response::VolumeStatus::default();
            let volume = self.volume(&id).await?;
            Ok(csi::ControllerGetVolumeResponse { volume: Some(volume), status: Some(status) })
        };
        self.rpcs.serve("ControllerGetVolume", &id, work).await
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        let id = request.into_inner().volume_id;
        let work = async {
            let volume_health = Some(self.health(&id).await?);
            Ok(csi::ControllerGetVolumeHealthResponse { volume_health })
        };
        self.rpcs.serve("ControllerGetVolumeHealth", &id, work).await
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        self.rpcs.serve("ControllerListVolumeHealth", "", self.list_health(request.into_inner())).await
    }

    not_offered! {
        controller_publish_volume: ControllerPublishVolumeRequest => ControllerPublishVolumeResponse, "ControllerPublishVolume";
        controller_unpublish_volume: ControllerUnpublishVolumeRequest => ControllerUnpublishVolumeResponse, "ControllerUnpublishVolume";
        get_capacity: GetCapacityRequest => GetCapacityResponse, "GetCapacity";
        create_snapshot: CreateSnapshotRequest => CreateSnapshotResponse, "CreateSnapshot";
        delete_snapshot: DeleteSnapshotRequest => DeleteSnapshotResponse, "DeleteSnapshot";
        list_snapshots: ListSnapshotsRequest => ListSnapshotsResponse, "ListSnapshots";
        get_snapshot: GetSnapshotRequest => GetSnapshotResponse, "GetSnapshot";
        controller_modify_volume: ControllerModifyVolumeRequest => ControllerModifyVolumeResponse, "ControllerModifyVolume";
    }
}
