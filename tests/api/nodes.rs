//! What a node does: stage, publish and back, in every order and more than once.

use std::io;

use lagan::{
    id::VolumeId,
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, CreateVolumeRequest,
        GetPluginCapabilitiesRequest, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest,
        NodeGetInfoRequest, NodeGetStorageHealthRequest, NodeGetVolumeHealthRequest,
        NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
        NodeUnstageVolumeRequest, VolumeCapability, volume_capability::access_mode::Mode,
    },
    sys::kernel::{Attributes, Kernel, Seen},
};
use tonic::Code;

use crate::rig::{
    GIB, NODE, Rig, STAGING, TARGET, block, check, create, from_volume, hide_at, mount, mount_with, publish,
    publish_at, stage, unpublish_from, unstage_at,
};

const WRITER: Mode = Mode::SingleNodeMultiWriter;

fn unstage(id: &str) -> NodeUnstageVolumeRequest {
    unstage_at(id, STAGING)
}

fn seen(rig: &Rig, path: &str) -> Seen {
    rig.kernel.look(&rig.kernel.locate(path).unwrap()).unwrap()
}

fn attributes(rig: &Rig, path: &str) -> Attributes {
    match seen(rig, path) {
        Seen::Mount(mount) => mount.attributes,
        other => panic!("{path}: {other:?}"),
    }
}

fn devices(rig: &Rig, id: &str) -> usize {
    rig.kernel.devices(Some(id.parse::<VolumeId>().unwrap().uuid)).len()
}

#[tokio::test]
async fn there_and_back_each_step_twice() {
    for capability in [mount(WRITER), block(WRITER)] {
        let mut rig = Rig::new().await;
        let id = rig.published("a", capability.clone()).await;
        for _ in 0..2 {
            check(rig.node.node_stage_volume(stage(&id, capability.clone())).await, Code::Ok);
        }
        for _ in 0..2 {
            check(rig.node.node_publish_volume(publish_at(&id, TARGET, capability.clone())).await, Code::Ok);
        }
        assert_eq!(devices(&rig, &id), 1);
        assert!(matches!(seen(&rig, TARGET), Seen::Mount(_)));
        // A new process knows all of it from the kernel.
        let mut rig = rig.restart().await;
        check(rig.node.node_publish_volume(publish_at(&id, TARGET, capability.clone())).await, Code::Ok);
        check(rig.node.node_stage_volume(stage(&id, capability)).await, Code::Ok);
        let busy = check(rig.node.node_unstage_volume(unstage(&id)).await, Code::FailedPrecondition);
        assert!(busy.contains(TARGET), "{busy}");
        for _ in 0..2 {
            check(rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await, Code::Ok);
        }
        assert_eq!(seen(&rig, TARGET), Seen::Missing, "the target is removed");
        for _ in 0..2 {
            check(rig.node.node_unstage_volume(unstage(&id)).await, Code::Ok);
        }
        assert_eq!(devices(&rig, &id), 0);
        check(rig.controller.controller_unpublish_volume(unpublish_from(&id, NODE)).await, Code::Ok);
    }
}

#[tokio::test]
async fn mounts_carry_what_they_must() {
    let mut rig = Rig::new().await;
    let capability = mount_with(WRITER, "xfs", &["noatime", "discard", "context=\"a:b:c:s0:c1,c2\""]);
    let id = rig.staged("a", capability.clone()).await;
    let wanted = rig.kernel.mounted().pop().unwrap();
    let options = [("discard", None), ("context", Some("a:b:c:s0:c1,c2")), ("nouuid", None)];
    let options: Vec<_> = options.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))).into();
    assert_eq!(wanted.options, options, "each option by itself, quotes off, commas kept");
    let base = Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOATIME);
    assert_eq!(attributes(&rig, STAGING), base.and(Attributes::NOSYMFOLLOW));
    rig.node.node_publish_volume(publish_at(&id, TARGET, capability)).await.unwrap();
    assert_eq!(attributes(&rig, TARGET), base, "links work for the workload");
}

