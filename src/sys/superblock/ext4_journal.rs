//! The superblock of an ext4 journal (`struct journal_superblock_s` of `jbd2.h`), which is the first block of
//! inode 8. It carries the uuid as well, and the journal's checksums start from that.

use std::{fs::File, io};

use uuid::Uuid;

use super::{
    damaged,
    ext4::Ext4,
    page::{Page, array, be32, crc_without, le16, le32, put, within},
    unsupported,
};

/// `bg_inode_table_lo` and `_hi` of `struct ext4_group_desc`.
const INODE_TABLE_LO: usize = 0x8;
const INODE_TABLE_HI: usize = 0x28;
/// Inode 8 is the eighth of the first table.
const JOURNAL_INDEX: u64 = 7;

/// `i_flags` and `i_block` of `struct ext4_inode`.
const FLAGS: usize = 0x20;
const BLOCK: usize = 0x28;
const FLAG_EXTENTS: u32 = 0x8_0000;

/// `struct ext4_extent_header`, and the first entry after it: `ext4_extent` in a leaf, `ext4_extent_idx` above.
const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_ENTRIES: usize = 0x2;
const EXTENT_DEPTH: usize = 0x6;
const FIRST_ENTRY: usize = 0xc;
const LEAF_START_HI: usize = FIRST_ENTRY + 0x6;
const LEAF_START_LO: usize = FIRST_ENTRY + 0x8;
const INDEX_LEAF_LO: usize = FIRST_ENTRY + 0x4;
const INDEX_LEAF_HI: usize = FIRST_ENTRY + 0x8;
/// `EXT4_MAX_EXTENT_DEPTH`.
const DEPTH_LIMIT: u16 = 5;

const SIZE: usize = 1024;
const MAGIC: usize = 0x0;
const BLOCK_TYPE: usize = 0x4;
const FEATURE_INCOMPAT: usize = 0x28;
const UUID: usize = 0x30;
const CHECKSUM_TYPE: usize = 0x50;
const CHECKSUM: usize = 0xfc;

const MAGIC_VALUE: u32 = 0xc03b_3998;
/// `JBD2_SUPERBLOCK_V2`: the first with features and a uuid.
const SUPERBLOCK_V2: u32 = 4;
/// `JBD2_FEATURE_INCOMPAT_CSUM_V2` and `_V3`, which the kernel sets at the first mount.
const INCOMPAT_CHECKSUMS: u32 = 0x8 | 0x10;
const CHECKSUM_TYPE_CRC32C: u8 = 4;

/// A journal superblock that is whole.
pub(super) struct Journal {
    offset: u64,
    page: Box<Page>,
}

/// Follows the first group descriptor, inode 8 and its extents to the journal's first block.
pub(super) fn find(ext4: &Ext4, image: &File) -> io::Result<Journal> {
    let lost = || damaged("ext4 whose journal is not where its inode says");
    let descriptors = ext4.block(ext4.first_block + 1).ok_or_else(lost)?;
    let page = Page::read(image, descriptors)?;
    let raw = &page.0[within(descriptors)..];
    let high = if ext4.wide { u64::from(le32(raw, INODE_TABLE_HI)) << 32 } else { 0 };
    let table = ext4.block(high | u64::from(le32(raw, INODE_TABLE_LO))).ok_or_else(lost)?;

    let inode = table + JOURNAL_INDEX * ext4.inode_size;
    let page = Page::read(image, inode)?;
    let raw = &page.0[within(inode)..];
    if le32(raw, FLAGS) & FLAG_EXTENTS == 0 {
        return Err(unsupported("ext4 with a journal that is not mapped by extents"));
    }
    let offset = first_block(ext4, image, array(raw, BLOCK))?.ok_or_else(lost)?;
    let journal = Journal { offset, page: Page::read(image, offset)? };
    if journal.is_whole() { Ok(journal) } else { Err(lost()) }
}

/// Where the first block of a file is, from the head of its extent tree: `i_block`, 60 bytes, of which the header
/// and the first entry matter here.
fn first_block(ext4: &Ext4, image: &File, mut node: [u8; 24]) -> io::Result<Option<u64>> {
    for _ in 0..=DEPTH_LIMIT {
        if le16(&node, 0) != EXTENT_MAGIC || le16(&node, EXTENT_ENTRIES) == 0 || le32(&node, FIRST_ENTRY) != 0
        {
            return Ok(None);
        }
        let leaf = le16(&node, EXTENT_DEPTH) == 0;
        let (low, high) = if leaf { (LEAF_START_LO, LEAF_START_HI) } else { (INDEX_LEAF_LO, INDEX_LEAF_HI) };
        let number = u64::from(le16(&node, high)) << 32 | u64::from(le32(&node, low));
        let Some(offset) = ext4.block(number) else { return Ok(None) };
        if leaf {
            return Ok(Some(offset));
        }
        let page = Page::read(image, offset)?;
        node = array(&page.0, within(offset));
    }
    Ok(None)
}

impl Journal {
    fn raw(&self) -> &[u8] {
        let at = within(self.offset);
        &self.page.0[at..at + SIZE]
    }

    fn has_checksum(&self) -> bool {
        be32(self.raw(), FEATURE_INCOMPAT) & INCOMPAT_CHECKSUMS != 0
    }

    /// `jbd2_superblock_csum`: CRC-32C without the final inversion, over all 1024 bytes with the field as zeros.
    fn checksum(&self) -> u32 {
        !crc_without(self.raw(), CHECKSUM)
    }

    fn is_whole(&self) -> bool {
        let raw = self.raw();
        be32(raw, MAGIC) == MAGIC_VALUE
            && be32(raw, BLOCK_TYPE) == SUPERBLOCK_V2
            && (!self.has_checksum()
                || raw[CHECKSUM_TYPE] == CHECKSUM_TYPE_CRC32C && be32(raw, CHECKSUM) == self.checksum())
    }

    /// Writes the uuid. The journal is empty, so nothing in it was summed from the old one and still counts.
    pub(super) fn rename(mut self, image: &File, new: Uuid) -> io::Result<()> {
        let at = within(self.offset);
        put(&mut self.page.0, at + UUID, new.as_bytes());
        if self.has_checksum() {
            let checksum = self.checksum();
            put(&mut self.page.0, at + CHECKSUM, &checksum.to_be_bytes());
        }
        self.page.write(image, self.offset)
    }
}
