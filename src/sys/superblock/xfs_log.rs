//! The XFS log: where it ends, and whether it ends with an unmount record, that is, has nothing to replay.
//! It follows `xlog_find_head` and `xlog_check_unmount_rec` of `fs/xfs/xfs_log_recover.c` where the log is in order,
//! and takes every log that is not, as a crash may leave it, for one to replay. Only mkfs and an unmount end a log
//! with such a record, and both leave it in order.
//!
//! The log is a ring of 512-byte basic blocks. Each starts with the number of the cycle in which it was written
//! (the first words are kept in the record's header), a header with its magic number and then the cycle.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use uuid::Uuid;

use super::{
    CHUNK, Chunk, PAGE,
    page::{Page, array, be32, crc_without, put, within},
};

/// `BBSIZE`.
const BASIC: u64 = 512;
/// `XLOG_TOTAL_REC_SHIFT`: how many basic blocks can be in flight at once, eight records of 256 KiB. Only there can
/// a crash leave gaps.
const IN_FLIGHT: u64 = (8 << 18) / BASIC;
/// `XLOG_REC_SHIFT` and the headers: the most basic blocks that one record takes.
const RECORD: u64 = (1 << 18) / BASIC + 8;
/// `XLOG_HEADER_CYCLE_SIZE`: how much data one header block keeps first words for.
const HEADER_COVERS: u32 = 32 << 10;

/// `struct xlog_rec_header`.
const MAGIC: usize = 0;
const CYCLE: usize = 4;
const VERSION: usize = 8;
const LEN: usize = 12;
const CRC: usize = 32;
const NUM_LOGOPS: usize = 40;
const FS_UUID: usize = 304;
const SIZE: usize = 320;
/// `XLOG_REC_SIZE` and `XLOG_REC_SIZE_OTHER`: what the checksum covers of it, on 64-bit and on 32-bit x86 kernels.
const HEADER_SIZES: [usize; 2] = [328, 324];
/// `sizeof(struct xlog_rec_ext_header)`.
const EXTENDED_SIZE: usize = 260;
/// `oh_flags` of `struct xlog_op_header`, which is the record's whole data.
const OP_FLAGS: usize = 9;

const MAGIC_VALUE: u32 = 0xfeed_babe;
const VERSION_2: u32 = 2;
/// `XLOG_UNMOUNT_TRANS`.
const UNMOUNT: u8 = 0x20;

/// The log of one filesystem.
pub(super) struct Log<'image> {
    image: &'image File,
    /// Bytes of the image that hold it.
    place: Range<u64>,
    /// How many basic blocks that is.
    blocks: u64,
    /// The last piece read, and which bytes of the image it is.
    chunk: Box<Chunk>,
    loaded: Range<u64>,
}

/// A record that says that nothing is to be replayed.
pub(super) struct UnmountRecord {
    /// The basic block where its header is.
    at: u64,
    /// How many blocks its headers take.
    headers: u64,
    /// Bytes of data (`h_len`).
    len: u32,
}

/// The page with an unmount record's header, ready to be written.
pub(super) struct Renamed {
    offset: u64,
    page: Box<Page>,
}

impl Renamed {
    pub(super) fn write(&self, image: &File) -> io::Result<()> {
        self.page.write(image, self.offset)
    }
}

/// `xlog_get_cycle`.
fn cycle_of(block: &[u8]) -> u32 {
    be32(block, if be32(block, MAGIC) == MAGIC_VALUE { CYCLE } else { 0 })
}

impl<'image> Log<'image> {
    /// The log in `size` bytes from `start`; `None` if no record would fit.
    pub(super) fn new(image: &'image File, start: u64, size: u64) -> Option<Self> {
        let blocks = size / BASIC;
        let fits = blocks > 2 && start.is_multiple_of(BASIC);
        fits.then(|| Self { image, place: start..start + size, blocks, chunk: Chunk::new(), loaded: 0..0 })
    }

    /// The record at the end of the log, if it is an unmount record.
    pub(super) fn unmount_record(&mut self) -> io::Result<Option<UnmountRecord>> {
        let Some(head) = self.head()? else { return Ok(None) };
        // xlog_rseek_logrec_hdr: the nearest header before the head, around the end of the ring if need be.
        for back in 1..=RECORD.min(self.blocks) {
            let at = self.ring(head + self.blocks - back);
            let header: [u8; 512] = array(self.block(at)?, 0);
            if be32(&header, MAGIC) == MAGIC_VALUE {
                return self.check_unmount(at, head, &header);
            }
        }
        Ok(None)
    }

    /// Whether the record at `at` ends at the head, and is an unmount record.
    fn check_unmount(&mut self, at: u64, head: u64, header: &[u8]) -> io::Result<Option<UnmountRecord>> {
        // xlog_logrec_hblks
        let size = be32(header, SIZE);
        let wide = be32(header, VERSION) & VERSION_2 != 0 && size > HEADER_COVERS;
        let headers = if wide { u64::from(size.div_ceil(HEADER_COVERS)) } else { 1 };
        let len = be32(header, LEN);
        let whole = headers + u64::from(len).div_ceil(BASIC);
        if len == 0
            || whole > RECORD.min(self.blocks)
            || self.ring(at + whole) != head
            || be32(header, NUM_LOGOPS) != 1
        {
            return Ok(None);
        }
        let data = self.ring(at + headers);
        let unmount = self.block(data)?[OP_FLAGS] & UNMOUNT != 0;
        Ok(unmount.then_some(UnmountRecord { at, headers, len }))
    }