#[tokio::test]
async fn wrong_arguments_of_stage() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(WRITER)).await;
    let base = || stage(&id, mount(WRITER));
    for wrong in [
        NodeStageVolumeRequest { volume_id: String::new(), ..base() },
        NodeStageVolumeRequest { staging_target_path: String::new(), ..base() },
        NodeStageVolumeRequest { volume_capability: None, ..base() },
        NodeStageVolumeRequest { volume_capability: Some(VolumeCapability::default()), ..base() },
        NodeStageVolumeRequest { staging_target_path: "/etc".into(), ..base() },
        NodeStageVolumeRequest { staging_target_path: "/t/../etc".into(), ..base() },
        NodeStageVolumeRequest { staging_target_path: "relative".into(), ..base() },
        stage(&id, mount_with(WRITER, "ext4", &["dev"])),
        stage(&id, mount_with(WRITER, "ext4", &["noatime,suid"])),
    ] {
        check(rig.node.node_stage_volume(wrong).await, Code::InvalidArgument);
    }
    check(rig.node.node_stage_volume(stage("x", mount(WRITER))).await, Code::NotFound);
    let gone = stage(&format!("{}0", &id[..id.len() - 1]), mount(WRITER));
    if gone.volume_id != id {
        check(rig.node.node_stage_volume(gone).await, Code::NotFound);
    }
    check(rig.node.node_stage_volume(stage(&id, block(WRITER))).await, Code::FailedPrecondition);
    check(
        rig.node.node_stage_volume(stage(&id, mount_with(WRITER, "xfs", &[]))).await,
        Code::FailedPrecondition,
    );
    assert_eq!(devices(&rig, &id), 0, "nothing was left by a refusal");
    let unpublished = rig.create(create("b")).await.unwrap().volume_id;
    let said =
        check(rig.node.node_stage_volume(stage(&unpublished, mount(WRITER))).await, Code::FailedPrecondition);
    assert!(said.contains("not published"), "{said}");
}

#[tokio::test]
async fn staged_otherwise_is_a_clash() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount_with(WRITER, "ext4", &["discard"])).await;
    for other in [mount(WRITER), mount_with(WRITER, "ext4", &["discard", "noatime"])] {
        check(rig.node.node_stage_volume(stage(&id, other)).await, Code::AlreadyExists);
    }
    let elsewhere = NodeStageVolumeRequest {
        staging_target_path: "/t/second".into(),
        ..stage(&id, mount_with(WRITER, "ext4", &["discard"]))
    };
    check(rig.node.node_stage_volume(elsewhere.clone()).await, Code::Ok);
    let differently = NodeStageVolumeRequest { volume_capability: Some(mount(WRITER)), ..elsewhere.clone() };
    check(rig.node.node_stage_volume(differently).await, Code::AlreadyExists);
    check(rig.node.node_unstage_volume(unstage(&id)).await, Code::Ok);
    assert_eq!(devices(&rig, &id), 1, "the second stage keeps the device");
    let second =
        NodeUnstageVolumeRequest { staging_target_path: elsewhere.staging_target_path, ..unstage(&id) };
    check(rig.node.node_unstage_volume(second).await, Code::Ok);
    assert_eq!(devices(&rig, &id), 0);
}

#[tokio::test]
async fn one_path_one_volume() {
    let mut rig = Rig::new().await;
    let a = rig.staged("a", mount(WRITER)).await;
    let b = rig.published("b", mount(WRITER)).await;
    check(rig.node.node_stage_volume(stage(&b, mount(WRITER))).await, Code::FailedPrecondition);
    assert_eq!(devices(&rig, &b), 0);
    rig.node.node_publish_volume(publish_at(&a, TARGET, mount(WRITER))).await.unwrap();
    // Another volume is not published there: nothing to do, and nothing of the first is touched.
    check(rig.node.node_unpublish_volume(hide_at(&b, TARGET)).await, Code::Ok);
    check(rig.node.node_unstage_volume(unstage(&b)).await, Code::Ok);
    assert!(matches!(seen(&rig, TARGET), Seen::Mount(_)) && matches!(seen(&rig, STAGING), Seen::Mount(_)));
}

