//! The identity service, the same in controller and node plugin. It answers before the API server can be reached: the
//! sidecars end if it doesn't.

use std::sync::Arc;

use atoll_crds::names::DRIVER_NAME;
use tonic::{Request, Response, Status};

use crate::csi::identity_server::Identity;
use crate::csi::plugin_capability::service::Type as Offer;
use crate::csi::plugin_capability::volume_expansion::Type as Expansion;
use crate::csi::plugin_capability::{Service, VolumeExpansion};
use crate::csi::{self, PluginCapability};
use crate::rpc::Rpcs;

/// The version of the driver.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The identity service.
pub struct IdentityService {
    rpcs: Arc<Rpcs>,
}

impl IdentityService {
    /// A new one.
    pub fn new(rpcs: Arc<Rpcs>) -> IdentityService {
        IdentityService { rpcs }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let info = csi::GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: VERSION.to_owned(),
            ..csi::GetPluginInfoResponse::default()
        };
        self.rpcs.serve("GetPluginInfo", "", async { Ok(info) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        // No topology: a volume can be reached from every node.
        let service = Service { r#type: Offer::ControllerService.into() };
        // While it is used: no node has anything to do about it.
        let expansion = VolumeExpansion { r#type: Expansion::Online.into() };
        let offers = [
            csi::plugin_capability::Type::Service(service),
            csi::plugin_capability::Type::VolumeExpansion(expansion),
        ];
        let capabilities = offers.into_iter().map(|offer| PluginCapability { r#type: Some(offer) }).collect();
        let response = csi::GetPluginCapabilitiesResponse { capabilities };
        self.rpcs.serve("GetPluginCapabilities", "", async { Ok(response) }).await
    }

    /// Says that this process serves. It depends on nothing else: a volume, the API server or a mount host that is away
    /// is no reason to restart it.
    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        self.rpcs.serve("Probe", "", async { Ok(csi::ProbeResponse { ready: Some(true) }) }).await
    }
}
