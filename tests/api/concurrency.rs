//! Calls at the same time, calls that are given up, and a driver that is replaced between two calls.

use std::{sync::Arc, time::Duration};

use lagan::{
    pool::fake::Fault,
    proto::{ListVolumesRequest, ProbeRequest, volume_capability::access_mode::Mode},
};
use tokio::sync::Notify;
use tonic::Code;

use crate::rig::{Rig, block, check, create, delete, mount, snapshot_of, stage};

/// Waits until the driver is in a call of the pool.
async fn until_called(rig: &Rig, call: &'static str, times: usize) {
    for _ in 0..1000 {
        if rig.disk.calls(call) >= times {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{call} was not called {times} times");
}

#[tokio::test]
async fn the_same_call_twice_at_once_is_one_piece_of_work() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.disk.set_fault("create_volume", Some(Fault::Stall(Arc::clone(&gate))));
    let call = |rig: &Rig| {
        let mut controller = rig.controller.clone();
        tokio::spawn(async move {
            controller.create_volume(create("a")).await.unwrap().into_inner().volume.unwrap()
        })
    };
    let (first, second) = (call(&rig), call(&rig));
    until_called(&rig, "create_volume", 1).await;
    // Another request of the same name meets the one that runs.
    let other = lagan::proto::CreateVolumeRequest {
        volume_capabilities: vec![block(Mode::SingleNodeWriter)],
        ..create("a")
    };
    let said = check(rig.controller.create_volume(other).await, Code::Aborted);
    assert!(said.contains("CreateVolume of a is running"), "{said}");
    // Everything else goes on meanwhile.
    rig.identity.probe(ProbeRequest {}).await.unwrap();
    rig.controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
    gate.notify_one();
    assert_eq!(first.await.unwrap(), second.await.unwrap());
    assert_eq!(rig.disk.calls("create_volume"), 1);
}

#[tokio::test]
async fn a_call_that_is_given_up_goes_on() {
    let mut rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    rig.disk.set_fault("create_volume", Some(Fault::Stall(Arc::clone(&gate))));
    let mut request = tonic::Request::new(create("a"));
    request.set_timeout(Duration::from_millis(30));
    let status = rig.controller.create_volume(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
    assert_eq!(rig.work.running().len(), 1, "the work outlives the call");
    let retry = tokio::spawn({
        let mut controller = rig.controller.clone();
        async move { controller.create_volume(create("a")).await }
    });
    gate.notify_one();
    let volume = retry.await.unwrap().unwrap().into_inner().volume.unwrap();
    assert_eq!(rig.disk.calls("create_volume"), 1, "the retry joined it");
    assert_eq!(rig.create(create("a")).await.unwrap(), volume);
}

#[tokio::test]
async fn a_source_is_kept_while_it_is_copied() {
    let mut rig = Rig::new().await;
    let a = rig.create(create("a")).await.unwrap().volume_id;
    let gate = Arc::new(Notify::new());
    rig.disk.set_fault("create_snapshot", Some(Fault::Stall(Arc::clone(&gate))));
    let snapshot = |rig: &Rig, name: &str| {
        let mut controller = rig.controller.clone();
        let request = snapshot_of(&a, name);
        tokio::spawn(async move { controller.create_snapshot(request).await })
    };
    let (one, two) = (snapshot(&rig, "one"), snapshot(&rig, "two"));
    until_called(&rig, "create_snapshot", 2).await;
    check(rig.controller.delete_volume(delete(&a)).await, Code::Aborted);
    gate.notify_waiters();
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    check(rig.controller.delete_volume(delete(&a)).await, Code::Ok);
}

#[tokio::test]
async fn a_damaged_record_is_no_volume_that_is_gone() {
    let mut rig = Rig::new().await;
    let id = rig.published("a", mount(Mode::SingleNodeWriter)).await;
    rig.disk.damage(id.parse().unwrap());
    // A record that cannot be read is no volume that is gone, and no reason to format.
    check(rig.node.node_stage_volume(stage(&id, mount(Mode::SingleNodeWriter))).await, Code::Unavailable);
    rig.identity.probe(ProbeRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_storm_of_retries_makes_each_volume_once() {
    let rig = Rig::new().await;
    let mut calls = Vec::new();
    for n in 0..200 {
        let mut controller = rig.controller.clone();
        calls.push(tokio::spawn(async move {
            let mut request = create(&format!("v{}", n % 10));
            request.capacity_range = None;
            controller.create_volume(request).await
        }));
    }
    let mut ids = std::collections::HashSet::new();
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => drop(ids.insert(answer.into_inner().volume.unwrap().volume_id)),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    assert_eq!((ids.len(), rig.disk.calls("create_volume")), (10, 10));
}
