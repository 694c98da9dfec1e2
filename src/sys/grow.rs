//! Mounted filesystems grown to the length of their device, by the ioctl of each; and the errors each has counted.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::io::Errno;

use super::{
    device::{Device, DeviceNumber},
    raw,
    superblock::{self, Contents},
};
use crate::{bytes::Bytes, filesystem::Filesystem};

/// A filesystem may leave the end of its device unused where another allocation group does not fit (ext4: its
/// inode table and bitmaps; xfs: 64 blocks). Below this much nothing is to be gained.
const TAIL: Bytes = Bytes::mib(4);

/// Grows the filesystem whose root directory is open as `mount`; its length afterwards.
pub(super) fn grow(filesystem: Filesystem, device: &Device, mount: BorrowedFd<'_>) -> io::Result<Bytes> {
    let before = length(filesystem, device, mount)?;
    if device.size.minus(before) < TAIL {
        return Ok(before);
    }
    // One that was imported may have others than ours.
    let block = u64::try_from(rustix::fs::fstatfs(mount)?.f_bsize).unwrap_or_default().max(512);
    let blocks = device.size.get() / block;
    match filesystem {
        Filesystem::Ext4 => rustix::fs::ext4_ioc_resize_fs(mount, blocks).map_err(|error| match error {
            Errno::PERM => io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the kernel grows a mounted ext4 only for a process with CAP_SYS_RESOURCE, which this one lacks",
            ),
            other => other.into(),
        })?,
        Filesystem::Xfs => {
            let geometry = raw::xfs_geometry(mount)?;
            raw::xfs_grow(mount, blocks, geometry.inode_max_percent)?;
        }
        Filesystem::Btrfs => raw::btrfs_grow(mount)?,
    }
    length(filesystem, device, mount)
}

/// What the filesystem spans of its device. statfs(2) would leave out what each keeps for itself.
fn length(filesystem: Filesystem, device: &Device, mount: BorrowedFd<'_>) -> io::Result<Bytes> {
    match filesystem {
        Filesystem::Ext4 => match superblock::probe(&std::fs::File::open(&device.path)?, device.size)? {
            Contents::Filesystem(found) => Ok(found.size),
            Contents::Blank | Contents::Unknown => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the superblock of the mounted ext4 is unreadable",
            )),
        },
        Filesystem::Xfs => {
            let geometry = raw::xfs_geometry(mount)?;
            Ok(Bytes::new(geometry.data_blocks.saturating_mul(geometry.block_size.into())))
        }
        Filesystem::Btrfs => Ok(Bytes::new(raw::btrfs_device(mount)?.total_bytes)),
    }
}

/// Errors that the filesystem on this device has recorded since it was made; only ext4 counts them.
pub(super) fn recorded_errors(filesystem: Filesystem, device: DeviceNumber) -> u64 {
    if filesystem != Filesystem::Ext4 {
        return 0;
    }
    let count = || {
        let link = std::fs::read_link(format!("/sys/dev/block/{device}")).ok()?;
        let name = link.file_name()?.to_str()?;
        std::fs::read_to_string(format!("/sys/fs/ext4/{name}/errors_count")).ok()?.trim().parse().ok()
    };
    count().unwrap_or(0)
}

/// Discards the free space of a mounted filesystem, so that the pool gets it back; the bytes discarded.
///
/// # Errors
/// Those of ioctl(2) with `FITRIM`.
pub fn trim(mount: impl AsFd) -> io::Result<Bytes> {
    let mut range = raw::TrimRange { start: 0, length: u64::MAX, minimum: 0 };
    raw::trim(mount.as_fd(), &mut range)?;
    Ok(Bytes::new(range.length))
}
