//! Filesystems as they lie on a disk image: what is there, and how a fresh copy gets an identity of its own.
//! No program is run and no mount is needed; volumes, pools and when to do any of this are not known here.
//!
//! Every call blocks. All input and output is whole 4096-byte pages in aligned memory, so an image may be opened
//! buffered or with `O_DIRECT`; what is written is not flushed, the caller does that once for all it wrote. The
//! filesystem must not be mounted meanwhile. Sources: the kernel's `fs/ext4/ext4.h`, `include/linux/jbd2.h`,
//! `fs/xfs/libxfs/xfs_format.h` and `xfs_log_format.h`, `include/uapi/linux/btrfs_tree.h`.

mod btrfs;
mod ext4;
mod ext4_journal;
#[cfg(test)]
mod hostile;
mod mkfs;
mod page;
mod xfs;
mod xfs_log;

use std::{fs::File, io, os::unix::fs::FileExt};

use uuid::Uuid;

pub use self::mkfs::mkfs_arguments;
use self::page::{CHUNK, Chunk, Image, PAGE, Page};
use crate::{
    bytes::Bytes,
    filesystem::{BLOCK, Filesystem},
};

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing: the first and the last MiB read as zeros.
    Blank,
    /// Exactly one filesystem that we know, with a superblock that is whole.
    Filesystem(Superblock),
    /// Anything else: other data, a damaged or half-made filesystem, or signs of more than one.
    Unknown,
}

/// What a filesystem says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which one it is. ext2 and ext3 are not ext4: they are [`Contents::Unknown`].
    pub filesystem: Filesystem,
    /// Its identity, as `blkid` shows it.
    pub uuid: Uuid,
    /// What it spans, which may be less than the image, and more if the image was cut.
    pub size: Bytes,
    /// No journal or log waits to be replayed; false as well where that cannot be told. A copy of a mounted filesystem
    /// can be clean: XFS while nothing was logged since the mount, btrfs whenever nothing was fsynced since its last
    /// commit.
    pub clean: bool,
    /// It recorded damage and wants a repair.
    pub errors: bool,
}

/// Who a copy becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The new uuid; not nil.
    pub uuid: Uuid,
    /// The key with which ext4 hashes names (`s_hash_seed`): `Some` for a copy of a filesystem that was never
    /// mounted, `None` for any other, since its indexed directories are ordered by the old key. XFS and btrfs have
    /// no such key.
    pub hash_seed: Option<Uuid>,
}

/// How much of each end must be zeros for an image to count as blank: it covers every superblock of every
/// filesystem, partition table, volume manager and encryption header in use.
const ENDS: u64 = 1 << 20;

/// Tells what is on an image of `length` bytes.
///
/// # Errors
/// What could not be read is an error, never [`Contents::Blank`]; so is an image that is shorter than `length`.
/// `InvalidInput` where `length` is zero or not a multiple of 4096.
pub fn probe(image: &File, length: Bytes) -> io::Result<Contents> {
    let Heads { first, btrfs } = Heads::read(image, length)?;
    let mut found = Vec::new();
    if let Some(ext4) = ext4::parse(&first) {
        found.push(ext4.describe());
    }
    if let Some(xfs) = xfs::parse(&first) {
        found.push(xfs.describe(image, length)?);
    }
    if let Some(btrfs) = btrfs.as_deref().and_then(btrfs::parse) {
        found.push(btrfs.describe());
    }
    match (found.pop(), found.is_empty()) {
        (Some(superblock), true) => Ok(Contents::Filesystem(superblock)),
        (Some(_), false) => Ok(Contents::Unknown),
        (None, _) if is_blank(image, length)? => Ok(Contents::Blank),
        (None, _) => Ok(Contents::Unknown),
    }
}

/// The logical sectors that a device must have for what is on an image: short ones where somebody else has laid out a
/// filesystem or a table of partitions in those, ours for everything else.
///
/// # Errors
/// Those of reading.
pub fn sector_of(image: &File) -> io::Result<Bytes> {
    let page = match Page::read(image, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(BLOCK),
        other => other?.0,
    };
    let xfs = page::be32(&page, 0) == 0x5846_5342 && page::be16(&page, 102) < 4096;
    // ext2 and its children: 1024 shifted by this is the length of a block.
    let ext = page::le16(&page, 1024 + 56) == 0xEF53 && page::le32(&page, 1024 + 24) < 2;
    let gpt = page[512..520] == *b"EFI PART";
    Ok(if xfs || ext || gpt { Bytes::new(512) } else { BLOCK })
}

