//! The Node service.

use tonic::{Request, Response, Status, async_trait};

use super::{Call, Edge, answers, fields, note, status};
use crate::{
    blocking::apart,
    engine::locks::{Key, Mode},
    error::{Error, ErrorKind, Result as OurResult},
    id::VolumeId,
    node::{Node, Publish},
    proto::{
        NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
        NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetStorageHealthRequest,
        NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse,
        NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
        NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse,
        NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
        NodeUnstageVolumeResponse,
        node_server::Node as NodeRpc,
        node_service_capability::{Rpc, Type, rpc},
    },
};

pub(super) struct NodeService {
    pub(super) node: Node,
    pub(super) edge: Edge,
}

/// What is served: all of it, and nothing else.
const OFFERED: [rpc::Type; 6] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::GetVolumeHealth,
    rpc::Type::GetStorageHealth,
];

impl NodeService {
    /// Runs a changing call with the volume to itself.
    async fn run<T, F>(&self, call: Call, id: VolumeId, work: impl FnOnce(Node) -> F) -> Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = OurResult<T>> + Send + 'static,
    {
        note("volume", &id);
        let node = self.node.clone();
        let task = call.on(id, vec![(Key::Volume(id), Mode::Exclusive)]);
        self.edge.run(task, |_| work(node)).await
    }
}

#[async_trait]
impl NodeRpc for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("NodeStageVolume", &request);
        let parse = || {
            fields::volume_id(&request.volume_id)?;
            let path = fields::path("staging_target_path", &request.staging_target_path)?.to_owned();
            let capability = fields::capability_at_node(request.volume_capability.as_ref())?;
            Ok((fields::existing_volume(&request.volume_id)?, path, capability))
        };
        let (id, path, capability) = parse().map_err(status)?;
        let work = |node: Node| async move { node.stage(id, &path, &capability).await };
        self.run(call, id, work).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("NodeUnstageVolume", &request);
        let parse = || {
            let id = fields::volume_id(&request.volume_id)?;
            Ok((id, fields::path("staging_target_path", &request.staging_target_path)?.to_owned()))
        };
        if let (Some(id), path) = parse().map_err(status)? {
            self.run(call, id, |node| async move { node.unstage(id, &path).await }).await?;
        }
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("NodePublishVolume", &request);
        let parse = || {
            fields::volume_id(&request.volume_id)?;
            let target_path = fields::path("target_path", &request.target_path)?.to_owned();
            let capability = fields::capability_at_node(request.volume_capability.as_ref())?;
            if request.staging_target_path.is_empty() {
                return Err(Error::new(
                    ErrorKind::InUse,
                    "staging_target_path is missing: volumes are staged first",
                ));
            }
            let staging_path = fields::path("staging_target_path", &request.staging_target_path)?.to_owned();
            let id = fields::existing_volume(&request.volume_id)?;
            Ok((id, Publish { staging_path, target_path, capability, read_only: request.readonly }))
        };
        let (id, wanted) = parse().map_err(status)?;
        self.run(call, id, |node| async move { node.publish(id, &wanted).await }).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("NodeUnpublishVolume", &request);
        let parse = || {
            let id = fields::volume_id(&request.volume_id)?;
            Ok((id, fields::path("target_path", &request.target_path)?.to_owned()))
        };
        if let (Some(id), path) = parse().map_err(status)? {
            self.run(call, id, |node| async move { node.unpublish(id, &path).await }).await?;
        }
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let parse = || {
            fields::volume_id(&request.volume_id)?;
            let path = fields::path("volume_path", &request.volume_path)?;
            Ok((fields::existing_volume(&request.volume_id)?, path))
        };
        let (id, path) = parse().map_err(status)?;
        note("volume", &id);
        let (node, path) = (self.node.clone(), path.to_owned());
        let usage = apart(async move { node.usage(id, &path).await }).await.map_err(status)?;
        Ok(Response::new(NodeGetVolumeStatsResponse { usage: answers::usage(&usage) }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let id = fields::existing_volume(&request.volume_id).map_err(status)?;
        note("volume", &id);
        let (node, paths) = (self.node.clone(), [request.staging_target_path, request.volume_publish_path]);
        let examine = async move { node.examine(id, &paths.each_ref().map(String::as_str)).await };
        let illness = apart(examine).await.map_err(status)?;
        let volume_health = Some(answers::health(request.volume_id, &illness.troubles));
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_storage_health(
        &self,
        _request: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        let backend_health = answers::storage_health(self.node.storage_health().await);
        Ok(Response::new(NodeGetStorageHealthResponse { backend_health }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("NodeExpandVolume", &request);
        let parse = || {
            fields::volume_id(&request.volume_id)?;
            let path = fields::path("volume_path", &request.volume_path)?.to_owned();
            fields::capacity_range(request.capacity_range.as_ref())?;
            Ok((fields::existing_volume(&request.volume_id)?, path))
        };
        let (id, path) = parse().map_err(status)?;
        let size = self.run(call, id, |node| async move { node.expand(id, &path).await }).await?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: size.signed() }))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let offer =
            |kind: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        let capabilities = OFFERED.into_iter().map(offer).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let settings = self.node.settings();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: settings.id.to_string(),
            max_volumes_per_node: settings.max_volumes.into(),
            accessible_topology: Some(self.edge.topology.accessible()),
        }))
    }
}
