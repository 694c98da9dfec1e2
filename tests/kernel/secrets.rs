//! Secrets are taken, and never seen again.

use std::{collections::BTreeMap, fs};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeHealthRequest,
    ControllerListVolumeHealthRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest,
    NodeExpandVolumeRequest, NodeGetStorageHealthRequest, ValidateVolumeCapabilitiesRequest,
    volume_capability::access_mode::Mode,
};

use crate::{
    requests::{
        create_with, delete, mount_with, publish_with, show_at, snapshot_of, stage_at, unpublish_from,
    },
    rig::{Daemon, Ground, HTTP, Kind, MIB},
};

const CANARY: &str = "canary-4b1d-never-to-be-seen";

fn secrets() -> BTreeMap<String, String> {
    [("password".to_owned(), CANARY.to_owned()), (format!("key.{CANARY}"), "x".to_owned())].into()
}

/// Every call that carries secrets, where it succeeds and where it fails.
async fn call_everything(daemon: &mut Daemon, ground: &Ground) {
    // Mount flags may be secret, too, in their values and where they are refused.
    let flags: &[&str] = &["noatime"];
    let how = mount_with(Mode::SingleNodeWriter, "ext4", flags);
    let refused = mount_with(Mode::SingleNodeWriter, "ext4", &[&format!("password={CANARY}")]);
    let mut request = create_with("visible", 16 * MIB, &how);
    request.secrets = secrets();
    let volume = daemon.controller.create_volume(request.clone()).await.unwrap().into_inner().volume.unwrap();
    let id = volume.volume_id;
    request.volume_capabilities = vec![refused.clone()];
    daemon.controller.create_volume(request).await.unwrap_err();
    for id in [id.as_str(), "unknown"] {
        let mut request = publish_with(id, &how);
        request.secrets = secrets();
        drop(daemon.controller.controller_publish_volume(request).await);
        for how in [&how, &refused] {
            let mut request = stage_at(id, &ground.path("staging"), how);
            request.secrets = secrets();
            drop(daemon.node.node_stage_volume(request).await);
            let mut request = show_at(id, &ground.path("staging"), &ground.path("target"), how);
            request.secrets = secrets();
            drop(daemon.node.node_publish_volume(request).await);
        }
        let mut request = snapshot_of(id, "visible");
        request.secrets = secrets();
        drop(daemon.controller.create_snapshot(request).await);
        let capacity_range = Some(CapacityRange { required_bytes: 20 * MIB, limit_bytes: 0 });
        let (volume_id, secrets) = (id.to_owned(), secrets());
        let request = ControllerExpandVolumeRequest {
            volume_id: volume_id.clone(),
            capacity_range,
            secrets: secrets.clone(),
            volume_capability: None,
        };
        drop(daemon.controller.controller_expand_volume(request).await);
        let request = NodeExpandVolumeRequest {
            volume_id: volume_id.clone(),
            volume_path: ground.path("target"),
            secrets: secrets.clone(),
            ..NodeExpandVolumeRequest::default()
        };
        drop(daemon.node.node_expand_volume(request).await);
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.clone(),
            volume_capabilities: vec![refused.clone()],
            secrets: secrets.clone(),
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        drop(daemon.controller.validate_volume_capabilities(request).await);
        let request = ControllerGetVolumeHealthRequest { volume_id, secrets };
        drop(daemon.controller.controller_get_volume_health(request).await);
    }
    lists(daemon).await;
    take_back(daemon, ground, &id).await;
}

async fn lists(daemon: &mut Daemon) {
    let request = ControllerListVolumeHealthRequest {
        secrets: secrets(),
        ..ControllerListVolumeHealthRequest::default()
    };
    daemon.controller.controller_list_volume_health(request).await.unwrap();
    let request = ListSnapshotsRequest { secrets: secrets(), ..ListSnapshotsRequest::default() };
    let listed = daemon.controller.list_snapshots(request).await.unwrap().into_inner();
    let snapshot_id = listed.entries[0].snapshot.clone().unwrap().snapshot_id;
    let request = GetSnapshotRequest { snapshot_id: snapshot_id.clone(), secrets: secrets() };
    daemon.controller.get_snapshot(request).await.unwrap();
    let request = DeleteSnapshotRequest { snapshot_id, secrets: secrets() };
    daemon.controller.delete_snapshot(request).await.unwrap();
    let request = NodeGetStorageHealthRequest { secrets: secrets() };
    daemon.node.node_get_storage_health(request).await.unwrap();
}

async fn take_back(daemon: &mut Daemon, ground: &Ground, id: &str) {
    let target = ground.path("target");
    daemon.node.node_unpublish_volume(crate::requests::hide_at(id, &target)).await.unwrap();
    daemon.node.node_unstage_volume(crate::requests::unstage_at(id, &ground.path("staging"))).await.unwrap();
    let mut request = unpublish_from(id, "n1");
    request.secrets = secrets();
    daemon.controller.controller_unpublish_volume(request).await.unwrap();
    let mut request = delete(id);
    request.secrets = secrets();
    daemon.controller.delete_volume(request).await.unwrap();
}

#[tokio::test]
async fn no_secret_is_ever_printed() {
    let mut ground = Ground::new(Kind::Image);
    ground.http = HTTP;
    for format in ["text", "json"] {
        let mut daemon = ground.start_with(&["--log-level", "trace", "--log-format", format]).await;
        call_everything(&mut daemon, &ground).await;
        let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
        for file in ["cmdline", "environ"] {
            let seen = fs::read(format!("{process}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&seen).contains(CANARY), "{file}");
        }
        assert!(!daemon.metrics().contains(CANARY), "metrics");
        let said = daemon.said();
        assert!(
            said.contains("TRACE") && said.contains("volume created"),
            "the log is at its most talkative"
        );
        assert!(!said.contains(CANARY), "{format} log");
        assert!(daemon.stop().success());
    }
    let kept = fs::read(ground.root.join("state/pools.json")).unwrap();
    assert!(!String::from_utf8_lossy(&kept).contains(CANARY));
}
