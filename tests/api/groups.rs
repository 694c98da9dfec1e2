//! Snapshots at one instant: cut together, found again, deleted together.

use std::{sync::Arc, time::Duration};

use lagan::{
    error::ErrorKind,
    pool::fake::Fault,
    proto::{
        CreateVolumeGroupSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
        DeleteVolumeGroupSnapshotRequest, GetPluginCapabilitiesRequest, GetSnapshotRequest,
        GetVolumeGroupSnapshotRequest, GroupControllerGetCapabilitiesRequest, ListSnapshotsRequest,
        VolumeGroupSnapshot, plugin_capability,
    },
};
use tokio::sync::Notify;
use tonic::{Code, Status};

use crate::rig::{FORGOTTEN, Rig, check, create, delete, from_snapshot, group_of, snapshot_of, ungroup};

async fn two(rig: &mut Rig) -> [String; 2] {
    let a = rig.create(create("a")).await.unwrap().volume_id;
    [a, rig.create(create("b")).await.unwrap().volume_id]
}

async fn cut(rig: &mut Rig, volumes: &[&str], name: &str) -> Result<VolumeGroupSnapshot, Status> {
    let answer = rig.groups.create_volume_group_snapshot(group_of(volumes, name)).await?;
    Ok(answer.into_inner().group_snapshot.unwrap())
}

fn get(group: &VolumeGroupSnapshot) -> GetVolumeGroupSnapshotRequest {
    let DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, .. } = ungroup(group);
    GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, ..Default::default() }
}

async fn listed(rig: &mut Rig) -> Vec<lagan::proto::Snapshot> {
    let page = rig.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    page.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect()
}

fn forget(id: &str) -> DeleteSnapshotRequest {
    DeleteSnapshotRequest { snapshot_id: id.into(), ..DeleteSnapshotRequest::default() }
}

#[tokio::test]
async fn it_is_offered() {
    let mut rig = Rig::new().await;
    let offered =
        rig.groups.group_controller_get_capabilities(GroupControllerGetCapabilitiesRequest {}).await;
    assert_eq!(offered.unwrap().into_inner().capabilities.len(), 1);
    let plugin = rig.identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    let group = plugin_capability::service::Type::GroupControllerService;
    assert!(plugin.into_inner().capabilities.iter().any(|capability| matches!(
        &capability.r#type,
        Some(plugin_capability::Type::Service(service)) if service.r#type() == group
    )));
}

#[tokio::test]
async fn a_group_is_cut_once() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    let first = cut(&mut rig, &[&a, &b], "g").await.unwrap();
    assert!(first.ready_to_use && first.creation_time.is_some());
    let mut sources: Vec<_> = first.snapshots.iter().map(|member| member.source_volume_id.clone()).collect();
    sources.sort();
    let mut both = vec![a.clone(), b.clone()];
    both.sort();
    assert_eq!(sources, both);
    for member in &first.snapshots {
        assert_eq!(member.group_snapshot_id, first.group_snapshot_id);
        assert_eq!(member.creation_time, first.creation_time);
        let got = GetSnapshotRequest { snapshot_id: member.snapshot_id.clone(), ..Default::default() };
        let got = rig.controller.get_snapshot(got).await.unwrap().into_inner().snapshot.unwrap();
        assert_eq!(got, *member);
    }
    assert_eq!(cut(&mut rig, &[&b, &a], "g").await.unwrap(), first, "the order of sources says nothing");
    for others in [&[a.as_str()][..], &[&b]] {
        check(rig.groups.create_volume_group_snapshot(group_of(others, "g")).await, Code::AlreadyExists);
    }
    let mut rig = rig.restart().await;
    assert_eq!(cut(&mut rig, &[&a, &b], "g").await.unwrap(), first);
    let got = rig.groups.get_volume_group_snapshot(get(&first)).await.unwrap().into_inner();
    assert_eq!(got.group_snapshot.unwrap(), first);
    assert_eq!(listed(&mut rig).await.len(), 2);
    assert!(listed(&mut rig).await.iter().all(|it| it.group_snapshot_id == first.group_snapshot_id));
}

#[tokio::test]
async fn names_of_members_are_nobody_elses() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    let of = |id: &str| format!("g/{}", id.rsplit('.').next().unwrap());
    // Given before and after to snapshots of callers, of other volumes even: no group is in the way of one.
    let before = rig.snapshot(&of(&a), &b).await.unwrap();
    let group = cut(&mut rig, &[&a, &b], "g").await.unwrap();
    let after = rig.snapshot(&of(&b), &a).await.unwrap();
    rig.snapshot("g", &a).await.unwrap();
    assert!(before.group_snapshot_id.is_empty() && after.group_snapshot_id.is_empty());
    let mut rig = rig.restart().await;
    assert_eq!(rig.snapshot(&of(&a), &b).await.unwrap(), before);
    assert_eq!(rig.snapshot(&of(&b), &a).await.unwrap(), after);
    check(rig.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
    assert_eq!(rig.snapshot(&of(&a), &b).await.unwrap(), before);
    assert_eq!(listed(&mut rig).await.len(), 3);
}

