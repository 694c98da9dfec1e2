//! Locks on bytes of a file, by which processes that serve one pool keep out of each other's way.

use std::{fs::File, io, os::fd::AsFd};

use rustix::io::Errno;

use super::raw;

/// Whether a lock is for its holder alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else has it meanwhile.
    Alone,
    /// Others may have it likewise.
    Shared,
}

/// A lock on one byte of a file, held until this value is dropped or the process ends.
#[derive(Debug)]
pub struct ByteLock {
    file: File,
    byte: i64,
}

impl ByteLock {
    /// Takes the lock, or `None` where somebody else has it. `file` must be an opening of its own.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn try_take(file: File, byte: i64, sharing: Sharing) -> io::Result<Option<Self>> {
        let others = match sharing {
            Sharing::Alone => raw::Others::None,
            Sharing::Shared => raw::Others::Readers,
        };
        match raw::lock_byte(file.as_fd(), byte, others) {
            Ok(()) => Ok(Some(Self { file, byte })),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for ByteLock {
    fn drop(&mut self) {
        // Closing would end it as well, but not while a program that is just being started still has a copy of the
        // descriptor. A failure here leaves it to that.
        raw::unlock_byte(self.file.as_fd(), self.byte).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_though_a_copy_of_the_descriptor_lives_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let take = |sharing| ByteLock::try_take(file.reopen().unwrap(), 7, sharing).unwrap();
        let held = take(Sharing::Alone).unwrap();
        assert!(take(Sharing::Alone).is_none() && take(Sharing::Shared).is_none());
        // As a program has it that was forked and does not run yet.
        let copy = held.file.try_clone().unwrap();
        drop(held);
        let shared = [take(Sharing::Shared).unwrap(), take(Sharing::Shared).unwrap()];
        assert!(take(Sharing::Alone).is_none());
        drop((shared, copy));
        assert!(take(Sharing::Alone).is_some());
    }
}
