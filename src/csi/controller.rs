//! The Controller service.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Request, Response, Status, async_trait};

use super::{Call, Edge, answers, fields, import, not_offered, note, requests, status};
use crate::{
    blocking::apart,
    bytes::Bytes,
    capability::Access,
    engine::{
        Engine,
        locks::{Key, Mode},
        snapshots::SnapshotFilter,
        volumes::Room,
    },
    error::{Error, ErrorKind},
    filesystem::Filesystem,
    pool::record::Source,
    proto::{
        self, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
        ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
        ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse, ControllerGetVolumeRequest,
        ControllerGetVolumeResponse, ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse,
        ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
        ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
        ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse,
        CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
        DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse,
        GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse,
        ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
        ValidateVolumeCapabilitiesResponse,
        controller_server::Controller,
        controller_service_capability::{Rpc, Type, rpc},
        validate_volume_capabilities_response::Confirmed,
    },
};

pub(super) struct ControllerService {
    pub(super) engine: Engine,
    pub(super) edge: Edge,
}

/// What is served: all of it, and nothing else.
const OFFERED: [rpc::Type; 15] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::GetCapacity,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::CloneVolume,
    rpc::Type::PublishReadonly,
    rpc::Type::ExpandVolume,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::GetSnapshot,
    rpc::Type::GetVolumeHealth,
    rpc::Type::ListVolumeHealth,
];

/// How long "only if it exists" waits for one that is being made: less than a router waits for the answer, or it would take us
/// for silent and have the volume made elsewhere too.
const JOINED_WITHIN: Duration = Duration::from_secs(2);