#[tokio::test]
async fn members_come_and_go_together() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    rig.disk.write(a.parse().unwrap(), b"before");
    let group = cut(&mut rig, &[&a, &b], "g").await.unwrap();
    let member = group.snapshots.iter().find(|member| member.source_volume_id == a).unwrap();
    rig.disk.write(a.parse().unwrap(), b"after");
    let said =
        check(rig.controller.delete_snapshot(forget(&member.snapshot_id)).await, Code::InvalidArgument);
    assert!(said.contains(&group.group_snapshot_id), "{said}");
    for id in [&a, &b] {
        rig.controller.delete_volume(delete(id)).await.unwrap();
    }
    let restore =
        CreateVolumeRequest { volume_content_source: from_snapshot(&member.snapshot_id), ..create("r") };
    let restored = rig.create(restore).await.unwrap().volume_id;
    for _ in 0..2 {
        check(rig.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
        assert!(listed(&mut rig).await.is_empty());
    }
    check(rig.groups.get_volume_group_snapshot(get(&group)).await, Code::NotFound);
    check(rig.controller.delete_snapshot(forget(&member.snapshot_id)).await, Code::Ok);
    assert_eq!(rig.disk.read(restored.parse().unwrap()).unwrap(), b"before");
    let mut rig = rig.restart().await;
    assert!(listed(&mut rig).await.is_empty());
}

#[tokio::test]
async fn a_snapshot_whose_group_is_lost_can_be_deleted() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    let group = cut(&mut rig, &[&a, &b], "g").await.unwrap();
    rig.disk.take_away_group(group.group_snapshot_id.parse().unwrap());
    let mut rig = rig.restart().await;
    check(rig.groups.get_volume_group_snapshot(get(&group)).await, Code::NotFound);
    assert_eq!(listed(&mut rig).await.len(), 2, "nothing is removed for want of a record");
    for member in &group.snapshots {
        check(rig.controller.delete_snapshot(forget(&member.snapshot_id)).await, Code::Ok);
    }
    assert!(listed(&mut rig).await.is_empty());
}

#[tokio::test]
async fn requests_that_make_no_sense() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    let many: Vec<String> = (0..33).map(|_| format!("v.{FORGOTTEN}.{FORGOTTEN}")).collect();
    let elsewhere = format!("v.{}.{FORGOTTEN}", "0".repeat(32));
    let unknown = format!("{}.{FORGOTTEN}", &a[..34]);
    for (request, code) in [
        (group_of(&[&a, &b], ""), Code::InvalidArgument),
        (group_of(&[&a, &b], &"x".repeat(129)), Code::InvalidArgument),
        (group_of(&[], "g"), Code::InvalidArgument),
        (group_of(&[&a, ""], "g"), Code::InvalidArgument),
        (group_of(&[&a, &a], "g"), Code::InvalidArgument),
        (group_of(&[&a, &"x".repeat(5000)], "g"), Code::InvalidArgument),
        (group_of(&many.iter().map(String::as_str).collect::<Vec<_>>(), "g"), Code::InvalidArgument),
        (group_of(&[&a, "../../etc"], "g"), Code::NotFound),
        (group_of(&[&a, &unknown], "g"), Code::NotFound),
        (group_of(&[&a, &elsewhere], "g"), Code::FailedPrecondition),
    ] {
        check(rig.groups.create_volume_group_snapshot(request).await, code);
    }
    let odd = CreateVolumeGroupSnapshotRequest {
        parameters: [("surprise".into(), "1".into())].into(),
        ..group_of(&[&a, &b], "g")
    };
    check(rig.groups.create_volume_group_snapshot(odd).await, Code::InvalidArgument);
    assert!(listed(&mut rig).await.is_empty(), "nothing is left of what failed");
    let theirs = CreateVolumeGroupSnapshotRequest {
        parameters: [("csi.storage.k8s.io/volumegroupsnapshot/name".into(), "x".into())].into(),
        ..group_of(&[&a, &b], "g")
    };
    check(rig.groups.create_volume_group_snapshot(theirs).await, Code::Ok);
}

