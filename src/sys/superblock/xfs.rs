//! The XFS superblock (`struct xfs_dsb`): the primary in allocation group 0 and a copy in each other group.
//! The log is `xfs_log`; nothing else is read, as metadata blocks carry the meta uuid, which never changes.

use std::{fs::File, io};

use uuid::Uuid;

use super::{
    Bytes, Filesystem, Superblock, damaged,
    page::{Image, Page, array, be16, be32, be64, crc_without, put, uuid, within},
    unclean, unsupported,
    xfs_log::Log,
};

const MAGIC: usize = 0;
const BLOCKSIZE: usize = 4;
const DBLOCKS: usize = 8;
const RBLOCKS: usize = 16;
const UUID: usize = 32;
const LOGSTART: usize = 48;
const AGBLOCKS: usize = 84;
const AGCOUNT: usize = 88;
const LOGBLOCKS: usize = 96;
const VERSIONNUM: usize = 100;
const SECTSIZE: usize = 102;
const AGBLKLOG: usize = 124;
const INPROGRESS: usize = 126;
const FEATURES_INCOMPAT: usize = 216;
const CRC: usize = 224;
const META_UUID: usize = 248;

const MAGIC_VALUE: &[u8; 4] = b"XFSB";
/// `XFS_SB_VERSION_NUMBITS` of `sb_versionnum`.
const VERSION_MASK: u16 = 0xf;
/// `XFS_SB_VERSION_4` has no checksums; `_5` has.
const VERSION_4: u16 = 4;
const VERSION_5: u16 = 5;
/// `XFS_AG_MIN_BYTES`: what mkfs.xfs has never gone below. It bounds how many copies there can be.
const AG_MIN_BYTES: u64 = 16 << 20;

/// `XFS_SB_FEAT_INCOMPAT_META_UUID`, Linux 4.3.
const INCOMPAT_META_UUID: u32 = 1 << 2;
/// `XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR`.
const INCOMPAT_NEEDSREPAIR: u32 = 1 << 4;
/// `FTYPE`, `SPINODES`, `META_UUID`, `BIGTIME`, `NREXT64`, `EXCHRANGE`, `PARENT`. Not `METADIR`, which brings
/// superblocks of realtime groups with it.
const INCOMPAT_RENEWABLE: u32 = 0xef;

/// A superblock that is whole.
pub(super) struct Xfs {
    uuid: Uuid,
    /// What every metadata block carries.
    meta_uuid: Uuid,
    version: u16,
    block_size: u64,
    blocks: u64,
    realtime_blocks: u64,
    group_blocks: u64,
    groups: u64,
    sector: usize,
    incompat: u32,
    /// Where the log starts, in bytes, and how long it is.
    log: Option<(u64, u64)>,
}

/// Reads the primary from the image's first page. Version 4 has no checksum, so that its numbers must make sense
/// together. A mkfs that did not finish leaves `sb_inprogress` set, and the kernel refuses it.
pub(super) fn parse(first: &Page) -> Option<Xfs> {
    parse_raw(&first.0).filter(|_| first.0[INPROGRESS] == 0)
}

fn parse_raw(raw: &[u8]) -> Option<Xfs> {
    let sector = usize::from(be16(raw, SECTSIZE));
    let version = be16(raw, VERSIONNUM) & VERSION_MASK;
    let plausible = array(raw, MAGIC) == *MAGIC_VALUE
        && matches!(version, VERSION_4 | VERSION_5)
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && sector <= raw.len();
    if !plausible || version == VERSION_5 && array(raw, CRC) != checksum(&raw[..sector]) {
        return None;
    }
    let incompat = if version == VERSION_5 { be32(raw, FEATURES_INCOMPAT) } else { 0 };
    let split = incompat & INCOMPAT_META_UUID != 0;
    let mut found = Xfs {
        uuid: uuid(raw, UUID),
        meta_uuid: uuid(raw, if split { META_UUID } else { UUID }),
        version,
        block_size: u64::from(be32(raw, BLOCKSIZE)),
        blocks: be64(raw, DBLOCKS),
        realtime_blocks: be64(raw, RBLOCKS),
        group_blocks: u64::from(be32(raw, AGBLOCKS)),
        groups: u64::from(be32(raw, AGCOUNT)),
        sector,
        incompat,
        log: None,
    };
    if !found.makes_sense() {
        return None;
    }
    found.log = found.log_place(be64(raw, LOGSTART), raw[AGBLKLOG], be32(raw, LOGBLOCKS));
    Some(found)
}

/// CRC-32C over the sector, stored as little-endian in a structure that is big-endian elsewhere.
fn checksum(sector: &[u8]) -> [u8; 4] {
    crc_without(sector, CRC).to_le_bytes()
}

