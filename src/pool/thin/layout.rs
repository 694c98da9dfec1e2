//! What lies where on a disk of our own: a table of partitions at both ends, the records, the metadata of the thin pool
//! and as much spare room to repair it into, the data. Pure: nothing here reads or writes.

use serde::{Deserialize, Serialize};

use super::below::METADATA_BLOCK;
use crate::{
    bytes::Bytes,
    sys::{
        device::DeviceNumber,
        disk::MARGIN,
        dm::{Line, SECTOR},
    },
};

/// Length of the records: room for 8,000 volumes and snapshots.
pub(super) const RECORDS: Extent = Extent { start: MARGIN, length: Bytes::mib(64) };
/// The shortest disk that does.
pub(super) const LEAST: Bytes = Bytes::gib(1);
/// Everything begins and ends at a multiple of this.
const UNIT: Bytes = Bytes::mib(1);
/// The shortest and the longest metadata; the kernel takes 15.9 GiB (`THIN_METADATA_MAX_SECTORS`).
const METADATA: (Bytes, Bytes) = (Bytes::mib(64), Bytes::gib(15));
/// Metadata for each chunk of data: four devices that share nothing, their trees half empty.
const METADATA_PER_CHUNK: u64 = 4 * 2 * METADATA_BLOCK / 252;
/// The shortest chunk: what a snapshot copies at the first write. And how many there are at most, since what a deletion
/// costs grows with their number.
const CHUNK: Bytes = Bytes::new(128 << 10);
const CHUNKS: u64 = 4 << 20;

/// Part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extent {
    pub(super) start: Bytes,
    pub(super) length: Bytes,
}

impl Extent {
    fn end(self) -> Bytes {
        self.start.plus(self.length)
    }
}

/// What lies where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    /// What the thin pool hands out at a time.
    pub(super) chunk: Bytes,
    /// The metadata in use.
    pub(super) metadata: Vec<Extent>,
    /// As much again.
    pub(super) spare: Vec<Extent>,
    /// Where volumes are.
    pub(super) data: Vec<Extent>,
}

fn length_of(extents: &[Extent]) -> Bytes {
    extents.iter().fold(Bytes::ZERO, |sum, extent| sum.plus(extent.length))
}

fn metadata_for(data: Bytes, chunk: Bytes) -> Bytes {
    let wanted = Bytes::new(data.get() / chunk.get() * METADATA_PER_CHUNK);
    wanted.round_up(UNIT).unwrap_or(METADATA.1).clamp(METADATA.0, METADATA.1)
}

impl Layout {
    /// A layout for a disk of this length; `None` where it is too short.
    pub(super) fn new(disk: Bytes) -> Option<Self> {
        if disk < LEAST {
            return None;
        }
        let mut chunk = CHUNK;
        while disk.get() / chunk.get() > CHUNKS {
            chunk = chunk.plus(chunk);
        }
        let metadata = metadata_for(disk, chunk);
        let mut layout = Self { chunk, metadata: Vec::new(), spare: Vec::new(), data: Vec::new() };
        layout.add(RECORDS.end(), disk, metadata);
        Some(layout)
    }

    /// Whether it can have been made by [`Layout::new`]: the kernel takes no other chunks, and we divide by them.
    pub(super) fn holds_together(&self) -> bool {
        let whole = |bytes: Bytes| bytes == bytes.round_down(UNIT) && bytes < Bytes::MAX;
        let extents = [&self.metadata, &self.spare, &self.data].into_iter().flatten();
        self.chunk >= CHUNK
            && self.chunk == self.chunk.round_down(CHUNK)
            && extents.into_iter().all(|extent| whole(extent.start) && extent.end() < Bytes::MAX)
    }

    /// Takes in what a disk has become longer by; `false` where that is nothing.
    pub(super) fn extend(&mut self, disk: Bytes) -> bool {
        let extents = [&self.metadata, &self.spare, &self.data].into_iter().flatten();
        let end = extents.map(|extent| extent.end()).max().unwrap_or_default();
        let added = disk.minus(MARGIN).minus(end);
        let metadata = metadata_for(length_of(&self.data).plus(added), self.chunk);
        let metadata = metadata.minus(length_of(&self.metadata));
        // As much as makes sense: metadata twice, and data that is worth it.
        if added <= metadata.plus(metadata).plus(UNIT) {
            return false;
        }
        self.add(end, disk, metadata);
        true
    }

