//! Hosts that do not answer, are slow, are lost for good, or come back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lagan::{
    peers::Role,
    proto::{ControllerGetVolumeRequest, ListVolumesRequest, controller_server::Controller},
};
use tokio::net::TcpListener;
use tonic::{Code, Request};

use crate::{
    requests::{check, delete, unpublish_from},
    rig::{Routed, Told, addresses, host_of, new, new_on, pool_of, two},
};

fn get(id: &str) -> Request<ControllerGetVolumeRequest> {
    Request::new(ControllerGetVolumeRequest { volume_id: id.into() })
}

#[tokio::test]
async fn the_others_go_on_and_a_double_is_noticed() {
    let (authority, mut hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let near = routed.create(new_on("near", &["n1"])).await.unwrap();
    let far = routed.create(new_on("far", &["n2", "n1"])).await.unwrap();
    assert_eq!(host_of(&far), "n2");
    let node = hosts[1].node.clone();
    hosts[1].stop();
    // Before the router has noticed, and after.
    check(routed.router.controller_get_volume(get(&far.volume_id)).await, Code::Unavailable);
    routed.sees(&node, false).await;
    check(routed.router.controller_get_volume(get(&far.volume_id)).await, Code::Unavailable);
    check(routed.router.delete_volume(Request::new(delete(&far.volume_id))).await, Code::Unavailable);
    check(routed.router.controller_get_volume(get(&near.volume_id)).await, Code::Ok);
    // Nowhere else will do.
    check(routed.router.create_volume(Request::new(new_on("far-2", &["n2"]))).await, Code::Unavailable);
    // Elsewhere will do: the one that does not answer is passed over, and may have had it.
    let again = routed.create(new_on("far", &["n2", "n1"])).await.unwrap();
    assert_eq!(host_of(&again), "n1");
    assert_eq!(routed.router.doubled(), 0);
    hosts[1].restart(authority.of_host("n2")).await;
    routed.sees(&node, true).await;
    // Nothing is deleted by itself; the answer is the same each time.
    let first = routed.create(new_on("far", &["n2", "n1"])).await.unwrap();
    assert_eq!(routed.create(new_on("far", &["n2", "n1"])).await.unwrap().volume_id, first.volume_id);
    assert_eq!(routed.router.doubled(), 2);
    for id in [&far.volume_id, &again.volume_id] {
        check(routed.router.controller_get_volume(get(id)).await, Code::Ok);
    }
}

#[tokio::test]
async fn a_full_host_beside_a_silent_one_is_not_final() {
    let (authority, mut hosts) = two().await;
    let routed = Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
    let node = hosts[1].node.clone();
    hosts[1].stop();
    routed.sees(&node, false).await;
    let mut request = new("huge");
    request.parameters.insert("pool".into(), "elsewhere".into());
    // The one that answers cannot have it; the other one may.
    check(routed.router.create_volume(Request::new(request)).await, Code::Unavailable);
}

#[tokio::test]
async fn one_that_accepts_and_says_nothing_holds_up_nobody() {
    let (authority, hosts) = two().await;
    // It takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut known = addresses(&hosts);
    known.push(("n3", silent.local_addr().unwrap()));
    let routed = Routed::over(authority.of(Role::Router), &known, Told::default()).await;
    let volume = routed.create(new_on("a", &["n1"])).await.unwrap();
    let begun = Instant::now();
    for _ in 0..50 {
        check(routed.router.controller_get_volume(get(&volume.volume_id)).await, Code::Ok);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    check(routed.router.create_volume(Request::new(new_on("b", &["n3"]))).await, Code::Unavailable);
    check(routed.router.create_volume(Request::new(new_on("b", &["n3", "n2"]))).await, Code::Ok);
}

#[tokio::test]
async fn one_that_is_expected_behind_a_name_is_missing_until_it_is_met() {
    let (authority, mut hosts) = two().await;
    let name = hosts[0].address.to_string();
    let list = || Request::new(ListVolumesRequest::default());
    let routed = Routed::behind(authority.of(Role::Router), &name, &["n1", "n2"]).await;
    routed.sees(&hosts[0].node, true).await;
    let volume = routed.create(new_on("a", &["n1"])).await.unwrap();
    let why = check(routed.router.list_volumes(list()).await, Code::Unavailable);
    assert!(why.contains("n2") && !why.contains("n1"), "{why}");
    check(routed.router.create_volume(Request::new(new_on("b", &["n2"]))).await, Code::Unavailable);
    // The same name, and nobody else expected there.
    let routed = Routed::behind(authority.of(Role::Router), &name, &["n1"]).await;
    routed.sees(&hosts[0].node, true).await;
    assert_eq!(routed.router.list_volumes(list()).await.unwrap().into_inner().entries.len(), 1);
    hosts[0].stop();
    routed.sees(&hosts[0].node, false).await;
    check(routed.router.controller_get_volume(get(&volume.volume_id)).await, Code::Unavailable);
    check(routed.router.list_volumes(list()).await, Code::Unavailable);
    // A router that starts now has never met it, and knows that there is one.
    let routed = Routed::behind(authority.of(Role::Router), &name, &["n1"]).await;
    check(routed.router.create_volume(Request::new(new_on("a", &["n1"]))).await, Code::Unavailable);
    check(routed.router.list_volumes(list()).await, Code::Unavailable);
}

#[tokio::test]
async fn what_was_forgotten_counts_as_gone_and_is_refused_if_it_returns() {
    let (authority, hosts) = two().await;
    let known = addresses(&hosts);
    let routed = Routed::over(authority.of(Role::Router), &known, Told::default()).await;
    let lost = routed.create(new_on("lost", &["n2"])).await.unwrap();
    let kept = routed.create(new_on("kept", &["n1"])).await.unwrap();
    let list = || Request::new(ListVolumesRequest::default());
    let forgotten_pools = BTreeSet::from([pool_of(&lost)]);
    let forgotten_hosts = BTreeSet::from(["n2".parse().unwrap()]);
    let told = Told { forgotten_hosts, forgotten_pools: forgotten_pools.clone(), ..Told::default() };
    // It is there, and answers: it is refused all the same.
    let routed = Routed::over(authority.of(Role::Router), &known, told).await;
    check(routed.router.controller_get_volume(get(&lost.volume_id)).await, Code::NotFound);
    check(
        routed.router.controller_unpublish_volume(Request::new(unpublish_from(&lost.volume_id, ""))).await,
        Code::Ok,
    );
    check(routed.router.delete_volume(Request::new(delete(&lost.volume_id))).await, Code::Ok);
    let found = routed.router.list_volumes(list()).await.unwrap().into_inner().entries;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].volume.as_ref().unwrap().volume_id, kept.volume_id);
    let again = routed.create(new_on("lost", &["n2", "n1"])).await.unwrap();
    assert_eq!(host_of(&again), "n1");
    // A pool alone that was given up: nothing new is put on its host.
    let told = Told { forgotten_pools, ..Told::default() };
    let routed = Routed::over(authority.of(Role::Router), &known, told).await;
    check(routed.router.delete_volume(Request::new(delete(&lost.volume_id))).await, Code::Ok);
    check(routed.router.create_volume(Request::new(new_on("more", &["n2"]))).await, Code::Unavailable);
    assert_eq!(routed.router.list_volumes(list()).await.unwrap().into_inner().entries.len(), 2);
    // Taken off the lists, all is as it was.
    let routed = Routed::over(authority.of(Role::Router), &known, Told::default()).await;
    check(routed.router.controller_get_volume(get(&lost.volume_id)).await, Code::Ok);
}

#[tokio::test]
async fn a_name_that_cannot_be_looked_up_is_no_empty_list() {
    let (authority, _hosts) = two().await;
    let blind = Routed::behind(authority.of(Role::Router), "nobody.invalid:1", &[]).await;
    let list = ListVolumesRequest::default();
    let said = check(blind.router.list_volumes(Request::new(list)).await, Code::Unavailable);
    assert!(said.contains("nobody.invalid"), "{said}");
}
