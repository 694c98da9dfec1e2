//! Volumes: created, found again, listed, measured, grown, published, deleted.

use lagan::{
    error::ErrorKind,
    pool::fake::Fault,
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest,
        ControllerPublishVolumeRequest, CreateVolumeRequest, DeleteSnapshotRequest, GetCapacityRequest,
        ListVolumesRequest, Topology, TopologyRequirement, ValidateVolumeCapabilitiesRequest, Volume,
        VolumeCapability, VolumeContentSource,
        volume_capability::{AccessMode, access_mode::Mode},
    },
};
use tonic::Code;

use crate::rig::{
    FORGOTTEN, GIB, LOST, NODE, Rig, STAGING, TARGET, block, check, create, delete, from_snapshot,
    from_volume, group_of, hide_at, mount, mount_with, publish, snapshot_of, stage, unpublish_from,
    unstage_at,
};

fn sized(name: &str, required_bytes: i64, limit_bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..create(name)
    }
}

fn with_parameter(name: &str, key: &str, value: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { parameters: [(key.into(), value.into())].into(), ..create(name) }
}

fn with_capabilities(name: &str, capabilities: &[VolumeCapability]) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_capabilities: capabilities.to_vec(), ..create(name) }
}

async fn ids(rig: &mut Rig) -> Vec<String> {
    let page = rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect()
}

