//! Metadata of a thin pool as it lies on its device (drivers/md/dm-thin-metadata.c, persistent-data/dm-btree-internal.h):
//! which thin devices there are and how far each reaches. Only what a metadata snapshot holds stands still, so only that
//! is read; the kernel writes past the page cache, so it is read past it, too.

use std::{collections::HashSet, fs::File, io, os::unix::fs::FileExt};

use crate::bytes::Bytes;

const BLOCK: usize = 4096;
const SUPERBLOCK_MAGIC: u64 = 27_022_010;
const SUPERBLOCK_SALT: u32 = 160_774;
const NODE_SALT: u32 = 121_107;
/// Flags of a node.
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Length of a node's header, where its keys begin.
const HEADER: usize = 32;
/// Deeper than any tree over 64-bit keys can be; a damaged one may run in circles.
const DEPTH_LIMIT: usize = 16;
const SECTOR: u64 = 512;

/// A thin device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinDevice {
    /// Its number.
    pub number: u32,
    /// Blocks of data that it occupies, those included that it shares.
    pub mapped: Bytes,
    /// When it was made, counted in snapshots of the pool: two devices that had one number, one after the other, differ in
    /// it as soon as one of them began as a copy.
    pub time: u32,
}

#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("metadata of the thin pool: {what}"))
}