#[tokio::test]
async fn the_table_of_second_publishes() {
    let second = "/t/pods/second";
    for (mode, expected) in [
        (Mode::SingleNodeMultiWriter, Code::Ok),
        (Mode::SingleNodeSingleWriter, Code::FailedPrecondition),
        (Mode::SingleNodeWriter, Code::Ok),
        (Mode::SingleNodeReaderOnly, Code::Ok),
        (Mode::MultiNodeReaderOnly, Code::Ok),
    ] {
        for capability in [mount(mode), block(mode)] {
            let mut rig = Rig::new().await;
            let id = rig.staged("a", capability.clone()).await;
            let first = publish_at(&id, TARGET, capability.clone());
            check(rig.node.node_publish_volume(first.clone()).await, Code::Ok);
            check(rig.node.node_publish_volume(publish_at(&id, second, capability.clone())).await, expected);
            check(rig.node.node_publish_volume(first).await, Code::Ok);
            for target in [second, TARGET] {
                check(rig.node.node_unpublish_volume(hide_at(&id, target)).await, Code::Ok);
            }
            check(rig.node.node_publish_volume(publish_at(&id, second, capability)).await, Code::Ok);
        }
    }
}

#[tokio::test]
async fn wrong_arguments_of_publish() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    let base = || publish_at(&id, TARGET, mount(WRITER));
    for (wrong, expected) in [
        (NodePublishVolumeRequest { volume_id: String::new(), ..base() }, Code::InvalidArgument),
        (NodePublishVolumeRequest { target_path: String::new(), ..base() }, Code::InvalidArgument),
        (NodePublishVolumeRequest { target_path: "/etc/x".into(), ..base() }, Code::InvalidArgument),
        (NodePublishVolumeRequest { volume_capability: None, ..base() }, Code::InvalidArgument),
        (NodePublishVolumeRequest { staging_target_path: String::new(), ..base() }, Code::FailedPrecondition),
        (
            NodePublishVolumeRequest { staging_target_path: "/t/pods".into(), ..base() },
            Code::FailedPrecondition,
        ),
        (NodePublishVolumeRequest { volume_id: "x".into(), ..base() }, Code::NotFound),
        (publish_at(&id, TARGET, block(WRITER)), Code::FailedPrecondition),
    ] {
        check(rig.node.node_publish_volume(wrong).await, expected);
    }
    assert_eq!(seen(&rig, TARGET), Seen::Missing, "nothing was left by a refusal");
    check(rig.node.node_publish_volume(base()).await, Code::Ok);
    for clash in [
        NodePublishVolumeRequest { readonly: true, ..base() },
        publish_at(&id, TARGET, mount_with(WRITER, "", &["noexec"])),
    ] {
        check(rig.node.node_publish_volume(clash).await, Code::AlreadyExists);
    }
}

