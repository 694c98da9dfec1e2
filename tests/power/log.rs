//! What dm-log-writes has written (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c).

use std::{fs::File, os::unix::fs::FileExt};

/// Numbers of the format.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// One thing that happened, in the order in which the disk promised it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it was written, in bytes, and how much.
    start: u64,
    length: u64,
    flags: u64,
    /// Where the log has what was written.
    data: u64,
    /// What was said, for a mark.
    pub(crate) mark: Option<String>,
}

impl Entry {
    /// What came before it is on the disk from now on.
    pub(crate) fn is_cut(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }

    /// Does the same to another disk.
    pub(crate) fn replay(&self, log: &File, disk: &File) {
        if self.flags & MARK != 0 || self.length == 0 {
            return;
        }
        let mut content = vec![0; usize::try_from(self.length).unwrap()];
        if self.flags & DISCARD == 0 {
            log.read_exact_at(&mut content, self.data).unwrap();
        }
        disk.write_all_at(&content, self.start).unwrap();
    }
}

/// Everything in a log.
pub(crate) fn read(log: &File) -> Vec<Entry> {
    let words = |offset: u64| -> [u64; 4] {
        let mut block = [0; 32];
        log.read_exact_at(&mut block, offset).unwrap();
        std::array::from_fn(|index| u64::from_le_bytes(block[8 * index..8 * index + 8].try_into().unwrap()))
    };
    let [magic, version, count, sector] = words(0);
    assert_eq!((magic, version), (MAGIC, 1), "this is no log of writes");
    let sector = sector & 0xffff_ffff;
    let mut offset = sector;
    let mut entries = Vec::new();
    for _ in 0..count {
        // The length of data is that of a mark.
        let [start, length, flags, said] = words(offset);
        let data = offset + sector;
        let mut mark = None;
        offset = data;
        if flags & MARK != 0 {
            let mut text = vec![0; usize::try_from(said).unwrap()];
            log.read_exact_at(&mut text, data - sector + 32).unwrap();
            mark = Some(String::from_utf8(text).unwrap());
        } else if flags & DISCARD == 0 {
            offset += length * sector;
        }
        entries.push(Entry { start: start * sector, length: length * sector, flags, data, mark });
    }
    entries
}
