//! New filesystems: made with a tool, in a file or device of ours that nobody else knows yet. The only place that
//! makes one, and only pools call it, inside CreateVolume: no node ever formats.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    sys::{
        cmd::{Commands, Tool},
        superblock::{self, Contents, mkfs_arguments},
    },
};

/// The tool that makes a filesystem.
#[must_use]
pub const fn maker(filesystem: Filesystem) -> Tool {
    match filesystem {
        Filesystem::Ext4 => Tool::MkfsExt4,
        Filesystem::Xfs => Tool::MkfsXfs,
        Filesystem::Btrfs => Tool::MkfsBtrfs,
    }
}

/// Makes a filesystem that fills `image`, which is `size` long. A tool is not believed: a volume without the filesystem that
/// its record names could never be used, and no later step may make one.
///
/// # Errors
/// `Unavailable` where the tool is missing, `Unsettled` where it takes longer than `patience` (it is killed then:
/// nobody knows the image yet), `NoSpace` or `Broken` where it fails, or says that it did what it did not.
pub fn make(
    image: &File,
    size: Bytes,
    filesystem: Filesystem,
    commands: &Commands,
    patience: Duration,
) -> Result<()> {
    let path = path_of(image);
    let mut arguments = mkfs_arguments(filesystem).to_vec();
    arguments.push(&path);
    commands.succeed(maker(filesystem), &arguments, patience).map_err(|error| {
        // The tools say it in words only.
        if crate::error::Chain(&error).to_string().contains("No space left") {
            return error.as_kind(ErrorKind::NoSpace);
        }
        error
    })?;
    match superblock::probe(image, size).doing(|| format!("look at the new {filesystem}"))? {
        Contents::Filesystem(found) if found.filesystem == filesystem => Ok(()),
        found => {
            let what = format!("{} ended well, and has made no {filesystem}: {found:?}", maker(filesystem));
            Err(Error::new(ErrorKind::Broken, what))
        }
    }
}

/// Checks a filesystem without changing it.
///
/// # Errors
/// `Broken` where the checker finds fault; otherwise as [`make`].
pub fn check(image: &File, filesystem: Filesystem, commands: &Commands, patience: Duration) -> Result<()> {
    let (tool, options): (_, &[&str]) = match filesystem {
        Filesystem::Ext4 => (Tool::CheckExt4, &["-f", "-n"]),
        Filesystem::Xfs => (Tool::CheckXfs, &["-n", "-f"]),
        Filesystem::Btrfs => (Tool::CheckBtrfs, &["check", "--readonly"]),
    };
    let path = path_of(image);
    let mut arguments = options.to_vec();
    arguments.push(&path);
    commands.succeed(tool, &arguments, patience).map(drop)
}

/// A path by which another process reaches an open file, one without a name included.
fn path_of(image: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), image.as_fd().as_raw_fd())
}
