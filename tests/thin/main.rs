//! The driver on thin pools: killed between any two steps, beside an administrator, with tenants of ill will, full. Needs
//! device-mapper, LVM, strace, and disks that may be overwritten (`LAGAN_TEST_DISK`, `LAGAN_SMALL_DISK`): the virtual machine of `make test-vm` has them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

mod backup;
mod beside;
mod block;
mod broken;
#[path = "../support/counter.rs"]
mod counter;
#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
mod disks;
mod doctor;
mod extend;
mod full;
#[path = "../support/group.rs"]
mod group;
mod groups;
mod guarded;
mod guardian;
mod import;
#[path = "../support/kill.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod kill;
mod kills;
mod programs;
mod recovery;
mod remanence;
#[path = "../support/requests.rs"]
mod requests;
#[path = "../kernel/rig.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod rig;
mod space;
mod tenant;
#[path = "../support/writer.rs"]
mod writer;
