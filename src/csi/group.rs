//! The GroupController service: snapshots of several volumes at one instant.

use tonic::{Request, Response, Status, async_trait};

use super::{Call, Edge, answers, note, requests, status};
use crate::{
    engine::{
        Engine,
        locks::{Key, Mode},
    },
    error::{Error, ErrorKind},
    proto::{
        CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse,
        DeleteVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest,
        GetVolumeGroupSnapshotResponse, GroupControllerGetCapabilitiesRequest,
        GroupControllerGetCapabilitiesResponse, GroupControllerServiceCapability,
        group_controller_server::GroupController,
        group_controller_service_capability::{Rpc, Type, rpc},
    },
};

pub(super) struct GroupService {
    pub(super) engine: Engine,
    pub(super) edge: Edge,
}

#[async_trait]
impl GroupController for GroupService {
    async fn group_controller_get_capabilities(
        &self,
        _request: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let all = Rpc { r#type: rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into() };
        let capabilities = vec![GroupControllerServiceCapability { r#type: Some(Type::Rpc(all)) }];
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("CreateVolumeGroupSnapshot", &request);
        let wanted = requests::create_group(&request).map_err(status)?;
        let mut locks = vec![(Key::GroupName(wanted.name.clone()), Mode::Exclusive)];
        locks.extend(wanted.volumes.iter().map(|id| (Key::Volume(*id), Mode::Shared)));
        let (engine, subject) = (self.engine.clone(), wanted.name.clone());
        let work = |progress| async move { engine.create_group(&wanted, &progress).await };
        let whole = self.edge.run(call.on(subject, locks), work).await?;
        note("group", &whole.group.id);
        let group_snapshot = Some(answers::group(&whole, &self.edge.topology));
        Ok(Response::new(CreateVolumeGroupSnapshotResponse { group_snapshot }))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let call = Call::new("DeleteVolumeGroupSnapshot", &request);
        let (id, claim) =
            requests::group(&request.group_snapshot_id, &request.snapshot_ids).map_err(status)?;
        // What is not of our grammar was never ours: there is nothing to delete.
        if let Some(id) = id {
            note("group", &id);
            let mut locks = vec![(Key::Group(id), Mode::Exclusive)];
            locks.extend(claim.iter().flatten().map(|member| (Key::Snapshot(*member), Mode::Exclusive)));
            let engine = self.engine.clone();
            let work = |_| async move { engine.delete_group(id, &claim).await };
            self.edge.run(call.on(id, locks), work).await?;
        }
        Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (id, claim) =
            requests::group(&request.group_snapshot_id, &request.snapshot_ids).map_err(status)?;
        let gone = || status(Error::new(ErrorKind::NotFound, "no group here has such an id"));
        let id = id.ok_or_else(gone)?;
        note("group", &id);
        let whole = self.engine.get_group(id, &claim).await.map_err(status)?;
        let group_snapshot = Some(answers::group(&whole, &self.edge.topology));
        Ok(Response::new(GetVolumeGroupSnapshotResponse { group_snapshot }))
    }
}
