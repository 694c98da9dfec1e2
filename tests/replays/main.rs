//! What each orchestrator sends, call by call, against the real driver: the fields as it fills them, its paths, its
//! repetitions, and what it leaves out. Needs root; whatever is missing fails. The real Nomad runs in `make test-nomad`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
mod fields;
mod mesos;
mod nomad;
mod others;
mod pages;
#[path = "../support/requests.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod requests;
#[path = "../kernel/rig.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod rig;
mod swarm;
