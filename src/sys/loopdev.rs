//! Loop devices: a file as a block device, by ioctl, with direct I/O and 4096-byte sectors, shorter ones only for what was
//! laid out in them elsewhere. A device is found by the inode behind it, never by a path; what it is bound to is asked of
//! the kernel each time.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    device::{self, Device, DeviceNumber, Inode},
    raw,
    superblock::sector_of,
};
use crate::bytes::Bytes;

const LOOP_MAJOR: u32 = 7;
/// What the names of their nodes begin with.
const NODE: &str = "loop";
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Longest label: the kernel keeps 64 bytes, the last one zero.
const LABEL_LIMIT: usize = 63;

/// For how long others may be quicker.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whose turn it is to ask for a free device.
static BINDING: Mutex<()> = Mutex::new(());

/// How a file is to be bound.
#[derive(Clone, Debug)]
pub struct Binding<'a> {
    /// The device refuses writes.
    pub read_only: bool,
    /// The kernel unbinds the device when its last user (a mount, an open descriptor) is gone: nothing is left
    /// behind if we die before a mount holds it.
    pub autoclear: bool,
    /// Text that the kernel keeps with the binding, at most 63 bytes.
    pub label: &'a str,
}

/// What the kernel says a loop device is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// N of /dev/loopN.
    pub number: u32,
    /// The file behind it.
    pub backing: Inode,
    /// Writes are refused.
    pub read_only: bool,
    /// Unbound when its last user is gone.
    pub autoclear: bool,
    /// Reads and writes bypass the page cache of the backing filesystem.
    pub direct_io: bool,
    /// The label given when it was bound.
    pub label: String,
    /// The file behind it is a device.
    pub on_device: bool,
}

/// An open loop device. While it is open the kernel does not bind it to anything else.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    number: u32,
}

/// Whether a device could be unbound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It is bound to nothing, or to another file by now.
    Done,
    /// Somebody holds it open or mounted; it stays as it was.
    StillUsed,
}

/// Binds `backing` to a free loop device. Direct I/O is a condition, not a wish: without it the host caches every
/// block twice, and two devices on one file would disagree.
///
/// # Errors
/// Those of open(2) and ioctl(2); EAGAIN where other processes took every free device; `Unsupported` where the backing filesystem cannot do direct I/O.
pub fn bind(backing: &File, binding: &Binding<'_>) -> io::Result<LoopDevice> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    // Until a device is bound the kernel offers it to everybody, and all but one of those who ask at the same time are refused.
    // Among ourselves we queue; another process may still be quicker, and then the question is asked again.
    let _turn = BINDING.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let number = raw::loop_get_free(control.as_fd())?;
        let device = LoopDevice::open(number)?;
        match raw::loop_configure(device.file.as_fd(), &mut configuration(backing, binding)?) {
            Ok(()) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => continue,
            Err(error) => return Err(error),
        }
        if device.bound()?.is_some_and(|bound| bound.direct_io) {
            return Ok(device);
        }
        raw::loop_clear(device.file.as_fd())?;
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "the filesystem of the pool does not allow direct I/O in sectors of {}",
                sector_of(backing)?
            ),
        ));
    }
    Err(Errno::AGAIN.into())
}

fn configuration(backing: &File, binding: &Binding<'_>) -> io::Result<raw::LoopConfig> {
    use std::os::fd::AsRawFd;

    let mut info = raw::LoopInfo::EMPTY;
    info.flags = LO_FLAGS_DIRECT_IO
        | if binding.read_only { LO_FLAGS_READ_ONLY } else { 0 }
        | if binding.autoclear { LO_FLAGS_AUTOCLEAR } else { 0 };
    let label = binding.label.as_bytes();
    let place = info.file_name.get_mut(..label.len()).filter(|_| label.len() <= LABEL_LIMIT);
    place.ok_or(Errno::NAMETOOLONG)?.copy_from_slice(label);
    // What was imported may have been laid out in shorter sectors than ours.
    let block_size = u32::try_from(sector_of(backing)?.get()).map_err(io::Error::other)?;
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    Ok(raw::LoopConfig { fd, block_size, info, reserved: [0; 8] })
}

/// The devices that are bound to the file `backing`. `name` is the last part of its path: sysfs shows paths without
/// opening anything, so only devices that can be meant are opened and asked for the inode.
///
/// # Errors
/// Those of reading sysfs and of ioctl(2).
pub fn find(name: &str, backing: Inode) -> io::Result<Vec<Bound>> {
    let found = list(|candidate| candidate == name)?;
    Ok(found.into_iter().map(|(_, bound)| bound).filter(|bound| bound.backing == backing).collect())
}

