//! Where a new volume goes, and that a retry finds it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use lagan::{
    bytes::Bytes,
    peers::Role,
    pool::fake::Fault,
    proto::{
        DeleteVolumeRequest, GetCapacityRequest, ListVolumesRequest, ONLY_IF_EXISTS, VolumeContentSource,
        controller_server::Controller,
        volume_content_source::{self, VolumeSource},
    },
    router::Placing,
};
use tokio::sync::Notify;
use tonic::{Code, Request};

use crate::{
    requests::{check, create_with},
    rig::{Authority, GIB, Host, Routed, Told, addresses, filesystem, host_of, new, new_on, two},
};

#[tokio::test]
async fn the_same_name_is_the_same_volume_by_every_router() {
    let (authority, hosts) = two().await;
    let one = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let other = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let mut used = BTreeSet::new();
    for number in 0..12 {
        let name = format!("volume-{number}");
        let (first, second) = tokio::join!(one.create(new(&name)), other.create(new(&name)));
        let volume = first.unwrap();
        // Both at once: one makes it, the other one joins.
        assert_eq!(second.unwrap().volume_id, volume.volume_id);
        assert_eq!(other.create(new(&name)).await.unwrap().volume_id, volume.volume_id);
        let larger = create_with(&name, 2 * GIB, &filesystem());
        check(one.router.create_volume(Request::new(larger)).await, Code::AlreadyExists);
        used.insert(host_of(&volume));
    }
    assert_eq!(used.len(), 2, "names are spread over the hosts");
    assert_eq!(one.router.doubled() + other.router.doubled(), 0);
}

#[tokio::test]
async fn topology_and_the_default_decide() {
    let (authority, hosts) = two().await;
    let placing = Placing { default_host: Some("n2".parse().unwrap()), ..Placing::default() };
    let told = Told { placing, ..Told::default() };
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), told).await;
    for number in 0..6 {
        let volume = routed.create(new(&format!("default-{number}"))).await.unwrap();
        assert_eq!(host_of(&volume), "n2");
        // The first that is preferred, of those that would do.
        for nodes in [["n1", "n2"], ["n2", "n1"]] {
            let volume = routed.create(new_on(&format!("{}-{number}", nodes[0]), &nodes)).await.unwrap();
            assert_eq!(host_of(&volume), nodes[0]);
        }
    }
}

#[tokio::test]
async fn a_full_host_is_passed_over() {
    let authority = Authority::new();
    let small = Host::start("n1", authority.of_host("n1"), Bytes::gib(2), &[]).await;
    let large = Host::start("n2", authority.of_host("n2"), Bytes::gib(50), &[]).await;
    let hosts = [small, large];
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let size = 10 * GIB;
    for number in 0..3 {
        let mut request = new_on(&format!("big-{number}"), &["n1", "n2"]);
        request.capacity_range = create_with("", size, &filesystem()).capacity_range;
        let volume = routed.create(request.clone()).await.unwrap();
        assert_eq!(host_of(&volume), "n2", "the preferred one has no room");
        assert_eq!(routed.create(request).await.unwrap().volume_id, volume.volume_id);
    }
    let mut nowhere = new_on("nowhere", &["n1", "n2"]);
    nowhere.capacity_range = create_with("", 100 * GIB, &filesystem()).capacity_range;
    let said = routed.router.create_volume(Request::new(nowhere)).await.unwrap_err();
    assert!(matches!(said.code(), Code::ResourceExhausted | Code::OutOfRange), "{said:?}");
    let ask = |node: Option<&str>| {
        let places =
            node.map(|node| new_on("", &[node]).accessibility_requirements.unwrap().requisite.remove(0));
        Request::new(GetCapacityRequest { accessible_topology: places, ..Default::default() })
    };
    let mut room = Vec::new();
    for node in [None, Some("n1"), Some("n2"), Some("n9")] {
        room.push(routed.router.get_capacity(ask(node)).await.unwrap().into_inner().available_capacity);
    }
    assert_eq!(room[0], room[1] + room[2], "{room:?}");
    assert!(room[1] > 0 && room[2] > room[1] && room[3] == 0, "{room:?}");
}

