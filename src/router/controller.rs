//! The Controller service of many hosts: whose is it? Then the same call there.

use tonic::{Request, Response, Status, async_trait};

use super::{Router, again, lists, split};
use crate::{
    csi::status::status,
    id::{PoolId, SnapshotId, VolumeId},
    proto::{
        ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
        ControllerGetCapabilitiesResponse, ControllerGetVolumeHealthRequest,
        ControllerGetVolumeHealthResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
        ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse, ControllerModifyVolumeRequest,
        ControllerModifyVolumeResponse, ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
        ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest,
        CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest,
        DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest,
        GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
        ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
        ValidateVolumeCapabilitiesResponse, controller_server::Controller,
    },
};

/// The pool of a volume; `None` for what is no id of ours.
pub(super) fn pool_of_volume(id: &str) -> Option<PoolId> {
    id.parse().ok().map(|id: VolumeId| id.pool)
}

/// The pool of a snapshot.
pub(super) fn pool_of_snapshot(id: &str) -> Option<PoolId> {
    id.parse().ok().map(|id: SnapshotId| id.pool)
}

/// The service, of which most calls go to whoever has the pool of the id in one field.
macro_rules! controller {
    (
        to the owner: { $($call:ident $request:ident $response:ident $pool_of:ident($field:ident))* }
        by ourselves: { $($own:ident $own_request:ident $own_response:ident $how:path)* }
    ) => {
        #[async_trait]
        impl Controller for Router {
            $(async fn $call(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let owner = self.owner($pool_of(&request.get_ref().$field))?;
                owner.controller.$call(request).await
            })*
            $(async fn $own(&self, request: Request<$own_request>) -> Result<Response<$own_response>, Status> {
                $how(self, request).await
            })*
        }
    };
}

controller! {
    to the owner: {
        delete_volume DeleteVolumeRequest DeleteVolumeResponse pool_of_volume(volume_id)
        controller_publish_volume ControllerPublishVolumeRequest ControllerPublishVolumeResponse pool_of_volume(volume_id)
        controller_unpublish_volume ControllerUnpublishVolumeRequest ControllerUnpublishVolumeResponse pool_of_volume(volume_id)
        validate_volume_capabilities ValidateVolumeCapabilitiesRequest ValidateVolumeCapabilitiesResponse pool_of_volume(volume_id)
        controller_expand_volume ControllerExpandVolumeRequest ControllerExpandVolumeResponse pool_of_volume(volume_id)
        controller_modify_volume ControllerModifyVolumeRequest ControllerModifyVolumeResponse pool_of_volume(volume_id)
        controller_get_volume ControllerGetVolumeRequest ControllerGetVolumeResponse pool_of_volume(volume_id)
        controller_get_volume_health ControllerGetVolumeHealthRequest ControllerGetVolumeHealthResponse pool_of_volume(volume_id)
        create_snapshot CreateSnapshotRequest CreateSnapshotResponse pool_of_volume(source_volume_id)
        delete_snapshot DeleteSnapshotRequest DeleteSnapshotResponse pool_of_snapshot(snapshot_id)
        get_snapshot GetSnapshotRequest GetSnapshotResponse pool_of_snapshot(snapshot_id)
    }
    by ourselves: {
        create_volume CreateVolumeRequest CreateVolumeResponse super::create::create
        list_volumes ListVolumesRequest ListVolumesResponse lists::volumes
        list_snapshots ListSnapshotsRequest ListSnapshotsResponse lists::snapshots
        controller_list_volume_health ControllerListVolumeHealthRequest ControllerListVolumeHealthResponse lists::health
        get_capacity GetCapacityRequest GetCapacityResponse capacity
        controller_get_capabilities ControllerGetCapabilitiesRequest ControllerGetCapabilitiesResponse capabilities
    }
}

/// All hosts offer the same.
async fn capabilities(
    router: &Router,
    request: Request<ControllerGetCapabilitiesRequest>,
) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
    router.inner.own.controller.controller_get_capabilities(request).await
}

/// The room of all hosts that a request is about. One that does not answer has none for now; if it is the one that is asked
/// about, nothing is known.
async fn capacity(
    router: &Router,
    request: Request<GetCapacityRequest>,
) -> Result<Response<GetCapacityResponse>, Status> {
    let view = router.view();
    let place = request.get_ref().accessible_topology.as_ref();
    let meant: Vec<_> = view.hosts().iter().filter(|host| host.topology.is_at(place)).collect();
    match meant.as_slice() {
        [] => {
            view.check_complete().map_err(status)?;
            return router.inner.own.controller.get_capacity(request).await;
        }
        [host] if host.given_up => return router.inner.own.controller.get_capacity(request).await,
        [host] => return host.reach().map_err(status)?.controller.get_capacity(request).await,
        _ => {}
    }
    let (beside, message) = split(request);
    let ask = |host: &super::Host| {
        let (member, request) = (host.reach().ok().cloned(), again(&beside, message.clone()));
        async move { Some(member?.controller.get_capacity(request).await) }
    };
    let (mut sum, mut refused) = (None::<GetCapacityResponse>, None);
    let answers = meant.iter().filter(|host| !host.given_up).map(|host| ask(host));
    for answer in futures_util::future::join_all(answers).await.into_iter().flatten() {
        match (answer.map(Response::into_inner), &mut sum) {
            (Ok(one), Some(sum)) => add(sum, &one),
            (Ok(one), None) => sum = Some(one),
            (Err(said), _) => refused = Some(said),
        }
    }
    // What one refuses as malformed all do.
    match (sum, refused) {
        (Some(sum), _) => Ok(Response::new(sum)),
        (None, Some(said)) => Err(said),
        (None, None) => router.inner.own.controller.get_capacity(again(&beside, message)).await,
    }
}

fn add(sum: &mut GetCapacityResponse, one: &GetCapacityResponse) {
    sum.available_capacity = sum.available_capacity.saturating_add(one.available_capacity);
    sum.maximum_volume_size = sum.maximum_volume_size.max(one.maximum_volume_size);
    // That of a host without room says nothing.
    let sizes = [sum.minimum_volume_size, one.minimum_volume_size].into_iter().flatten();
    sum.minimum_volume_size = sizes.filter(|size| *size > 0).min();
}
