//! The options with which each filesystem is made: fixed here, so that neither a configuration file nor the
//! version of the tools decides what a volume is.

use super::Filesystem;

/// Arguments of `mke2fs`, `mkfs.xfs` or `mkfs.btrfs`, the image comes last. All make 4096-byte blocks for 4096-byte
/// sectors, and only features that Linux 5.14 mounts.
///
/// ext4 wants the name `mke2fs` (`mkfs.ext4` insists on a section of the configuration file) and
/// `MKE2FS_CONFIG=/dev/null` in its environment; e2fsprogs 1.46 to 1.47. XFS: xfsprogs 5.19 to 6.13. btrfs:
/// btrfs-progs 5.15 to 6.17, as 6.19 adds a block group tree, which Linux 5.14 mounts read-only.
#[must_use]
pub const fn mkfs_arguments(filesystem: Filesystem) -> &'static [&'static str] {
    match filesystem {
        Filesystem::Ext4 => EXT4,
        Filesystem::Xfs => XFS,
        Filesystem::Btrfs => BTRFS,
    }
}

/// `none` drops what the tool would choose by itself. Not in the list: `orphan_file` (Linux 5.15).
/// `metadata_csum_seed` frees the checksums from the uuid. `-T default` keeps the size from choosing a usage type.
/// On a regular file `discard` punches a hole over the whole of it, so mke2fs knows that it reads as zeros, writes
/// no inode table and marks each as zeroed: neither mke2fs nor the kernel ever fills them. 1.47.0 says the same with
/// `assume_storage_prezeroed`, which 1.46 does not know. 256 groups (32 GiB) keep their tables in one place, where 16 are the
/// tool's default: a new ext4 of a TiB then lies in 50 places instead of 500, and a reflink costs by the place. Lustre makes
/// its ext4 so, too; the kernel grows it online as any other.
const EXT4: &[&str] = &[
    "-q",
    "-T",
    "default",
    "-b",
    "4096",
    "-I",
    "256",
    "-i",
    "16384",
    "-m",
    "0",
    "-G",
    "256",
    "-O",
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,metadata_csum,\
     metadata_csum_seed,sparse_super,large_file,huge_file,dir_nlink,extra_isize",
    "-E",
    "discard,lazy_itable_init=1,lazy_journal_init=1",
];

/// `rmapbt` and `nrext64` (Linux 5.18) are defaults since xfsprogs 6.5; `-K` leaves out the discard.
const XFS: &[&str] = &[
    "-q",
    "-K",
    "-b",
    "size=4096",
    "-s",
    "size=4096",
    "-m",
    "crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1",
    "-i",
    "size=512,sparse=1,nrext64=0",
];

/// The free space tree has been the default since 5.15; the option that names it differs between versions.
const BTRFS: &[&str] = &[
    "-q", "-K", "-s", "4096", "-n", "16384", "--csum", "crc32c", "-d", "single", "-m", "dup", "-O",
    "no-holes",
];
