//! The ext4 superblock (`struct ext4_super_block`), and the way to the journal's own superblock.
//! Nothing else of the filesystem is read.

use std::io;

use uuid::Uuid;

use super::{
    Bytes, Filesystem, Identity, Superblock, damaged, ext4_journal,
    page::{Image, Page, le16, le32, put, uuid, within},
    refusal, unclean, unsupported,
};

/// The primary superblock's place, in block 0 or, with blocks of 1024 bytes, block 1.
const PRIMARY: u64 = 1024;
/// `EXT4_MIN_BLOCK_SIZE`, and the size of the superblock.
const SIZE: usize = 1024;

const BLOCKS_COUNT_LO: usize = 0x4;
const FIRST_DATA_BLOCK: usize = 0x14;
const LOG_BLOCK_SIZE: usize = 0x18;
const BLOCKS_PER_GROUP: usize = 0x20;
const INODES_PER_GROUP: usize = 0x28;
const MTIME: usize = 0x2c;
const MNT_COUNT: usize = 0x34;
const MAGIC: usize = 0x38;
const STATE: usize = 0x3a;
const REV_LEVEL: usize = 0x4c;
const INODE_SIZE: usize = 0x58;
const BLOCK_GROUP_NR: usize = 0x5a;
const FEATURE_COMPAT: usize = 0x5c;
const FEATURE_INCOMPAT: usize = 0x60;
const FEATURE_RO_COMPAT: usize = 0x64;
const UUID: usize = 0x68;
const JOURNAL_INUM: usize = 0xe0;
const HASH_SEED: usize = 0xec;
const DESC_SIZE: usize = 0xfe;
const BLOCKS_COUNT_HI: usize = 0x150;
const CHECKSUM_TYPE: usize = 0x175;
const CHECKSUM: usize = 0x3fc;

const MAGIC_VALUE: u16 = 0xef53;
/// `EXT4_VALID_FS` and `EXT4_ERROR_FS` of `s_state`.
const STATE_VALID: u16 = 1;
const STATE_ERROR: u16 = 2;
/// `EXT4_JOURNAL_INO`.
const JOURNAL_INO: u32 = 8;
const CHECKSUM_TYPE_CRC32C: u8 = 1;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const COMPAT_STABLE_INODES: u32 = 0x800;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_EA_INODE: u32 = 0x400;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
/// `FILETYPE`, `META_BG`, `EXTENTS`, `64BIT`, `FLEX_BG`, `EA_INODE`, `CSUM_SEED`, `LARGEDIR`, `INLINE_DATA`,
/// `ENCRYPT`, `CASEFOLD`. Not `MMP`, which says that other machines may have it mounted.
const INCOMPAT_RENEWABLE: u32 = 0x3_e6d2;

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;

/// What ext3 has too (`EXT3_FEATURE_*_SUPP`): a filesystem with nothing beyond is not ext4.
const INCOMPAT_EXT3: u32 = 0x16;
const RO_COMPAT_EXT3: u32 = 0x7;

/// A superblock that is whole, as far as it lets itself be checked.
pub(super) struct Ext4 {
    uuid: Uuid,
    blocks: u64,
    pub(super) block_size: u64,
    pub(super) first_block: u64,
    blocks_per_group: u64,
    pub(super) inode_size: u64,
    /// Whether group descriptors have upper halves.
    pub(super) wide: bool,
    state: u16,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    checksum_type: u8,
    journal_inode: u32,
    /// `s_mtime` and `s_mnt_count`.
    mounted: bool,
}

/// Reads the primary from the image's first page. Without `metadata_csum` there is no checksum, so that its numbers
/// must make sense together.
pub(super) fn parse(first: &Page) -> Option<Ext4> {
    let at = within(PRIMARY);
    let raw = &first.0[at..at + SIZE];
    parse_raw(raw).filter(|_| le16(raw, BLOCK_GROUP_NR) == 0)
}

fn parse_raw(raw: &[u8]) -> Option<Ext4> {
    let log_block_size = le32(raw, LOG_BLOCK_SIZE);
    if le16(raw, MAGIC) != MAGIC_VALUE || le32(raw, REV_LEVEL) != 1 || log_block_size > 6 {
        return None;
    }
    let incompat = le32(raw, FEATURE_INCOMPAT);
    let ro_compat = le32(raw, FEATURE_RO_COMPAT);
    let beyond_ext3 = incompat & !INCOMPAT_EXT3 != 0 || ro_compat & !RO_COMPAT_EXT3 != 0;
    if !beyond_ext3 || incompat & INCOMPAT_JOURNAL_DEV != 0 {
        return None;
    }
    let wide = incompat & INCOMPAT_64BIT != 0;
    let high = if wide { u64::from(le32(raw, BLOCKS_COUNT_HI)) << 32 } else { 0 };
    let found = Ext4 {
        uuid: uuid(raw, UUID),
        blocks: high | u64::from(le32(raw, BLOCKS_COUNT_LO)),
        block_size: 1024 << log_block_size,
        first_block: u64::from(le32(raw, FIRST_DATA_BLOCK)),
        blocks_per_group: u64::from(le32(raw, BLOCKS_PER_GROUP)),
        inode_size: u64::from(le16(raw, INODE_SIZE)),
        wide: wide && le16(raw, DESC_SIZE) >= 64,
        state: le16(raw, STATE),
        compat: le32(raw, FEATURE_COMPAT),
        incompat,
        ro_compat,
        checksum_type: raw[CHECKSUM_TYPE],
        journal_inode: le32(raw, JOURNAL_INUM),
        mounted: le32(raw, MTIME) != 0 || le16(raw, MNT_COUNT) != 0,
    };
    let checked = !found.has_checksums() || le32(raw, CHECKSUM) == checksum(raw);
    (checked && found.makes_sense(le32(raw, INODES_PER_GROUP))).then_some(found)
}

