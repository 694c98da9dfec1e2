//! Rules that orchestrators rely on, and that no other test asks for.

use std::collections::BTreeSet;

use lagan::proto::{
    ControllerGetCapabilitiesRequest, ControllerGetVolumeHealthRequest, ControllerGetVolumeRequest,
    ControllerListVolumeHealthRequest, ControllerModifyVolumeRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, GetCapacityRequest, ListSnapshotsRequest, ListVolumesRequest,
    NodeGetCapabilitiesRequest, NodeGetVolumeHealthRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    ProbeRequest, ValidateVolumeCapabilitiesRequest, controller_service_capability, node_service_capability,
    volume_capability::access_mode::Mode,
};
use lagan::{error::ErrorKind, pool::fake::Fault};
use tonic::Code;

use crate::rig::{
    NODE, Rig, STAGING, TARGET, block, check, create, delete, from_snapshot, hide_at, mount, mount_with,
    publish, publish_at, publish_with, stage, stage_at, unpublish_from, unstage_at,
};

const WRITER: Mode = Mode::SingleNodeMultiWriter;

#[tokio::test]
async fn exactly_these_capabilities() {
    use controller_service_capability::{Type, rpc::Type as Rpc};

    let mut rig = Rig::new().await;
    let answer = rig.controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await;
    let offered: BTreeSet<_> = answer
        .unwrap()
        .into_inner()
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type.unwrap() {
            Type::Rpc(rpc) => rpc.r#type().as_str_name(),
        })
        .collect();
    let expected = [
        Rpc::CreateDeleteVolume,
        Rpc::PublishUnpublishVolume,
        Rpc::ListVolumes,
        Rpc::GetCapacity,
        Rpc::CreateDeleteSnapshot,
        Rpc::ListSnapshots,
        Rpc::CloneVolume,
        Rpc::PublishReadonly,
        Rpc::ExpandVolume,
        Rpc::ListVolumesPublishedNodes,
        Rpc::GetVolume,
        Rpc::SingleNodeMultiWriter,
        Rpc::GetSnapshot,
        Rpc::GetVolumeHealth,
        Rpc::ListVolumeHealth,
    ];
    assert_eq!(offered, expected.iter().map(Rpc::as_str_name).collect());

    let answer = rig.node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    let offered: BTreeSet<_> = answer
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type.unwrap() {
            node_service_capability::Type::Rpc(rpc) => rpc.r#type().as_str_name(),
        })
        .collect();
    let expected = [
        "STAGE_UNSTAGE_VOLUME",
        "GET_VOLUME_STATS",
        "EXPAND_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
        "GET_VOLUME_HEALTH",
        "GET_STORAGE_HEALTH",
    ];
    assert_eq!(offered, expected.into());
}

#[tokio::test]
async fn what_is_not_offered_says_so() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let request = ControllerModifyVolumeRequest { volume_id: id, ..ControllerModifyVolumeRequest::default() };
    check(rig.controller.controller_modify_volume(request).await, Code::Unimplemented);
}

/// Keys of the context that others have added mean nothing here, and may change from call to call.
#[tokio::test]
async fn foreign_keys_of_the_volume_context() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(WRITER)).await;
    for identity in ["one", "another"] {
        let volume_context = [
            ("storage.kubernetes.io/csiProvisionerIdentity".to_owned(), identity.to_owned()),
            ("csi.storage.k8s.io/pod.name".to_owned(), "pod".to_owned()),
        ];
        let request = NodeStageVolumeRequest {
            volume_context: volume_context.clone().into(),
            ..stage(&id, mount(WRITER))
        };
        check(rig.node.node_stage_volume(request).await, Code::Ok);
        let request = NodePublishVolumeRequest {
            volume_context: volume_context.into(),
            ..publish_at(&id, TARGET, mount(WRITER))
        };
        check(rig.node.node_publish_volume(request).await, Code::Ok);
    }
}

/// Docker Swarm publishes every volume as a mount, raw ones too.
#[tokio::test]
async fn a_controller_publish_is_not_strict_on_the_type() {
    let mut rig = Rig::new().await;
    let request = CreateVolumeRequest { volume_capabilities: vec![block(WRITER)], ..create("raw") };
    let id = rig.create(request).await.unwrap().volume_id;
    check(rig.controller.controller_publish_volume(publish_with(&id, &mount(WRITER))).await, Code::Ok);
    check(rig.node.node_stage_volume(stage(&id, block(WRITER))).await, Code::Ok);
}

#[tokio::test]
async fn writers_on_several_nodes_are_refused_at_every_step() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let many = mount(Mode::MultiNodeMultiWriter);
    let request = publish_with(&id, &many);
    check(rig.controller.controller_publish_volume(request).await, Code::FailedPrecondition);
    check(rig.controller.controller_publish_volume(publish(&id)).await, Code::Ok);
    check(rig.node.node_stage_volume(stage(&id, many)).await, Code::FailedPrecondition);
}

