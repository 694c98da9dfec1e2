//! A volume group with a thin pool, made as an administrator makes one, on a disk that is there for tests.

use std::sync::OnceLock;

use crate::disk::run;

static MADE: OnceLock<()> = OnceLock::new();

/// Names of the group and the thin pool.
pub(crate) const VG: &str = "lagantest";
pub(crate) const POOL: &str = "thin";

/// The disk that tests may overwrite: only the virtual machine names one.
pub(crate) fn disk() -> Option<String> {
    std::env::var("LAGAN_TEST_DISK").ok()
}

/// Nobody to wait for, no copies of metadata beside the group.
const CONFIG: &str = "backup{backup=0 archive=0} activation{monitoring=0 udev_sync=0 udev_rules=0 \
                      verify_udev_operations=1}";

pub(crate) fn lvm(arguments: &[&str]) -> String {
    let (command, rest) = arguments.split_first().unwrap();
    run("lvm", &[&[*command, "--config", CONFIG], rest].concat())
}

/// Makes the group and the thin pool on the disk, once; what was there is gone. The machine goes after the tests, and
/// they with it.
pub(crate) fn ensure(pool_mib: u32) {
    MADE.get_or_init(|| make(&disk().expect("LAGAN_TEST_DISK must name a disk"), pool_mib));
}

fn make(disk: &str, pool_mib: u32) {
    run("wipefs", &["-aq", disk]);
    lvm(&["vgcreate", "-y", VG, disk]);
    let size = format!("{pool_mib}m");
    lvm(&["lvcreate", "-y", "--type", "thin-pool", "-L", &size, "--poolmetadatasize", "64m", "-n", POOL, VG]);
}
