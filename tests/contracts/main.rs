//! One suite of promises over every kind of pool, and one over every kernel, the modelled ones included: a model that
//! drifts from the real thing fails here. Needs root for the real ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/disk.rs"]
mod disk;
#[path = "../support/group.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod group;
mod groups;
mod kernel;
mod model;
#[path = "../support/modelled.rs"]
mod modelled;
mod pool;
#[path = "../support/records.rs"]
mod records;
mod rig;
