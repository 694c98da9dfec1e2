//! The controller and the node as two processes on one host, over the same pool.

use std::{
    fs,
    io::Seek,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
    ListVolumesRequest, NodeGetInfoRequest, NodePublishVolumeRequest, volume_capability::access_mode::Mode,
};
use tonic::Code;

use crate::{
    requests::{
        block, check, delete, hide_at, publish_with, show_at, snapshot_of, stage_at, unpublish_from,
        unstage_at,
    },
    rig::{Ground, Kind, MIB, filesystem, random, write},
};

#[tokio::test]
async fn each_sees_what_the_other_did() {
    for kind in [Kind::Image, Kind::On("ext4")] {
        let ground = Ground::new(kind);
        let mut controller = ground.start_as("controller", "controller.sock").await;
        let mut node = ground.start_as("node", "node.sock").await;
        let how = filesystem("ext4");
        let (staging, target) = (ground.path("staging"), ground.path("target"));
        let id = controller.create("a", 16, &how).await.volume_id;
        check(node.node.node_stage_volume(stage_at(&id, &staging, &how)).await, Code::FailedPrecondition);
        controller.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
        node.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
        node.node.node_publish_volume(show_at(&id, &staging, &target, &how)).await.unwrap();
        let content = random(1 << 20);
        write(&Path::new(&target).join("data"), &content);
        check(controller.controller.delete_volume(delete(&id)).await, Code::FailedPrecondition);
        check(
            controller.controller.controller_unpublish_volume(unpublish_from(&id, "n1")).await,
            Code::FailedPrecondition,
        );
        // A snapshot is the controller's, of a volume that the node holds.
        let snapshot = controller.snapshot(&id, "s").await.unwrap().snapshot_id;
        assert!(fs::read(Path::new(&target).join("data")).unwrap() == content);
        node.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
        // Staged but unused, it is taken away, as for an orchestrator that never unstages.
        controller.controller.controller_unpublish_volume(unpublish_from(&id, "n1")).await.unwrap();
        node.node.node_unstage_volume(unstage_at(&id, &staging)).await.unwrap();
        controller.controller.delete_volume(delete(&id)).await.unwrap();
        check(node.node.node_stage_volume(stage_at(&id, &staging, &how)).await, Code::NotFound);
        let restored = controller.copy("r", crate::requests::from_snapshot(&snapshot), &how).await.volume_id;
        controller.controller.controller_publish_volume(publish_with(&restored, &how)).await.unwrap();
        node.node.node_stage_volume(stage_at(&restored, &staging, &how)).await.unwrap();
        assert!(fs::read(Path::new(&staging).join("data")).unwrap() == content);
        node.node.node_unstage_volume(unstage_at(&restored, &staging)).await.unwrap();
        controller.controller.controller_unpublish_volume(unpublish_from(&restored, "n1")).await.unwrap();
        ground.account();
    }
}

/// What the controller remembers of a volume's devices is not what the node has made since.
#[tokio::test]
async fn the_controller_asks_the_kernel_each_time() {
    let ground = Ground::new(Kind::Image);
    // The node's root comes after the controller has started.
    fs::remove_dir(ground.root.join("targets")).unwrap();
    let mut controller = ground.start_as("controller", "controller.sock").await;
    fs::create_dir(ground.root.join("targets")).unwrap();
    let mut node = ground.start_as("node", "node.sock").await;
    let how = block(Mode::SingleNodeMultiWriter);
    let (staging, target) = (ground.path("staging"), ground.path("target"));
    let id = controller.create("a", 8, &how).await.volume_id;
    controller.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
    node.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
    controller.snapshot(&id, "s").await.unwrap();
    let read_only = NodePublishVolumeRequest { readonly: true, ..show_at(&id, &staging, &target, &how) };
    node.node.node_publish_volume(read_only).await.unwrap();
    let refused = controller.controller.controller_unpublish_volume(unpublish_from(&id, "n1")).await;
    let said = check(refused, Code::FailedPrecondition);
    assert!(said.contains(&target), "{said}");
    let capacity_range = Some(CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 });
    let grow = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range,
        ..ControllerExpandVolumeRequest::default()
    };
    controller.controller.controller_expand_volume(grow).await.unwrap();
    let size = fs::File::open(&target).unwrap().seek(std::io::SeekFrom::End(0)).unwrap();
    assert_eq!(size, 16 << 20, "the read-only face has grown too");
    node.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
    controller.controller.controller_unpublish_volume(unpublish_from(&id, "n1")).await.unwrap();
    ground.account();
}

/// One works on a volume at a time, whichever process it is in.
#[tokio::test]
async fn a_copy_keeps_the_node_away() {
    let ground = Ground::sized(Kind::On("ext4"), 8192);
    let mut controller = ground.start_as("controller", "controller.sock").await;
    let mut node = ground.start_as("node", "node.sock").await;
    let how = block(Mode::SingleNodeMultiWriter);
    let staging = ground.path("staging");
    let id = controller.create("a", 1500, &how).await.volume_id;
    controller.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
    write(&ground.file_of(&id), &random(1500 << 20));
    let mut cutter = controller.controller.clone();
    let request = snapshot_of(&id, "s");
    let cut = tokio::spawn(async move { cutter.create_snapshot(request).await });
    // The controller's turn is a shared lock in the pool.
    let marker = fs::metadata(ground.pool().join("lagan-pool.json")).unwrap().ino();
    let taken = |line: &str| {
        line.contains("OFDLCK") && line.contains("READ") && line.contains(&format!(":{marker} "))
    };
    let begun = Instant::now();
    while !fs::read_to_string("/proc/locks").unwrap().lines().any(taken) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the copy does not begin");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut refused = 0;
    while let Err(status) = node.node.node_stage_volume(stage_at(&id, &staging, &how)).await {
        assert_eq!(status.code(), Code::Aborted, "{status:?}");
        assert!(!cut.is_finished() || refused < 1000, "the copy is done, and still: {status:?}");
        refused += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused > 0, "the copy was over before the node asked");
    cut.await.unwrap().unwrap();
    node.node.node_unstage_volume(unstage_at(&id, &staging)).await.unwrap();
    controller.controller.controller_unpublish_volume(unpublish_from(&id, "n1")).await.unwrap();
    ground.account();
}

#[tokio::test]
async fn each_offers_its_own_services_only() {
    let ground = Ground::new(Kind::Image);
    let mut controller = ground.start_as("controller", "controller.sock").await;
    let mut node = ground.start_as("node", "node.sock").await;
    let mine = controller.identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    let its = node.identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(mine, its, "one driver, whichever process answers");
    let mine = controller.identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    let its = node.identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(mine.into_inner(), its.into_inner());
    check(controller.node.node_get_info(NodeGetInfoRequest {}).await, Code::Unimplemented);
    check(node.controller.list_volumes(ListVolumesRequest::default()).await, Code::Unimplemented);
}