#[tokio::test]
async fn the_same_request_gives_the_same_volume() {
    let mut rig = Rig::new().await;
    let request = with_parameter("a", "fstype", "xfs");
    let first = rig.create(request.clone()).await.unwrap();
    assert_eq!(rig.create(request.clone()).await.unwrap(), first);
    let grow = ControllerExpandVolumeRequest {
        volume_id: first.volume_id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    rig.controller.controller_expand_volume(grow).await.unwrap();
    let grown = rig.create(request.clone()).await.unwrap();
    assert_eq!((grown.volume_id, grown.capacity_bytes), (first.volume_id.clone(), 2 * GIB));
    // Kubernetes adds keys of its own to a retry; a new process knows nothing but the disk.
    let mut retry = request;
    retry.parameters.insert("csi.storage.k8s.io/pvc/name".into(), "data".into());
    let mut rig = rig.restart().await;
    assert_eq!(rig.create(retry).await.unwrap().volume_id, first.volume_id);
    assert_eq!(rig.disk.calls("create_volume"), 1);
}

#[tokio::test]
async fn a_name_with_other_arguments_is_refused() {
    let mut rig = Rig::new().await;
    rig.create(create("a")).await.unwrap();
    let wide = sized("a", 2 * GIB, 0);
    let raw = with_capabilities("a", &[block(Mode::SingleNodeWriter)]);
    let xfs = with_capabilities("a", &[mount_with(Mode::SingleNodeWriter, "xfs", &[])]);
    for request in [wide, raw, xfs, with_parameter("a", "pool", "p")] {
        check(rig.controller.create_volume(request).await, Code::AlreadyExists);
    }
    check(rig.controller.create_volume(sized("a", 1, GIB)).await, Code::Ok);
    let explicit = with_capabilities("a", &[mount_with(Mode::SingleNodeSingleWriter, "ext4", &["noatime"])]);
    check(rig.controller.create_volume(explicit).await, Code::Ok);
    assert_eq!(ids(&mut rig).await.len(), 1);
}

#[tokio::test]
async fn sizes_are_kept_to_the_byte() {
    let mut rig = Rig::new().await;
    let capacity = async |rig: &mut Rig, request| rig.create(request).await.unwrap().capacity_bytes;
    assert_eq!(capacity(&mut rig, sized("exact", GIB, GIB)).await, GIB);
    assert_eq!(capacity(&mut rig, sized("rounded", GIB + 1, 0)).await, GIB + 4096);
    assert_eq!(capacity(&mut rig, sized("limit", 0, 20 << 20)).await, 20 << 20);
    let open = CreateVolumeRequest { capacity_range: None, ..create("open") };
    assert_eq!(capacity(&mut rig, open).await, GIB);
    assert_eq!(capacity(&mut rig, sized("small ext4", 1, 0)).await, 16 << 20, "what the filesystem needs");
    for (name, request) in [
        ("rounding passes the limit", sized("x", GIB + 1, GIB + 2)),
        ("smaller than the filesystem", sized("x", 1, 1 << 20)),
        ("beyond any device", sized("x", i64::MAX, 0)),
    ] {
        let said = check(rig.controller.create_volume(request).await, Code::OutOfRange);
        assert!(!said.is_empty(), "{name}");
    }
    check(rig.controller.create_volume(sized("x", 101 * GIB, 0)).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn wrong_arguments_of_create() {
    let mut rig = Rig::new().await;
    let bare = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: None,
    };
    let modeless = VolumeCapability { access_mode: None, ..mount(Mode::SingleNodeWriter) };
    let group = {
        let mut capability = mount(Mode::SingleNodeWriter);
        if let Some(lagan::proto::volume_capability::AccessType::Mount(mount)) = &mut capability.access_type {
            mount.volume_mount_group = "1000".into();
        }
        capability
    };
    let two =
        [mount_with(Mode::SingleNodeWriter, "ext4", &[]), mount_with(Mode::SingleNodeWriter, "xfs", &[])];
    let wrong = [
        create(""),
        with_capabilities("x", &[]),
        with_capabilities("x", std::slice::from_ref(&bare)),
        with_capabilities("x", &[modeless]),
        with_capabilities("x", &[mount(Mode::Unknown)]),
        with_capabilities("x", &[mount(Mode::MultiNodeMultiWriter)]),
        with_capabilities("x", &[block(Mode::MultiNodeSingleWriter)]),
        with_capabilities("x", &[mount_with(Mode::SingleNodeWriter, "ntfs", &[])]),
        with_capabilities("x", &[mount_with(Mode::SingleNodeWriter, "", &["suid"])]),
        with_capabilities("x", &[group]),
        with_capabilities("x", &two),
        sized("x", -1, 0),
        sized("x", 0, -1),
        sized("x", 2, 1),
        with_parameter("x", "surprise", "1"),
        with_parameter("x", "fstype", "ntfs"),
        with_parameter("x", "access", "network"),
        CreateVolumeRequest { mutable_parameters: [("iops".into(), "5".into())].into(), ..create("x") },
        CreateVolumeRequest {
            volume_content_source: Some(VolumeContentSource { r#type: None }),
            ..create("x")
        },
    ];
    for request in wrong {
        check(rig.controller.create_volume(request).await, Code::InvalidArgument);
    }
    // Another host may have it: the orchestrator is to look there.
    let elsewhere = with_parameter("x", "pool", "elsewhere");
    check(rig.controller.create_volume(elsewhere).await, Code::ResourceExhausted);
    assert!(ids(&mut rig).await.is_empty());
    // Docker Swarm names no access type: with a filesystem named, a mount is meant.
    let swarm =
        CreateVolumeRequest { volume_capabilities: vec![bare], ..with_parameter("s", "fstype", "xfs") };
    check(rig.controller.create_volume(swarm).await, Code::Ok);
}

#[tokio::test]
async fn sources_must_exist_and_fit() {
    let mut rig = Rig::new().await;
    let from = |name: &str, source| CreateVolumeRequest { volume_content_source: source, ..create(name) };
    let a = rig.create(sized("a", 2 * GIB, 0)).await.unwrap().volume_id;
    let gone = a.replace('.', "x");
    for source in [
        from_snapshot("nonsense"),
        from_volume("nonsense"),
        from_volume(&gone),
        from_snapshot(&a.replacen('v', "s", 1)),
    ] {
        check(rig.controller.create_volume(from("b", source)).await, Code::NotFound);
    }
    check(rig.controller.create_volume(from("b", from_volume(""))).await, Code::InvalidArgument);
    let small = CreateVolumeRequest { volume_content_source: from_volume(&a), ..sized("b", 1, GIB) };
    check(rig.controller.create_volume(small).await, Code::OutOfRange);
    let other = CreateVolumeRequest {
        volume_content_source: from_volume(&a),
        ..with_capabilities("b", &[mount_with(Mode::SingleNodeWriter, "xfs", &[])])
    };
    check(rig.controller.create_volume(other).await, Code::InvalidArgument);
    let clone = rig.create(from("b", from_volume(&a))).await.unwrap();
    assert_eq!(clone.content_source, from_volume(&a), "the source is echoed");
    assert_eq!(clone.capacity_bytes, 2 * GIB);
    check(rig.controller.create_volume(create("b")).await, Code::AlreadyExists);
    // The clone is found again after its source is gone.
    check(rig.controller.delete_volume(delete(&a)).await, Code::Ok);
    assert_eq!(rig.create(from("b", from_volume(&a))).await.unwrap().volume_id, clone.volume_id);
}

#[tokio::test]
async fn topology() {
    let mut rig = Rig::new().await;
    let at = |node: &str| Topology { segments: [("lagan.csi/host".into(), node.into())].into() };
    let needs = |node: &str| CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![at(node)],
            preferred: vec![],
        }),
        ..create("a")
    };
    check(rig.controller.create_volume(needs("n2")).await, Code::ResourceExhausted);
    let volume = rig.create(needs(NODE)).await.unwrap();
    assert_eq!(volume.accessible_topology, [at(NODE)]);
    let room = async |rig: &mut Rig, place| {
        let request =
            GetCapacityRequest { accessible_topology: Some(place), ..GetCapacityRequest::default() };
        rig.controller.get_capacity(request).await.unwrap().into_inner().available_capacity
    };
    assert_eq!(room(&mut rig, at("n2")).await, 0);
    assert!(room(&mut rig, at(NODE)).await > 0);
}

#[tokio::test]
async fn capacity_is_what_can_be_created() {
    let mut rig = Rig::new().await;
    let ask = async |rig: &mut Rig, request: GetCapacityRequest| rig.controller.get_capacity(request).await;
    let room = ask(&mut rig, GetCapacityRequest::default()).await.unwrap().into_inner();
    assert_eq!(room.available_capacity, 95 * GIB, "all but the reserve of 5 %");
    assert_eq!(room.maximum_volume_size, Some(95 * GIB));
    let mut small = sized("small", 4096, 0);
    small.volume_capabilities = vec![block(Mode::SingleNodeWriter)];
    let small = rig.create(small).await.unwrap();
    let room = ask(&mut rig, GetCapacityRequest::default()).await.unwrap().into_inner();
    let whole = 95 * GIB - (1 << 20);
    assert_eq!((room.available_capacity, room.maximum_volume_size), (whole, Some(whole)), "whole MiB");
    check(rig.controller.delete_volume(delete(&small.volume_id)).await, Code::Ok);
    rig.create(sized("a", 90 * GIB, 0)).await.unwrap();
    let room = ask(&mut rig, GetCapacityRequest::default()).await.unwrap().into_inner();
    assert_eq!(room.available_capacity, 5 * GIB);
    check(rig.controller.create_volume(sized("b", 5 * GIB + 4096, 0)).await, Code::ResourceExhausted);
    check(rig.controller.create_volume(sized("b", 5 * GIB, 0)).await, Code::Ok);
    let unsuitable = GetCapacityRequest {
        volume_capabilities: vec![block(Mode::MultiNodeMultiWriter)],
        ..GetCapacityRequest::default()
    };
    assert_eq!(ask(&mut rig, unsuitable).await.unwrap().into_inner().available_capacity, 0);
    let unknown = GetCapacityRequest {
        parameters: [("surprise".into(), "1".into())].into(),
        ..GetCapacityRequest::default()
    };
    check(ask(&mut rig, unknown).await, Code::InvalidArgument);
}

/// A pool that nobody serves may come back; one that its operator has forgotten will not.
#[tokio::test]
async fn only_a_forgotten_pool_is_gone() {
    let mut rig = Rig::new().await;
    for (pool, removed, used) in
        [(FORGOTTEN, Code::Ok, Code::NotFound), (&"0".repeat(32), Code::Unavailable, Code::Unavailable)]
    {
        let (volume, snapshot) = (format!("v.{pool}.{pool}"), format!("s.{pool}.{pool}"));
        let cut = DeleteSnapshotRequest { snapshot_id: snapshot.clone(), ..DeleteSnapshotRequest::default() };
        check(rig.controller.delete_snapshot(cut).await, removed);
        check(rig.controller.controller_unpublish_volume(unpublish_from(&volume, NODE)).await, removed);
        check(rig.controller.delete_volume(delete(&volume)).await, removed);
        check(rig.node.node_unpublish_volume(hide_at(&volume, TARGET)).await, removed);
        check(rig.node.node_unstage_volume(unstage_at(&volume, STAGING)).await, removed);
        check(rig.controller.controller_publish_volume(publish(&volume)).await, used);
        check(rig.node.node_stage_volume(stage(&volume, mount(Mode::SingleNodeWriter))).await, used);
        let copy = CreateVolumeRequest { volume_content_source: from_snapshot(&snapshot), ..create("copy") };
        check(rig.controller.create_volume(copy).await, used);
    }
}

#[tokio::test]
async fn deletes_are_idempotent_and_careful() {
    let mut rig = Rig::new().await;
    check(rig.controller.delete_volume(delete("")).await, Code::InvalidArgument);
    for garbage in ["x", "../../etc/passwd", "v.1.2", &"x".repeat(4000)] {
        check(rig.controller.delete_volume(delete(garbage)).await, Code::Ok);
    }
    let foreign = "v.00000000000000000000000000000000.00000000000000000000000000000000";
    check(rig.controller.delete_volume(delete(foreign)).await, Code::Unavailable);
    let id = rig.create(create("a")).await.unwrap().volume_id;
    rig.controller.controller_publish_volume(publish(&id)).await.unwrap();
    let said = check(rig.controller.delete_volume(delete(&id)).await, Code::FailedPrecondition);
    assert!(said.contains(NODE), "{said}");
    rig.controller.controller_unpublish_volume(unpublish_from(&id, NODE)).await.unwrap();
    rig.snapshot("s", &id).await.unwrap();
    check(rig.controller.delete_volume(delete(&id)).await, Code::Ok);
    check(rig.controller.delete_volume(delete(&id)).await, Code::Ok);
    assert!(ids(&mut rig).await.is_empty(), "a snapshot does not keep its volume");
}

#[tokio::test]
async fn publish_to_nodes() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    let publish_with = |change: fn(&mut ControllerPublishVolumeRequest)| {
        let mut request = publish(&a);
        change(&mut request);
        request
    };
    for wrong in [
        publish_with(|r| r.volume_id.clear()),
        publish_with(|r| r.node_id.clear()),
        publish_with(|r| r.volume_capability = None),
    ] {
        check(rig.controller.controller_publish_volume(wrong).await, Code::InvalidArgument);
    }
    for unknown in [publish_with(|r| r.volume_id = "x".into()), publish_with(|r| r.node_id = "n2".into())] {
        check(rig.controller.controller_publish_volume(unknown).await, Code::NotFound);
    }
    check(rig.controller.controller_publish_volume(publish(&a)).await, Code::Ok);
    check(rig.controller.controller_publish_volume(publish(&a)).await, Code::Ok);
    for clash in [
        publish_with(|r| r.readonly = true),
        publish_with(|r| r.volume_capability = Some(mount(Mode::SingleNodeReaderOnly))),
    ] {
        check(rig.controller.controller_publish_volume(clash).await, Code::AlreadyExists);
    }
    let get = ControllerGetVolumeRequest { volume_id: a.clone() };
    let status = rig.controller.controller_get_volume(get).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.published_node_ids, [NODE]);
    // A right that is nowhere is taken back without complaint.
    for nothing in [unpublish_from("x", NODE), unpublish_from(&a, "n2"), unpublish_from(&a, "\n")] {
        check(rig.controller.controller_unpublish_volume(nothing).await, Code::Ok);
    }
    check(rig.controller.controller_unpublish_volume(unpublish_from("", NODE)).await, Code::InvalidArgument);
    let mut rig = rig.restart().await;
    check(rig.controller.controller_unpublish_volume(unpublish_from(&a, "")).await, Code::Ok);
    check(rig.controller.controller_unpublish_volume(unpublish_from(&a, NODE)).await, Code::Ok);
    check(rig.controller.delete_volume(delete(&a)).await, Code::Ok);
}

