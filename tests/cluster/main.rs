//! Many hosts as one driver: real TLS between modelled hosts. Needs no root.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod calls;
#[path = "../support/fakes.rs"]
mod fakes;
mod lists;
mod load;
mod lost;
mod placing;
mod programs;
#[expect(dead_code, reason = "those of nodes are for other tests")]
#[path = "../support/requests.rs"]
mod requests;
mod rig;
mod trust;
