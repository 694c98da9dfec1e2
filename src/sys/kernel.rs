//! What a node asks of the kernel: mounts, binds, what is at a path. A trait, so that the node's logic also runs on
//! a kernel that is only modelled (`fake.rs`), without root. `mount.rs` is the real one.

use std::{fmt, io};

use super::{
    device::{Device, DeviceNumber},
    target::{BadTarget, Target},
};
use crate::{bytes::Bytes, error::Result, filesystem::Filesystem};

/// Attributes of one mount (`MOUNT_ATTR_…`, mount_setattr(2)), as against options of its filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(u32);

impl Attributes {
    /// Nothing special: access times as the kernel's default, `relatime`, has them.
    pub const NONE: Self = Self(0);
    /// No writes.
    pub const READ_ONLY: Self = Self(0x1);
    /// Set-user-id bits and file capabilities count for nothing.
    pub const NOSUID: Self = Self(0x2);
    /// Device nodes cannot be opened.
    pub const NODEV: Self = Self(0x4);
    /// Nothing can be executed.
    pub const NOEXEC: Self = Self(0x8);
    /// Access times are not written.
    pub const NOATIME: Self = Self(0x10);
    /// Access times are always written.
    pub const STRICTATIME: Self = Self(0x20);
    /// Access times of directories are not written.
    pub const NODIRATIME: Self = Self(0x80);
    /// Symbolic links are not followed (since Linux 5.14).
    pub const NOSYMFOLLOW: Self = Self(0x0020_0000);
    /// Every attribute above, with the whole field of access times.
    pub(super) const ALL: Self = Self(0x0020_00ff);

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These but not those.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of those are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The kernel's number.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Staging mounts carry this attribute, publishes do not. Nothing on the host needs to follow a link that a tenant
/// wrote; and the kernel itself then tells the two kinds of mounts apart after a restart.
pub const STAGING: Attributes = Attributes::NOSYMFOLLOW;

/// A filesystem mount that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesystemMount {
    /// What the device holds.
    pub filesystem: Filesystem,
    /// The filesystem itself is mounted read-only, not only this view of it.
    pub read_only: bool,
    /// Options of the filesystem: each key goes to the kernel apart from the others, so that none can smuggle in a
    /// second one.
    pub options: Vec<(String, Option<String>)>,
    /// Attributes of this mount.
    pub attributes: Attributes,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Missing,
    /// A directory on which nothing is mounted.
    Directory,
    /// A file, or what is neither file nor directory, on which nothing is mounted.
    File,
    /// A mount point.
    Mount(Mount),
}

/// The uppermost mount at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The block device: under the filesystem, or bound to the path.
    pub device: DeviceNumber,
    /// The device itself is bound here, not a filesystem on it.
    pub block: bool,
    /// Attributes of the mount; read-only where the mount or its filesystem is.
    pub attributes: Attributes,
    /// Its filesystem has shut down after an error, and answers nothing any more. It can still be taken away.
    pub dead: bool,
}

/// A place where a device, or a filesystem on it, is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedAt {
    /// Where.
    pub at: Target,
    /// It is a staging mount of ours.
    pub staging: bool,
    /// The device itself is bound there.
    pub block: bool,
}

/// Room in a mounted filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all, used, and free to an unprivileged writer.
    pub bytes: Amounts,
    /// Inodes likewise.
    pub inodes: Amounts,
}

/// Three amounts of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// In all.
    pub total: u64,
    /// Taken.
    pub used: u64,
    /// Free for use.
    pub available: u64,
}

/// Why a mount failed: the kernel's error and what it had to say.
#[derive(Debug)]
pub struct MountError {
    /// The error.
    pub error: io::Error,
    /// The kernel's own words, where it had any.
    pub log: String,
    /// The step that failed, such as the option that was refused.
    pub step: String,
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)?;
        if self.log.is_empty() { Ok(()) } else { write!(f, " ({})", self.log) }
    }
}

impl std::error::Error for MountError {}

/// The kernel as a node sees it. All calls block. Errors are those of the system calls unless a line says otherwise.
pub trait Kernel: Send + Sync {
    /// Checks that a path of a request lies below one of the roots.
    fn locate(&self, path: &str) -> std::result::Result<Target, BadTarget>;

    /// What is at a path.
    fn look(&self, at: &Target) -> io::Result<Seen>;

    /// Makes the directory; its parent must be there.
    fn ensure_directory(&self, at: &Target) -> io::Result<()>;

    /// Makes the empty file; its parent must be there.
    fn ensure_file(&self, at: &Target) -> io::Result<()>;

    /// Removes an empty directory or an empty file (ENOTEMPTY otherwise); nothing below, and nothing mounted, is ever
    /// removed.
    fn remove(&self, at: &Target) -> io::Result<()>;

    /// Mounts the filesystem on `device`, which the caller keeps open, and checks that this device is what was
    /// mounted.
    fn mount(
        &self,
        device: &Device,
        wanted: &FilesystemMount,
        at: &Target,
    ) -> std::result::Result<(), MountError>;

    /// Shows the filesystem mounted at `from`, which must be that of `device`, also at `to`.
    fn bind(
        &self,
        from: &Target,
        device: DeviceNumber,
        to: &Target,
        attributes: Attributes,
    ) -> io::Result<()>;

    /// Shows the node of `device` at the file `to`.
    fn bind_device(&self, device: &Device, to: &Target) -> io::Result<()>;

    /// Takes the uppermost mount away; EBUSY while it is used.
    fn unmount(&self, at: &Target) -> io::Result<()>;

    /// Every place below the roots where one of these devices, or a filesystem on one, is mounted.
    fn mounts_of(&self, devices: &[DeviceNumber]) -> io::Result<Vec<MountedAt>>;

    /// Room in the filesystem mounted at a path.
    fn usage(&self, at: &Target) -> io::Result<Usage>;

    /// Grows the filesystem mounted at a path to the length of its device; the new length of the filesystem.
    /// Where it fills the device already nothing is done.
    fn grow(&self, filesystem: Filesystem, device: &Device, at: &Target) -> io::Result<Bytes>;

    /// Mends the unmounted ext4 on a device that recorded errors, as far as that is safe without a person.
    fn repair_ext4(&self, device: &Device) -> Result<()>;

    /// Errors that the filesystem mounted from this device has recorded, where it counts them.
    fn recorded_errors(&self, filesystem: Filesystem, device: DeviceNumber) -> u64;

    /// Programs that hold the device or something mounted from it, by name and process id: for messages.
    fn holders(&self, devices: &[DeviceNumber]) -> Vec<String>;
}
