//! The driver on a thin pool of LVM, killed between any two steps. Needs device-mapper, LVM, strace, and a disk that may be
//! overwritten (`LAGAN_TEST_DISK`): the virtual machine of `make test-vm` has them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

mod backup;
mod block;
#[path = "../support/counter.rs"]
mod counter;
#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
mod doctor;
#[path = "../support/group.rs"]
mod group;
mod groups;
mod guardian;
mod import;
#[path = "../support/kill.rs"]
mod kill;
mod kills;
mod recovery;
#[path = "../support/requests.rs"]
mod requests;
#[path = "../kernel/rig.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod rig;
#[path = "../support/writer.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod writer;