impl Block {
    fn u32(&self, offset: usize) -> u32 {
        self.0.get(offset..offset + 4).and_then(|it| it.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> u64 {
        self.0.get(offset..offset + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    /// Reads a block that carries a checksum and its own number.
    fn read(device: &File, number: u64, salt: u32) -> io::Result<Box<Self>> {
        let mut block = Box::new(Self([0; BLOCK]));
        let offset = number.checked_mul(BLOCK as u64).ok_or_else(|| damaged("a block is out of reach"))?;
        device.read_exact_at(&mut block.0, offset)?;
        // The kernel's CRC32C ends without the inversion that the usual one ends with.
        let checksum = !crc32c::crc32c(&block.0[4..]) ^ salt;
        if block.u32(0) != checksum || block.u64(8) != number {
            return Err(damaged("a checksum does not fit"));
        }
        Ok(block)
    }
}

/// A node of a tree, checked.
struct Node {
    block: Box<Block>,
    entries: usize,
    values: usize,
    value: usize,
}

impl Node {
    fn read(device: &File, number: u64) -> io::Result<Self> {
        let block = Block::read(device, number, NODE_SALT)?;
        let field = |offset| usize::try_from(block.u32(offset)).unwrap_or(usize::MAX);
        let (entries, most, value) = (field(16), field(20), field(24));
        let fits = most.checked_mul(8 + value).is_some_and(|length| length <= BLOCK - HEADER);
        if !fits || entries > most || value < 8 {
            return Err(damaged("a node does not hold together"));
        }
        Ok(Self { entries, values: HEADER + most * 8, value, block })
    }

    fn is_leaf(&self) -> io::Result<bool> {
        match self.block.u32(4) & (INTERNAL | LEAF) {
            LEAF => Ok(true),
            INTERNAL => Ok(false),
            _ => Err(damaged("a node is neither leaf nor branch")),
        }
    }

    fn key(&self, entry: usize) -> u64 {
        self.block.u64(HEADER + entry * 8)
    }

    /// Where the value of an entry begins.
    fn at(&self, entry: usize) -> usize {
        self.values + entry * self.value
    }
}

/// What a metadata snapshot of a thin pool holds.
#[derive(Debug)]
pub struct ThinMetadata {
    device: File,
    mappings: u64,
    details: u64,
    chunk: Bytes,
}

impl ThinMetadata {
    /// Reads the root that the pool holds for us. `device` must have been opened with `O_DIRECT`.
    ///
    /// # Errors
    /// Those of reading; `InvalidData` where it is no metadata; `NotFound` where no snapshot of it is held.
    pub fn open(device: File) -> io::Result<Self> {
        let live = superblock(&device, 0)?;
        let held = match live.u64(56) {
            0 => return Err(io::Error::new(io::ErrorKind::NotFound, "no metadata snapshot is held")),
            held => superblock(&device, held)?,
        };
        let chunk = Bytes::new(u64::from(held.u32(336)).saturating_mul(SECTOR));
        Ok(Self { device, mappings: held.u64(320), details: held.u64(328), chunk })
    }

    /// Every thin device, in the order of the numbers.
    ///
    /// # Errors
    /// As [`ThinMetadata::open`].
    pub fn devices(&self) -> io::Result<Vec<ThinDevice>> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        self.walk(self.details, 0, &mut seen, &mut |node, entry| {
            let number = u32::try_from(node.key(entry)).map_err(|_large| damaged("a number is too large"))?;
            let at = node.at(entry);
            let mapped = Bytes::new(node.block.u64(at).saturating_mul(self.chunk.get()));
            found.push(ThinDevice { number, mapped, time: node.block.u32(at + 16) });
            Ok(())
        })?;
        Ok(found)
    }

    /// How far the blocks of a thin device reach; `None` where there is no such device.
    ///
    /// # Errors
    /// As [`ThinMetadata::open`].
    pub fn reach(&self, number: u32) -> io::Result<Option<Bytes>> {
        let mut root = None;
        let mut seen = HashSet::new();
        self.walk(self.mappings, 0, &mut seen, &mut |node, entry| {
            if node.key(entry) == u64::from(number) {
                root = Some(node.block.u64(node.at(entry)));
            }
            Ok(())
        })?;
        let Some(mut block) = root else { return Ok(None) };
        for _level in 0..DEPTH_LIMIT {
            let node = Node::read(&self.device, block)?;
            let Some(last) = node.entries.checked_sub(1) else { return Ok(Some(Bytes::ZERO)) };
            if node.is_leaf()? {
                let blocks = node.key(last).saturating_add(1);
                return Ok(Some(Bytes::new(blocks.saturating_mul(self.chunk.get()))));
            }
            block = node.block.u64(node.at(last));
        }
        Err(damaged("a tree has no end"))
    }

    /// Calls `visit` with every entry of the leaves, in order.
    fn walk(
        &self,
        block: u64,
        depth: usize,
        seen: &mut HashSet<u64>,
        visit: &mut dyn FnMut(&Node, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        if depth >= DEPTH_LIMIT || !seen.insert(block) {
            return Err(damaged("a tree has no end"));
        }
        let node = Node::read(&self.device, block)?;
        let leaf = node.is_leaf()?;
        for entry in 0..node.entries {
            if leaf {
                visit(&node, entry)?;
            } else {
                self.walk(node.block.u64(node.at(entry)), depth + 1, seen, visit)?;
            }
        }
        Ok(())
    }
}

fn superblock(device: &File, number: u64) -> io::Result<Box<Block>> {
    let block = Block::read(device, number, SUPERBLOCK_SALT)?;
    if block.u64(32) != SUPERBLOCK_MAGIC || block.u32(336) == 0 {
        return Err(damaged("it has no superblock"));
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    /// A pool's metadata as a test writes it: blocks by their numbers.
    struct Image(Vec<[u8; BLOCK]>);

    impl Image {
        fn put(&mut self, number: usize, offset: usize, value: &[u8]) {
            self.0[number][offset..offset + value.len()].copy_from_slice(value);
        }

        fn seal(&mut self, number: usize, salt: u32) {
            self.put(number, 8, &(number as u64).to_le_bytes());
            let checksum = !crc32c::crc32c(&self.0[number][4..]) ^ salt;
            self.put(number, 0, &checksum.to_le_bytes());
        }

        fn node(&mut self, number: usize, flags: u32, value: u32, entries: &[(u64, Vec<u8>)]) {
            let most = (u32::try_from(BLOCK - HEADER).unwrap()) / (8 + value);
            self.put(number, 4, &flags.to_le_bytes());
            self.put(number, 16, &u32::try_from(entries.len()).unwrap().to_le_bytes());
            self.put(number, 20, &most.to_le_bytes());
            self.put(number, 24, &value.to_le_bytes());
            let values = HEADER + usize::try_from(most).unwrap() * 8;
            for (index, (key, content)) in entries.iter().enumerate() {
                self.put(number, HEADER + index * 8, &key.to_le_bytes());
                self.put(number, values + index * usize::try_from(value).unwrap(), content);
            }
            self.seal(number, NODE_SALT);
        }

        fn superblock(&mut self, number: usize, held: u64) {
            self.put(number, 32, &SUPERBLOCK_MAGIC.to_le_bytes());
            self.put(number, 56, &held.to_le_bytes());
            self.put(number, 320, &3u64.to_le_bytes());
            self.put(number, 328, &2u64.to_le_bytes());
            self.put(number, 336, &128u32.to_le_bytes());
            self.seal(number, SUPERBLOCK_SALT);
        }

        fn file(&self) -> File {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&self.0.concat(), 0).unwrap();
            file
        }
    }

    fn details(mapped: u64, time: u32) -> Vec<u8> {
        [&mapped.to_le_bytes()[..], &[0; 8], &time.to_le_bytes(), &[0; 4]].concat()
    }

    /// Two devices: one with blocks up to the seventh, one with none.
    fn image() -> Image {
        let mut image = Image(vec![[0; BLOCK]; 8]);
        image.superblock(0, 1);
        image.superblock(1, 0);
        image.node(2, LEAF, 24, &[(1, details(3, 0)), (1 << 20, details(0, 5))]);
        image.node(3, LEAF, 8, &[(1, 4u64.to_le_bytes().into()), (1 << 20, 7u64.to_le_bytes().into())]);
        let branch = |block: u64| block.to_le_bytes().to_vec();
        image.node(4, INTERNAL, 8, &[(0, branch(5)), (4, branch(6))]);
        image.node(5, LEAF, 8, &[(0, branch(9))]);
        image.node(6, LEAF, 8, &[(4, branch(9)), (6, branch(9))]);
        image.node(7, LEAF, 8, &[]);
        image
    }

    #[test]
    fn devices_and_how_far_they_reach() {
        let metadata = ThinMetadata::open(image().file()).unwrap();
        let (first, second) = (
            ThinDevice { number: 1, mapped: Bytes::new(3 << 16), time: 0 },
            ThinDevice { number: 1 << 20, mapped: Bytes::ZERO, time: 5 },
        );
        assert_eq!(metadata.devices().unwrap(), [first, second]);
        assert_eq!(metadata.reach(1).unwrap(), Some(Bytes::new(7 << 16)));
        assert_eq!(metadata.reach(1 << 20).unwrap(), Some(Bytes::ZERO));
        assert_eq!(metadata.reach(2).unwrap(), None);
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let mut unheld = image();
        unheld.superblock(0, 0);
        assert_eq!(ThinMetadata::open(unheld.file()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut circle = image();
        circle.node(2, INTERNAL, 8, &[(0, 2u64.to_le_bytes().into())]);
        let refused = ThinMetadata::open(circle.file()).unwrap().devices().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let mut torn = image();
        torn.0[6][100] ^= 1;
        assert_eq!(
            ThinMetadata::open(torn.file()).unwrap().reach(1).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    proptest! {
        #[test]
        fn no_node_makes_it_panic(place in 0usize..8, offset in 0usize..BLOCK - 8, value in any::<u64>()) {
            let mut image = image();
            image.put(place, offset, &value.to_le_bytes());
            image.seal(place, if place < 2 { SUPERBLOCK_SALT } else { NODE_SALT });
            if let Ok(metadata) = ThinMetadata::open(image.file()) {
                assert!(metadata.devices().is_ok_and(|all| all.len() < 1000) || metadata.devices().is_err());
                assert!(metadata.reach(1).is_ok() || metadata.reach(1).is_err());
            }
        }
    }

    /// Blocks with any content under checksums that fit.
    #[test]
    fn hostile_input() {
        let whole = image().0.concat();
        crate::hostile::feed("thin-metadata", &[&whole], |input| {
            let mut image = Image(vec![[0; BLOCK]; 8]);
            for (block, content) in image.0.iter_mut().zip(input.chunks(BLOCK)) {
                block[..content.len()].copy_from_slice(content);
            }
            (0..8)
                .for_each(|number| image.seal(number, if number < 2 { SUPERBLOCK_SALT } else { NODE_SALT }));
            if let Ok(metadata) = ThinMetadata::open(image.file()) {
                assert!(metadata.devices().is_ok_and(|all| all.len() < 5000) || metadata.devices().is_err());
                drop((metadata.reach(1), metadata.reach(0)));
            }
        });
    }
}