#[tokio::test]
async fn read_only_is_kept_at_every_level() {
    // Asked for at the publish.
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    let request = NodePublishVolumeRequest { readonly: true, ..publish_at(&id, TARGET, mount(WRITER)) };
    for _ in 0..2 {
        check(rig.node.node_publish_volume(request.clone()).await, Code::Ok);
    }
    assert!(attributes(&rig, TARGET).contains(Attributes::READ_ONLY));
    assert!(!attributes(&rig, STAGING).contains(Attributes::READ_ONLY));
    // Granted read-only by the controller: the filesystem itself is read-only, whatever the node is told.
    let id = rig.create(create("b")).await.unwrap().volume_id;
    let grant = ControllerPublishVolumeRequest { readonly: true, ..publish(&id) };
    rig.controller.controller_publish_volume(grant).await.unwrap();
    let path = "/t/second";
    let staged = NodeStageVolumeRequest {
        staging_target_path: path.into(),
        ..stage(&id, mount(Mode::SingleNodeWriter))
    };
    rig.node.node_stage_volume(staged).await.unwrap();
    assert!(rig.kernel.mounted().pop().unwrap().read_only);
    let shown = NodePublishVolumeRequest {
        staging_target_path: path.into(),
        ..publish_at(&id, "/t/pods/b", mount(Mode::SingleNodeWriter))
    };
    for _ in 0..2 {
        check(rig.node.node_publish_volume(shown.clone()).await, Code::Ok);
    }
    assert!(attributes(&rig, "/t/pods/b").contains(Attributes::READ_ONLY));
    // A raw device: a second one that refuses writes, and goes with its last publish.
    let id = rig.published("c", block(WRITER)).await;
    rig.node
        .node_stage_volume(NodeStageVolumeRequest {
            staging_target_path: "/t/third".into(),
            ..stage(&id, block(WRITER))
        })
        .await
        .unwrap();
    let shown = NodePublishVolumeRequest { readonly: true, ..publish_at(&id, "/t/pods/c", block(WRITER)) };
    check(rig.node.node_publish_volume(shown.clone()).await, Code::Ok);
    let writable = NodePublishVolumeRequest { readonly: false, ..shown.clone() };
    check(rig.node.node_publish_volume(writable.clone()).await, Code::AlreadyExists);
    let Seen::Mount(face) = seen(&rig, "/t/pods/c") else { panic!("not published") };
    let faces = rig.kernel.devices(None);
    assert!(faces.iter().any(|(device, _)| device.number == face.device && device.read_only));
    check(rig.node.node_unpublish_volume(hide_at(&id, "/t/pods/c")).await, Code::Ok);
    assert_eq!(devices(&rig, &id), 1, "the read-only face is gone, the stage is not");
    check(rig.node.node_publish_volume(writable).await, Code::Ok);
}

#[tokio::test]
async fn a_failed_publish_is_tried_again() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(WRITER)).await;
    rig.kernel.fail_next("mount", io::ErrorKind::Other);
    check(rig.node.node_stage_volume(stage(&id, mount(WRITER))).await, Code::Internal);
    assert_eq!(devices(&rig, &id), 0, "the device went with the failed mount");
    check(rig.node.node_stage_volume(stage(&id, mount(WRITER))).await, Code::Ok);
    rig.kernel.fail_next("bind", io::ErrorKind::Other);
    check(rig.node.node_publish_volume(publish_at(&id, TARGET, mount(WRITER))).await, Code::Internal);
    check(rig.node.node_publish_volume(publish_at(&id, TARGET, mount(WRITER))).await, Code::Ok);
    rig.kernel.fail_next("unmount", io::ErrorKind::ResourceBusy);
    check(rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await, Code::Internal);
    check(rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await, Code::Ok);
}

#[tokio::test]
async fn data_under_an_unmounted_target_is_never_removed() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    rig.kernel.make_directory(TARGET);
    rig.kernel.make_directory("/t/pods/target/precious");
    check(rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await, Code::FailedPrecondition);
    assert_eq!(seen(&rig, "/t/pods/target/precious"), Seen::Directory);
}

#[tokio::test]
async fn an_orchestrator_that_never_unstages() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    rig.node.node_publish_volume(publish_at(&id, TARGET, mount(WRITER))).await.unwrap();
    let said = check(
        rig.controller.controller_unpublish_volume(unpublish_from(&id, NODE)).await,
        Code::FailedPrecondition,
    );
    assert!(said.contains(TARGET), "the one who holds it is named: {said}");
    assert!(matches!(seen(&rig, STAGING), Seen::Mount(_)), "a refusal changes nothing");
    rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await.unwrap();
    check(rig.controller.controller_unpublish_volume(unpublish_from(&id, NODE)).await, Code::Ok);
    assert_eq!((devices(&rig, &id), seen(&rig, STAGING)), (0, Seen::Directory), "unused, it was unstaged");
}

