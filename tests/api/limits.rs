//! Fields at and beyond their limits, and names of any script.

use lagan::proto::{CreateVolumeRequest, ListVolumesRequest, volume_capability::access_mode::Mode};
use tonic::Code;

use crate::rig::{Rig, check, create, delete, hide_at, mount, mount_with, publish, stage};

#[tokio::test]
async fn names_of_any_script() {
    let mut rig = Rig::new().await;
    let longest = "n".repeat(128);
    let names =
        ["Datenträger", "数据", "\u{1F4A7}\u{1F433}", "a/b", "../../etc", "-rf", "tab\there", " ", &longest];
    for name in names {
        let request = CreateVolumeRequest { capacity_range: None, ..create(name) };
        let volume = rig.create(request.clone()).await.unwrap();
        assert!(
            volume.volume_id.is_ascii() && volume.volume_id.len() == 67,
            "{name:?} → {}",
            volume.volume_id
        );
        assert_eq!(rig.create(request).await.unwrap().volume_id, volume.volume_id);
        rig.snapshot(name, &volume.volume_id).await.unwrap();
    }
    for name in ["a\0b", "bell\u{7}", "\u{7f}", "next\u{85}line", &"n".repeat(129), &"ü".repeat(65)] {
        check(rig.controller.create_volume(create(name)).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn oversize_fields() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let big = "x".repeat(5000);
    let pairs = |count: usize| (0..count).map(|n| (format!("csi.storage.k8s.io/{n:04}"), "v".repeat(30)));
    let crowded = CreateVolumeRequest { parameters: pairs(100).collect(), ..create("b") };
    check(rig.controller.create_volume(crowded).await, Code::InvalidArgument);
    let flags: Vec<_> = (0..600).map(|_| "noatime").collect();
    let flagged = CreateVolumeRequest {
        volume_capabilities: vec![mount_with(Mode::SingleNodeWriter, "", &flags)],
        ..create("b")
    };
    check(rig.controller.create_volume(flagged).await, Code::InvalidArgument);
    let many =
        CreateVolumeRequest { volume_capabilities: vec![mount(Mode::SingleNodeWriter); 100], ..create("b") };
    check(rig.controller.create_volume(many).await, Code::InvalidArgument);
    let mut request = publish(&id);
    request.node_id = "n".repeat(300);
    check(rig.controller.controller_publish_volume(request).await, Code::InvalidArgument);
    check(rig.controller.delete_volume(delete(&big)).await, Code::InvalidArgument);
    check(rig.node.node_unpublish_volume(hide_at(&id, &format!("/t/{big}"))).await, Code::InvalidArgument);
    let mut request = stage(&id, mount(Mode::SingleNodeWriter));
    request.staging_target_path = format!("/t/{big}");
    check(rig.node.node_stage_volume(request).await, Code::InvalidArgument);
    let listed = rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 1);
}

#[tokio::test]
async fn a_message_of_any_size_is_answered() {
    let mut rig = Rig::new().await;
    let huge = CreateVolumeRequest { name: "n".repeat(5 << 20), ..create("a") };
    let status = rig.controller.create_volume(huge).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    check(rig.controller.create_volume(create("a")).await, Code::Ok);
}