/// `ext4_superblock_csum`: CRC-32C without the final inversion, over everything before the field.
fn checksum(raw: &[u8]) -> u32 {
    !crc32c::crc32c(&raw[..CHECKSUM])
}

impl Ext4 {
    /// What `ext4_fill_super` and libblkid ask of these numbers.
    fn makes_sense(&self, inodes_per_group: u32) -> bool {
        let bits = self.block_size * 8;
        self.blocks > self.first_block
            && self.blocks.checked_mul(self.block_size).is_some_and(|size| size <= Bytes::MAX.get())
            && self.first_block == u64::from(self.block_size == 1024)
            && (1..=bits).contains(&u64::from(inodes_per_group))
            && (256..=bits).contains(&self.blocks_per_group)
            && self.inode_size.is_power_of_two()
            && (128..=self.block_size).contains(&self.inode_size)
    }

    fn has_checksums(&self) -> bool {
        self.ro_compat & RO_COMPAT_METADATA_CSUM != 0
    }

    fn size(&self) -> u64 {
        self.blocks * self.block_size
    }

    /// Where the block `number` starts, if there is such a block.
    pub(super) fn block(&self, number: u64) -> Option<u64> {
        (number < self.blocks).then(|| number * self.block_size)
    }

    /// Without a journal, only an unmount sets the state to valid; with one, the recover flag is set while mounted.
    fn is_clean(&self) -> bool {
        self.incompat & INCOMPAT_RECOVER == 0
            && self.ro_compat & RO_COMPAT_ORPHAN_PRESENT == 0
            && (self.compat & COMPAT_HAS_JOURNAL != 0 || self.state & STATE_VALID != 0)
    }

    pub(super) fn describe(&self) -> Superblock {
        Superblock {
            filesystem: Filesystem::Ext4,
            uuid: self.uuid,
            size: Bytes::new(self.size()),
            clean: self.is_clean(),
            errors: self.state & STATE_ERROR != 0,
        }
    }

    /// Why this filesystem cannot have another identity, if so.
    fn refuse(&self, length: Bytes, identity: &Identity) -> io::Result<()> {
        if self.size() > length.get() {
            return Err(damaged("ext4 larger than its image"));
        }
        if !self.is_clean() {
            return Err(unclean("ext4 with a journal to replay"));
        }
        if self.incompat & !INCOMPAT_RENEWABLE != 0 || self.compat & COMPAT_STABLE_INODES != 0 {
            return Err(unsupported("ext4 with features that bind it to its uuid, or that are not known"));
        }
        let seeded = self.incompat & INCOMPAT_CSUM_SEED != 0;
        let sums = RO_COMPAT_METADATA_CSUM | RO_COMPAT_GDT_CSUM;
        if !seeded && (self.ro_compat & sums != 0 || self.incompat & INCOMPAT_EA_INODE != 0) {
            return Err(unsupported("ext4 whose checksums start from the uuid: no metadata_csum_seed"));
        }
        if self.has_checksums() && self.checksum_type != CHECKSUM_TYPE_CRC32C {
            return Err(unsupported("ext4 with checksums other than crc32c"));
        }
        let sparse = self.ro_compat & RO_COMPAT_SPARSE_SUPER != 0 && self.compat & COMPAT_SPARSE_SUPER2 == 0;
        if !sparse {
            return Err(unsupported("ext4 with its backups in other groups than sparse_super says"));
        }
        if self.compat & COMPAT_HAS_JOURNAL != 0 && self.journal_inode != JOURNAL_INO {
            return Err(unsupported("ext4 with its journal elsewhere"));
        }
        if identity.hash_seed.is_some() && self.mounted {
            return Err(refusal(
                io::ErrorKind::InvalidInput,
                "a new hash seed for directories already in use",
            ));
        }
        Ok(())
    }

    /// Writes the identity into the journal and, last, the primary. Two pages, whatever the length: the backups, of which
    /// there are more the longer it is, stay. The kernel never reads them, and e2fsck rewrites them all once it finds
    /// the first one's uuid to differ. Where a lost primary is replaced by a backup the old identity returns, and the
    /// same run of e2fsck rebuilds what was indexed under the other hash seed.
    pub(super) fn renew(
        &self,
        image: Image<'_>,
        length: Bytes,
        mut first: Box<Page>,
        identity: &Identity,
    ) -> io::Result<()> {
        self.refuse(length, identity)?;
        let journal = if self.compat & COMPAT_HAS_JOURNAL != 0 {
            Some(ext4_journal::find(self, image.content)?)
        } else {
            None
        };
        if let Some(journal) = journal {
            journal.rename(image.copy, identity.uuid)?;
        }
        let at = within(PRIMARY);
        self.rename(&mut first.0[at..at + SIZE], identity);
        first.write(image.copy, PRIMARY)
    }

    fn rename(&self, raw: &mut [u8], identity: &Identity) {
        put(raw, UUID, identity.uuid.as_bytes());
        if let Some(seed) = identity.hash_seed {
            put(raw, HASH_SEED, seed.as_bytes());
        }
        if self.has_checksums() {
            let checksum = checksum(raw);
            put(raw, CHECKSUM, &checksum.to_le_bytes());
        }
    }
}
