//! The log of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c): read, and
//! replayed entry by entry.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Length of the head of an entry.
const HEAD: usize = 32;

pub(crate) struct Log {
    file: File,
    sector: u64,
    count: u64,
}

/// One write, or one mark.
pub(crate) struct Entry {
    /// Where on the disk, and how long, in bytes.
    to: u64,
    length: u64,
    flags: u64,
    /// Where its bytes are in the log.
    data: u64,
    /// The text of a mark.
    pub(crate) mark: Option<String>,
}

impl Entry {
    /// After it all that came before is on the disk.
    pub(crate) fn is_flush(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Log {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(number(&head, 0), MAGIC, "this is a log of writes");
        // 32 bits, with zeros behind them.
        let sector = number(&head, 24) & u64::from(u32::MAX);
        Self { file, sector, count: number(&head, 16) }
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut at = self.sector;
        let mut found = Vec::new();
        for _ in 0..self.count {
            let mut head = vec![0; usize::try_from(self.sector).unwrap()];
            self.file.read_exact_at(&mut head, at).unwrap();
            let (flags, said) = (number(&head, 16), usize::try_from(number(&head, 24)).unwrap());
            let mark =
                (flags & MARK != 0).then(|| String::from_utf8_lossy(&head[HEAD..HEAD + said]).into_owned());
            let (to, length) = (number(&head, 0) * self.sector, number(&head, 8) * self.sector);
            found.push(Entry { to, length, flags, data: at + self.sector, mark });
            at += self.sector + if flags & DISCARD == 0 { length } else { 0 };
        }
        found
    }

    /// Does to a disk what was done.
    pub(crate) fn replay(&self, entry: &Entry, disk: &File) {
        let mut bytes = vec![0; usize::try_from(entry.length).unwrap()];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data).unwrap();
        }
        disk.write_all_at(&bytes, entry.to).unwrap();
    }
}
