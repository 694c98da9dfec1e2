//! Volume groups with a thin pool, made as an administrator makes them, on disks that are there for tests.

use std::{path::Path, sync::OnceLock};

use crate::disk::{run, try_run};

static MADE: OnceLock<()> = OnceLock::new();

/// Names of the group and the thin pool.
pub(crate) const VG: &str = "lagantest";
pub(crate) const POOL: &str = "thin";

/// The disk that tests may overwrite: only the virtual machine names one.
pub(crate) fn disk() -> Option<String> {
    std::env::var("LAGAN_TEST_DISK").ok()
}

/// Whether a udevd runs here.
pub(crate) fn has_udev() -> bool {
    Path::new("/run/udev/control").exists()
}

/// The settings of a host that docs/operations.md asks for: LVM looks at its own disks. No copies of metadata beside the
/// group, and where no udev runs nobody to wait for.
pub(crate) fn config() -> String {
    let udev = if has_udev() { "" } else { "udev_sync=0 udev_rules=0 verify_udev_operations=1" };
    format!(
        "devices{{filter=[\"a|^/dev/vd|\",\"r|.*|\"]}} backup{{backup=0 archive=0}} activation{{monitoring=0 retry_deactivation=0 {udev}}}"
    )
}

/// Runs a command of LVM: whether it ended well, and what it said.
pub(crate) fn try_lvm(arguments: &[&str]) -> (bool, String) {
    let (command, rest) = arguments.split_first().unwrap();
    try_run("lvm", &[&[*command, "--config", &config()], rest].concat())
}

/// Runs one that must end well.
#[track_caller]
pub(crate) fn lvm(arguments: &[&str]) -> String {
    let (well, said) = try_lvm(arguments);
    assert!(well, "lvm {arguments:?}: {said}");
    said
}

/// Makes the group and the thin pool on the disk, once; what was there is gone. The machine goes after the tests, and
/// they with it.
pub(crate) fn ensure(pool_mib: u32) {
    // Room for the worst case of many volumes.
    let metadata_mib = pool_mib / 16;
    MADE.get_or_init(|| make(VG, &disk().expect("LAGAN_TEST_DISK must name a disk"), pool_mib, metadata_mib));
}

fn make(vg: &str, disk: &str, pool_mib: u32, metadata_mib: u32) {
    unmake(vg, disk);
    lvm(&["vgcreate", "-y", "--metadatasize", "16m", vg, disk]);
    let (size, metadata) = (format!("{pool_mib}m"), format!("{metadata_mib}m"));
    lvm(&[
        "lvcreate",
        "-y",
        "--type",
        "thin-pool",
        "-L",
        &size,
        "--poolmetadatasize",
        &metadata,
        "-n",
        POOL,
        vg,
    ]);
}

/// Takes a group away, whoever made it, with the devices that were left on it.
fn unmake(vg: &str, disk: &str) {
    for line in run("dmsetup", &["ls"]).lines().filter(|line| line.starts_with("lagan-")) {
        let name = line.split_whitespace().next().unwrap();
        if stands_on(name, vg) {
            run("dmsetup", &["remove", "--retry", "--noudevsync", name]);
        }
    }
    drop(try_lvm(&["vgremove", "-ffy", vg]));
    run("wipefs", &["-aq", disk]);
    // Where no udev runs, links outlive what they stand for.
    run("rm", &["-rf", &format!("/dev/{vg}")]);
}

/// Whether a device lies on a group.
fn stands_on(name: &str, vg: &str) -> bool {
    let below = run("dmsetup", &["deps", "-o", "devname", name]);
    below.contains(&format!("({vg}-"))
}

/// A group with a pool of its own, on a disk of its own; gone with this value.
pub(crate) struct Small;

impl Small {
    pub(crate) const VG: &str = "lagansmall";

    pub(crate) fn new(pool_mib: u32, metadata_mib: u32) -> Self {
        make(Self::VG, &Self::disk(), pool_mib, metadata_mib);
        Self
    }

    pub(crate) fn disk() -> String {
        std::env::var("LAGAN_SMALL_DISK").expect("LAGAN_SMALL_DISK must name a disk")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            unmake(Self::VG, &Self::disk());
        }
    }
}
