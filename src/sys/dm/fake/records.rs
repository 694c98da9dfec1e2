//! The device of records of a model: what was written to it is in the cache, until it is flushed.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use super::FakeMapper;
use crate::sys::dm::Store;

/// What was written to the device and is not on the disk, with what is there in its place: by offset.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    blocks: BTreeMap<u64, Vec<u8>>,
    /// A flush failed. The kernel takes what was written for flushed since: a second flush is well and does nothing.
    lying: bool,
}

/// The device, as one process has it open.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) file: File,
    pub(super) mapper: FakeMapper,
}

impl Unflushed {
    fn note(&mut self, file: &File, length: usize, offset: u64) -> io::Result<()> {
        let mut old = vec![0; length];
        file.read_exact_at(&mut old, offset)?;
        self.blocks.entry(offset).or_insert(old);
        Ok(())
    }

    /// What whoever opens it anew finds: after a flush that failed, what is on the disk.
    pub(super) fn reopen(&mut self, file: &File) -> io::Result<()> {
        if std::mem::take(&mut self.lying) {
            self.power_cut(file, |_| 0)?;
        }
        Ok(())
    }

    pub(super) fn power_cut(
        &mut self,
        file: &File,
        mut choose: impl FnMut(usize) -> usize,
    ) -> io::Result<()> {
        self.lying = false;
        for (offset, old) in std::mem::take(&mut self.blocks) {
            if choose(2) == 0 {
                file.write_all_at(&old, offset)?;
            }
        }
        Ok(())
    }
}

impl Store for Records {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.mapper.call("write a record", || {
            self.mapper.state().records.note(&self.file, data.len(), offset)?;
            self.file.write(data, offset)
        })
    }

    fn flush(&self) -> io::Result<()> {
        let flushed = self.mapper.call("flush the records", || {
            let mut state = self.mapper.state();
            if !state.records.lying {
                state.records.blocks.clear();
            }
            Ok(())
        });
        if flushed.is_err() {
            self.mapper.state().records.lying = true;
        }
        flushed
    }
}
