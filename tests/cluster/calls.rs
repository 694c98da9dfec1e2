//! A call finds its owner wherever it arrives, and is answered as there.

use lagan::bytes::Bytes;
use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, GetSnapshotRequest, ValidateVolumeCapabilitiesRequest,
    controller_server::Controller, group_controller_server::GroupController,
};
use tonic::{Code, Request};

use crate::{
    requests::{
        check, create_with, delete, from_snapshot, group_of, publish_with, snapshot_of, ungroup,
        unpublish_from,
    },
    rig::{GIB, Host, Routed, Told, addresses, filesystem, host_of, new, new_on, two},
};

#[tokio::test]
async fn the_life_of_a_volume_on_either_host() {
    let (authority, hosts) = two().await;
    let routed =
        Routed::over(authority.of(lagan::peers::Role::Router), &addresses(&hosts), Told::default()).await;
    let router = &routed.router;
    for name in ["n1", "n2"] {
        let volume = routed.create(new_on(name, &[name])).await.unwrap();
        assert_eq!(host_of(&volume), name);
        let id = volume.volume_id.clone();
        let how = filesystem();
        let publish = || {
            Request::new(lagan::proto::ControllerPublishVolumeRequest {
                node_id: name.into(),
                ..publish_with(&id, &how)
            })
        };
        check(router.controller_publish_volume(publish()).await, Code::Ok);
        check(router.controller_publish_volume(publish()).await, Code::Ok);
        let found = router
            .controller_get_volume(Request::new(ControllerGetVolumeRequest { volume_id: id.clone() }))
            .await;
        assert_eq!(found.unwrap().into_inner().status.unwrap().published_node_ids, [name]);
        check(router.delete_volume(Request::new(delete(&id))).await, Code::FailedPrecondition);
        let capacity_range = Some(CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 });
        let grow =
            ControllerExpandVolumeRequest { volume_id: id.clone(), capacity_range, ..Default::default() };
        let grown = router.controller_expand_volume(Request::new(grow)).await.unwrap().into_inner();
        assert_eq!(grown.capacity_bytes, 2 * GIB);
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![how.clone()],
            ..Default::default()
        };
        let valid = router.validate_volume_capabilities(Request::new(validate)).await.unwrap().into_inner();
        assert!(valid.confirmed.is_some(), "{}", valid.message);
        let snapshot =
            router.create_snapshot(Request::new(snapshot_of(&id, &format!("s-{name}")))).await.unwrap();
        let snapshot = snapshot.into_inner().snapshot.unwrap();
        let found = router.get_snapshot(Request::new(GetSnapshotRequest {
            snapshot_id: snapshot.snapshot_id.clone(),
            ..Default::default()
        }));
        assert_eq!(found.await.unwrap().into_inner().snapshot.unwrap(), snapshot);
        // A copy is made beside its source, whatever else would do.
        let mut copy = create_with(&format!("copy-{name}"), 2 * GIB, &how);
        copy.volume_content_source = from_snapshot(&snapshot.snapshot_id);
        let copy = routed.create(copy).await.unwrap();
        assert_eq!(host_of(&copy), name);
        check(router.controller_unpublish_volume(Request::new(unpublish_from(&id, ""))).await, Code::Ok);
        for id in [&id, &copy.volume_id, &id] {
            check(router.delete_volume(Request::new(delete(id))).await, Code::Ok);
        }
        let remove = DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        check(router.delete_snapshot(Request::new(remove)).await, Code::Ok);
    }
}

#[tokio::test]
async fn what_is_malformed_or_nobodys_is_answered_as_by_a_host() {
    let (authority, hosts) = two().await;
    let routed =
        Routed::over(authority.of(lagan::peers::Role::Router), &addresses(&hosts), Told::default()).await;
    let router = &routed.router;
    let delete_of =
        |id: &str| Request::new(DeleteVolumeRequest { volume_id: id.into(), ..Default::default() });
    check(router.delete_volume(delete_of("")).await, Code::InvalidArgument);
    check(router.delete_volume(delete_of("../../etc/passwd")).await, Code::Ok);
    // Of our grammar, in a pool that nobody serves: not known to be gone.
    let foreign = format!("v.{0}.{0}", "7".repeat(32));
    check(router.delete_volume(delete_of(&foreign)).await, Code::Unavailable);
    let get = ControllerGetVolumeRequest { volume_id: "nonsense".into() };
    check(router.controller_get_volume(Request::new(get)).await, Code::NotFound);
    let mut bad = new("x");
    bad.volume_capabilities.clear();
    check(router.create_volume(Request::new(bad)).await, Code::InvalidArgument);
    let mut bad = new("x");
    bad.parameters.insert("surprise".into(), "1".into());
    check(router.create_volume(Request::new(bad)).await, Code::InvalidArgument);
    // Another driver's node may be named: none of ours is there.
    check(router.create_volume(Request::new(new_on("x", &["n9"]))).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn a_group_is_of_one_host() {
    let (authority, hosts) = two().await;
    let routed =
        Routed::over(authority.of(lagan::peers::Role::Router), &addresses(&hosts), Told::default()).await;
    let mut ids = Vec::new();
    for (name, node) in [("a", "n1"), ("b", "n1"), ("c", "n2")] {
        ids.push(routed.create(new_on(name, &[node])).await.unwrap().volume_id);
    }
    let group = |sources: &[&String]| {
        let sources: Vec<&str> = sources.iter().map(|id| id.as_str()).collect();
        Request::new(group_of(&sources, "g"))
    };
    let apart = routed.router.create_volume_group_snapshot(group(&[&ids[0], &ids[2]])).await;
    let said = check(apart, Code::FailedPrecondition);
    assert!(said.contains("n1, n2"), "{said}");
    let made = routed.router.create_volume_group_snapshot(group(&[&ids[0], &ids[1]])).await.unwrap();
    let made = made.into_inner().group_snapshot.unwrap();
    assert_eq!(made.snapshots.len(), 2);
    check(routed.router.delete_volume_group_snapshot(Request::new(ungroup(&made))).await, Code::Ok);
    check(routed.router.create_volume_group_snapshot(group(&[])).await, Code::InvalidArgument);
}

#[tokio::test]
async fn a_host_passes_on_what_is_not_its_own() {
    let (authority, hosts) = two().await;
    let obeys = Host::start("n3", authority.of_host("n3"), Bytes::gib(100), &["n1"]).await;
    let mut known = addresses(&hosts);
    known.push(("n3", obeys.address));
    // The list is the same on every host: it names this one too.
    let routed = Routed::from_host(&hosts[0], authority.of_host("n1"), &known).await;
    let [near, far] =
        [("near", "n1"), ("far", "n3")].map(|(name, node)| routed.create(new_on(name, &[node])));
    let (near, far) = (near.await.unwrap(), far.await.unwrap());
    assert_eq!((host_of(&near).as_str(), host_of(&far).as_str()), ("n1", "n3"));
    for volume in [&near, &far] {
        let get = ControllerGetVolumeRequest { volume_id: volume.volume_id.clone() };
        check(routed.router.controller_get_volume(Request::new(get)).await, Code::Ok);
    }
    // n2 does not obey it, and says so; where others may have a volume it is passed over.
    check(routed.router.create_volume(Request::new(new_on("there", &["n2"]))).await, Code::PermissionDenied);
    let elsewhere = routed.create(new_on("there", &["n2", "n3"])).await.unwrap();
    assert_eq!(host_of(&elsewhere), "n3");
}