/// The owner said who may write; no later call makes more of it.
#[tokio::test]
async fn a_grant_to_read_stays_one() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let reader = mount(Mode::MultiNodeReaderOnly);
    rig.controller.controller_publish_volume(publish_with(&id, &reader)).await.unwrap();
    rig.node.node_stage_volume(stage(&id, mount(WRITER))).await.unwrap();
    assert!(rig.kernel.mounted()[0].read_only);
    // It was asked for so: that is no illness.
    rig.node.node_publish_volume(publish_at(&id, TARGET, reader)).await.unwrap();
    let request = NodeGetVolumeHealthRequest {
        volume_id: id,
        volume_publish_path: TARGET.into(),
        staging_target_path: STAGING.into(),
    };
    let health = rig.node.node_get_volume_health(request).await.unwrap().into_inner();
    assert!(health.volume_health.is_none_or(|health| health.health_statuses.is_empty()));
}

#[tokio::test]
async fn lists_say_where_volumes_are_published() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(WRITER)).await;
    for restart in [false, true] {
        if restart {
            rig = rig.restart().await;
        }
        let listed = rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        assert_eq!(listed.entries[0].status.as_ref().unwrap().published_node_ids, [NODE]);
    }
    rig.controller.controller_unpublish_volume(unpublish_from(&id, NODE)).await.unwrap();
    let listed = rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert!(listed.entries[0].status.as_ref().unwrap().published_node_ids.is_empty());
}

#[tokio::test]
async fn health_of_volumes() {
    let mut rig = Rig::new().await;
    rig.create(create("a")).await.unwrap();
    let list = |token: &str, max_entries| ControllerListVolumeHealthRequest {
        starting_token: token.into(),
        max_entries,
        ..ControllerListVolumeHealthRequest::default()
    };
    let all = rig.controller.controller_list_volume_health(list("", 0)).await.unwrap().into_inner();
    assert!(all.entries.is_empty(), "healthy ones are left out");
    check(rig.controller.controller_list_volume_health(list("nonsense", 0)).await, Code::Aborted);
    check(rig.controller.controller_list_volume_health(list("", -1)).await, Code::InvalidArgument);
    let of = |id: &str| ControllerGetVolumeHealthRequest {
        volume_id: id.into(),
        ..ControllerGetVolumeHealthRequest::default()
    };
    check(rig.controller.controller_get_volume_health(of("")).await, Code::InvalidArgument);
    check(rig.controller.controller_get_volume_health(of("nobody's")).await, Code::NotFound);
}

#[tokio::test]
async fn what_is_gone_is_removed_with_success() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let gone = format!("{}{}", &id[..35], "0".repeat(32));
    for id in ["garbage", "../../etc", &gone] {
        check(rig.controller.controller_unpublish_volume(unpublish_from(id, NODE)).await, Code::Ok);
        check(rig.node.node_unpublish_volume(hide_at(id, TARGET)).await, Code::Ok);
        check(rig.node.node_unstage_volume(unstage_at(id, STAGING)).await, Code::Ok);
        check(rig.controller.delete_volume(delete(id)).await, Code::Ok);
    }
}

/// Kubelets stage block volumes at paths with a hash of 64 digits and a volume's whole name.
#[tokio::test]
async fn long_paths_are_ordinary() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(WRITER)).await;
    rig.kernel.make_directory("/t/plugins");
    let directory = format!("/t/plugins/{}", "5".repeat(100));
    rig.kernel.make_directory(&directory);
    let path = format!("{directory}/{}", "f".repeat(64));
    check(rig.node.node_stage_volume(stage_at(&id, &path, &mount(WRITER))).await, Code::Ok);
}

#[tokio::test]
async fn limits_of_names_and_counts() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let mut request = publish(&id);
    request.node_id = "n".repeat(200);
    check(rig.controller.controller_publish_volume(request).await, Code::NotFound);
    let request = ListSnapshotsRequest { max_entries: -1, ..ListSnapshotsRequest::default() };
    check(rig.controller.list_snapshots(request).await, Code::InvalidArgument);
    let mut request = crate::rig::snapshot_of(&id, "s");
    request.parameters = [("csi.storage.k8s.io/volumesnapshot/name".to_owned(), "s".to_owned())].into();
    check(rig.controller.create_snapshot(request.clone()).await, Code::Ok);
    request.name = "t".into();
    request.parameters = [("csi.storage.k8s.io/x".to_owned(), "v".repeat(5000))].into();
    check(rig.controller.create_snapshot(request).await, Code::InvalidArgument);
}

