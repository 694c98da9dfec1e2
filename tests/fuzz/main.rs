//! Every call of every service, as nobody should make it, by the million: over modelled pools and kernels, without root.
//! `make fuzz` says how many; what failed once is in `corpus/` and begins every run.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says how far it was"
)]

mod calls;
#[expect(dead_code, reason = "hosts and routers of the tests of clusters")]
#[path = "../cluster/rig.rs"]
mod cluster;
#[path = "../support/fakes.rs"]
mod fakes;
#[expect(dead_code, reason = "parsers are fed beside each of them")]
#[path = "../support/hostile.rs"]
mod hostile;
#[expect(dead_code, reason = "what the hosts of those tests are asked")]
#[path = "../support/requests.rs"]
mod requests;
mod run;
mod town;
