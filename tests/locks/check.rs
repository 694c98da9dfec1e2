//! Locks and joins under every interleaving: `src/engine/locks.rs` and `src/engine/work.rs` as they are, compiled upon the
//! primitives of loom, which tries each order in which threads can take their steps. A thread that waits for ever is a
//! deadlock to it: a lost answer and a lost wake-up are found as well. Run by `make unit`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a check fails by panicking, and says what it did"
)]

mod blocking;
#[expect(dead_code, unreachable_pub, reason = "in the driver they are a part of its library")]
mod engine;
mod models;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use lagan::{bytes, digest, error, id, pool};

fn main() {
    let begun = std::time::Instant::now();
    let total: u64 = models::ALL.iter().map(|(name, model)| interleavings(name, *model)).sum();
    println!(
        "locks and joins: {} promises, {total} interleavings, 0 broken, in {:.1} s",
        models::ALL.len(),
        begun.elapsed().as_secs_f64()
    );
}

/// Tries them all; how many there are. A model that breaks its promise panics.
fn interleavings(name: &str, model: fn()) -> u64 {
    let tried = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&tried);
    loom::model::Builder::new().check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let tried = tried.load(Ordering::Relaxed);
    println!("{tried:>8} {name}");
    tried
}