    /// Where the next record would go: behind the last block of the newest cycle. `None` if cycles do not simply
    /// fall by one there.
    fn head(&mut self) -> io::Result<Option<u64>> {
        let newest = self.cycle(0)?;
        let oldest = self.cycle(self.blocks - 1)?;
        let head = if newest == 0 {
            return Ok(None);
        } else if newest == oldest {
            self.blocks
        } else if oldest == 0 || oldest == newest - 1 {
            self.first_of(oldest)?
        } else {
            return Ok(None);
        };
        let behind = head.min(IN_FLIGHT);
        let mut in_order = self.all_of(newest, head - behind..head)?;
        // In the first cycle what lies ahead was never written.
        if oldest != 0 {
            let around = IN_FLIGHT.min(self.blocks) - behind;
            in_order = in_order && self.all_of(oldest, self.blocks - around..self.blocks)?;
        }
        Ok(in_order.then(|| self.ring(head)))
    }

    /// `xlog_find_cycle_start`: some block of `cycle` after one that is not, by halving; the first, if all of them
    /// are at the end.
    fn first_of(&mut self, cycle: u32) -> io::Result<u64> {
        let (mut before, mut from) = (0, self.blocks - 1);
        while before + 1 < from {
            let middle = before.midpoint(from);
            if self.cycle(middle)? == cycle {
                from = middle;
            } else {
                before = middle;
            }
        }
        Ok(from)
    }

