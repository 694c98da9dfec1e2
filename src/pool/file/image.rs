//! A pool in one file: an XFS with reflink in a preallocated image, for hosts whose own filesystem cannot share
//! blocks. The image and its mount point lie in the pool's directory; mounting it is part of opening the pool.

use std::{fs::File, time::Duration};

use rustix::fs::{AtFlags, FallocateFlags, StatxAttributes, StatxFlags};

use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::{BLOCK, Filesystem},
    pool::format,
    sys::{
        cmd::Commands,
        file::{Access, Directory, stat},
        kernel::{Attributes, FilesystemMount},
        loopdev::{self, Binding},
        mount,
    },
};

/// The image in the pool's directory.
pub(super) const IMAGE: &str = "pool.img";
/// Where it is mounted, in the pool's directory.
const MOUNT: &str = "fs";
/// What the kernel keeps with the image's loop device.
pub(super) const LABEL: &str = "lagan:pool";
/// How long the making of its filesystem may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the image in `directory` and its filesystem. The image gets its name when it is complete.
pub(super) fn make(directory: &Directory, size: Bytes, commands: &Commands) -> Result<()> {
    let what = || format!("make a pool image of {size} in {}", directory.path().display());
    let size = size.round_down(BLOCK);
    if size < Filesystem::Xfs.minimum() {
        let least = Filesystem::Xfs.minimum();
        return Err(Error::new(ErrorKind::OutOfRange, format!("{}: at least {least} are needed", what())));
    }
    let image = directory.create_unnamed().doing(what)?;
    rustix::fs::fallocate(&image, FallocateFlags::empty(), 0, size.get()).doing(what)?;
    format::make(&image, size, Filesystem::Xfs, commands, PATIENCE)?;
    directory.ensure_directory(MOUNT).doing(what)?;
    directory.link(&image, IMAGE).doing(what)?;
    image.sync_all().doing(what)?;
    directory.flush().doing(what)
}

/// Whether an image may be mounted to look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mounting {
    /// It is mounted where it is not yet.
    AsNeeded,
    /// It is left as it is.
    Never,
}

/// The directory that the pool really lies in: the image's filesystem, or `directory` itself where there is no
/// image.
pub(super) fn resolve(directory: &Directory, mounting: Mounting) -> Result<Directory> {
    let what = || format!("mount the image of pool {}", directory.path().display());
    let image = match directory.open_file(IMAGE, Access::Write) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return directory.try_clone().doing(what);
        }
        other => other.doing(what)?,
    };
    if mounting == Mounting::AsNeeded && !is_mounted(directory).doing(what)? {
        mount_image(directory, &image)
            .map_err(|error| error.within(what()).as_kind(ErrorKind::Unavailable))?;
    }
    directory.open_directory(MOUNT).doing(what)
}

/// Takes the image's mount away, and with it its loop device; fine where it is not mounted.
pub(super) fn unmount(directory: &Directory) -> Result<()> {
    let what = || format!("unmount the image of pool {}", directory.path().display());
    if directory.stat(IMAGE).doing(what)?.is_some() && is_mounted(directory).doing(what)? {
        mount::unmount_path(&directory.path().join(MOUNT)).doing(what)?;
    }
    Ok(())
}

/// Removes the image of a pool that is empty; fine where there is none.
pub(super) fn remove(directory: &Directory) -> Result<()> {
    unmount(directory)?;
    let what = || format!("remove the image of pool {}", directory.path().display());
    directory.remove_file(IMAGE).doing(what)?;
    directory.remove_directory(MOUNT).doing(what)
}

fn is_mounted(directory: &Directory) -> std::io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let seen = rustix::fs::statx(directory, MOUNT, flags, StatxFlags::BASIC_STATS)?;
    Ok(seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn mount_image(directory: &Directory, image: &File) -> Result<()> {
    let backing = stat(image).doing(|| "look at the image")?.inode;
    let bound = loopdev::find(IMAGE, backing).doing(|| "look for the image's loop device")?;
    // Kept open until the mount holds it: the kernel unbinds it otherwise.
    let held = match bound.iter().find(|bound| !bound.read_only) {
        Some(bound) => loopdev::LoopDevice::open(bound.number).doing(|| "open the image's loop device")?,
        None => {
            let binding = Binding { read_only: false, autoclear: true, label: LABEL };
            loopdev::bind(image, &binding).doing(|| "bind the image to a loop device")?
        }
    };
    let wanted = FilesystemMount {
        filesystem: Filesystem::Xfs,
        read_only: false,
        // No `discard`: it would give the image's preallocated blocks back to the host's filesystem.
        options: Vec::new(),
        attributes: Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOATIME),
    };
    let path = directory.path().join(MOUNT);
    let device = held.device().doing(|| "look at the image's loop device")?;
    mount::mount_path(&device, &wanted, &path)
        .map_err(|error| Error::new(ErrorKind::Unavailable, "mount its filesystem").because(error))?;
    Ok(())
}
