//! Snapshots: cut, found again, listed, restored, deleted.

use lagan::proto::{
    CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, GetSnapshotRequest,
    ListSnapshotsRequest, Topology, TopologyRequirement,
};
use tonic::Code;

use crate::rig::{GIB, Rig, check, create, delete, from_snapshot, snapshot_of};

fn forget(id: &str) -> DeleteSnapshotRequest {
    DeleteSnapshotRequest { snapshot_id: id.into(), ..DeleteSnapshotRequest::default() }
}

async fn list(rig: &mut Rig, request: ListSnapshotsRequest) -> (Vec<String>, String) {
    let page = rig.controller.list_snapshots(request).await.unwrap().into_inner();
    (page.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect(), page.next_token)
}

#[tokio::test]
async fn a_snapshot_is_cut_once() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    let b = rig.create(create("b")).await.unwrap().volume_id;
    check(rig.controller.create_snapshot(snapshot_of(&a, "")).await, Code::InvalidArgument);
    check(rig.controller.create_snapshot(snapshot_of("", "s")).await, Code::InvalidArgument);
    check(rig.controller.create_snapshot(snapshot_of("x", "s")).await, Code::NotFound);
    let odd = CreateSnapshotRequest {
        parameters: [("surprise".into(), "1".into())].into(),
        ..snapshot_of(&a, "s")
    };
    check(rig.controller.create_snapshot(odd).await, Code::InvalidArgument);
    let first = rig.snapshot("s", &a).await.unwrap();
    assert!(first.ready_to_use && first.creation_time.is_some());
    assert_eq!((first.size_bytes, first.source_volume_id.as_str()), (GIB, a.as_str()));
    assert_eq!(rig.snapshot("s", &a).await.unwrap(), first, "creation time included");
    check(rig.controller.create_snapshot(snapshot_of(&b, "s")).await, Code::AlreadyExists);
    let mut rig = rig.restart().await;
    assert_eq!(rig.snapshot("s", &a).await.unwrap(), first);
    let get = |id: &str| GetSnapshotRequest { snapshot_id: id.into(), ..GetSnapshotRequest::default() };
    let got = rig.controller.get_snapshot(get(&first.snapshot_id)).await.unwrap().into_inner();
    assert_eq!(got.snapshot.unwrap(), first);
    check(rig.controller.get_snapshot(get("")).await, Code::InvalidArgument);
    check(rig.controller.get_snapshot(get("x")).await, Code::NotFound);
}

#[tokio::test]
async fn a_snapshot_keeps_what_was_there() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    rig.disk.write(a.parse().unwrap(), b"before");
    let snapshot = rig.snapshot("s", &a).await.unwrap().snapshot_id;
    rig.disk.write(a.parse().unwrap(), b"after");
    rig.controller.delete_volume(delete(&a)).await.unwrap();
    let restore =
        CreateVolumeRequest { volume_content_source: from_snapshot(&snapshot), ..create("restored") };
    let restored = rig.create(restore).await.unwrap().volume_id;
    assert_eq!(rig.disk.read(restored.parse().unwrap()).unwrap(), b"before");
    check(rig.controller.delete_snapshot(forget(&snapshot)).await, Code::Ok);
    assert_eq!(rig.disk.read(restored.parse().unwrap()).unwrap(), b"before", "a restore stands on its own");
}

#[tokio::test]
async fn deletes_are_idempotent() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    let id = rig.snapshot("s", &a).await.unwrap().snapshot_id;
    check(rig.controller.delete_snapshot(forget("")).await, Code::InvalidArgument);
    for id in [id.as_str(), &id, "x", "../../etc"] {
        check(rig.controller.delete_snapshot(forget(id)).await, Code::Ok);
    }
    // A volume's id is no snapshot's, and the volume stays.
    check(rig.controller.delete_snapshot(forget(&a)).await, Code::Ok);
    assert!(rig.disk.read(a.parse().unwrap()).is_some());
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    let b = rig.create(create("b")).await.unwrap().volume_id;
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(rig.snapshot(&format!("a{n}"), &a).await.unwrap().snapshot_id);
    }
    all.sort();
    let other = rig.snapshot("b", &b).await.unwrap().snapshot_id;
    let of = |volume: &str| ListSnapshotsRequest {
        source_volume_id: volume.into(),
        ..ListSnapshotsRequest::default()
    };
    assert_eq!(list(&mut rig, of(&a)).await.0, all);
    assert_eq!(list(&mut rig, of(&b)).await.0, std::slice::from_ref(&other));
    let by_id = |id: &str| ListSnapshotsRequest { snapshot_id: id.into(), ..ListSnapshotsRequest::default() };
    assert_eq!(list(&mut rig, by_id(&other)).await.0, std::slice::from_ref(&other));
    let both = ListSnapshotsRequest { snapshot_id: other, ..of(&a) };
    for nothing in [by_id("x"), of("x"), both] {
        assert!(list(&mut rig, nothing).await.0.is_empty(), "a filter that matches nothing is no error");
    }
    let (first, token) = list(&mut rig, ListSnapshotsRequest { max_entries: 2, ..of(&a) }).await;
    rig.controller.delete_snapshot(forget(&first[1])).await.unwrap();
    let rest = ListSnapshotsRequest { starting_token: token, ..of(&a) };
    assert_eq!(list(&mut rig, rest).await, (all[2..].to_vec(), String::new()));
    let stale = ListSnapshotsRequest { starting_token: "5".into(), ..ListSnapshotsRequest::default() };
    check(rig.controller.list_snapshots(stale).await, Code::Aborted);
}

#[tokio::test]
async fn a_snapshot_is_where_its_volume_is() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    let at = |node: &str| Topology { segments: [("lagan.csi/host".into(), node.into())].into() };
    let needs = |node: &str| {
        let requisite = vec![at(node)];
        let accessibility_requirements = Some(TopologyRequirement { requisite, preferred: vec![at(node)] });
        CreateSnapshotRequest { accessibility_requirements, ..snapshot_of(&a, "s") }
    };
    check(rig.controller.create_snapshot(needs("n2")).await, Code::ResourceExhausted);
    let answer = rig.controller.create_snapshot(needs("n1")).await.unwrap().into_inner();
    assert_eq!(answer.snapshot.unwrap().accessible_topology, [at("n1")]);
}
