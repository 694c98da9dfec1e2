//! Disks that become longer, are taken away and brought back, and pools on them: files behind loop devices.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use crate::rig::{Ground, Kind, run, text};

pub(crate) struct Disk {
    pub(crate) file: PathBuf,
    pub(crate) node: &'static str,
    _directory: tempfile::TempDir,
}

pub(crate) fn plug(file: &Path) -> &'static str {
    Box::leak(run("losetup", &["--find", "--show", &text(file)]).trim().to_owned().into_boxed_str())
}

impl Disk {
    pub(crate) fn new(mib: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("lagan-test-").tempdir_in("/var/tmp").unwrap();
        let file = directory.path().join("disk");
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        Self { node: plug(&file), file, _directory: directory }
    }

    /// One with an empty pool on it.
    pub(crate) fn with_pool(mib: u64) -> (Self, Ground) {
        let disk = Self::new(mib);
        let ground = disk.ground();
        let made = ground.lagan(&["pool", "init", "--device", disk.node]);
        assert!(made.status.success(), "{made:?}");
        (disk, ground)
    }

    /// A place for a driver that serves it.
    pub(crate) fn ground(&self) -> Ground {
        Ground::new(Kind::Block(self.node))
    }

    pub(crate) fn lengthen(&self, mib: u64) {
        File::options().write(true).open(&self.file).unwrap().set_len(mib << 20).unwrap();
        run("losetup", &["-c", self.node]);
    }

    pub(crate) fn unplug(&self) {
        run("losetup", &["-d", self.node]);
    }

    /// Takes the pool and the disk away. Whatever still runs from it fails the test.
    pub(crate) fn retire(self, ground: &Ground) {
        let stopped = ground.lagan(&["pool", "stop", "--device", self.node]);
        assert!(stopped.status.success(), "{stopped:?}");
        self.unplug();
    }
}