/// The bound devices whose file name passes `wanted`, with that name, by number. The name is the last part of the path that sysfs
/// shows, which may be stale; the inode in the answer is the truth.
///
/// # Errors
/// Those of reading sysfs and of ioctl(2).
pub fn list(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<(String, Bound)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Some(number) = loop_number(&entry.file_name().to_string_lossy()) else { continue };
        let path = match std::fs::read_to_string(entry.path().join("loop/backing_file")) {
            Ok(path) => path,
            // The attribute exists while the device is bound; it may go while it is read.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV)) => {
                continue;
            }
            // One that cannot be asked may be the one: to pass over it would be to say that there is none.
            Err(error) => return Err(error),
        };
        let path = path.trim_end_matches('\n').trim_end_matches(" (deleted)");
        let name = path.rsplit('/').next().unwrap_or(path);
        if !wanted(name) {
            continue;
        }
        match LoopDevice::open(number).and_then(|device| device.bound()) {
            Ok(bound) => found.extend(bound.map(|bound| (name.to_owned(), bound))),
            // Removed since the directory was read.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NXIO)) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|(_, bound)| bound.number);
    Ok(found)
}

fn loop_number(name: &str) -> Option<u32> {
    name.strip_prefix("loop")?.parse().ok()
}

impl LoopDevice {
    /// Opens /dev/loopN, and makes the node where nobody else does (a container without devtmpfs).
    ///
    /// # Errors
    /// Those of open(2) and mknod(2).
    pub fn open(number: u32) -> io::Result<Self> {
        let device = DeviceNumber::new(LOOP_MAJOR, number);
        Ok(Self { file: device::open(&device::node_of(NODE, device), device)?, number })
    }

    /// N of /dev/loopN.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// What it is bound to now; `None` where to nothing.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn bound(&self) -> io::Result<Option<Bound>> {
        let info = match raw::loop_status(self.file.as_fd()) {
            Ok(info) => info,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error),
        };
        let end = info.file_name.iter().position(|&byte| byte == 0).unwrap_or(info.file_name.len());
        Ok(Some(Bound {
            number: self.number,
            backing: Inode { device: info.device, inode: info.inode },
            read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
            autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
            direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
            on_device: info.rdevice != 0,
            label: String::from_utf8_lossy(&info.file_name[..end]).into_owned(),
        }))
    }

    /// The device as the rest of the program sees it.
    ///
    /// # Errors
    /// Those of ioctl(2) and of finding the end of the device.
    pub fn device(&self) -> io::Result<Device> {
        let read_only = self.bound()?.ok_or(Errno::NXIO)?.read_only;
        let size = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?;
        Ok(Device {
            path: device::node_of(NODE, DeviceNumber::new(LOOP_MAJOR, self.number)),
            number: DeviceNumber::new(LOOP_MAJOR, self.number),
            read_only,
            size: Bytes::new(size),
        })
    }

    /// Makes the device as long as its file is now.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn refresh_size(&self) -> io::Result<()> {
        raw::loop_set_capacity(self.file.as_fd())
    }

    /// Unbinds the device from `backing` unless somebody uses it. The kernel only promises to unbind when the last
    /// user is gone, and reports success for a device in use (`losetup -d` on a mounted device does): so the
    /// answer is read back, and where it is "still used" the promise is taken back.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn release(self, backing: Inode) -> io::Result<Release> {
        let number = self.number;
        let Some(before) = self.bound()?.filter(|bound| bound.backing == backing) else {
            return Ok(Release::Done);
        };
        raw::loop_clear(self.file.as_fd())?;
        drop(self);
        // udev opens a device for a moment whenever it changes: give it that moment.
        for pause in [0, 5, 20, 50, 100, 200, 400] {
            std::thread::sleep(Duration::from_millis(pause));
            let again = Self::open(number)?;
            match again.bound()? {
                Some(bound) if bound.backing == backing => {}
                _ => return Ok(Release::Done),
            }
        }
        let again = Self::open(number)?;
        if !before.autoclear && again.bound()?.is_some_and(|bound| bound.backing == backing) {
            let mut info = raw::loop_status(again.file.as_fd())?;
            info.flags &= !LO_FLAGS_AUTOCLEAR;
            raw::loop_set_status(again.file.as_fd(), &mut info)?;
        }
        Ok(Release::StillUsed)
    }
}