#[async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let import = import::read(request.metadata()).map_err(status)?;
        let only_if_exists = request.metadata().contains_key(proto::ONLY_IF_EXISTS);
        let request = request.into_inner();
        let mut call = Call::new("CreateVolume", &request);
        let mut wanted = requests::create_volume(&request, &self.edge.topology).map_err(status)?;
        if let Some(import) = import {
            call = call.with(&import);
            wanted = import::of(wanted, import).map_err(status)?;
        }
        let mut locks = vec![(Key::VolumeName(wanted.name.clone()), Mode::Exclusive)];
        locks.extend(wanted.source.map(|source| match source {
            Source::Snapshot(id) => (Key::Snapshot(id), Mode::Shared),
            Source::Volume(id) => (Key::Volume(id), Mode::Shared),
        }));
        let (engine, task) = (self.engine.clone(), call.on(&wanted.name, locks));
        let volume = if only_if_exists {
            match timeout(JOINED_WITHIN, self.edge.work.join(&task)).await {
                Ok(Some(answer)) => answer,
                Ok(None) => engine.find_same_volume(&wanted).await,
                Err(_late) => {
                    Err(Error::new(ErrorKind::Busy, format!("volume {:?} is being made", wanted.name)))
                }
            }
            .map_err(status)?
        } else {
            self.edge
                .run(task, |progress| async move { engine.create_volume(&wanted, &progress).await })
                .await?
        };
        note("volume", &volume.id);
        let volume = Some(answers::volume(&volume, &self.edge.topology));
        Ok(Response::new(CreateVolumeResponse { volume }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("DeleteVolume", &request);
        // What is not of our grammar was never ours: there is nothing to delete.
        if let Some(id) = fields::volume_id(&request.volume_id).map_err(status)? {
            note("volume", &id);
            let engine = self.engine.clone();
            let task = call.on(id, vec![(Key::Volume(id), Mode::Exclusive)]);
            self.edge.run(task, |_| async move { engine.delete_volume(id).await }).await?;
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("ControllerPublishVolume", &request);
        let parse = || {
            fields::volume_id(&request.volume_id)?;
            let node = fields::node_id(&request.node_id);
            if request.node_id.is_empty() {
                return Err(fields::invalid("node_id is missing"));
            }
            // Docker Swarm sends the access type Mount here whatever the volume is, so the type is not held against
            // it; the stage will be.
            let capability = fields::capability(request.volume_capability.as_ref(), Some(Filesystem::Ext4))?;
            let id = fields::existing_volume(&request.volume_id)?;
            Ok((id, node?, capability))
        };
        let (id, node, capability) = parse().map_err(status)?;
        note("volume", &id);
        note("node", &node);
        let (engine, read_only) = (self.engine.clone(), request.readonly);
        let task = call.on(id, vec![(Key::Volume(id), Mode::Exclusive)]);
        let work = |_| async move { engine.publish(id, &node, capability.mode, read_only).await };
        self.edge.run(task, work).await?;
        Ok(Response::new(ControllerPublishVolumeResponse::default()))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("ControllerUnpublishVolume", &request);
        // Without a node, every node is meant. A node that cannot exist has no right to lose.
        let node = if request.node_id.is_empty() { None } else { Some(request.node_id.parse().ok()) };
        if let Some(id) = fields::volume_id(&request.volume_id).map_err(status)?
            && node != Some(None)
        {
            note("volume", &id);
            let (engine, node) = (self.engine.clone(), node.flatten());
            let task = call.on(id, vec![(Key::Volume(id), Mode::Exclusive)]);
            self.edge.run(task, |_| async move { engine.unpublish(id, node.as_ref()).await }).await?;
        }
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = requests::validate(&request).map_err(status)?;
        note("volume", &id);
        let volume = self.engine.get_volume(id).await.map_err(status)?;
        let answer = match requests::supported(&request, &volume) {
            Err(error) => ValidateVolumeCapabilitiesResponse { confirmed: None, message: error.to_string() },
            // As they came: Nomad compares them with what it sent.
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
        };
        Ok(Response::new(answer))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let (after, limit) = fields::page(request.max_entries, &request.starting_token).map_err(status)?;
        let page = self.engine.list_volumes(after, limit).await.map_err(status)?;
        let next_token = page.entries.last().filter(|_| page.more).map(|last| last.id.to_string());
        let entry =
            |volume: &std::sync::Arc<crate::pool::record::Volume>| proto::list_volumes_response::Entry {
                volume: Some(answers::volume(volume, &self.edge.topology)),
                status: Some(proto::list_volumes_response::VolumeStatus {
                    published_node_ids: answers::published(volume),
                }),
            };
        let entries = page.entries.iter().map(entry).collect();
        Ok(Response::new(ListVolumesResponse { entries, next_token: next_token.unwrap_or_default() }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let id = fields::existing_volume(&request.into_inner().volume_id).map_err(status)?;
        note("volume", &id);
        let volume = self.engine.get_volume(id).await.map_err(status)?;
        let published_node_ids = answers::published(&volume);
        Ok(Response::new(ControllerGetVolumeResponse {
            volume: Some(answers::volume(&volume, &self.edge.topology)),
            status: Some(proto::controller_get_volume_response::VolumeStatus { published_node_ids }),
        }))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let (after, limit) = fields::page(request.max_entries, &request.starting_token).map_err(status)?;
        let engine = self.engine.clone();
        // It looks at every volume in turn.
        let examine = async move { engine.list_volume_health(after, limit).await };
        let page = apart(examine).await.map_err(status)?;
        let next_token = page.entries.last().filter(|_| page.more).map(|last| last.volume.id.to_string());
        let entries = page
            .entries
            .iter()
            .map(|sick| answers::health(sick.volume.id.to_string(), &sick.troubles))
            .collect();
        Ok(Response::new(ControllerListVolumeHealthResponse {
            entries,
            next_token: next_token.unwrap_or_default(),
        }))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let id = fields::existing_volume(&request.volume_id).map_err(status)?;
        note("volume", &id);
        let troubles = self.engine.volume_health(id).await.map_err(status)?;
        let volume_health = Some(answers::health(request.volume_id, &troubles));
        Ok(Response::new(ControllerGetVolumeHealthResponse { volume_health }))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let parameters = requests::parameters(&request.parameters).map_err(status)?;
        let usable = || {
            if request.volume_capabilities.is_empty() {
                return true;
            }
            let capabilities = fields::capabilities(&request.volume_capabilities, parameters.filesystem);
            capabilities.is_ok_and(|all| all.iter().all(|capability| !capability.mode.writes_across_nodes()))
        };
        // Elsewhere, and for what is not supported here, there is no room: that is no error.
        if !self.edge.topology.is_at(request.accessible_topology.as_ref()) || !usable() {
            return Ok(Response::new(GetCapacityResponse {
                available_capacity: 0,
                maximum_volume_size: Some(0),
                minimum_volume_size: None,
            }));
        }
        let room = match self.engine.room(parameters.pool.as_ref()).await {
            // Another host may have a pool of this name.
            Err(error) if error.kind() == ErrorKind::NoSpace => Room::default(),
            other => other.map_err(status)?,
        };
        let minimum = parameters.filesystem.map_or(room.minimum, Filesystem::minimum);
        // Mesos counts in megabytes with three digits after the point. It offers what is said here, and asks for exactly
        // what it offered: a part of a megabyte would come back as a size that no volume can have.
        let whole = |size: Bytes| size.round_down(Bytes::mib(1)).signed();
        Ok(Response::new(GetCapacityResponse {
            available_capacity: whole(room.available),
            maximum_volume_size: Some(whole(room.maximum)),
            minimum_volume_size: Some(minimum.signed()),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let offer = |kind: rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = OFFERED.into_iter().map(offer).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("CreateSnapshot", &request);
        let wanted = requests::create_snapshot(&request, &self.edge.topology).map_err(status)?;
        note("volume", &wanted.volume);
        let locks = vec![
            (Key::SnapshotName(wanted.name.clone()), Mode::Exclusive),
            (Key::Volume(wanted.volume), Mode::Shared),
        ];
        let (engine, subject) = (self.engine.clone(), wanted.name.clone());
        let work = |progress| async move { engine.create_snapshot(&wanted, &progress).await };
        let snapshot = self.edge.run(call.on(subject, locks), work).await?;
        note("snapshot", &snapshot.id);
        let snapshot = Some(answers::snapshot(&snapshot, &self.edge.topology));
        Ok(Response::new(CreateSnapshotResponse { snapshot }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("DeleteSnapshot", &request);
        if let Some(id) = fields::snapshot_id(&request.snapshot_id).map_err(status)? {
            note("snapshot", &id);
            let engine = self.engine.clone();
            let task = call.on(id, vec![(Key::Snapshot(id), Mode::Exclusive)]);
            self.edge.run(task, |_| async move { engine.delete_snapshot(id).await }).await?;
        }
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let (after, limit) = fields::page(request.max_entries, &request.starting_token).map_err(status)?;
        let mut filter = SnapshotFilter::default();
        // A filter that names nothing of ours matches nothing; that is an empty list, not an error.
        let mut nothing = false;
        if !request.snapshot_id.is_empty() {
            filter.id = fields::snapshot_id(&request.snapshot_id).map_err(status)?;
            nothing |= filter.id.is_none();
        }
        if !request.source_volume_id.is_empty() {
            filter.volume = fields::volume_id(&request.source_volume_id).map_err(status)?;
            nothing |= filter.volume.is_none();
        }
        if nothing {
            return Ok(Response::new(ListSnapshotsResponse::default()));
        }
        let page = self.engine.list_snapshots(filter, after, limit).await.map_err(status)?;
        let next_token = page.entries.last().filter(|_| page.more).map(|last| last.id.to_string());
        let entry = |snapshot: &std::sync::Arc<crate::pool::record::Snapshot>| {
            let snapshot = Some(answers::snapshot(snapshot, &self.edge.topology));
            proto::list_snapshots_response::Entry { snapshot }
        };
        let entries = page.entries.iter().map(entry).collect();
        Ok(Response::new(ListSnapshotsResponse { entries, next_token: next_token.unwrap_or_default() }))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        let id = fields::snapshot_id(&request.into_inner().snapshot_id).map_err(status)?;
        let gone =
            || crate::error::Error::new(crate::error::ErrorKind::NotFound, "no snapshot here has such an id");
        let id = id.ok_or_else(gone).map_err(status)?;
        note("snapshot", &id);
        let snapshot = self.engine.get_snapshot(id).await.map_err(status)?;
        let snapshot = Some(answers::snapshot(&snapshot, &self.edge.topology));
        Ok(Response::new(GetSnapshotResponse { snapshot }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("ControllerExpandVolume", &request);
        let (id, required, limit) = requests::expand(&request).map_err(status)?;
        note("volume", &id);
        let engine = self.engine.clone();
        let task = call.on(id, vec![(Key::Volume(id), Mode::Exclusive)]);
        let volume =
            self.edge.run(task, |_| async move { engine.grow_volume(id, required, limit).await }).await?;
        // The pool has grown the device; a filesystem on it is the node's to grow.
        let used_raw =
            request.volume_capability.as_ref().map_or(volume.content.filesystem().is_none(), |capability| {
                fields::capability(Some(capability), Some(Filesystem::Ext4))
                    .is_ok_and(|c| c.access == Access::Block)
            });
        Ok(Response::new(ControllerExpandVolumeResponse {
            capacity_bytes: volume.size.signed(),
            node_expansion_required: !used_raw,
        }))
    }

    async fn controller_modify_volume(
        &self,
        _request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        Err(not_offered("ControllerModifyVolume"))
    }
}
