//! SIGKILL between any two changes of each operation, for real. After a restart the same request succeeds, and the accountant
//! is content.

use crate::{
    life::{self, Of, Operation},
    rig::Kind,
    sites::{everything, picked},
    stage::Stage,
    table,
    tracer::{Act, Call, Place, Shot},
};

/// Where an operation is killed: before each call that changes something outside the process, which is after the one before
/// it, and after the last. With everything: before and after each call, of many that are
/// alike the first few.
fn places(calls: Vec<Call>) -> Vec<(Call, Act)> {
    if everything() {
        let calls = picked(calls);
        let both = |call: Call| [(call.clone(), Act::KillBefore), (call, Act::KillAfter)];
        return calls.into_iter().flat_map(both).collect();
    }
    let changes: Vec<_> = calls.into_iter().filter(table::changes).collect();
    let last = changes.last().map(|call| (call.clone(), Act::KillAfter));
    changes.into_iter().map(|call| (call, Act::KillBefore)).chain(last).collect()
}

/// What changes nothing need not be killed.
fn only_asks(operation: Operation) -> bool {
    use Operation::{Capacity, Get, List, ListSnapshots, Stats, UngrantShown, UnstageShown};

    let asks = matches!(operation, Stats | List | ListSnapshots | Capacity | Get);
    asks || matches!(operation, UngrantShown(_) | UnstageShown(_))
}

#[tokio::test]
async fn between_any_two_changes_for_volumes() {
    between_any_two_changes(Of::Volumes).await;
}

#[tokio::test]
async fn between_any_two_changes_for_snapshots() {
    between_any_two_changes(Of::Snapshots).await;
}

#[tokio::test]
async fn between_any_two_changes_of_a_node() {
    between_any_two_changes(Of::Node).await;
}

async fn between_any_two_changes(of: Of) {
    let mut stage = Stage::new(Kind::Image).await;
    let (mut kills, mut missed, mut wrong) = (0, 0, Vec::new());
    let begun = std::time::Instant::now();
    for operation in life::all(of).filter(|it| !only_asks(*it)) {
        let places = places(stage.record(operation).await.calls);
        assert!(!places.is_empty(), "{operation:?} changes nothing");
        let before = kills;
        for (call, act) in places {
            let place = Place::Nth(call.kind.clone(), call.nth);
            let trial = stage.trial(operation, &[Shot { place, act }]).await;
            kills += u32::from(trial.fired > 0);
            missed += u32::from(trial.fired == 0);
            let what = format!("{operation:?} with {act:?} at {} {} ({})", call.kind, call.nth, call.about);
            if !trial.wrong.is_empty() {
                println!("WRONG {what}: {}", trial.wrong.join("; "));
                wrong.push(what);
                stage.abandon();
                stage = Stage::new(Kind::Image).await;
            }
        }
        println!("{operation:?}: killed {} times, {:?}", kills - before, begun.elapsed());
    }
    println!("{kills} kills, {missed} not met, longest restart {:?}", stage.longest_restart);
    stage.end().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(missed * 20 <= kills, "{missed} calls were not met");
}