#[tokio::test]
async fn a_filesystem_that_has_shut_down_is_only_taken_away() {
    let mut rig = Rig::new().await;
    let how = mount(WRITER);
    let id = rig.staged("a", how.clone()).await;
    check(rig.node.node_publish_volume(publish_at(&id, TARGET, how.clone())).await, Code::Ok);
    rig.kernel.shut_down();
    for path in ["/t/pods/other", TARGET] {
        check(rig.node.node_publish_volume(publish_at(&id, path, how.clone())).await, Code::Unavailable);
    }
    check(rig.node.node_stage_volume(stage(&id, how.clone())).await, Code::Unavailable);
    check(rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await, Code::Ok);
    check(rig.node.node_unstage_volume(unstage(&id)).await, Code::Ok);
    assert_eq!(devices(&rig, &id), 0);
    check(rig.node.node_stage_volume(stage(&id, how)).await, Code::Ok);
}

#[tokio::test]
async fn a_reboot_loses_nothing() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    rig.node.node_publish_volume(publish_at(&id, TARGET, mount(WRITER))).await.unwrap();
    rig.kernel.reboot();
    let mut rig = rig.restart().await;
    check(rig.node.node_unpublish_volume(hide_at(&id, TARGET)).await, Code::Ok);
    check(rig.node.node_unstage_volume(unstage(&id)).await, Code::Ok);
    check(rig.node.node_stage_volume(stage(&id, mount(WRITER))).await, Code::Ok);
    check(rig.node.node_publish_volume(publish_at(&id, TARGET, mount(WRITER))).await, Code::Ok);
}

#[tokio::test]
async fn growth_on_the_node() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    let expand = |id: &str, path: &str| NodeExpandVolumeRequest {
        volume_id: id.into(),
        volume_path: path.into(),
        ..NodeExpandVolumeRequest::default()
    };
    check(rig.node.node_expand_volume(expand("", STAGING)).await, Code::InvalidArgument);
    check(rig.node.node_expand_volume(expand(&id, "")).await, Code::InvalidArgument);
    check(rig.node.node_expand_volume(expand("x", "some/path")).await, Code::NotFound);
    check(rig.node.node_expand_volume(expand(&id, "some/path")).await, Code::NotFound);
    check(rig.node.node_expand_volume(expand(&id, "/t/pods")).await, Code::NotFound);
    let grow = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    rig.controller.controller_expand_volume(grow).await.unwrap();
    let size = |rig: &Rig| rig.kernel.devices(None)[0].1.filesystem_size.signed();
    assert_eq!(size(&rig), GIB);
    for _ in 0..2 {
        let answer = rig.node.node_expand_volume(expand(&id, STAGING)).await.unwrap().into_inner();
        assert_eq!((answer.capacity_bytes, size(&rig)), (2 * GIB, 2 * GIB));
    }
}

#[tokio::test]
async fn a_larger_clone_is_grown_when_it_is_staged() {
    let mut rig = Rig::new().await;
    let source = rig.create(create("a")).await.unwrap().volume_id;
    let request = CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes: 3 * GIB, limit_bytes: 0 }),
        volume_content_source: from_volume(&source),
        ..create("b")
    };
    let id = rig.create(request).await.unwrap().volume_id;
    rig.controller.controller_publish_volume(publish(&id)).await.unwrap();
    rig.kernel.fail_next("grow", io::ErrorKind::Other);
    let request = stage(&id, mount(Mode::SingleNodeWriter));
    check(rig.node.node_stage_volume(request.clone()).await, Code::Internal);
    check(rig.node.node_stage_volume(request).await, Code::Ok);
    let (_, device) = rig.kernel.devices(None).pop().unwrap();
    assert_eq!(
        device.filesystem_size.signed(),
        3 * GIB,
        "a retry does not take the small filesystem for done"
    );
}

