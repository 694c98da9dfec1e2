//! A filesystem in memory, so that thousands of flushes cost nothing. What is flushed, and when, is the driver's own.

use std::{
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::disk::{Disk, run, text, try_run};

/// An ext4 on a file in memory; gone with this value.
pub(crate) struct Memory {
    disk: Disk,
    place: PathBuf,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let place = tempfile::Builder::new().prefix("lagan-memory-").tempdir_in("/var/tmp").unwrap().keep();
        run("mount", &["-t", "tmpfs", "-o", "mode=0700", "tmpfs", &text(&place)]);
        // Sparse: only what is written takes memory.
        let disk = Disk::new(&place, "ext4", 8192);
        Self { disk, place }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.disk.point
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The device lets go of its file in its own time: what it is in goes then.
        for point in [&self.disk.point, &self.place] {
            drop(try_run("umount", &["--lazy", &text(point)]));
        }
        std::fs::remove_dir(&self.place).unwrap_or_default();
    }
}

/// Namespaces of their own copy every mount of the machine, and keep what is below it: whoever makes one is alone.
static NAMESPACES: RwLock<()> = RwLock::new(());

/// Nobody makes one meanwhile.
pub(crate) struct Beside {
    _guard: RwLockReadGuard<'static, ()>,
}

/// Nobody else has anything mounted meanwhile.
pub(crate) struct Alone {
    _guard: RwLockWriteGuard<'static, ()>,
}

/// Keeps others from making namespaces.
pub(crate) fn beside() -> Beside {
    Beside { _guard: NAMESPACES.read().unwrap_or_else(PoisonError::into_inner) }
}

/// Waits until nobody has anything mounted, and keeps it so.
pub(crate) fn alone() -> Alone {
    Alone { _guard: NAMESPACES.write().unwrap_or_else(PoisonError::into_inner) }
}
