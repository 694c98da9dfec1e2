//! Block devices as the kernel numbers them. Knows nothing of what lies behind one.

use std::{fmt, path::PathBuf};

use rustix::fs::{Stat, major, makedev, minor};

use crate::bytes::Bytes;

/// Major and minor number of a device, as in `st_dev` and `st_rdev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber(u64);

impl DeviceNumber {
    /// The number with these two parts.
    #[must_use]
    pub fn new(major: u32, minor: u32) -> Self {
        Self(makedev(major, minor))
    }

    /// The device that a special file stands for.
    #[must_use]
    pub const fn of_special_file(stat: &Stat) -> Self {
        Self(stat.st_rdev)
    }

    /// The device that a file lies on. For btrfs this is a number that belongs to no block device.
    #[must_use]
    pub const fn of_file(stat: &Stat) -> Self {
        Self(stat.st_dev)
    }

    /// The raw form that `mknod` takes.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The minor number.
    #[must_use]
    pub fn minor(self) -> u32 {
        minor(self.0)
    }

    /// The major number; 0 stands for filesystems without a device of their own.
    #[must_use]
    pub fn major(self) -> u32 {
        major(self.0)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", major(self.0), minor(self.0))
    }
}

/// A block device that holds a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its node under /dev.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Whether the kernel refuses writes to it.
    pub read_only: bool,
    /// Its length.
    pub size: Bytes,
}

/// Which file an open file is: `st_dev` and `st_ino`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl Inode {
    /// The identity that `stat` reports.
    #[must_use]
    pub const fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}
