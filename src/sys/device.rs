//! Block devices as the kernel numbers them. Knows nothing of what lies behind one.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, Stat, fstat, major, makedev, minor, mknodat},
    io::Errno,
};

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

    /// The number as ioctls carry it (`huge_encode_dev` of the kernel).
    #[must_use]
    pub fn from_kernel(number: u64) -> Self {
        let part = |bits: u64| u32::try_from(bits).unwrap_or_default();
        Self::new(part(number >> 8 & 0xfff), part(number & 0xff | number >> 12 & 0xf_ff00))
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

/// Where the node of a device of a kind is, such as `loop` or `dm-`.
#[must_use]
pub fn node_of(kind: &str, number: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/dev/{kind}{}", number.minor()))
}

/// Opens a block device for writing where it can be written, and makes its node where nobody else does (a container
/// without devtmpfs).
///
/// # Errors
/// Those of open(2) and mknod(2); an error where the node stands for another device.
pub fn open(node: &Path, number: DeviceNumber) -> io::Result<File> {
    let writable = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).to_owned();
    match open_with(&writable, node, number) {
        // One that is read-only refuses to be opened for writing.
        Err(error)
            if Errno::from_io_error(&error).is_some_and(|e| e == Errno::ROFS || e == Errno::ACCESS) =>
        {
            open_with(OpenOptions::new().read(true), node, number)
        }
        other => other,
    }
}

/// Opens a block device for reading past the page cache; otherwise as [`open`].
///
/// # Errors
/// As [`open`].
pub fn open_direct(node: &Path, number: DeviceNumber) -> io::Result<File> {
    open_with(OpenOptions::new().read(true).custom_flags(libc::O_DIRECT), node, number)
}

fn open_with(options: &OpenOptions, node: &Path, number: DeviceNumber) -> io::Result<File> {
    let file = match options.open(node) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match mknodat(CWD, node, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, number.raw()) {
                Ok(()) | Err(Errno::EXIST) => options.open(node)?,
                Err(error) => return Err(error.into()),
            }
        }
        other => other?,
    };
    if DeviceNumber::of_special_file(&fstat(&file)?) != number {
        return Err(io::Error::other(format!("{} is not device {number}", node.display())));
    }
    Ok(file)
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
