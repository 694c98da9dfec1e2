//! `make soak`: the release daemon for hours, with parallel callers, live volumes beside them, and a fault every 30
//! seconds. Every minute everything stands still for a moment: the accountant must be content, and what the daemon
//! uses is noted. Faults that end the daemon come in the first half only; the second half is the life of one process,
//! and its first half is compared with its last.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it did"
)]

#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
mod faults;
mod life;
mod measure;
mod neighbour;
#[path = "../support/requests.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod requests;
#[path = "../kernel/rig.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod rig;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use faults::{Fault, Injector};
use life::{Caller, State};
use measure::Sample;
use neighbour::{Live, Neighbour};
use rig::{Ground, Kind, run, text};

/// How often something goes wrong, and how often everything is looked at.
const FAULT_EVERY: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map_or(default, |text| text.parse().unwrap())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let minutes = number("MINUTES", 60 * number("HOURS", 1));
    let (callers, volumes) = (number("CALLERS", 8), number("VOLUMES", 200));
    let mut ground = Ground::new(Kind::Image);
    if let Ok(program) = std::env::var("LAGAN") {
        ground.program = program;
    }
    let root = text(&ground.root);
    // What a daemon in a mount namespace of its own mounts here is seen by everybody.
    run("mount", &["--bind", &root, &root]);
    run("mount", &["--make-shared", &root]);
    faults::log_on_a_small_disk(&ground);
    let mut daemon = ground.start_with(&["--log-level", "info"]).await;
    let live = Live::make(&ground, &mut daemon, volumes).await;
    let neighbour = Neighbour::beside(&ground, &mut daemon).await;
    let state = Arc::new(State::new(&daemon));
    let calling: Vec<_> = (0..callers)
        .map(|number| tokio::spawn(Caller::new(&ground, &state, number).call_until_stopped()))
        .collect();
    println!("soak: {minutes} minutes, {callers} callers, {volumes} live volumes, {}", ground.program);
    let duration = Duration::from_secs(60 * minutes);
    let mut injector = Injector::new(&ground, &state, daemon);
    let samples = watch(&mut injector, &state, duration).await;
    state.stop();
    for caller in calling {
        caller.await.unwrap();
    }
    let stall = neighbour.end(&ground, &mut injector.daemon).await;
    live.end(&ground, &mut injector.daemon).await;
    ground.account();
    let verdict = measure::verdict(&samples, &state, injector.count, stall);
    assert!(injector.daemon.stop().success(), "it ends in order");
    run("umount", &[&text(&ground.root.join("pool/fs"))]);
    run("umount", &[&text(&ground.root.join("logs"))]);
    run("umount", &[&root]);
    drop(ground);
    println!("{}", verdict.text);
    assert!(verdict.well, "it drifted");
}

/// Lets things go wrong, and looks, until the time is up.
async fn watch(injector: &mut Injector<'_>, state: &State, duration: Duration) -> Vec<Sample> {
    let begun = Instant::now();
    let (mut samples, mut next_fault, mut next_look) = (Vec::new(), FAULT_EVERY, LOOK_EVERY);
    while begun.elapsed() < duration {
        if begun.elapsed() >= next_fault {
            let fault = Fault::number(injector.count, begun.elapsed() < duration / 2);
            injector.inject(fault).await;
            next_fault = next_fault.max(begun.elapsed().saturating_sub(FAULT_EVERY / 2)) + FAULT_EVERY;
        }
        if begun.elapsed() >= next_look {
            let sample = measure::look(injector, state).await;
            println!("{:>4} min  {sample}", begun.elapsed().as_secs() / 60);
            samples.push(sample);
            next_look = next_look.max(begun.elapsed().saturating_sub(LOOK_EVERY / 2)) + LOOK_EVERY;
        }
        state.check();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The last minute ends with the time.
    samples.push(measure::look(injector, state).await);
    samples
}