    fn add(&mut self, start: Bytes, disk: Bytes, metadata: Bytes) {
        let spare = start.plus(metadata);
        let data = spare.plus(metadata);
        let rest = disk.minus(MARGIN).minus(data).round_down(UNIT).round_down(self.chunk);
        let parts = [
            (&mut self.metadata, start, metadata),
            (&mut self.spare, spare, metadata),
            (&mut self.data, data, rest),
        ];
        for (extents, start, length) in parts {
            if length > Bytes::ZERO {
                extents.push(Extent { start, length });
            }
        }
    }

    /// What the thin pool takes for its data and metadata, and how long it is.
    pub(super) fn pool_table(&self, metadata: DeviceNumber, data: DeviceNumber) -> Vec<Line> {
        let length = length_of(&self.data);
        let low_water = length.percent(10).get() / self.chunk.get();
        let text = format!("{metadata} {data} {} {low_water}", self.chunk.get() / SECTOR);
        vec![Line { start: 0, length: length.get() / SECTOR, target: "thin-pool".into(), text }]
    }
}

/// Parts of a disk as one device.
pub(super) fn linear(disk: DeviceNumber, extents: &[Extent]) -> Vec<Line> {
    let mut start = 0;
    let line = |extent: &Extent| {
        let length = extent.length.get() / SECTOR;
        let text = format!("{disk} {}", extent.start.get() / SECTOR);
        let line = Line { start, length, target: "linear".into(), text };
        start += length;
        line
    };
    extents.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    fn disjoint(layout: &Layout, disk: Bytes) -> bool {
        let parts = [&layout.metadata, &layout.spare, &layout.data].into_iter().flatten().copied();
        let mut all: Vec<Extent> = parts.chain([RECORDS]).collect();
        all.sort_by_key(|extent| extent.start);
        all[0].start >= MARGIN
            && all.windows(2).all(|pair| pair[0].end() <= pair[1].start)
            && all.last().is_some_and(|last| last.end() <= disk.minus(MARGIN))
    }

    #[test]
    fn chunks_grow_with_the_disk() {
        assert_eq!(Layout::new(Bytes::mib(1000)), None);
        let small = Layout::new(Bytes::gib(8)).unwrap();
        assert_eq!((small.chunk, length_of(&small.metadata)), (CHUNK, METADATA.0));
        let large = Layout::new(Bytes::gib(16 << 10)).unwrap();
        assert_eq!(large.chunk, Bytes::mib(4));
        assert!(length_of(&large.metadata) < Bytes::gib(16));
        assert!(length_of(&large.data) > Bytes::gib(16 << 10).percent(99));
    }

    #[test]
    fn tables_begin_where_the_one_before_ends() {
        let (gib, disk) = (Bytes::gib(1), DeviceNumber::new(8, 0));
        let extents = [Extent { start: Bytes::mib(1), length: gib }, Extent { start: gib, length: gib }];
        let lines = linear(disk, &extents);
        assert_eq!((lines[1].start, lines[1].text.as_str()), (2 << 20, "8:0 2097152"));
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_growth_moves_nothing(first in 1_u64 << 30..1 << 46, more in 0_u64..1 << 44) {
            let mut layout = Layout::new(Bytes::new(first)).unwrap();
            prop_assert!(disjoint(&layout, Bytes::new(first)));
            let before = layout.clone();
            let grown = layout.extend(Bytes::new(first + more));
            prop_assert!(disjoint(&layout, Bytes::new(first + more)));
            prop_assert!(grown || layout == before);
            prop_assert!(layout.data.starts_with(&before.data) && layout.metadata.starts_with(&before.metadata));
            prop_assert!(length_of(&layout.spare) == length_of(&layout.metadata));
        }
    }
}
