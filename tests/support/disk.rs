//! What an administrator does for a test: programs run, filesystems made and mounted.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Runs a program: whether it ended well, and what it said.
#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> (bool, String) {
    match Command::new(program).args(arguments).output() {
        Err(error) => (false, format!("{program} must be installed: {error}")),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        }
    }
}

/// Runs a program that must end well.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let (well, said) = try_run(program, arguments);
    assert!(well, "{program} {arguments:?}: {said}");
    said
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A filesystem in a file.
pub(crate) struct Disk {
    image: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
}

impl Disk {
    /// Makes one of this many MiB in `directory`, and mounts it.
    pub(crate) fn new(directory: &Path, filesystem: &str, mib: u32) -> Self {
        let (image, point) = (directory.join("disk.img"), directory.join("disk"));
        File::create(&image).unwrap().set_len(u64::from(mib) << 20).unwrap();
        run(&format!("mkfs.{filesystem}"), &["-q", &text(&image)]);
        fs::create_dir(&point).unwrap();
        let disk = Self { image, point };
        disk.mount("loop");
        disk
    }

    pub(crate) fn mount(&self, options: &str) {
        run("mount", &["-o", options, &text(&self.image), &text(&self.point)]);
    }

    pub(crate) fn unmount(&self) {
        run("umount", &[&text(&self.point)]);
    }
}
