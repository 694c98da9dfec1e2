//! The driver as a process, on real loop devices and real filesystems. Needs root; whatever is missing fails.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

mod audit;
mod backup;
mod bench;
#[expect(dead_code, reason = "what failed is kept and read by those who have millions")]
#[path = "../fuzz/calls.rs"]
mod calls;
mod canaries;
mod commands;
mod copies;
#[path = "../support/counter.rs"]
mod counter;
mod crash;
#[path = "../support/disk.rs"]
mod disk;
mod doors;
mod formats;
mod freeze;
mod groups;
mod growth;
#[expect(dead_code, reason = "parsers are fed beside each of them")]
#[path = "../support/hostile.rs"]
mod hostile;
mod import;
#[path = "../support/kill.rs"]
mod kill;
mod life;
mod load;
mod recovery;
#[path = "../support/requests.rs"]
mod requests;
#[expect(dead_code, reason = "shared with the tests of thin pools")]
mod rig;
mod secrets;
mod split;
mod trouble;
mod work;
#[path = "../support/writer.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod writer;
