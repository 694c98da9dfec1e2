//! Lists of many hosts: every entry once, in one order, page by page, or no list at all.

use lagan::{
    peers::Role,
    proto::{ListSnapshotsRequest, ListVolumesRequest, controller_server::Controller},
    router::Router,
};
use tonic::{Code, Request};

use crate::{
    requests::{check, delete, snapshot_of},
    rig::{Routed, Told, addresses, new, two},
};

async fn pages(router: &Router, max_entries: i32) -> Vec<String> {
    let (mut all, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries, starting_token };
        let page = router.list_volumes(Request::new(request)).await.unwrap().into_inner();
        assert!(max_entries == 0 || page.entries.len() <= usize::try_from(max_entries).unwrap());
        all.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        if page.next_token.is_empty() {
            return all;
        }
        starting_token = page.next_token;
    }
}

#[tokio::test]
async fn every_volume_once_whatever_the_page() {
    let (authority, hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    assert!(pages(&routed.router, 0).await.is_empty());
    let mut made = Vec::new();
    for number in 0..23 {
        made.push(routed.create(new(&number.to_string())).await.unwrap().volume_id);
    }
    made.sort();
    for size in [0, 1, 2, 5, 22, 23, 24, 100] {
        assert_eq!(pages(&routed.router, size).await, made, "pages of {size}");
    }
    // A token outlives what it names, at the seam between two hosts too.
    for id in &made {
        check(routed.router.delete_volume(Request::new(delete(id))).await, Code::Ok);
        let request = ListVolumesRequest { max_entries: 1, starting_token: id.clone() };
        let page = routed.router.list_volumes(Request::new(request)).await.unwrap().into_inner();
        let next = made.iter().find(|other| *other > id);
        assert_eq!(page.entries.first().map(|entry| &entry.volume.as_ref().unwrap().volume_id), next);
    }
    let bad = ListVolumesRequest { max_entries: -1, ..Default::default() };
    check(routed.router.list_volumes(Request::new(bad)).await, Code::InvalidArgument);
    let bad = ListVolumesRequest { starting_token: "7".into(), ..Default::default() };
    check(routed.router.list_volumes(Request::new(bad)).await, Code::Aborted);
}

#[tokio::test]
async fn snapshots_of_all_and_of_one() {
    let (authority, hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let mut cut = Vec::new();
    for number in 0..6 {
        let volume = routed.create(new(&number.to_string())).await.unwrap().volume_id;
        let request = Request::new(snapshot_of(&volume, &format!("s{number}")));
        let snapshot = routed.router.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
        let of_one = ListSnapshotsRequest { source_volume_id: volume, ..Default::default() };
        let found = routed.router.list_snapshots(Request::new(of_one)).await.unwrap().into_inner();
        assert_eq!(found.entries[0].snapshot.as_ref(), Some(&snapshot));
        cut.push(snapshot.snapshot_id);
    }
    cut.sort();
    let all = routed.router.list_snapshots(Request::new(ListSnapshotsRequest::default())).await.unwrap();
    let all: Vec<_> =
        all.into_inner().entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect();
    assert_eq!(all, cut);
    let none = ListSnapshotsRequest { snapshot_id: "nonsense".into(), ..Default::default() };
    assert!(routed.router.list_snapshots(Request::new(none)).await.unwrap().into_inner().entries.is_empty());
}

#[tokio::test]
async fn a_list_with_a_host_missing_is_no_list() {
    let (authority, mut hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    assert!(pages(&routed.router, 0).await.is_empty());
    let node = hosts[1].node.clone();
    hosts[1].stop();
    routed.sees(&node, false).await;
    let list = || Request::new(ListVolumesRequest::default());
    let said = check(routed.router.list_volumes(list()).await, Code::Unavailable);
    assert!(said.contains("n2"), "{said}");
    hosts[1].restart(authority.of_host("n2")).await;
    routed.sees(&node, true).await;
    assert!(pages(&routed.router, 0).await.is_empty());
    // One that was never met is missing as well.
    let mut known = addresses(&hosts);
    known.push(("n3", "127.0.0.1:1".parse().unwrap()));
    let routed = Routed::over(authority.of(Role::Router), &known, Told::default()).await;
    let said = check(routed.router.list_volumes(list()).await, Code::Unavailable);
    assert!(said.contains("n3"), "{said}");
}
