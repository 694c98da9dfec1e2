//! Single faults: each system call of each operation, each error that it may give.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lagan::proto::CreateVolumeRequest;
use tonic::Code;

use crate::{
    life::{self, Of},
    memory::{Memory, beside},
    requests::create_with,
    rig::{Ground, Kind, MIB, filesystem},
    stage::Stage,
    table,
    tracer::{Act, Call, Place, Shot, Tracer},
};

/// `FAULTS=all` tries everything; otherwise of calls that are alike the first one, with the likeliest of what may happen.
pub(crate) fn everything() -> bool {
    std::env::var("FAULTS").is_ok_and(|it| it == "all")
}

/// What a call is about, without what differs from one time to another.
fn alike(call: &Call) -> (String, String, bool) {
    let about = call.about.split(|c: char| c.is_ascii_hexdigit()).collect();
    (call.kind.clone(), about, call.answer < 0)
}

/// The calls that are tried.
pub(crate) fn picked(calls: Vec<Call>) -> Vec<Call> {
    // A host may have hundreds of devices, all of which are asked in the same place.
    let limit = if everything() { 8 } else { 1 };
    let mut seen = BTreeMap::<_, u32>::new();
    let first = |call: &Call| {
        // Which of the devices that are in use is the one that counts differs.
        if call.answer >= 0 && call.about.ends_with("/backing_file") && call.about.starts_with("/sys/block/")
        {
            return true;
        }
        let count = seen.entry(alike(call)).or_default();
        *count += 1;
        *count <= limit
    };
    calls.into_iter().filter(first).collect()
}

#[tokio::test]
async fn each_error_at_each_call_for_volumes() {
    each_error_at_each_call(Of::Volumes).await;
}

#[tokio::test]
async fn each_error_at_each_call_for_snapshots() {
    each_error_at_each_call(Of::Snapshots).await;
}

#[tokio::test]
async fn each_error_at_each_call_of_a_node() {
    each_error_at_each_call(Of::Node).await;
}

async fn each_error_at_each_call(of: Of) {
    let mut stage = Stage::new(Kind::Image).await;
    let (mut trials, mut missed, mut wrong) = (0, 0, Vec::new());
    let begun = std::time::Instant::now();
    for operation in life::all(of) {
        let calls = picked(stage.record(operation).await.calls);
        let (sites, before) = (calls.len(), trials);
        for call in calls {
            for act in table::acts(&call, everything()).unwrap() {
                let place = Place::Nth(call.kind.clone(), call.nth);
                let trial = stage.trial(operation, &[Shot { place, act }]).await;
                trials += 1;
                let what =
                    format!("{operation:?} with {act:?} at {} {} ({})", call.kind, call.nth, call.about);
                if trial.fired == 0 {
                    println!("not met: {what}");
                    missed += 1;
                }
                if !trial.wrong.is_empty() {
                    println!("WRONG {what}: {}", trial.wrong.join("; "));
                    wrong.push(what);
                    // The machine is for one of them at a time.
                    stage.abandon();
                    stage = Stage::new(Kind::Image).await;
                }
            }
        }
        println!("{operation:?}: {sites} calls, {} trials, {:?}", trials - before, begun.elapsed());
    }
    println!("{trials} faults, {missed} not met");
    stage.end().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(missed * 20 <= trials, "{missed} calls were not met again");
}

/// A disk that takes its time: the same request waits for the work that runs, another one on the same name is told so at
/// once, and nobody else notices.
#[tokio::test]
async fn a_slow_call_is_joined_and_holds_up_nobody_else() {
    const SLOW: u64 = 1500;
    let _apart = beside();
    let memory = Memory::new();
    let ground = Ground::within(memory.path(), Kind::Image, 4096);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    daemon.create("before", 16, &how).await;
    let tracer = Tracer::attach(daemon.pid().as_raw_nonzero().get());
    tracer.begin(&[Shot { place: Place::Nth("fsync".into(), 1), act: Act::Delay(SLOW) }]);
    let (begun, request) = (Instant::now(), create_with("slow", 16 * MIB, &how));
    let created = |request: CreateVolumeRequest| {
        let mut controller = daemon.controller.clone();
        tokio::spawn(async move { controller.create_volume(request).await.map(tonic::Response::into_inner) })
    };
    let first = created(request.clone());
    while tracer.met() == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let second = created(request.clone());
    let other = created(create_with("slow", 32 * MIB, &how)).await.unwrap();
    assert_eq!(other.unwrap_err().code(), Code::Aborted);
    let beside = created(create_with("beside", 16 * MIB, &how)).await.unwrap().unwrap().volume.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(SLOW), "somebody else waited: {:?}", begun.elapsed());
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(SLOW), "it was not slow");
    assert_eq!(first, second, "one was made, and both were told of it");
    assert_eq!(tracer.end().fired.len(), 1);
    daemon.delete(&first.volume.unwrap().volume_id).await;
    daemon.delete(&beside.volume_id).await;
    ground.account();
}
