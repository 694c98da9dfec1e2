//! Power cuts: everything that a pool writes to its disk is logged (dm-log-writes), and replayed up to each flush as a disk
//! that lost its power just then. Whatever was acknowledged must be there. Needs device-mapper: the virtual machine of
//! `make test-vm` has it. POINTS says at how many moments of each pool the power is cut, `all` for every one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

mod cuts;
#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
mod ground;
mod log;
#[path = "../support/records.rs"]
mod records;
mod story;
