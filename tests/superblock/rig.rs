//! What the tests need around the images: tools, loop devices, mounts. All of it is undone on the way out, and
//! complains where that fails. Needs root; a missing tool fails the test.

use std::{
    fs::{self, File, OpenOptions},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use lagan::{
    bytes::Bytes,
    filesystem::Filesystem,
    sys::superblock::{Contents, Superblock, mkfs_arguments, probe},
};
use rustix::fs::{SeekFrom, seek};
use uuid::Uuid;

/// A directory for images. It is removed with its files, and never while one is mounted: mounts are made in
/// directories of their own, which are removed by `rmdir`.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("lagan-superblock-").tempdir_in("/var/tmp").unwrap()
}

/// Runs a program and says what it printed, and whether it ended well.
#[expect(
    clippy::disallowed_methods,
    reason = "tests run mkfs, fsck, losetup and mount as an administrator would"
)]
pub(crate) fn run_status(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("LC_ALL", "C")
        // All three together: mkfs.xfs also makes logs of less than 64 MiB.
        .envs([("TEST_DIR", "/"), ("TEST_DEV", "/"), ("QA_CHECK_FS", "1")])
        .output()
        .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// Runs a program that must end well.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let (well, text) = run_status(program, arguments);
    assert!(well, "{program} {arguments:?}: {text}");
    text
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty sparse image.
pub(crate) fn blank(path: PathBuf, size: Bytes) -> Image {
    File::create_new(&path).unwrap().set_len(size.get()).unwrap();
    Image { path, size }
}

/// A filesystem on a new sparse image, with our options and others.
pub(crate) fn make_with(path: PathBuf, size: Bytes, filesystem: Filesystem, more: &[&str]) -> Image {
    let image = blank(path, size);
    let program = match filesystem {
        Filesystem::Ext4 => "mke2fs",
        Filesystem::Xfs => "mkfs.xfs",
        Filesystem::Btrfs => "mkfs.btrfs",
    };
    let mut arguments = mkfs_arguments(filesystem).to_vec();
    arguments.extend(more);
    arguments.push(text(&image.path));
    run(program, &arguments);
    image
}

/// A file that holds a filesystem.
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) size: Bytes,
}

impl Image {
    pub(crate) fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.path).unwrap()
    }

    pub(crate) fn probe(&self) -> Contents {
        probe(&self.open(), self.size).unwrap()
    }

    pub(crate) fn superblock(&self) -> Superblock {
        match self.probe() {
            Contents::Filesystem(found) => found,
            other => panic!("{}: {other:?}", self.path.display()),
        }
    }

    /// A copy of what is allocated.
    pub(crate) fn copy(&self, name: &str) -> Self {
        let copy = Self { path: self.path.with_file_name(name), size: self.size };
        let from = File::open(&self.path).unwrap();
        let to = File::create(&copy.path).unwrap();
        to.set_len(self.size.get()).unwrap();
        let mut at = 0;
        while let Ok(data) = seek(&from, SeekFrom::Data(at)) {
            let hole = seek(&from, SeekFrom::Hole(data)).unwrap();
            copy_range(&from, &to, data, hole);
            at = hole;
        }
        copy
    }

    /// What util-linux takes the filesystem's uuid for.
    pub(crate) fn blkid(&self) -> Uuid {
        let found = run("blkid", &["-p", "-o", "value", "-s", "UUID", text(&self.path)]);
        Uuid::try_parse(found.trim()).unwrap()
    }

    /// Panics unless the filesystem's own checker finds nothing to mend.
    pub(crate) fn check(&self) {
        let path = text(&self.path);
        match self.superblock().filesystem {
            Filesystem::Ext4 => {
                let report = run("e2fsck", &["-fn", path]);
                assert!(!report.contains("WARNING") && !report.contains("Fix?"), "{report}");
            }
            Filesystem::Xfs => {
                let report = run("xfs_repair", &["-n", "-f", path]);
                assert!(!report.contains("would"), "{report}");
            }
            Filesystem::Btrfs => {
                let report = run("btrfs", &["check", path]);
                assert!(report.contains("no error found"), "{report}");
            }
        }
    }

    pub(crate) fn mount(&self) -> Mount {
        self.mount_with("rw")
    }

    /// A block device over it, with sectors of 4096 bytes.
    pub(crate) fn attach(&self) -> Loop {
        let arguments = ["--find", "--show", "--sector-size", "4096", "--direct-io=on", text(&self.path)];
        Loop { device: run("losetup", &arguments).trim().to_owned() }
    }

    /// Mounts through a loop device of its own, as the driver does.
    pub(crate) fn mount_with(&self, options: &str) -> Mount {
        let looped = self.attach();
        let directory =
            tempfile::Builder::new().prefix("lagan-mount-").tempdir_in("/var/tmp").unwrap().keep();
        let kind = self.superblock().filesystem.name();
        let (well, report) =
            run_status("mount", &["-t", kind, "-o", options, &looped.device, text(&directory)]);
        if !well {
            fs::remove_dir(&directory).unwrap();
            panic!("mount {}: {report}", self.path.display());
        }
        Mount { directory, looped }
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) {
    let (mut read, mut written) = (start, start);
    while read < end {
        let left = usize::try_from(end - read).unwrap();
        let count =
            rustix::fs::copy_file_range(from.as_fd(), Some(&mut read), to.as_fd(), Some(&mut written), left)
                .unwrap();
        assert_ne!(count, 0, "source ended early");
    }
}

/// A loop device; detached on drop.
pub(crate) struct Loop {
    pub(crate) device: String,
}

impl Drop for Loop {
    fn drop(&mut self) {
        let (well, report) = run_status("losetup", &["--detach", &self.device]);
        assert!(well || std::thread::panicking(), "losetup --detach {}: {report}", self.device);
    }
}

/// A mounted image; unmounted on drop, before its loop device goes.
pub(crate) struct Mount {
    directory: PathBuf,
    looped: Loop,
}

impl Mount {
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes files so many that ext4 indexes the directory, and one with content.
    pub(crate) fn fill(&self, content: &str) {
        fs::create_dir(self.path("many")).unwrap();
        for number in 0..800 {
            File::create_new(self.path(&format!("many/a-name-of-some-length-{number}"))).unwrap();
        }
        fs::write(self.path("content"), content.repeat(10_000)).unwrap();
    }

    /// Panics unless all is there that [`Mount::fill`] wrote.
    pub(crate) fn verify(&self, content: &str) {
        for number in 0..800 {
            assert!(self.path(&format!("many/a-name-of-some-length-{number}")).exists());
        }
        assert_eq!(fs::read_to_string(self.path("content")).unwrap(), content.repeat(10_000));
    }

    /// Flushes one file, which a log or journal then has to replay.
    pub(crate) fn write_durably(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
        File::open(self.path(name)).unwrap().sync_all().unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A test beside this one may be starting a program: until it has, the program holds our open files too.
        let unmount = || run_status("umount", &[text(&self.directory)]);
        let (mut well, mut report) = unmount();
        for _again in 0..40 {
            if well || !report.contains("busy") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            (well, report) = unmount();
        }
        assert!(
            well || std::thread::panicking(),
            "umount {} of {}: {report}",
            self.directory.display(),
            self.looped.device
        );
        // Fails, rather than deletes, while something is mounted.
        let removed = fs::remove_dir(&self.directory);
        assert!(
            removed.is_ok() || std::thread::panicking(),
            "rmdir {}: {removed:?}",
            self.directory.display()
        );
    }
}