#[tokio::test]
async fn a_node_takes_as_many_volumes_as_it_says() {
    let mut rig = Rig::new().await;
    for name in ["a", "b", "c"] {
        rig.published(name, mount(Mode::SingleNodeWriter)).await;
    }
    let id = rig.create(create("d")).await.unwrap().volume_id;
    check(rig.controller.controller_publish_volume(publish(&id)).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn validate_echoes_what_it_confirms() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let ask = |volume_id: &str, capabilities: &[VolumeCapability]| ValidateVolumeCapabilitiesRequest {
        volume_id: volume_id.into(),
        volume_capabilities: capabilities.to_vec(),
        volume_context: [("k".into(), "v".into())].into(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    check(rig.controller.validate_volume_capabilities(ask("", &[])).await, Code::InvalidArgument);
    check(rig.controller.validate_volume_capabilities(ask(&id, &[])).await, Code::InvalidArgument);
    let fits = mount_with(Mode::SingleNodeWriter, "ext4", &["noatime"]);
    check(
        rig.controller.validate_volume_capabilities(ask("x", std::slice::from_ref(&fits))).await,
        Code::NotFound,
    );
    let answer = rig
        .controller
        .validate_volume_capabilities(ask(&id, std::slice::from_ref(&fits)))
        .await
        .unwrap()
        .into_inner();
    let confirmed = answer.confirmed.unwrap();
    assert!(confirmed.volume_capabilities == [fits], "as they came");
    assert_eq!(confirmed.volume_context, [("k".to_owned(), "v".to_owned())].into());
    for unfit in [
        block(Mode::SingleNodeWriter),
        mount_with(Mode::SingleNodeWriter, "xfs", &[]),
        mount(Mode::MultiNodeMultiWriter),
        mount_with(Mode::SingleNodeWriter, "", &["suid"]),
    ] {
        let answer =
            rig.controller.validate_volume_capabilities(ask(&id, &[unfit])).await.unwrap().into_inner();
        assert!(answer.confirmed.is_none() && !answer.message.is_empty());
    }
}

#[tokio::test]
async fn growth() {
    let mut rig = Rig::new().await;
    let id = rig.create(create("a")).await.unwrap().volume_id;
    let grow = |id: &str, required_bytes, limit_bytes| ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..ControllerExpandVolumeRequest::default()
    };
    let bare = ControllerExpandVolumeRequest { capacity_range: None, ..grow(&id, 0, 0) };
    for wrong in [bare, grow("", GIB, 0), grow(&id, -1, 0), grow(&id, 0, 0), grow(&id, 2, 1)] {
        check(rig.controller.controller_expand_volume(wrong).await, Code::InvalidArgument);
    }
    check(rig.controller.controller_expand_volume(grow("x", GIB, 0)).await, Code::NotFound);
    check(rig.controller.controller_expand_volume(grow(&id, 1, 2)).await, Code::OutOfRange);
    check(rig.controller.controller_expand_volume(grow(&id, i64::MAX, 0)).await, Code::OutOfRange);
    check(rig.controller.controller_expand_volume(grow(&id, 200 * GIB, 0)).await, Code::ResourceExhausted);
    for _ in 0..2 {
        let answer =
            rig.controller.controller_expand_volume(grow(&id, 3 * GIB, 3 * GIB)).await.unwrap().into_inner();
        assert_eq!((answer.capacity_bytes, answer.node_expansion_required), (3 * GIB, true));
    }
    let less = rig.controller.controller_expand_volume(grow(&id, GIB, 0)).await.unwrap().into_inner();
    assert_eq!(less.capacity_bytes, 3 * GIB, "never shrinks");
    let raw = with_capabilities("raw", &[block(Mode::SingleNodeWriter)]);
    let raw = rig.create(raw).await.unwrap().volume_id;
    let answer = rig.controller.controller_expand_volume(grow(&raw, 2 * GIB, 0)).await.unwrap().into_inner();
    assert!(!answer.node_expansion_required, "a raw device has grown already");
}

#[tokio::test]
async fn lists_have_pages_that_survive_deletes() {
    let mut rig = Rig::new().await;
    for n in 0..7 {
        rig.create(create(&n.to_string())).await.unwrap();
    }
    let all = ids(&mut rig).await;
    let page = async |rig: &mut Rig, max_entries, starting_token: &str| {
        let request = ListVolumesRequest { max_entries, starting_token: starting_token.into() };
        let page = rig.controller.list_volumes(request).await.unwrap().into_inner();
        let ids: Vec<_> =
            page.entries.into_iter().map(|e| e.volume.unwrap_or(Volume::default()).volume_id).collect();
        (ids, page.next_token)
    };
    let (first, token) = page(&mut rig, 3, "").await;
    assert_eq!(first, all[..3]);
    // The volume that the token stands for goes, and one behind it.
    for gone in [&all[2], &all[4]] {
        rig.controller.delete_volume(delete(gone)).await.unwrap();
    }
    let (second, token) = page(&mut rig, 2, &token).await;
    assert_eq!(second, [all[3].clone(), all[5].clone()]);
    let (rest, end) = page(&mut rig, 0, &token).await;
    assert_eq!((rest.as_slice(), end.as_str()), (&all[6..], ""), "without a limit all the rest comes");
    let stale = ListVolumesRequest { max_entries: 0, starting_token: "nonsense".into() };
    check(rig.controller.list_volumes(stale).await, Code::Aborted);
    let negative = ListVolumesRequest { max_entries: -1, ..ListVolumesRequest::default() };
    check(rig.controller.list_volumes(negative).await, Code::InvalidArgument);
}

#[tokio::test]
async fn a_failure_leaves_nothing_and_a_lost_answer_loses_nothing() {
    let mut rig = Rig::new().await;
    rig.disk.set_fault("create_volume", Some(Fault::Fail(ErrorKind::NoSpace)));
    check(rig.controller.create_volume(create("a")).await, Code::ResourceExhausted);
    assert!(ids(&mut rig).await.is_empty());
    rig.disk.set_fault("create_volume", Some(Fault::FailAfter(ErrorKind::Unsettled)));
    check(rig.controller.create_volume(create("a")).await, Code::DeadlineExceeded);
    rig.disk.set_fault("create_volume", None);
    let mut rig = rig.restart().await;
    let found = ids(&mut rig).await;
    assert_eq!(rig.create(create("a")).await.unwrap().volume_id, found[0], "the pool knows the name");
    rig.disk.set_fault("list", Some(Fault::Fail(ErrorKind::Unavailable)));
    rig.disk.set_fault("update_volume", Some(Fault::Fail(ErrorKind::Unavailable)));
    check(rig.controller.controller_publish_volume(publish(&found[0])).await, Code::Unavailable);
    rig.disk.set_fault("update_volume", None);
    check(rig.controller.controller_publish_volume(publish(&found[0])).await, Code::Ok);
}

#[tokio::test]
async fn a_pool_that_is_missing_stops_no_other() {
    let mut rig = Rig::beside_a_missing_pool().await;
    let in_pool = |pool: &str, name: &str| {
        let mut request = create(name);
        request.parameters.insert("pool".into(), pool.into());
        request
    };
    let id = rig.create(in_pool("p", "a")).await.unwrap().volume_id;
    assert_eq!(rig.create(in_pool("p", "a")).await.unwrap().volume_id, id);
    check(rig.controller.create_snapshot(snapshot_of(&id, "s")).await, Code::Ok);
    check(rig.groups.create_volume_group_snapshot(group_of(&[&id], "g")).await, Code::Ok);
    // What was there may come back.
    check(rig.controller.create_volume(in_pool("missing", "b")).await, Code::Unavailable);
    check(rig.controller.create_volume(create("b")).await, Code::Unavailable);
    let lost = format!("v.{LOST}.{LOST}");
    check(rig.controller.delete_volume(delete(&lost)).await, Code::Unavailable);
    // A list with gaps would be taken for a whole one.
    check(rig.controller.list_volumes(ListVolumesRequest::default()).await, Code::Unavailable);
    let other = rig.create(in_pool("p", "c")).await.unwrap().volume_id;
    check(rig.controller.delete_volume(delete(&other)).await, Code::Ok);
}
