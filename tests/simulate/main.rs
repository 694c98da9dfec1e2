//! Schedules of a modelled cluster, drawn by lot and held against a reference: real services, engine, node and router over
//! modelled disks, kernels and a modelled network, on one thread and without time, so that a seed repeats a run exactly.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "what failed is told to whoever runs it")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

mod book;
mod calls;
mod calm;
mod chance;
mod end;
mod invent;
mod kept;
mod machine;
mod model;
#[path = "../support/modelled.rs"]
mod modelled;
#[path = "../support/records.rs"]
mod records;
#[path = "../support/requests.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod requests;
mod road;
mod script;
mod shared;
mod thin;
mod world;

use world::World;

/// Schedules in a usual run.
const SEEDS: u64 = 20_000;

/// One schedule, from its seed; the trace where it is wanted.
fn schedule(seed: u64, traced: bool) -> Vec<String> {
    let _together = lagan::blocking::together();
    let mut world = World::new(seed, traced);
    // Most trouble needs few events; some needs many.
    let events = if world.chance.once_in(8) { 200 } else { 20 + world.chance.below(80) };
    world.go_on(events);
    world.end();
    world.trace.unwrap_or_default()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| value.parse().unwrap())
}

/// `SEED` shows one of them, `SEEDS` says how many, `FROM` from where.
#[test]
fn schedules() {
    if let Some(seed) = number("SEED") {
        let trace = schedule(seed, true);
        trace.iter().for_each(|line| eprintln!("{line}"));
        return;
    }
    let (from, seeds) = (number("FROM").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let (next, failed) = (AtomicU64::new(from), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds || failed.load(Ordering::Relaxed) >= 5 {
                        return;
                    }
                    if catch_unwind(AssertUnwindSafe(|| schedule(seed, false))).is_err() {
                        eprintln!("seed {seed} failed: SEED={seed} shows how");
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert_eq!(failed, 0, "of {seeds} schedules");
    eprintln!("{seeds} schedules, none failed");
}

#[test]
fn a_seed_repeats_itself_to_the_byte() {
    for seed in 0..40 {
        let (first, second) = (schedule(seed, true), schedule(seed, true));
        assert!(first.len() > 20 && first == second, "seed {seed}");
    }
}
