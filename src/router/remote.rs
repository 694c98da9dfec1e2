//! Another host's controller as if it were at hand: the same calls, with the deadline and the trace that they came with.

use tonic::{
    Request, Response, Status, async_trait,
    body::Body,
    codegen::{StdError, http},
    metadata::{Ascii, MetadataKey},
};
use tower::Service;

use crate::{
    csi::{Member, status::passed_on},
    proto::{
        ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
        ControllerGetCapabilitiesResponse, ControllerGetVolumeHealthRequest,
        ControllerGetVolumeHealthResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
        ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse, ControllerModifyVolumeRequest,
        ControllerModifyVolumeResponse, ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
        ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest,
        CreateSnapshotResponse, CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse,
        CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
        DeleteVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotResponse, DeleteVolumeRequest,
        DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest,
        GetSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
        GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse, ListSnapshotsRequest,
        ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ONLY_IF_EXISTS,
        ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
        controller_client::ControllerClient, controller_server::Controller,
        group_controller_client::GroupControllerClient, group_controller_server::GroupController,
    },
    trace::{TRACEPARENT, Trace},
};

/// Longest answer that is taken: a list of some 100,000 volumes.
const ANSWER_LIMIT: usize = 64 << 20;
/// How gRPC says until when a call is worth answering.
const TIMEOUT: &str = "grpc-timeout";

/// A way to another host: a channel, or whatever else carries its calls.
pub trait Way:
    Service<
        http::Request<Body>,
        Response = http::Response<Body>,
        Error: Into<StdError>,
        Future: Future + Send,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<T> Way for T where
    T: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error: Into<StdError>,
            Future: Future + Send,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// The host at the other end, under its name.
#[must_use]
pub fn remote(host: &str, channel: impl Way) -> Member {
    let controller = ControllerClient::new(channel.clone()).max_decoding_message_size(ANSWER_LIMIT);
    let groups = GroupControllerClient::new(channel).max_decoding_message_size(ANSWER_LIMIT);
    let host = host.to_owned();
    Member::new((Remote { host: host.clone(), client: controller }, Remote { host, client: groups }))
}

struct Remote<C> {
    host: String,
    client: C,
}

/// The same request, with what belongs to it beside. Nothing else of the caller's goes on.
fn onward<T>(request: Request<T>) -> Request<T> {
    let (metadata, extensions, message) = request.into_parts();
    let mut onward = Request::new(message);
    for key in [TIMEOUT, ONLY_IF_EXISTS] {
        if let Some(value) = metadata.get(key) {
            onward.metadata_mut().insert(MetadataKey::<Ascii>::from_static(key), value.clone());
        }
    }
    let trace = extensions.get::<Trace>().copied().unwrap_or_else(|| Trace::of(None));
    if let Ok(header) = trace.header().parse() {
        onward.metadata_mut().insert(TRACEPARENT, header);
    }
    onward
}

macro_rules! pass_on {
    ($service:ident by $client:ident: $($call:ident $request:ident $response:ident)*) => {
        #[async_trait]
        impl<W: Way> $service for Remote<$client<W>> {
            $(async fn $call(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let answer = self.client.clone().$call(onward(request)).await;
                answer.map(|answer| Response::new(answer.into_inner())).map_err(|said| passed_on(&self.host, &said))
            })*
        }
    };
}

pass_on! { Controller by ControllerClient:
    create_volume CreateVolumeRequest CreateVolumeResponse
    delete_volume DeleteVolumeRequest DeleteVolumeResponse
    controller_publish_volume ControllerPublishVolumeRequest ControllerPublishVolumeResponse
    controller_unpublish_volume ControllerUnpublishVolumeRequest ControllerUnpublishVolumeResponse
    validate_volume_capabilities ValidateVolumeCapabilitiesRequest ValidateVolumeCapabilitiesResponse
    list_volumes ListVolumesRequest ListVolumesResponse
    get_capacity GetCapacityRequest GetCapacityResponse
    controller_get_capabilities ControllerGetCapabilitiesRequest ControllerGetCapabilitiesResponse
    create_snapshot CreateSnapshotRequest CreateSnapshotResponse
    delete_snapshot DeleteSnapshotRequest DeleteSnapshotResponse
    list_snapshots ListSnapshotsRequest ListSnapshotsResponse
    get_snapshot GetSnapshotRequest GetSnapshotResponse
    controller_expand_volume ControllerExpandVolumeRequest ControllerExpandVolumeResponse
    controller_get_volume ControllerGetVolumeRequest ControllerGetVolumeResponse
    controller_modify_volume ControllerModifyVolumeRequest ControllerModifyVolumeResponse
    controller_list_volume_health ControllerListVolumeHealthRequest ControllerListVolumeHealthResponse
    controller_get_volume_health ControllerGetVolumeHealthRequest ControllerGetVolumeHealthResponse
}

pass_on! { GroupController by GroupControllerClient:
    group_controller_get_capabilities GroupControllerGetCapabilitiesRequest GroupControllerGetCapabilitiesResponse
    create_volume_group_snapshot CreateVolumeGroupSnapshotRequest CreateVolumeGroupSnapshotResponse
    delete_volume_group_snapshot DeleteVolumeGroupSnapshotRequest DeleteVolumeGroupSnapshotResponse
    get_volume_group_snapshot GetVolumeGroupSnapshotRequest GetVolumeGroupSnapshotResponse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_and_the_trace_go_on_and_nothing_else() {
        let trace = Trace::of(None);
        let mut request = Request::new(());
        request.set_timeout(std::time::Duration::from_secs(7));
        request.metadata_mut().insert(ONLY_IF_EXISTS, "true".parse().unwrap());
        request.metadata_mut().insert("authorization", "canary".parse().unwrap());
        request.extensions_mut().insert(trace);
        let timeout = request.metadata().get(TIMEOUT).cloned();
        let onward = onward(request);
        let metadata = onward.metadata();
        assert!(timeout.is_some() && metadata.get(TIMEOUT).cloned() == timeout);
        assert!(metadata.contains_key(ONLY_IF_EXISTS) && !metadata.contains_key("authorization"));
        assert_eq!(Trace::of(metadata.get(TRACEPARENT).and_then(|header| header.to_str().ok())), trace);
    }
}
