//! Who the driver is. The same answers in every mode.

use std::{collections::BTreeMap, sync::Arc};

use tonic::{Request, Response, Status, async_trait};

use super::{manifest::PeerFacts, status::status};
use crate::{
    error::{Error, ErrorKind},
    pool::set::Pools,
    proto::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
        GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
        identity_server::Identity,
        plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
    },
};

pub(super) struct IdentityService {
    pub(super) driver_name: String,
    pub(super) pools: Arc<Pools>,
    /// What other processes of the cluster are told besides; orchestrators are not.
    pub(super) peers: Option<PeerFacts>,
}

#[async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let mut manifest = BTreeMap::from([("license".to_owned(), env!("CARGO_PKG_LICENSE").to_owned())]);
        if let Some(peers) = &self.peers {
            manifest.extend(peers.manifest().to_map());
        }
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest,
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let services = [
            service::Type::ControllerService,
            service::Type::VolumeAccessibilityConstraints,
            service::Type::GroupControllerService,
            service::Type::SnapshotAccessibilityConstraints,
        ];
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let mut capabilities: Vec<_> =
            services.map(|service| Type::Service(Service { r#type: service.into() })).into();
        capabilities.push(Type::VolumeExpansion(online));
        let capabilities =
            capabilities.into_iter().map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Recovery is done before anybody can call, so whoever can call finds us ready. An error makes orchestrators start
    /// the driver anew: so it is one only where that helps, which a pool that is not there is not.
    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        if let Some(pool) = self.pools.broken().first() {
            let what =
                format!("a flush to the disk of pool {pool} failed: a new process has to look what is on it");
            return Err(status(Error::new(ErrorKind::InUse, what)));
        }
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
