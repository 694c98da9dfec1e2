//! Programs that a daemon starts for a thin pool: none for what it is asked, and none for volumes without a new filesystem.

use lagan::proto::{
    ControllerGetVolumeRequest, GetCapacityRequest, ListSnapshotsRequest, ListVolumesRequest,
    NodeGetVolumeStatsRequest, volume_capability::access_mode::Mode,
};

use crate::{
    group::{self, POOL, VG},
    requests::{block, from_snapshot},
    rig::{Ground, HTTP, Kind},
};

#[tokio::test]
async fn what_is_asked_and_made_starts_none() {
    group::ensure(3072);
    let mut ground = Ground::new(Kind::Lvm(VG, POOL));
    ground.http = HTTP;
    let mut daemon = ground.start().await;
    let before = daemon.metric("lagan_programs_started_total");
    assert!(before > 0, "LVM was asked where the pool is");

    let raw = block(Mode::SingleNodeWriter);
    let id = daemon.create("a", 64, &raw).await.volume_id;
    let shown = daemon.show(&ground, &id, "a", &raw).await;
    let cut = daemon.snapshot(&id, "cut").await.unwrap().snapshot_id;
    let copy = daemon.copy("copy", from_snapshot(&cut), &raw).await.volume_id;
    daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
    daemon.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap();
    daemon.controller.get_capacity(GetCapacityRequest::default()).await.unwrap();
    let one = ControllerGetVolumeRequest { volume_id: id.clone() };
    daemon.controller.controller_get_volume(one).await.unwrap();
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: shown,
        ..NodeGetVolumeStatsRequest::default()
    };
    daemon.node.node_get_volume_stats(stats).await.unwrap();
    daemon.hide(&ground, &id, "a").await;
    for id in [&copy, &id] {
        daemon.delete(id).await;
    }
    let request = lagan::proto::DeleteSnapshotRequest { snapshot_id: cut, ..Default::default() };
    daemon.controller.delete_snapshot(request).await.unwrap();
    assert_eq!(daemon.metric("lagan_programs_started_total"), before);
    daemon.kill();
    ground.account();
}
