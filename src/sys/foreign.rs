//! Devices and files of somebody else, read from end to end and never written: opened so that nobody changes them
//! meanwhile, and copied without their zeros.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, SeekFrom, fstat, open, seek},
    io::Errno,
};

use super::{
    device::DeviceNumber,
    file::{Quiet, no_writers},
};
use crate::bytes::Bytes;

/// How much is read at a time.
const STEP: usize = 1 << 20;
/// What is looked at for zeros, and left out where it holds nothing else.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// A device or file of somebody else.
#[derive(Debug)]
pub struct Foreign {
    file: File,
    length: Bytes,
    /// Of a block device.
    number: Option<DeviceNumber>,
}

impl Foreign {
    /// Opens a block device, or a regular file, for reading.
    ///
    /// # Errors
    /// Those of open(2); `ResourceBusy` where a device is mounted, claimed or stands still; `InvalidInput` where it is
    /// neither device nor file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Looked at before it is opened: to open some things does something.
        let found = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&found)?;
        let number = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Some(DeviceNumber::of_special_file(&stat)),
            FileType::RegularFile => None,
            _ => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a block device nor a file"));
            }
        };
        number.map_or(Ok(()), refuse_suspended)?;
        let alone = if number.is_some() { OFlags::EXCL } else { OFlags::empty() };
        let same = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | alone;
        let file: File = open(same, flags, Mode::empty())?.into();
        let length = Bytes::new(seek(&file, SeekFrom::End(0))?);
        Ok(Self { file, length, number })
    }

    /// Its length.
    #[must_use]
    pub const fn length(&self) -> Bytes {
        self.length
    }

    /// Its first 4096 bytes, which tell what it was laid out for; zeros behind its end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn head(&self) -> io::Result<[u8; 4096]> {
        let mut head = [0; 4096];
        let amount = usize::try_from(self.length.get()).unwrap_or(usize::MAX).min(head.len());
        self.file.read_exact_at(&mut head[..amount], 0)?;
        Ok(head)
    }

    /// Copies what is not zero to the same places of `to`, where everything is zero still. `step` is called with the
    /// bytes dealt with since the last call; its error ends the copy.
    ///
    /// # Errors
    /// Those of reading and writing, and that of `step`; `ResourceBusy` where a file is or gets open for writing, or a
    /// device was written to meanwhile.
    pub fn copy_to(&self, to: &File, step: &mut dyn FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
        let quiet = if self.number.is_none() { Some(self.expect_quiet()?) } else { None };
        let written = self.number.map(|number| self.writes(number)).transpose()?;
        let length = self.length.get();
        let mut buffer = vec![0; STEP];
        let mut offset = 0;
        while offset < length {
            let data = if self.number.is_none() { self.data_behind(offset)? } else { offset };
            let amount = usize::try_from(length - data).unwrap_or(STEP).min(STEP);
            self.file.read_exact_at(&mut buffer[..amount], data)?;
            for (index, piece) in buffer[..amount].chunks(PIECE).enumerate() {
                if *piece != ZEROS[..piece.len()] {
                    to.write_all_at(piece, data + (index * PIECE) as u64)?;
                }
            }
            let end = data + amount as u64;
            step(Bytes::new(end - offset))?;
            offset = end;
        }
        let disturbed = quiet.is_some_and(|quiet| !quiet.lasts());
        if disturbed || self.number.map(|number| self.writes(number)).transpose()? != written {
            return Err(Errno::BUSY.into());
        }
        Ok(())
    }

    /// How much was written to a device, with what waited in memory (Documentation/block/stat.rst): whoever has it open
    /// without claiming it is seen by nothing else.
    fn writes(&self, number: DeviceNumber) -> io::Result<String> {
        self.file.sync_data()?;
        let counters = fs::read_to_string(format!("/sys/dev/block/{number}/stat"))?;
        // Sectors written, and discarded: a flush of ours counts as a write, without any.
        Ok([6, 13].map(|index| counters.split_whitespace().nth(index).unwrap_or_default()).join(" "))
    }

    fn expect_quiet(&self) -> io::Result<Quiet<'_>> {
        no_writers(&self.file)?.ok_or_else(|| Errno::BUSY.into())
    }

    /// Where the next data of a file is; its end where there is none.
    fn data_behind(&self, offset: u64) -> io::Result<u64> {
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data),
            Err(Errno::NXIO) => Ok(self.length.get()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whoever reads a device of device-mapper that stands still waits, and cannot be killed.
fn refuse_suspended(number: DeviceNumber) -> io::Result<()> {
    let state = fs::read_to_string(format!("/sys/dev/block/{number}/dm/suspended"));
    if state.is_ok_and(|state| state.trim() == "1") {
        return Err(Errno::BUSY.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_copied_without_its_zeros() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let (path, copy) = (directory.path().join("source"), tempfile::tempfile_in("/var/tmp").unwrap());
        let source = File::create(&path).unwrap();
        let length = (9 << 20) + 4097;
        source.set_len(length).unwrap();
        source.write_all_at(&[0; 1 << 20], 2 << 20).unwrap();
        source.write_all_at(b"here", 5 << 20).unwrap();
        source.write_all_at(b"end", length - 3).unwrap();
        let foreign = Foreign::open(&path).unwrap();
        assert_eq!(foreign.length(), Bytes::new(length));
        let busy = foreign.copy_to(&copy, &mut |_| Ok(())).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy, "somebody writes to it");
        drop(source);
        copy.set_len(length).unwrap();
        let mut done = Bytes::ZERO;
        let mut count = |step| {
            done = done.plus(step);
            Ok(())
        };
        foreign.copy_to(&copy, &mut count).unwrap();
        assert_eq!(done, Bytes::new(length));
        let read = |file: &File| {
            let mut content = vec![0; usize::try_from(length).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            content
        };
        assert!(read(&copy) == fs::read(&path).unwrap());
        assert!(copy.metadata().unwrap().blocks() * 512 <= 3 * PIECE as u64, "zeros take no room");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert_eq!(Foreign::open(Path::new("/dev/null")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(Foreign::open(Path::new("/var/tmp")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
