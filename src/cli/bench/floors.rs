//! What anything costs on this machine at the least: measured in every run, in the directory that the volumes are on.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{super::scratch, hand, report::Report};
use crate::{
    bytes::Bytes,
    error::{Doing, Result},
    sys::{
        cmd::{Commands, Tool},
        file,
        loopdev::{self, Binding, LoopDevice},
    },
};

/// One flush of a new file.
pub(super) const FLUSH: &str = "fsync of a new file";
/// And of the directory that it is in.
pub(super) const FLUSH_DIRECTORY: &str = "fsync of its directory";
/// A mount(2) of an ext4.
pub(super) const MOUNT: &str = "mount(2) of an ext4";
/// A file made a loop device.
pub(super) const BIND: &str = "bind of a loop device";
/// A reflink of a file with one extent.
pub(super) const REFLINK: &str = "reflink of 1 MiB";
/// A program started.
pub(super) const PROCESS: &str = "start of a program";
/// A call of a server that does nothing.
pub(super) const RPC: &str = "empty RPC, null server";

const BINDING: Binding<'static> = Binding { read_only: false, autoclear: true, label: "lagan:bench" };
/// Each is measured so often in a round.
const TIMES: usize = 20;

/// What is needed to measure them.
pub(super) struct Floors {
    directory: PathBuf,
    point: PathBuf,
    /// A file with an ext4 in it, and its device.
    file: File,
    device: LoopDevice,
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

impl Floors {
    /// Prepares them: files go to `directory`, and vanish with this value; a mount point to `root`.
    pub(super) fn new(directory: &Path, root: &Path) -> Result<Self> {
        let what = || format!("prepare the floors in {}", directory.display());
        let image = directory.join("floor-ext4");
        let file = File::options().read(true).write(true).create_new(true).open(&image).doing(what)?;
        file.set_len(Bytes::gib(1).get()).doing(what)?;
        let options = ["-q", "-F", "-b", "4096", "-E", "nodiscard"].map(std::ffi::OsStr::new);
        let arguments = [&options[..], &[image.as_os_str()]].concat();
        let made = Commands::find().succeed(Tool::MkfsExt4, &arguments, Duration::from_secs(60));
        fs::remove_file(&image).doing(what)?;
        made?;
        let device = loopdev::bind(&file, &BINDING).doing(what)?;
        let point = root.join("floor");
        fs::create_dir(&point).doing(what)?;
        Ok(Self { directory: directory.to_owned(), point, file, device })
    }

    /// One round.
    pub(super) fn measure(&self, report: &mut Report) -> Result<()> {
        for _ in 0..TIMES {
            self.flushes(report)?;
            self.mounts(report)?;
            self.binds(report)?;
            let begun = Instant::now();
            hand::run("true", &[])?;
            report.floor(PROCESS, millis(begun));
        }
        Ok(())
    }

    fn flushes(&self, report: &mut Report) -> Result<()> {
        let what = || format!("measure in {}", self.directory.display());
        let [path, copy] = ["floor-file", "floor-copy"].map(|name| self.directory.join(name));
        let begun = Instant::now();
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).doing(what)?;
        let flushed = file.sync_all().doing(what);
        report.floor(FLUSH, millis(begun));
        let directory = File::open(&self.directory).doing(what)?;
        let begun = Instant::now();
        directory.sync_all().doing(what)?;
        report.floor(FLUSH_DIRECTORY, millis(begun));
        let written = file.write_all(&[1; 1 << 20]).and_then(|()| file.sync_all()).doing(what);
        let to = File::options().read(true).write(true).create_new(true).open(&copy).doing(what);
        let begun = Instant::now();
        let cut = to.and_then(|to| file::reflink(&file, &to).doing(what));
        let took = millis(begun);
        for path in [&path, &copy] {
            scratch::gone(path, fs::remove_file)?;
        }
        flushed.and(written)?;
        // Not every filesystem can.
        if cut.is_ok() {
            report.floor(REFLINK, took);
        }
        Ok(())
    }

    fn binds(&self, report: &mut Report) -> Result<()> {
        let begun = Instant::now();
        let bound = loopdev::bind(&self.file, &BINDING).doing(|| "bind a loop device");
        report.floor(BIND, millis(begun));
        bound.map(drop)
    }

    fn mounts(&self, report: &mut Report) -> Result<()> {
        let what = || format!("mount an ext4 at {}", self.point.display());
        let device = self.device.device().doing(what)?.path;
        let begun = Instant::now();
        mount(&device, &self.point, "ext4", MountFlags::empty(), None).doing(what)?;
        report.floor(MOUNT, millis(begun));
        unmount(&self.point, UnmountFlags::empty()).doing(what)
    }
}

impl Drop for Floors {
    fn drop(&mut self) {
        // It is empty, or was never made.
        fs::remove_dir(&self.point).unwrap_or_default();
    }
}