#[tokio::test]
async fn a_group_is_named_by_its_id_and_its_snapshots() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    let group = cut(&mut rig, &[&a, &b], "g").await.unwrap();
    let single = rig.snapshot("s", &a).await.unwrap().snapshot_id;
    let forgotten = format!("g.{FORGOTTEN}.{FORGOTTEN}");
    let unknown = format!("{}.{FORGOTTEN}", &group.group_snapshot_id[..34]);
    let elsewhere = format!("g.{}.{FORGOTTEN}", "0".repeat(32));
    for (id, deleted, got) in [
        ("", Code::InvalidArgument, Code::InvalidArgument),
        (&"x".repeat(5000), Code::InvalidArgument, Code::InvalidArgument),
        ("x", Code::Ok, Code::NotFound),
        ("../../etc", Code::Ok, Code::NotFound),
        (&single, Code::Ok, Code::NotFound),
        (&unknown, Code::Ok, Code::NotFound),
        (&forgotten, Code::Ok, Code::NotFound),
        (&elsewhere, Code::Unavailable, Code::Unavailable),
    ] {
        let none = VolumeGroupSnapshot { group_snapshot_id: id.into(), ..Default::default() };
        check(rig.groups.delete_volume_group_snapshot(ungroup(&none)).await, deleted);
        check(rig.groups.get_volume_group_snapshot(get(&none)).await, got);
    }
    let mut claims = vec![Vec::new(), group.snapshots[..1].to_vec()];
    for stranger in ["x", &single, &"x".repeat(5000)] {
        let mut claim = group.snapshots.clone();
        claim[1].snapshot_id = stranger.into();
        claims.push(claim);
    }
    claims.push([group.snapshots.clone(), vec![lagan::proto::Snapshot::default()]].concat());
    claims.push(vec![group.snapshots[0].clone(); 33]);
    for snapshots in claims {
        let claim = VolumeGroupSnapshot { snapshots, ..group.clone() };
        check(rig.groups.delete_volume_group_snapshot(ungroup(&claim)).await, Code::InvalidArgument);
        check(rig.groups.get_volume_group_snapshot(get(&claim)).await, Code::InvalidArgument);
    }
    let reversed = group.snapshots.iter().rev().cloned().collect();
    let same = VolumeGroupSnapshot { snapshots: reversed, ..group.clone() };
    check(rig.groups.get_volume_group_snapshot(get(&same)).await, Code::Ok);
    check(rig.groups.delete_volume_group_snapshot(ungroup(&same)).await, Code::Ok);
    assert_eq!(listed(&mut rig).await.len(), 1, "the single one stays");
}

#[tokio::test]
async fn an_identical_call_joins_and_another_waits() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    let until = Arc::new(Notify::new());
    rig.disk.set_fault("create_group", Some(Fault::Stall(Arc::clone(&until))));
    let call = |rig: &Rig, request: CreateVolumeGroupSnapshotRequest| {
        let mut groups = rig.groups.clone();
        tokio::spawn(async move { groups.create_volume_group_snapshot(request).await })
    };
    let first = call(&rig, group_of(&[&a, &b], "g"));
    while rig.disk.calls("create_group") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    check(rig.groups.create_volume_group_snapshot(group_of(&[&a], "g")).await, Code::Aborted);
    check(rig.controller.delete_volume(delete(&a)).await, Code::Aborted);
    check(rig.controller.create_snapshot(snapshot_of(&a, "s")).await, Code::Ok);
    // The caller goes away, the work does not; the retry gets its answer.
    first.abort();
    let second = call(&rig, group_of(&[&a, &b], "g"));
    tokio::time::sleep(Duration::from_millis(20)).await;
    rig.disk.set_fault("create_group", None);
    until.notify_one();
    let group = second.await.unwrap().unwrap().into_inner().group_snapshot.unwrap();
    assert_eq!(rig.disk.calls("create_group"), 1);
    assert_eq!(cut(&mut rig, &[&a, &b], "g").await.unwrap(), group);
}

#[tokio::test]
async fn lost_answers_lead_to_the_same_end() {
    let mut rig = Rig::new().await;
    let [a, b] = two(&mut rig).await;
    rig.disk.set_fault("create_group", Some(Fault::Fail(ErrorKind::NoSpace)));
    check(rig.groups.create_volume_group_snapshot(group_of(&[&a, &b], "g")).await, Code::ResourceExhausted);
    rig.disk.set_fault("create_group", None);
    let group = cut(&mut rig, &[&a, &b], "g").await.unwrap();
    rig.disk.set_fault("delete_group", Some(Fault::FailAfter(ErrorKind::Unavailable)));
    check(rig.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Unavailable);
    rig.disk.set_fault("delete_group", None);
    check(rig.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
    assert!(listed(&mut rig).await.is_empty());
    assert_ne!(cut(&mut rig, &[&a, &b], "g").await.unwrap().group_snapshot_id, group.group_snapshot_id);
}