/// Being asked what is supported is answered, whatever it is; only half a question is an error.
#[tokio::test]
async fn validation_answers_no_rather_than_failing() {
    let mut rig = Rig::new().await;
    let with = |key: &str, value: &str| -> CreateVolumeRequest {
        CreateVolumeRequest { parameters: [(key.into(), value.into())].into(), ..create("xfs") }
    };
    let id = rig.create(with("fstype", "xfs")).await.unwrap().volume_id;
    let ask = |capability| ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![capability],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let plain = ask(mount(WRITER));
    let no = [
        ask(mount_with(WRITER, "ntfs", &[])),
        ask(mount_with(WRITER, "ext4", &[])),
        ask(mount_with(WRITER, "", &["data=journal"])),
        ask(block(WRITER)),
        ask(mount(Mode::MultiNodeMultiWriter)),
        ValidateVolumeCapabilitiesRequest {
            mutable_parameters: [("iops".into(), "5".into())].into(),
            ..plain.clone()
        },
        ValidateVolumeCapabilitiesRequest {
            parameters: [("surprise".into(), "5".into())].into(),
            ..plain.clone()
        },
        ValidateVolumeCapabilitiesRequest {
            parameters: [("fstype".into(), "xfs".into()), ("pool".into(), "p".into())].into(),
            ..plain.clone()
        },
    ];
    for request in no {
        let answer = rig.controller.validate_volume_capabilities(request).await.unwrap().into_inner();
        assert!(answer.confirmed.is_none() && !answer.message.is_empty(), "{}", answer.message);
    }
    let yes = [
        ask(mount_with(WRITER, "", &["inode64"])),
        ValidateVolumeCapabilitiesRequest { parameters: [("fstype".into(), "xfs".into())].into(), ..plain },
    ];
    for request in yes {
        let answer = rig.controller.validate_volume_capabilities(request).await.unwrap().into_inner();
        assert!(answer.confirmed.is_some(), "{}", answer.message);
    }
    // A restore of it takes the flags of what it holds.
    let snapshot = rig.snapshot("s", &id).await.unwrap().snapshot_id;
    let request = CreateVolumeRequest {
        volume_content_source: from_snapshot(&snapshot),
        volume_capabilities: vec![mount_with(WRITER, "", &["inode64"])],
        ..create("restored")
    };
    rig.create(request).await.unwrap();
}

#[tokio::test]
async fn another_host_may_have_the_pool() {
    let mut rig = Rig::new().await;
    let parameters = [("pool".to_owned(), "elsewhere".to_owned())].into();
    let request = GetCapacityRequest { parameters, ..GetCapacityRequest::default() };
    assert_eq!(rig.controller.get_capacity(request).await.unwrap().into_inner().available_capacity, 0);
}

/// A liveness probe that fails starts the driver anew: right where only that helps.
#[tokio::test]
async fn the_probe_fails_where_a_restart_helps() {
    let mut rig = Rig::new().await;
    check(rig.identity.probe(ProbeRequest {}).await, Code::Ok);
    rig.disk.set_fault("capacity", Some(Fault::Fail(ErrorKind::Unavailable)));
    check(rig.identity.probe(ProbeRequest {}).await, Code::Ok);
    rig.disk.set_fault("is_broken", Some(Fault::Fail(ErrorKind::Unavailable)));
    check(rig.identity.probe(ProbeRequest {}).await, Code::FailedPrecondition);
}

/// Unreadable is not gone, and a name that may be its own is not free.
#[tokio::test]
async fn a_damaged_record_after_a_restart() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(WRITER)).await;
    let parsed = id.parse().unwrap();
    rig.disk.damage(parsed);
    let mut rig = rig.restart().await;
    let get = ControllerGetVolumeRequest { volume_id: id.clone() };
    check(rig.controller.controller_get_volume(get).await, Code::Unavailable);
    check(rig.controller.controller_publish_volume(publish(&id)).await, Code::Unavailable);
    check(rig.controller.controller_unpublish_volume(unpublish_from(&id, NODE)).await, Code::Unavailable);
    let said = check(rig.controller.create_volume(create("a")).await, Code::Unavailable);
    assert!(said.contains("doctor --check"), "{said}");
    // Once the operator has moved it away, there is no doubt any more.
    rig.disk.take_away(parsed);
    check(rig.controller.create_volume(create("a")).await, Code::Ok);
}

/// What ended half-way is finished by the same call again.
#[tokio::test]
async fn a_stage_that_was_not_grown_is_grown_by_its_retry() {
    let mut rig = Rig::new().await;
    let id = rig.staged("a", mount(WRITER)).await;
    rig.kernel.fail_next("grow", std::io::ErrorKind::Other);
    check(rig.node.node_stage_volume(stage(&id, mount(WRITER))).await, Code::Internal);
    check(rig.node.node_stage_volume(stage(&id, mount(WRITER))).await, Code::Ok);
}

#[tokio::test]
async fn snapshots_that_are_gone() {
    let mut rig = Rig::new().await;
    let gone = DeleteSnapshotRequest { snapshot_id: "garbage".into(), ..DeleteSnapshotRequest::default() };
    check(rig.controller.delete_snapshot(gone).await, Code::Ok);
}