#[tokio::test]
async fn a_kernel_that_does_not_grow_ext4_is_named() {
    let kernel = lagan::sys::fake::FakeKernel::new(&["/t"]).without_ext4_growth();
    let mut rig = Rig::over(lagan::pool::fake::FakeDisk::new(lagan::bytes::Bytes::gib(9)), kernel).await;
    let id = rig.staged("a", mount(WRITER)).await;
    let grow = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    rig.controller.controller_expand_volume(grow).await.unwrap();
    let request = NodeExpandVolumeRequest {
        volume_id: id,
        volume_path: STAGING.into(),
        ..NodeExpandVolumeRequest::default()
    };
    check(rig.node.node_expand_volume(request).await, Code::FailedPrecondition);
}

#[tokio::test]
async fn stats_and_health() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    let stats = |id: &str, path: &str| NodeGetVolumeStatsRequest {
        volume_id: id.into(),
        volume_path: path.into(),
        ..NodeGetVolumeStatsRequest::default()
    };
    check(rig.node.node_get_volume_stats(stats("", STAGING)).await, Code::InvalidArgument);
    check(rig.node.node_get_volume_stats(stats(&id, "")).await, Code::InvalidArgument);
    for (id, path) in [("x", STAGING), (id.as_str(), "some/path"), (id.as_str(), "/t/pods")] {
        check(rig.node.node_get_volume_stats(stats(id, path)).await, Code::NotFound);
    }
    let usage = rig.node.node_get_volume_stats(stats(&id, STAGING)).await.unwrap().into_inner().usage;
    assert_eq!((usage.len(), usage[0].total), (2, GIB));
    let raw = rig.published("raw", block(WRITER)).await;
    let path = "/t/raw";
    let request = NodeStageVolumeRequest { staging_target_path: path.into(), ..stage(&raw, block(WRITER)) };
    rig.node.node_stage_volume(request).await.unwrap();
    let shown = NodePublishVolumeRequest {
        staging_target_path: path.into(),
        ..publish_at(&raw, TARGET, block(WRITER))
    };
    rig.node.node_publish_volume(shown).await.unwrap();
    let usage = rig.node.node_get_volume_stats(stats(&raw, TARGET)).await.unwrap().into_inner().usage;
    assert_eq!((usage.len(), usage[0].total), (1, GIB));
    let health = |id: &str| NodeGetVolumeHealthRequest {
        volume_id: id.into(),
        ..NodeGetVolumeHealthRequest::default()
    };
    check(rig.node.node_get_volume_health(health("")).await, Code::InvalidArgument);
    check(rig.node.node_get_volume_health(health("x")).await, Code::NotFound);
    let well =
        rig.node.node_get_volume_health(health(&id)).await.unwrap().into_inner().volume_health.unwrap();
    assert_eq!((well.volume_id, well.health_statuses.len()), (id.clone(), 0));
    let wrong = NodeGetVolumeHealthRequest { volume_publish_path: TARGET.into(), ..health(&id) };
    let sick = rig.node.node_get_volume_health(wrong).await.unwrap().into_inner().volume_health.unwrap();
    assert_eq!(sick.health_statuses[0].reason, "WrongDeviceMounted");
    let storage = rig.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
    assert!(storage.into_inner().backend_health.is_empty());
}

#[tokio::test]
async fn who_we_are() {
    let mut rig = Rig::new().await;
    let info = rig.node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), (NODE, 3));
    let segments = info.accessible_topology.unwrap().segments;
    assert_eq!(segments, [("lagan.csi/host".to_owned(), NODE.to_owned())].into());
    let offered = rig.node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    assert_eq!(offered.capabilities.len(), 6);
    let plugin = rig.identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(plugin.into_inner().capabilities.len(), 5);
}