impl Xfs {
    /// What `xfs_validate_sb_common` asks of these numbers.
    fn makes_sense(&self) -> bool {
        self.block_size.is_power_of_two()
            && (512..=65536).contains(&self.block_size)
            && self.block_size >= self.sector as u64
            && self.blocks != 0
            && self.blocks.checked_mul(self.block_size).is_some_and(|size| size <= Bytes::MAX.get())
            && self.group_blocks * self.block_size >= AG_MIN_BYTES
            && self.blocks.div_ceil(self.group_blocks) == self.groups
    }

    /// Where an internal log lies, if it lies inside the filesystem.
    fn log_place(&self, start: u64, group_bits: u8, blocks: u32) -> Option<(u64, u64)> {
        let group = start.checked_shr(u32::from(group_bits))?;
        let block = start - (group << group_bits);
        let first = group.checked_mul(self.group_blocks)?.checked_add(block)?;
        let inside = start != 0 && blocks != 0 && first.checked_add(u64::from(blocks))? <= self.blocks;
        inside.then(|| (first * self.block_size, u64::from(blocks) * self.block_size))
    }

    fn size(&self) -> u64 {
        self.blocks * self.block_size
    }

    /// The log, unless it is on another device or beyond the end of the image.
    fn log<'image>(&self, image: &'image File, length: Bytes) -> Option<Log<'image>> {
        let (start, size) = self.log?;
        if start + size > length.get() { None } else { Log::new(image, start, size) }
    }

    pub(super) fn describe(&self, image: &File, length: Bytes) -> io::Result<Superblock> {
        let clean = match self.log(image, length) {
            Some(mut log) => log.unmount_record()?.is_some(),
            None => false,
        };
        Ok(Superblock {
            filesystem: Filesystem::Xfs,
            uuid: self.uuid,
            size: Bytes::new(self.size()),
            clean,
            errors: self.incompat & INCOMPAT_NEEDSREPAIR != 0,
        })
    }

    /// Writes the uuid into the superblock copies, the log and, last, the primary. The metadata keeps the old one as
    /// the meta uuid, so that no block of it changes.
    ///
    /// The log: a mount compares the uuid in the header of the last record before the head
    /// (`xlog_header_check_mount`), which after an unmount is the unmount record. Recovery after a later crash starts
    /// behind that record, so that older ones, with the old uuid, are never looked at again.
    ///
    /// The copies: nothing reads them but `xfs_repair`, which takes a primary that differs from most of them for
    /// damaged. They are one page per group, each group has 16 MiB at least.
    pub(super) fn renew(
        &self,
        image: Image<'_>,
        length: Bytes,
        mut first: Box<Page>,
        new: Uuid,
    ) -> io::Result<()> {
        if self.size() > length.get() {
            return Err(damaged("XFS larger than its image"));
        }
        if self.incompat & INCOMPAT_NEEDSREPAIR != 0 {
            return Err(damaged("XFS that needs a repair"));
        }
        let known = self.version == VERSION_5 && self.incompat & !INCOMPAT_RENEWABLE == 0;
        if !known || self.realtime_blocks != 0 {
            return Err(unsupported(
                "XFS of version 4, with a realtime device, or with features that are not known",
            ));
        }
        let mut log =
            self.log(image.content, length).ok_or_else(|| unsupported("XFS with its log elsewhere"))?;
        let record = log.unmount_record()?.ok_or_else(|| unclean("XFS with a log to replay"))?;
        let record = log
            .renamed(&record, new)?
            .ok_or_else(|| damaged("XFS whose unmount record fails its checksum"))?;
        for group in 1..self.groups {
            let offset = group * self.group_blocks * self.block_size;
            let mut page = Page::read(image.content, offset)?;
            let raw = &mut page.0[within(offset)..];
            // What is not a copy of this superblock is not ours to touch. Not told by uuid: an interrupted renewal
            // leaves both old and new ones.
            if parse_raw(raw).is_some_and(|it| it.meta_uuid == self.meta_uuid && it.sector == self.sector) {
                self.rename(raw, new);
                page.write(image.copy, offset)?;
            }
        }
        record.write(image.copy)?;
        self.rename(&mut first.0, new);
        first.write(image.copy, 0)
    }

    fn rename(&self, raw: &mut [u8], new: Uuid) {
        let incompat = be32(raw, FEATURES_INCOMPAT) | INCOMPAT_META_UUID;
        put(raw, FEATURES_INCOMPAT, &incompat.to_be_bytes());
        put(raw, META_UUID, self.meta_uuid.as_bytes());
        put(raw, UUID, new.as_bytes());
        let checksum = checksum(&raw[..self.sector]);
        put(raw, CRC, &checksum);
    }
}
