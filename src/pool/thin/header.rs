//! The header of a pool: the first two blocks of its records, written in turn.

use std::{fs::File, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use super::{layout::Layout, slots::BLOCK};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    id::PoolId,
    pool::record::{self, Timestamp},
};

/// Blocks that it takes.
pub(super) const HEADERS: u64 = 2;
const VERSION: u32 = 1;

/// Which pool this is, and whose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Version of the layout.
    lagan_pool: u32,
    /// The pool's identity.
    pub(super) id: PoolId,
    /// The machine that may serve it.
    pub(super) machine: String,
    /// When it was made.
    created: Timestamp,
    /// Which of two headers is the later one.
    number: u64,
    /// What lies where, on a disk of our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) disk: Option<Layout>,
}

impl Header {
    /// A header for a new pool.
    pub(super) fn new(machine: &str, disk: Option<Layout>) -> Self {
        let (id, created) = (PoolId::random(), Timestamp::now());
        Self { lagan_pool: VERSION, id, machine: machine.to_owned(), created, number: 0, disk }
    }

    /// One that a pool had before.
    pub(super) fn of(id: PoolId, machine: &str, disk: Option<Layout>) -> Self {
        Self { id, ..Self::new(machine, disk) }
    }

    /// The same of another machine.
    pub(super) fn with_machine(&self, machine: &str) -> Self {
        Self { machine: machine.to_owned(), ..self.clone() }
    }

    /// The same with another layout.
    pub(super) fn with_disk(&self, disk: Layout) -> Self {
        Self { disk: Some(disk), ..self.clone() }
    }

    /// Reads the header where the records begin at `start`; `None` where there is none.
    pub(super) fn read(device: &File, start: Bytes) -> Result<Option<Self>> {
        let mut found: Option<Self> = None;
        for index in 0..HEADERS {
            let mut block = vec![0; BLOCK];
            let offset = start.get() + index * BLOCK as u64;
            device.read_exact_at(&mut block, offset).doing(|| "read the header of the pool")?;
            if let Ok(header) = record::decode::<Self>(&block)
                && found.as_ref().is_none_or(|found| found.number < header.number)
            {
                found = Some(header);
            }
        }
        match found {
            Some(header) if header.lagan_pool != VERSION => Err(Error::new(
                ErrorKind::Unavailable,
                format!("layout version {} of the pool is not {VERSION}", header.lagan_pool),
            )),
            Some(Header { disk: Some(layout), .. }) if !layout.holds_together() => Err(Error::new(
                ErrorKind::Unavailable,
                "what the header of the pool says of its disk cannot be",
            )),
            found => Ok(found),
        }
    }

    /// Writes it to the device of records, beside the one before.
    pub(super) fn replace(&self, device: &File) -> Result<()> {
        Self { number: self.number + 1, ..self.clone() }.write(device)
    }

    /// Writes the first one.
    pub(super) fn write(&self, device: &File) -> Result<()> {
        let what = || "write the header of the pool";
        let block = record::encode_to(self, BLOCK)?;
        device.write_all_at(&block, (self.number % HEADERS) * BLOCK as u64).doing(what)?;
        device.sync_data().doing(what)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::layout::linear, *};

    #[test]
    fn the_later_header_counts() {
        let device = tempfile::tempfile().unwrap();
        device.set_len(HEADERS * BLOCK as u64).unwrap();
        assert_eq!(Header::read(&device, Bytes::ZERO).unwrap(), None);
        let header = Header::new("m", Layout::new(Bytes::gib(64)));
        header.write(&device).unwrap();
        header.with_machine("n").replace(&device).unwrap();
        let moved = Header::read(&device, Bytes::ZERO).unwrap().unwrap();
        assert_eq!((moved.id, moved.machine.as_str(), moved.number), (header.id, "n", 1));
        assert_eq!(moved.disk, header.disk);
        assert!(Header::read(&tempfile::tempfile().unwrap(), Bytes::ZERO).is_err());
    }

    /// A disk that says it is ours is believed no further than it holds together.
    #[test]
    fn hostile_input() {
        let header = Header::new("m", Layout::new(Bytes::gib(64)));
        let written = record::encode_to(&header, BLOCK).unwrap();
        crate::hostile::feed("headers", &[written.trim_ascii_end()], |input| {
            let mut device = record::sealed(input);
            device.resize(2 * BLOCK, b' ');
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&device, 0).unwrap();
            if let Ok(Some(Header { disk: Some(mut layout), .. })) = Header::read(&file, Bytes::ZERO) {
                let number = crate::sys::device::DeviceNumber::new(253, 1);
                assert_eq!(layout.pool_table(number, number).len(), 1);
                std::hint::black_box(linear(number, &layout.data));
                std::hint::black_box(layout.extend(Bytes::gib(128)));
            }
        });
    }
}
