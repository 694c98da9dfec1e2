//! The btrfs superblock (`struct btrfs_super_block`): the primary at 64 KiB and its mirrors.
//! Trees and chunks are not looked into: they carry the metadata uuid, which a new identity leaves alone.

use std::io;

use uuid::Uuid;

use super::{
    Bytes, Filesystem, Superblock, damaged,
    page::{Image, PAGE, Page, array, le16, le64, put, uuid},
    unsupported,
};

/// `BTRFS_SUPER_INFO_OFFSET`.
pub(super) const PRIMARY: u64 = 64 << 10;
/// `btrfs_sb_offset(1)` and `(2)`: mirrors, where the device reaches that far.
const MIRRORS: [u64; 2] = [64 << 20, 256 << 30];

const CSUM: usize = 0x0;
const CSUM_END: usize = 0x20;
const FSID: usize = 0x20;
const BYTENR: usize = 0x30;
const FLAGS: usize = 0x38;
const MAGIC: usize = 0x40;
const LOG_ROOT: usize = 0x60;
const TOTAL_BYTES: usize = 0x70;
const NUM_DEVICES: usize = 0x88;
const INCOMPAT_FLAGS: usize = 0xbc;
const CSUM_TYPE: usize = 0xc4;
/// `dev_item` starts at 0xc9; in it, `fsid` at 82.
const DEV_ITEM_FSID: usize = 0xc9 + 82;
const METADATA_UUID: usize = 0x23b;

const MAGIC_VALUE: &[u8; 8] = b"_BHRfS_M";
const CSUM_TYPE_CRC32C: u16 = 0;
/// `BTRFS_SUPER_FLAG_ERROR`.
const FLAG_ERROR: u64 = 1 << 2;
/// `BTRFS_HEADER_FLAG_WRITTEN`: the only flag besides errors of a filesystem at rest. Others mark seeds, dumps and
/// a change of uuid that `btrfstune` began.
const FLAG_WRITTEN: u64 = 1 << 0;
/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`, Linux 5.0.
const INCOMPAT_METADATA_UUID: u64 = 1 << 10;
/// All up to `RAID1C34`, and `SIMPLE_QUOTA`. Not `ZONED`, whose superblocks wander, nor the unfinished ones.
const INCOMPAT_KNOWN: u64 = 0xfff | 1 << 16;

/// A superblock whose checksum is right.
pub(super) struct Btrfs {
    uuid: Uuid,
    /// What every tree block carries as its fsid, and `dev_item.fsid` too.
    metadata_uuid: Uuid,
    flags: u64,
    incompat: u64,
    log_root: u64,
    size: u64,
    devices: u64,
}

/// Reads the primary. Checksums other than CRC-32C are not computed here, so such a filesystem is not recognised;
/// ours never have one. A mkfs that did not finish leaves another magic number.
pub(super) fn parse(page: &Page) -> Option<Btrfs> {
    parse_at(page, PRIMARY)
}

fn parse_at(page: &Page, offset: u64) -> Option<Btrfs> {
    let raw = &page.0;
    let plausible = array(raw, MAGIC) == *MAGIC_VALUE
        && le64(raw, BYTENR) == offset
        && le16(raw, CSUM_TYPE) == CSUM_TYPE_CRC32C
        && array(raw, CSUM) == checksum(page);
    if !plausible {
        return None;
    }
    let fsid = uuid(raw, FSID);
    let incompat = le64(raw, INCOMPAT_FLAGS);
    let split = incompat & INCOMPAT_METADATA_UUID != 0;
    let found = Btrfs {
        uuid: fsid,
        metadata_uuid: if split { uuid(raw, METADATA_UUID) } else { fsid },
        flags: le64(raw, FLAGS),
        incompat,
        log_root: le64(raw, LOG_ROOT),
        size: le64(raw, TOTAL_BYTES),
        devices: le64(raw, NUM_DEVICES),
    };
    // The kernel refuses the mount otherwise (btrfs_validate_super).
    let whole = found.size != 0 && found.devices != 0 && uuid(raw, DEV_ITEM_FSID) == found.metadata_uuid;
    whole.then_some(found)
}

fn checksum(page: &Page) -> [u8; 4] {
    crc32c::crc32c(&page.0[CSUM_END..]).to_le_bytes()
}

impl Btrfs {
    pub(super) fn describe(&self) -> Superblock {
        Superblock {
            filesystem: Filesystem::Btrfs,
            uuid: self.uuid,
            size: Bytes::new(self.size),
            clean: self.log_root == 0,
            errors: self.flags & FLAG_ERROR != 0,
        }
    }

    /// Changes the fsid that users and the kernel's device list see, and lets the trees keep theirs as the metadata
    /// uuid. The device uuid stays as well, chunk items refer to it: the kernel looks it up among the devices of one
    /// fsid only (`device_list_add`), so equal ones under different fsids do not meet.
    ///
    /// A log tree is no obstacle: its blocks carry the metadata uuid, and replay does not write an old superblock.
    pub(super) fn renew(
        &self,
        image: Image<'_>,
        length: Bytes,
        mut page: Box<Page>,
        new: Uuid,
    ) -> io::Result<()> {
        if self.devices != 1 || self.incompat & !INCOMPAT_KNOWN != 0 {
            return Err(unsupported("btrfs on more than one device, or with features that are not known"));
        }
        if self.flags & !(FLAG_WRITTEN | FLAG_ERROR) != 0 {
            return Err(unsupported("btrfs that is a seed, a dump, or in a change of uuid"));
        }
        if self.size > length.get() {
            return Err(damaged("btrfs larger than its image"));
        }
        let mut mirrors = Vec::new();
        for offset in MIRRORS.into_iter().filter(|offset| offset + PAGE <= length.get()) {
            let mirror = Page::read(image.content, offset)?;
            // What is not a mirror of this filesystem is not ours to touch.
            if parse_at(&mirror, offset).is_some_and(|it| it.metadata_uuid == self.metadata_uuid) {
                mirrors.push((offset, mirror));
            }
        }
        for (offset, mut mirror) in mirrors {
            self.rename(&mut mirror, new);
            mirror.write(image.copy, offset)?;
        }
        self.rename(&mut page, new);
        page.write(image.copy, PRIMARY)
    }

    fn rename(&self, page: &mut Page, new: Uuid) {
        let incompat = le64(&page.0, INCOMPAT_FLAGS) | INCOMPAT_METADATA_UUID;
        put(&mut page.0, INCOMPAT_FLAGS, &incompat.to_le_bytes());
        put(&mut page.0, METADATA_UUID, self.metadata_uuid.as_bytes());
        put(&mut page.0, FSID, new.as_bytes());
        let checksum = checksum(page);
        put(&mut page.0, CSUM, &checksum);
    }
}
