//! Every call of the driver, over its real services and a modelled pool and kernel: twice, with other arguments, at
//! the same time, cancelled, with wrong and oversize arguments, across a restart. Needs no root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod concurrency;
#[path = "../support/fakes.rs"]
mod fakes;
mod groups;
mod limits;
mod nodes;
#[path = "../support/requests.rs"]
mod requests;
mod rig;
mod rules;
mod snapshots;
mod volumes;
