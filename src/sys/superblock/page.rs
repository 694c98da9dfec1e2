//! Aligned pieces of an image, and the numbers inside them.
//! Knows nothing of filesystems; every read and write is whole pages, as a disk with 4096-byte sectors wants.

use std::{fs::File, io, os::unix::fs::FileExt};

use uuid::Uuid;

/// The unit of every read and write: the largest logical sector in use, and the block size of our filesystems.
pub(super) const PAGE: u64 = 4096;

/// Bytes in a [`Chunk`].
pub(super) const CHUNK: usize = 64 << 10;

/// An image that gets a new identity, and where what it holds is read: from itself, or from the file that it was
/// copied from a moment ago, whose pages are in memory while those of the copy are not.
#[derive(Clone, Copy)]
pub(super) struct Image<'f> {
    pub(super) content: &'f File,
    pub(super) copy: &'f File,
}

/// One page, aligned in memory too, so that a file opened with `O_DIRECT` takes it.
#[repr(C, align(4096))]
pub(super) struct Page(pub(super) [u8; 4096]);

impl Page {
    /// Reads the page in which the byte at `offset` lies. A file that ends before it is an error.
    pub(super) fn read(image: &File, offset: u64) -> io::Result<Box<Self>> {
        let mut page = Box::new(Self([0; 4096]));
        image.read_exact_at(&mut page.0, offset - offset % PAGE)?;
        Ok(page)
    }

    /// Writes the page back to where the byte at `offset` lies.
    pub(super) fn write(&self, image: &File, offset: u64) -> io::Result<()> {
        image.write_all_at(&self.0, offset - offset % PAGE)
    }
}

/// A larger piece for scans, aligned like a [`Page`].
#[repr(C, align(4096))]
pub(super) struct Chunk(pub(super) [u8; CHUNK]);

impl Chunk {
    /// One of zeros.
    pub(super) fn new() -> Box<Self> {
        Box::new(Self([0; CHUNK]))
    }
}

/// Where the byte at `offset` of an image lies in its page.
pub(super) fn within(offset: u64) -> usize {
    usize::try_from(offset % PAGE).expect("a remainder of 4096 fits")
}

/// The `N` bytes at `at`, a constant offset inside a structure of fixed size.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Overwrites the field at `at`.
pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// All three filesystems store a UUID as its sixteen bytes in order.
pub(super) fn uuid(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(array(bytes, at))
}

/// The CRC-32C of `bytes` with the four at `hole`, where it is stored itself, taken as zeros.
pub(super) fn crc_without(bytes: &[u8], hole: usize) -> u32 {
    let head = crc32c::crc32c(&bytes[..hole]);
    crc32c::crc32c_append(crc32c::crc32c_append(head, &[0; 4]), &bytes[hole + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_counts_as_zeros() {
        let mut bytes = [7_u8; 64];
        put(&mut bytes, 12, &[0; 4]);
        let expected = crc32c::crc32c(&bytes);
        put(&mut bytes, 12, &[1, 2, 3, 4]);
        assert_eq!(crc_without(&bytes, 12), expected);
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE).unwrap();
        assert!(Page::read(&file, 0).is_ok());
        assert_eq!(Page::read(&file, PAGE).err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    }
}
