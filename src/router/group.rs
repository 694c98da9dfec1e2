//! The GroupController service of many hosts. A group is of one pool, so it has one owner.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status, async_trait};

use super::{Router, controller::pool_of_volume};
use crate::{
    csi::status::status,
    error::{Error, ErrorKind},
    id::{GroupId, PoolId},
    proto::{
        CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse,
        DeleteVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest,
        GetVolumeGroupSnapshotResponse, GroupControllerGetCapabilitiesRequest,
        GroupControllerGetCapabilitiesResponse, group_controller_server::GroupController,
    },
};

fn pool_of_group(id: &str) -> Option<PoolId> {
    id.parse().ok().map(|id: GroupId| id.pool)
}

/// A pool whose host can cut all of these; `None` where one of them is no id of ours.
fn pool_of_all(router: &Router, sources: &[String]) -> Result<Option<PoolId>, Status> {
    let Some(pools) = sources.iter().map(|id| pool_of_volume(id)).collect::<Option<BTreeSet<_>>>() else {
        return Ok(None);
    };
    let view = router.view();
    let mut hosts = BTreeSet::new();
    for pool in &pools {
        hosts.extend(view.owner(*pool).map_err(status)?.map(|host| host.node.as_str()));
    }
    if hosts.len() > 1 {
        let hosts: Vec<_> = hosts.into_iter().collect();
        let what =
            format!("the volumes are on several hosts ({}): they have no common instant", hosts.join(", "));
        return Err(status(Error::new(ErrorKind::InUse, what)));
    }
    Ok(pools.first().copied())
}

#[async_trait]
impl GroupController for Router {
    async fn group_controller_get_capabilities(
        &self,
        request: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        self.inner.own.groups.group_controller_get_capabilities(request).await
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let pool = pool_of_all(self, &request.get_ref().source_volume_ids)?;
        self.owner(pool)?.groups.create_volume_group_snapshot(request).await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let pool = pool_of_group(&request.get_ref().group_snapshot_id);
        self.owner(pool)?.groups.delete_volume_group_snapshot(request).await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let pool = pool_of_group(&request.get_ref().group_snapshot_id);
        self.owner(pool)?.groups.get_volume_group_snapshot(request).await
    }
}