/// Gives the filesystem on an image of `length` bytes a new identity, in all the places that carry it.
///
/// An interrupted call is finished by the same call again; until then the copy must not be mounted.
///
/// # Errors
/// Nothing has been written when the kind is one of these.
/// - `ResourceBusy`: a journal or log waits to be replayed, and replay would bring the old identity back (ext4) or
///   refuse the new one (XFS): mount it read-write once, XFS with `nouuid`, and unmount it. A btrfs log tree is bound
///   to neither and stays.
/// - `Unsupported`: the layout binds more than we rewrite to the uuid, or is not known.
/// - `InvalidData`: no filesystem, or a damaged one.
/// - `InvalidInput`: a nil uuid, a length as in [`probe`], or a hash seed for an ext4 that has been mounted.
///
/// Any other kind: reading or writing failed.
pub fn renew(image: &File, length: Bytes, identity: &Identity) -> io::Result<()> {
    renew_image(Image { content: image, copy: image }, length, identity)
}

/// The same for a copy that nobody has written to since it was made from `template`, faster: what it holds is read
/// there, where earlier copies have left it in memory.
///
/// # Errors
/// Those of [`renew`].
pub fn renew_copy(template: &File, copy: &File, length: Bytes, identity: &Identity) -> io::Result<()> {
    renew_image(Image { content: template, copy }, length, identity)
}

fn renew_image(image: Image<'_>, length: Bytes, identity: &Identity) -> io::Result<()> {
    if identity.uuid.is_nil() {
        return Err(refusal(io::ErrorKind::InvalidInput, "a nil uuid is no identity"));
    }
    let Heads { first, btrfs } = Heads::read(image.content, length)?;
    let btrfs = btrfs.and_then(|page| Some((btrfs::parse(&page)?, page)));
    match (ext4::parse(&first), xfs::parse(&first), btrfs) {
        (Some(ext4), None, None) => ext4.renew(image, length, first, identity),
        (None, Some(xfs), None) => xfs.renew(image, length, first, identity.uuid),
        (None, None, Some((btrfs, page))) => btrfs.renew(image, length, page, identity.uuid),
        _ => Err(refusal(io::ErrorKind::InvalidData, "no whole filesystem of ours is on the image")),
    }
}

/// The pages that hold the primary superblocks.
struct Heads {
    /// XFS at byte 0, ext4 at byte 1024.
    first: Box<Page>,
    /// btrfs at 64 KiB.
    btrfs: Option<Box<Page>>,
}

impl Heads {
    fn read(image: &File, length: Bytes) -> io::Result<Self> {
        let end = length.get();
        if end == 0 || !end.is_multiple_of(PAGE) {
            return Err(refusal(io::ErrorKind::InvalidInput, "an image is one or more blocks of 4096 bytes"));
        }
        let first = Page::read(image, 0)?;
        let btrfs =
            if end >= btrfs::PRIMARY + PAGE { Some(Page::read(image, btrfs::PRIMARY)?) } else { None };
        Ok(Self { first, btrfs })
    }
}

/// Whether both ends of the image read as zeros.
fn is_blank(image: &File, length: Bytes) -> io::Result<bool> {
    let end = length.get();
    let head = end.min(ENDS);
    Ok(reads_zero(image, 0, head)? && reads_zero(image, end.saturating_sub(ENDS).max(head), end)?)
}

/// Whether the pages from `from` up to `to` read as zeros.
fn reads_zero(image: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut chunk = Chunk::new();
    let mut at = from;
    while at < to {
        let size = usize::try_from(to - at).map_or(CHUNK, |left| left.min(CHUNK));
        image.read_exact_at(&mut chunk.0[..size], at)?;
        if chunk.0[..size].iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at += size as u64;
    }
    Ok(true)
}

/// An error of ours, as opposed to the system's.
fn refusal(kind: io::ErrorKind, why: &'static str) -> io::Error {
    io::Error::new(kind, why)
}

/// The error of a filesystem whose parts contradict each other.
fn damaged(why: &'static str) -> io::Error {
    refusal(io::ErrorKind::InvalidData, why)
}

/// The error of a layout that we do not rewrite.
fn unsupported(why: &'static str) -> io::Error {
    refusal(io::ErrorKind::Unsupported, why)
}

/// The error of a filesystem with something to replay.
fn unclean(why: &'static str) -> io::Error {
    refusal(io::ErrorKind::ResourceBusy, why)
}
