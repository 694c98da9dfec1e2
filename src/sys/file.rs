//! Durable files: directories held open, files that get their name last, attributes, flushes, sparse copies.
//! Knows names of files, not what is in them.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, StatVfs,
        XattrFlags, fstat, fstatvfs,
    },
    io::Errno,
};

use super::{device::Inode, raw};
use crate::{bytes::Bytes, filesystem::Filesystem};

/// A directory that is held open: names below it are looked up from there, whatever happens to its path.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// Room on a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Length of the filesystem.
    pub total: Bytes,
    /// What an unprivileged writer could still write.
    pub free: Bytes,
    /// The filesystem is mounted read-only.
    pub read_only: bool,
}

impl Directory {
    /// Opens the directory `path`, which may be reached through links.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the directory `name` in this one; a link in its place is an error.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open_directory(&self, name: &str) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), beneath())?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// Opens the directory `name` in this one and makes it (mode 0700) where it is missing. The new name is
    /// durable after [`Directory::flush`].
    ///
    /// # Errors
    /// Those of mkdirat(2) and openat2(2).
    pub fn ensure_directory(&self, name: &str) -> io::Result<Self> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.open_directory(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Where it was when it was opened: for messages, never for access.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file (mode 0600) without a name. Until [`Directory::link`] gives it one it vanishes when it is
    /// closed, so nothing half-made survives us.
    ///
    /// # Errors
    /// Those of open(2) with `O_TMPFILE`.
    pub fn create_unnamed(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, c".", flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Gives an unnamed file its name. The name is durable after a flush of the file (ext4, xfs and btrfs commit
    /// the directory entry with it) or of the directory.
    ///
    /// An error does not say that nothing was done: where the file has its name all the same, it is linked. The next try
    /// would make another file under another name, and this one would be left.
    ///
    /// # Errors
    /// Those of linkat(2): EEXIST where the name is taken.
    pub fn link(&self, file: &File, name: &str) -> io::Result<()> {
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, unnamed, &self.fd, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(()),
            Err(_)
                if self
                    .stat(name)?
                    .is_some_and(|named| stat(file).is_ok_and(|it| it.inode == named.inode)) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the regular file `name` for reading, and for writing where `write` says so. Does not wait for a lease
    /// that somebody holds on it (EAGAIN).
    ///
    /// # Errors
    /// Those of openat2(2); EINVAL where it is no regular file.
    pub fn open_file(&self, name: &str, access: Access) -> io::Result<File> {
        let access = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), beneath())?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        Ok(file.into())
    }

    /// Writes a whole small file: under another name first, flushed, then renamed into place.
    ///
    /// # Errors
    /// Those of the calls involved; the old content stays then.
    pub fn write_file(&self, name: &str, content: &[u8]) -> io::Result<()> {
        use std::io::Write;

        let temporary = format!("{name}.new");
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file: File = rustix::fs::openat(&self.fd, &temporary, flags, Mode::RUSR | Mode::WUSR)?.into();
        let mut complete = || {
            file.write_all(content)?;
            file.sync_all()?;
            Ok(rustix::fs::renameat(&self.fd, &temporary, &self.fd, name)?)
        };
        complete().inspect_err(|_: &io::Error| {
            // Left behind it would be overwritten by the next try, and nobody reads it.
            self.remove_file(&temporary).unwrap_or_default();
        })?;
        self.flush()
    }

    /// Removes a file's name. `Ok(false)` where there was none.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub fn remove_file(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an empty directory; fine where there is none.
    ///
    /// # Errors
    /// Those of unlinkat(2): ENOTEMPTY where something is in it.
    pub fn remove_directory(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Names of everything in it, in no order.
    ///
    /// # Errors
    /// Those of getdents64(2).
    pub fn names(&self) -> io::Result<Vec<String>> {
        let own = rustix::fs::openat(&self.fd, c".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(own)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Makes names given and removed so far durable.
    ///
    /// # Errors
    /// Those of fsync(2). After one, what is on disk is not known (F10 in the fault table): the caller must stop
    /// trusting what it wrote.
    pub fn flush(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// The same for everything on the filesystem that the directory lies on.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn flush_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.fd)?)
    }

    /// What a name in it needs in front to be a path, for calls that take no directory.
    pub(super) fn way(&self) -> String {
        format!("/proc/self/fd/{}/", self.fd.as_raw_fd())
    }

    /// An extended attribute of the file `name`, read without opening it. `None` where file or attribute is absent.
    ///
    /// # Errors
    /// Those of lgetxattr(2); ERANGE where it is longer than `limit`.
    pub fn attribute(&self, name: &str, key: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; limit];
        match rustix::fs::lgetxattr(self.way() + name, key, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the file `name` is and holds; `None` where there is none.
    ///
    /// # Errors
    /// Those of fstatat(2).
    pub fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stat::from(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// When the file `name` was last changed, in nanoseconds since 1970; zero where there is none.
    ///
    /// # Errors
    /// Those of fstatat(2).
    pub fn modified(&self, name: &str) -> io::Result<i128> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec)),
            Err(Errno::NOENT) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Room on the filesystem that the directory lies on.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn room(&self) -> io::Result<Room> {
        let StatVfs { f_blocks, f_bavail, f_frsize, f_flag, .. } = fstatvfs(&self.fd)?;
        Ok(Room {
            total: Bytes::new(f_blocks.saturating_mul(f_frsize)),
            free: Bytes::new(f_bavail.saturating_mul(f_frsize)),
            read_only: f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        })
    }

    /// Block size of the filesystem that the directory lies on.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn block_size(&self) -> io::Result<Bytes> {
        Ok(Bytes::try_from(rustix::fs::fstatfs(&self.fd)?.f_bsize).unwrap_or_default())
    }

    /// Asks btrfs to overwrite in place what is in files made here from now on (chattr +C).
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn disable_copy_on_write(&self) -> io::Result<()> {
        let flags = rustix::fs::ioctl_getflags(&self.fd)?;
        Ok(rustix::fs::ioctl_setflags(&self.fd, flags | rustix::fs::IFlags::NOCOW)?)
    }

    /// Another handle on the same directory.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    /// The filesystem that the directory lies on, where it is one of ours.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn filesystem(&self) -> io::Result<Option<Filesystem>> {
        Ok(filesystem_of_magic(rustix::fs::fstatfs(&self.fd)?.f_type))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
}

/// What a file is and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Which file.
    pub inode: Inode,
    /// Its length.
    pub length: Bytes,
    /// What it takes on disk; blocks shared with another file count in both.
    pub allocated: Bytes,
    /// It is a regular file, no link or directory.
    pub regular: bool,
}

impl From<&rustix::fs::Stat> for Stat {
    fn from(stat: &rustix::fs::Stat) -> Self {
        Self {
            inode: Inode::of(stat),
            length: Bytes::try_from(stat.st_size).unwrap_or_default(),
            allocated: Bytes::try_from(stat.st_blocks.saturating_mul(512)).unwrap_or_default(),
            regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
        }
    }
}

/// Writes what an unnamed file holds to its disk, so that whatever flush makes its name durable later finds all of it
/// there: a name over missing content would be a volume that lost its bytes. Costs no flush: the journals of ext4 and
/// xfs flush the disk before they commit. btrfs writes no log for a file without a name, and only a sync of it waits
/// until its extents are in the tree.
///
/// # Errors
/// Those of sync_file_range(2) and fdatasync(2).
pub fn write_out(file: &File) -> io::Result<()> {
    match filesystem_of_magic(rustix::fs::fstatfs(file)?.f_type) {
        Some(Filesystem::Btrfs) => file.sync_data(),
        _ => raw::write_dirty(file.as_fd()),
    }
}

/// What an open file is and holds.
///
/// # Errors
/// Those of fstat(2).
pub fn stat(file: &File) -> io::Result<Stat> {
    Ok(Stat::from(&fstat(file)?))
}

/// The filesystem with this number in statfs(2), where it is one of ours.
pub(super) const fn filesystem_of_magic(magic: i64) -> Option<Filesystem> {
    match magic {
        0xEF53 => Some(Filesystem::Ext4),
        0x5846_5342 => Some(Filesystem::Xfs),
        0x9123_683E => Some(Filesystem::Btrfs),
        _ => None,
    }
}

/// Sets an extended attribute of an open file; durable after a flush of the file.
///
/// # Errors
/// Those of fsetxattr(2).
pub fn set_attribute(file: &File, key: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(file, key, value, XattrFlags::empty())?)
}

/// Makes `to` share all blocks of `from`, both on one filesystem that can (xfs with reflink, btrfs). It is atomic
/// against writers, a loop device on `from` included.
///
/// # Errors
/// Those of ioctl(2): EOPNOTSUPP where the filesystem cannot.
pub fn reflink(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Copies the parts of `from` that hold data; `to` must be empty and gets the same length. `step` is called with
/// the bytes copied since the last call, at least every 8 MiB; its error ends the copy.
///
/// # Errors
/// Those of lseek(2) and copy_file_range(2), and that of `step`.
pub fn copy_data(from: &File, to: &File, step: &mut dyn FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
    const STEP: u64 = 8 << 20;
    let length = stat(from)?.length.get();
    rustix::fs::ftruncate(to, length)?;
    let mut offset = 0;
    while offset < length {
        offset = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(offset))?;
        while offset < hole {
            let want = usize::try_from((hole - offset).min(STEP)).map_err(io::Error::other)?;
            let (mut at_source, mut at_copy) = (offset, offset);
            let done = rustix::fs::copy_file_range(from, Some(&mut at_source), to, Some(&mut at_copy), want)?;
            if done == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = at_source;
            step(Bytes::new(done as u64))?;
        }
    }
    Ok(())
}

/// Gives back blocks that are allocated but hold nothing, as mkfs.xfs leaves them for its log; the file keeps its
/// length and reads as before.
///
/// # Errors
/// Those of lseek(2) and fallocate(2).
pub fn drop_preallocation(file: &File) -> io::Result<()> {
    let length = stat(file)?.length.get();
    let mut offset = 0;
    while offset < length {
        let hole = rustix::fs::seek(file, SeekFrom::Hole(offset))?;
        let end = match rustix::fs::seek(file, SeekFrom::Data(hole)) {
            Ok(data) => data,
            Err(Errno::NXIO) => length,
            Err(error) => return Err(error.into()),
        };
        if end > hole {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, hole, end - hole)?;
        }
        offset = end;
    }
    Ok(())
}

/// Proof that nobody else uses a file in a way that matters. Such openers are refused or wait, but not for ever: the
/// kernel ends a lease that is in somebody's way after a while (/proc/sys/fs/lease-break-time).
#[derive(Debug)]
pub struct Quiet<'a> {
    file: &'a File,
}

impl Quiet<'_> {
    /// Whether nobody has come since.
    #[must_use]
    pub fn lasts(&self) -> bool {
        raw::has_lease(self.file.as_fd())
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Closing the file ends the lease as well, so a failure here cannot last.
        raw::end_lease(self.file.as_fd()).unwrap_or_default();
    }
}

/// Asks the kernel whether `file` is open anywhere else, in a process or behind a loop device. `None` where it is.
/// This is one call (a lease, fcntl(2)), however many devices the host has.
///
/// # Errors
/// Those of fcntl(2).
pub fn sole_use(file: &File) -> io::Result<Option<Quiet<'_>>> {
    quiet(file, raw::Others::None)
}

/// Likewise, whether it is open for writing; `file` itself must be open for reading only.
///
/// # Errors
/// Those of fcntl(2).
pub fn no_writers(file: &File) -> io::Result<Option<Quiet<'_>>> {
    quiet(file, raw::Others::Readers)
}

fn quiet(file: &File, others: raw::Others) -> io::Result<Option<Quiet<'_>>> {
    match raw::lease(file.as_fd(), others) {
        Ok(()) => Ok(Some(Quiet { file })),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::AGAIN | Errno::BUSY)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names below a directory, never through a link and never out of it.
const fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS)
}