#[tokio::test]
async fn the_first_place_alone_where_that_is_wanted() {
    let authority = Authority::new();
    let small = Host::start("n1", authority.of_host("n1"), Bytes::gib(8), &[]).await;
    let large = Host::start("n2", authority.of_host("n2"), Bytes::gib(50), &[]).await;
    let hosts = [small, large];
    let placing = Placing { first_only: true, ..Placing::default() };
    let told = Told { placing, ..Told::default() };
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), told).await;
    // A pod was promised to n1: a volume that is made elsewhere would tie it to a place where it may not run.
    let mut big = new_on("big", &["n1", "n2"]);
    big.capacity_range = create_with("", 10 * GIB, &filesystem()).capacity_range;
    let said = routed.router.create_volume(Request::new(big.clone())).await.unwrap_err();
    assert!(matches!(said.code(), Code::ResourceExhausted | Code::OutOfRange), "{said:?}");
    big.accessibility_requirements = new_on("", &["n2", "n1"]).accessibility_requirements;
    assert_eq!(host_of(&routed.create(big).await.unwrap()), "n2");
    assert!(routed.create(new("anywhere")).await.is_ok());

    // A copy lies where its source does, of those that would do: the pod has to follow.
    let source = routed.create(new_on("source", &["n1", "n2"])).await.unwrap();
    assert_eq!(host_of(&source), "n1");
    let mut copy = new_on("copy", &["n2", "n1"]);
    copy.volume_content_source = Some(VolumeContentSource {
        r#type: Some(volume_content_source::Type::Volume(VolumeSource { volume_id: source.volume_id })),
    });
    assert_eq!(host_of(&routed.create(copy.clone()).await.unwrap()), "n1");
    copy.accessibility_requirements = new_on("", &["n2"]).accessibility_requirements;
    copy.name = "impossible".to_owned();
    check(routed.router.create_volume(Request::new(copy)).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn only_if_it_exists_makes_nothing() {
    let (authority, hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts[..1]), Told::default()).await;
    let only = |name: &str| {
        let mut request = Request::new(new(name));
        request.metadata_mut().insert(ONLY_IF_EXISTS, "true".parse().unwrap());
        request
    };
    check(routed.router.create_volume(only("a")).await, Code::NotFound);
    check(routed.router.create_volume(only("a")).await, Code::NotFound);
    let made = routed.create(new("a")).await.unwrap();
    let found = routed.router.create_volume(only("a")).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(found.volume_id, made.volume_id);
    let remove = DeleteVolumeRequest { volume_id: made.volume_id, ..Default::default() };
    check(routed.router.delete_volume(Request::new(remove)).await, Code::Ok);
    check(routed.router.create_volume(only("a")).await, Code::NotFound);
}

#[tokio::test]
async fn a_retry_while_it_is_still_made_makes_no_second_one() {
    let (authority, hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let go_on = Arc::new(Notify::new());
    for host in &hosts {
        host.disk.set_fault("create_volume", Some(Fault::Stall(Arc::clone(&go_on))));
    }
    let began = || hosts.iter().map(|host| host.disk.calls("create_volume")).sum::<usize>();
    // The caller has no more patience; the host goes on.
    let given_up = tokio::time::timeout(Duration::from_secs(1), routed.create(new("slow"))).await;
    assert!(given_up.is_err() && began() > 0);
    let calls = began();
    let retry = routed.router.create_volume(Request::new(new("slow")));
    // Made elsewhere it would stall there, too.
    let answer = tokio::time::timeout(Duration::from_secs(20), retry).await;
    check(answer.expect("a second one is made"), Code::Aborted);
    assert_eq!(began(), calls, "nowhere else is it begun");
    for host in &hosts {
        host.disk.set_fault("create_volume", None);
    }
    go_on.notify_waiters();
    let until = Instant::now() + Duration::from_secs(20);
    while let Err(status) = routed.create(new("slow")).await {
        assert!(status.code() == Code::Aborted && Instant::now() < until, "{status:?}");
        go_on.notify_waiters();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(routed.router.doubled(), 0);
    let listed = routed.router.list_volumes(Request::new(ListVolumesRequest::default())).await.unwrap();
    assert_eq!(listed.into_inner().entries.len(), 1);
}