    fn all_of(&mut self, cycle: u32, blocks: Range<u64>) -> io::Result<bool> {
        for block in blocks {
            if cycle_of(self.block_ahead(block, CHUNK as u64)?) != cycle {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn cycle(&mut self, block: u64) -> io::Result<u32> {
        Ok(cycle_of(self.block(block)?))
    }

    const fn ring(&self, block: u64) -> u64 {
        block % self.blocks
    }

    /// The basic block `number`, read with its page.
    fn block(&mut self, number: u64) -> io::Result<&[u8]> {
        self.block_ahead(number, PAGE)
    }

    /// The basic block `number`, read with up to `piece` bytes from its page on, which serve the next calls.
    fn block_ahead(&mut self, number: u64, piece: u64) -> io::Result<&[u8]> {
        let offset = self.place.start + number * BASIC;
        if !self.loaded.contains(&offset) {
            self.loaded = 0..0;
            let start = offset - offset % PAGE;
            let end = (start + piece).min(self.place.end.next_multiple_of(PAGE));
            let size = usize::try_from(end - start).expect("no longer than a chunk");
            self.image.read_exact_at(&mut self.chunk.0[..size], start)?;
            self.loaded = start..end;
        }
        let at = usize::try_from(offset - self.loaded.start).expect("inside a chunk");
        Ok(&self.chunk.0[at..at + 512])
    }

    /// The record's header with another uuid; `None` if its checksum is not what it says.
    pub(super) fn renamed(&mut self, record: &UnmountRecord, new: Uuid) -> io::Result<Option<Renamed>> {
        let offset = self.place.start + record.at * BASIC;
        let mut page = Page::read(self.image, offset)?;
        let at = within(offset);
        let stored = array(&page.0, at + CRC);
        // mkfs.xfs and xfs_repair leave the checksum out, and the kernel does not ask for it then.
        let summed = if stored == [0; 4] { None } else { Some(self.sized(record, &page.0[at..], stored)?) };
        put(&mut page.0, at + FS_UUID, new.as_bytes());
        match summed {
            None => {}
            Some(None) => return Ok(None),
            Some(Some(size)) => {
                let checksum = self.checksum(record, &page.0[at..], size)?;
                put(&mut page.0, at + CRC, &checksum);
            }
        }
        Ok(Some(Renamed { offset, page }))
    }

    /// Which size of header the stored checksum was made with.
    fn sized(&mut self, record: &UnmountRecord, header: &[u8], stored: [u8; 4]) -> io::Result<Option<usize>> {
        for size in HEADER_SIZES {
            if self.checksum(record, header, size)? == stored {
                return Ok(Some(size));
            }
        }
        Ok(None)
    }

    /// `xlog_cksum`: the header with the field as zeros, the further headers that data of this length needs, and the
    /// data as it lies in the log.
    fn checksum(&mut self, record: &UnmountRecord, header: &[u8], size: usize) -> io::Result<[u8; 4]> {
        let mut sum = crc_without(&header[..size], CRC);
        for further in 1..u64::from(record.len.div_ceil(HEADER_COVERS)).min(record.headers) {
            let block = self.ring(record.at + further);
            sum = crc32c::crc32c_append(sum, &self.block(block)?[..EXTENDED_SIZE]);
        }
        let mut left = usize::try_from(record.len).expect("bounded when the record was found");
        let mut at = record.at + record.headers;
        while left > 0 {
            let block = self.ring(at);
            let part = left.min(512);
            sum = crc32c::crc32c_append(sum, &self.block(block)?[..part]);
            left -= part;
            at += 1;
        }
        Ok(sum.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A log as the kernel writes it: records around the ring, the cycle rising by one at its end.
    struct Ring {
        raw: Vec<u8>,
        next: u64,
        last: u64,
    }

    impl Ring {
        fn new(blocks: u64) -> Self {
            Self { raw: vec![0; usize::try_from(blocks * BASIC).unwrap()], next: 0, last: 0 }
        }

        fn blocks(&self) -> u64 {
            self.raw.len() as u64 / BASIC
        }

        fn block(&mut self, number: u64) -> &mut [u8] {
            let at = usize::try_from(number % self.blocks() * BASIC).unwrap();
            &mut self.raw[at..at + 512]
        }

        fn cycle_of(&self, number: u64) -> [u8; 4] {
            u32::try_from(1 + number / self.blocks()).unwrap().to_be_bytes()
        }

        /// Adds a record of `headers` and `data` blocks (`xlog_sync`).
        fn append(&mut self, headers: u32, data: u32, flags: u8) {
            let at = self.next;
            for number in at..at + u64::from(headers + data) {
                let cycle = self.cycle_of(number);
                let block = self.block(number);
                block.fill(0x5a);
                put(block, 0, &cycle);
            }
            let cycle = self.cycle_of(at);
            let header = self.block(at);
            header.fill(0);
            put(header, MAGIC, &MAGIC_VALUE.to_be_bytes());
            put(header, CYCLE, &cycle);
            put(header, VERSION, &VERSION_2.to_be_bytes());
            put(header, LEN, &(data * 512).to_be_bytes());
            put(header, NUM_LOGOPS, &1_u32.to_be_bytes());
            put(header, SIZE, &(headers * HEADER_COVERS).to_be_bytes());
            self.block(at + u64::from(headers))[OP_FLAGS] = flags;
            self.last = at;
            self.next = at + u64::from(headers + data);
        }

        /// Where an unmount record is found, in a log that starts `shift` bytes into its image.
        fn found(&self, shift: u64) -> Option<u64> {
            let image = tempfile::tempfile().unwrap();
            image.write_all_at(&self.raw, shift).unwrap();
            image.set_len((shift + self.raw.len() as u64).next_multiple_of(PAGE)).unwrap();
            let mut log = Log::new(&image, shift, self.raw.len() as u64).unwrap();
            log.unmount_record().unwrap().map(|record| record.at)
        }
    }

    /// Smaller than what can be in flight, and larger.
    const SIZES: [u64; 2] = [1024, 3 * IN_FLIGHT + 40];

    fn filled(blocks: u64, records: &[(u32, u32)]) -> Ring {
        let mut ring = Ring::new(blocks);
        for &(headers, data) in records {
            ring.append(headers, data, 0);
        }
        ring
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn finds_the_unmount_record_and_no_other(
            size in prop::sample::select(&SIZES[..]),
            records in prop::collection::vec((1_u32..=8, 1_u32..=500), 0..200),
            headers in 1_u32..=8,
            shift in prop::sample::select(&[0, 512, 8192][..]),
        ) {
            let mut ring = filled(size, &records);
            if !records.is_empty() {
                prop_assert_eq!(ring.found(shift), None);
            }
            ring.append(headers, 1, UNMOUNT);
            prop_assert_eq!(ring.found(shift), Some(ring.last % size));
            ring.append(1, 1, 0);
            prop_assert_eq!(ring.found(shift), None);
        }

        /// Blocks in flight that a crash kept from the disk.
        #[test]
        fn a_gap_behind_the_head_is_for_replay(
            records in prop::collection::vec((1_u32..=8, 1_u32..=500), 60..120),
            back in 3..IN_FLIGHT,
        ) {
            let mut ring = filled(SIZES[1], &records);
            ring.append(1, 1, UNMOUNT);
            let torn = ring.next - back;
            prop_assume!(torn >= ring.blocks());
            let older = ring.cycle_of(torn - ring.blocks());
            let block = ring.block(torn);
            block.fill(0);
            put(block, 0, &older);
            prop_assert_eq!(ring.found(0), None);
        }
    }

    #[test]
    fn a_log_that_ends_with_the_ring_is_found() {
        for cycles in 1..4 {
            let mut ring = Ring::new(1024);
            for number in 0..cycles * 4 {
                let last = number == cycles * 4 - 1;
                if last {
                    ring.append(1, 253, 0);
                    ring.append(1, 1, UNMOUNT);
                } else {
                    ring.append(1, 255, 0);
                }
            }
            assert_eq!(ring.next % 1024, 0);
            assert_eq!(ring.found(0), Some(1022));
        }
    }

    #[test]
    fn an_empty_log_is_not_clean() {
        assert_eq!(Ring::new(1024).found(0), None);
    }
}
