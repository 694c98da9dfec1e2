//! The filesystems that a volume can hold, and the limits that follow from each.
//! How one is made is `pool/format.rs`; how one is read on disk is `sys/superblock`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// Logical block size of every volume, and block size of every filesystem on one: the largest that each
/// supported kernel mounts, and what a disk with 4096-byte sectors needs.
pub const BLOCK: Bytes = Bytes::new(4096);

/// A filesystem that Lagan makes, mounts and grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs on one device.
    Btrfs,
}

impl Filesystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The kernel's name, which is also the value of the `fstype` parameter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The smallest volume that can hold one: ext4 with a journal; what mkfs.xfs accepts since xfsprogs 5.19
    /// (300 MiB); what mkfs.btrfs accepts for one device with duplicated metadata (109 MiB).
    #[must_use]
    pub const fn minimum(self) -> Bytes {
        match self {
            Self::Ext4 => Bytes::mib(16),
            Self::Xfs => Bytes::mib(300),
            Self::Btrfs => Bytes::mib(128),
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A filesystem that Lagan does not offer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filesystem {0:?} is not offered: expected ext4, xfs or btrfs")]
pub struct UnknownFilesystem(String);

impl FromStr for Filesystem {
    type Err = UnknownFilesystem;

    fn from_str(text: &str) -> Result<Self, UnknownFilesystem> {
        Self::ALL.into_iter().find(|fs| fs.name() == text).ok_or_else(|| UnknownFilesystem(text.to_owned()))
    }
}
