//! The controller and the node as two processes on one host, over the same pool.

use std::{fs, path::Path};

use lagan::proto::{GetPluginInfoRequest, ListVolumesRequest, NodeGetInfoRequest};
use tonic::Code;

use crate::{
    requests::{check, delete, hide_at, publish_with, show_at, stage_at, unpublish_from, unstage_at},
    rig::{Ground, Kind, filesystem, random, write},
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

#[tokio::test]
async fn each_offers_its_own_services_only() {
    let ground = Ground::new(Kind::Image);
    let mut controller = ground.start_as("controller", "controller.sock").await;
    let mut node = ground.start_as("node", "node.sock").await;
    let mine = controller.identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    let its = node.identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(mine, its, "one driver, whichever process answers");
    check(controller.node.node_get_info(NodeGetInfoRequest {}).await, Code::Unimplemented);
    check(node.controller.list_volumes(ListVolumesRequest::default()).await, Code::Unimplemented);
}
