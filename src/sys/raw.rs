//! The system calls that no safe wrapper offers: ioctls on loop devices and filesystems, byte locks and leases,
//! mount attributes, the fork of the minder. The only file with `unsafe`; each block says why it is sound.
#![expect(unsafe_code, reason = "the one place where raw system calls are made")]

use std::{
    ffi::{c_int, c_long, c_ulong},
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::process::Pid;

use super::kernel::Attributes;

/// `struct loop_info64` of `linux/loop.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct LoopInfo {
    /// `st_dev` of the backing file.
    pub(super) device: u64,
    /// `st_ino` of the backing file.
    pub(super) inode: u64,
    /// `st_rdev` of the backing file.
    pub(super) rdevice: u64,
    /// Where in the file the device begins, in bytes.
    pub(super) offset: u64,
    /// Length of the device in bytes; 0 is the whole file.
    pub(super) size_limit: u64,
    /// N of /dev/loopN.
    pub(super) number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    /// `LO_FLAGS_…`.
    pub(super) flags: u32,
    /// A text that we may choose; the kernel keeps and returns it.
    pub(super) file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    /// All zeros.
    pub(super) const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
pub(super) struct LoopConfig {
    /// The backing file.
    pub(super) fd: u32,
    /// Logical block size in bytes.
    pub(super) block_size: u32,
    /// The rest.
    pub(super) info: LoopInfo,
    /// Must be zero.
    pub(super) reserved: [u64; 8],
}

/// `struct fstrim_range` of `linux/fs.h`.
#[repr(C)]
pub(super) struct TrimRange {
    /// First byte; set by the kernel to nothing.
    pub(super) start: u64,
    /// Bytes to look at; the kernel returns the bytes it discarded.
    pub(super) length: u64,
    /// Free ranges below this are left alone.
    pub(super) minimum: u64,
}

/// The part of `struct xfs_fsop_geom_v1` (112 bytes) that is read here.
#[repr(C)]
pub(super) struct XfsGeometry {
    /// Bytes in a block.
    pub(super) block_size: u32,
    skipped: [u32; 6],
    /// Per cent of the space that inodes may take.
    pub(super) inode_max_percent: u32,
    /// Blocks of the data section.
    pub(super) data_blocks: u64,
    rest: [u64; 9],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrow {
    new_blocks: u64,
    inode_max_percent: u32,
    padding: u32,
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct BtrfsVolume {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_dev_info_args`.
#[repr(C)]
pub(super) struct BtrfsDevice {
    device_id: u64,
    uuid: [u8; 16],
    bytes_used: u64,
    /// Bytes of the device that the filesystem uses.
    pub(super) total_bytes: u64,
    unused: [u64; 379],
    /// Path by which the kernel knows the device, ended by a zero byte.
    pub(super) path: [u8; 1024],
}

const LOOP_CLR_FD: c_ulong = 0x4C01;
const LOOP_SET_STATUS64: c_ulong = 0x4C04;
const LOOP_GET_STATUS64: c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: c_ulong = 0x4C07;
const LOOP_CONFIGURE: c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;
const FIFREEZE: c_ulong = 0xC004_5877;
const FITHAW: c_ulong = 0xC004_5878;
const FITRIM: c_ulong = 0xC018_5879;
const XFS_IOC_FSGEOMETRY_V1: c_ulong = 0x8070_5864;
const XFS_IOC_FSGROWFSDATA: c_ulong = 0x4010_586E;
const BTRFS_IOC_RESIZE: c_ulong = 0x5000_9403;
const BTRFS_IOC_DEV_INFO: c_ulong = 0xD000_941E;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ioctl whose argument is a number, or nothing (0).
fn ioctl_value(fd: BorrowedFd<'_>, request: c_ulong, value: c_ulong) -> io::Result<c_int> {
    // SAFETY: the requests passed here take a plain number and write no memory of ours.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

/// An ioctl whose argument is a structure that the kernel reads, writes, or both.
fn ioctl_struct<T>(fd: BorrowedFd<'_>, request: c_ulong, argument: &mut T) -> io::Result<c_int> {
    // SAFETY: every caller pairs a request with the `repr(C)` structure that the kernel's header names for it, so
    // the kernel stays within `argument`, which is ours alone for the length of the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

/// Sends device-mapper a command: `buffer` begins with a `struct dm_ioctl`, says in it how long it is, and takes the
/// answer.
pub(super) fn device_mapper(control: BorrowedFd<'_>, command: u8, buffer: &mut [u8]) -> io::Result<()> {
    // _IOWR(DM_IOCTL, command, struct dm_ioctl)
    let request = 0xC138_FD00 | c_ulong::from(command);
    let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX).to_ne_bytes();
    // `version[3]`, then `data_size`.
    if buffer.len() < 312 || buffer[12..16] != length {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the kernel reads and writes as many bytes as `data_size` says, which is the length of `buffer`.
    check(unsafe { libc::ioctl(control.as_raw_fd(), request, buffer.as_mut_ptr()) }).map(drop)
}

/// Number of a loop device that nobody uses; makes one where there is none. `control` is /dev/loop-control.
pub(super) fn loop_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    let number = ioctl_value(control, LOOP_CTL_GET_FREE, 0)?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Binds a file to a loop device in one step.
pub(super) fn loop_configure(device: BorrowedFd<'_>, config: &mut LoopConfig) -> io::Result<()> {
    ioctl_struct(device, LOOP_CONFIGURE, config).map(drop)
}

/// What a loop device is bound to; ENXIO where it is bound to nothing.
pub(super) fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::EMPTY;
    ioctl_struct(device, LOOP_GET_STATUS64, &mut info)?;
    Ok(info)
}

/// Changes flags and limits of a bound loop device.
pub(super) fn loop_set_status(device: BorrowedFd<'_>, info: &mut LoopInfo) -> io::Result<()> {
    ioctl_struct(device, LOOP_SET_STATUS64, info).map(drop)
}

/// Makes a loop device as long as its file is now.
pub(super) fn loop_set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(device, LOOP_SET_CAPACITY, 0).map(drop)
}

/// Asks the kernel to unbind a loop device, at the latest when its last user closes it.
pub(super) fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(device, LOOP_CLR_FD, 0).map(drop)
}

/// Stops all writes to a mounted filesystem, after flushing it.
pub(super) fn freeze(mount: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(mount, FIFREEZE, 0).map(drop)
}

/// Ends a freeze.
pub(super) fn thaw(mount: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(mount, FITHAW, 0).map(drop)
}

/// Discards the free space of a mounted filesystem; the length that comes back is what was discarded.
pub(super) fn trim(mount: BorrowedFd<'_>, range: &mut TrimRange) -> io::Result<()> {
    ioctl_struct(mount, FITRIM, range).map(drop)
}

/// Geometry of a mounted XFS.
pub(super) fn xfs_geometry(mount: BorrowedFd<'_>) -> io::Result<XfsGeometry> {
    let mut geometry =
        XfsGeometry { block_size: 0, skipped: [0; 6], inode_max_percent: 0, data_blocks: 0, rest: [0; 9] };
    ioctl_struct(mount, XFS_IOC_FSGEOMETRY_V1, &mut geometry)?;
    Ok(geometry)
}

/// Grows a mounted XFS to `new_blocks` blocks.
pub(super) fn xfs_grow(mount: BorrowedFd<'_>, new_blocks: u64, inode_max_percent: u32) -> io::Result<()> {
    let mut grow = XfsGrow { new_blocks, inode_max_percent, padding: 0 };
    ioctl_struct(mount, XFS_IOC_FSGROWFSDATA, &mut grow).map(drop)
}

/// Grows a mounted btrfs to the length of its one device.
pub(super) fn btrfs_grow(mount: BorrowedFd<'_>) -> io::Result<()> {
    let mut volume = BtrfsVolume { fd: 0, name: [0; 4088] };
    volume.name[..3].copy_from_slice(b"max");
    ioctl_struct(mount, BTRFS_IOC_RESIZE, &mut volume).map(drop)
}

/// What btrfs knows of its first device.
pub(super) fn btrfs_device(mount: BorrowedFd<'_>) -> io::Result<Box<BtrfsDevice>> {
    let mut device = Box::new(BtrfsDevice {
        device_id: 1,
        uuid: [0; 16],
        bytes_used: 0,
        total_bytes: 0,
        unused: [0; 379],
        path: [0; 1024],
    });
    ioctl_struct(mount, BTRFS_IOC_DEV_INFO, &mut *device)?;
    Ok(device)
}

/// Takes a lock on one byte of a file, or fails at once (EAGAIN). The lock belongs to the open file (`F_OFD_SETLK`,
/// fcntl(2)): it is gone when the last descriptor of this opening is closed, however we end.
pub(super) fn lock_byte(file: BorrowedFd<'_>, byte: i64, others: Others) -> io::Result<()> {
    set_lock(file, byte, if matches!(others, Others::None) { libc::F_WRLCK } else { libc::F_RDLCK })
}

/// Gives up what [`lock_byte`] took, whoever else has a copy of the descriptor.
pub(super) fn unlock_byte(file: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    set_lock(file, byte, libc::F_UNLCK)
}

fn set_lock(file: BorrowedFd<'_>, byte: i64, kind: i32) -> io::Result<()> {
    // SAFETY: `flock` is plain data for which all zeros is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // Zero is `SEEK_SET` and a process id of zero, as this kind of lock wants them.
    lock.l_type = i16::try_from(kind).map_err(io::Error::other)?;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: the kernel reads one `flock` at the address given.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(&lock)) }).map(drop)
}

/// Gives this thread a working directory of its own (unshare(2), `CLONE_FS`): what it does to it no other thread sees.
pub(super) fn own_working_directory() -> io::Result<()> {
    // SAFETY: a plain number; what is no longer shared are working directory, root and umask, whose values stay.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Lets all threads have one heap (mallopt(3), `M_ARENA_MAX`): one for each would keep what the busiest moment took.
#[cfg(target_env = "gnu")]
pub(super) fn share_heap() {
    // SAFETY: plain numbers, from which later allocations take what they hold to. It cannot fail for these.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Who else may have a file open while a lease on it is held, or may hold a lock.
#[derive(Clone, Copy)]
pub(super) enum Others {
    /// Nobody.
    None,
    /// Those that only read, or share the lock.
    Readers,
}

/// Takes a lease (fcntl(2)), which the kernel grants only if nobody else has the file open in a way that `others`
/// excludes (EAGAIN otherwise), a loop device included. Such openers wait until the lease is given up.
pub(super) fn lease(file: BorrowedFd<'_>, others: Others) -> io::Result<()> {
    let kind = match others {
        Others::None => libc::F_WRLCK,
        Others::Readers => libc::F_RDLCK,
    };
    // SAFETY: both calls pass plain numbers. A waiting opener makes the kernel send SIGIO, whose default action
    // would end the process, so it is ignored first.
    unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        check(libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind))
    }
    .map(drop)
}

/// Writes what is dirty of a file to its disk and waits for it, without a flush of the disk (sync_file_range(2)).
pub(super) fn write_dirty(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: plain numbers.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) }).map(drop)
}

/// Whether a lease is still held: the kernel takes it away from one who does not give it up in time.
pub(super) fn has_lease(file: BorrowedFd<'_>) -> bool {
    // SAFETY: plain numbers.
    let lease = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) };
    lease != libc::F_UNLCK
}

/// Gives a lease up.
pub(super) fn end_lease(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) }).map(drop)
}

/// Clears, then sets attributes of the mount that `mount` is the root of (mount_setattr(2)).
pub(super) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: Attributes,
    clear: Attributes,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set.bits().into(),
        attr_clr: clear.bits().into(),
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, and the kernel reads the length of structure that is passed.
    let result: c_long = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Which side of a fork we are on.
pub(super) enum Forked {
    /// The new process.
    Child,
    /// The old one, and who the new one is.
    Parent(Pid),
}

/// Splits the process in two. Must be called while there is one thread: another thread's locks would stay locked
/// in the child for ever.
pub(super) fn fork() -> io::Result<Forked> {
    // SAFETY: the caller has one thread (checked by `Minder::start`; the minder never starts one), so the child
    // inherits a consistent heap.
    match Pid::from_raw(check(unsafe { libc::fork() })?) {
        None => Ok(Forked::Child),
        Some(child) => Ok(Forked::Parent(child)),
    }
}

/// Keeps every page that this process touches from now on, and those it has, in memory.
pub(super) fn lock_memory() -> io::Result<()> {
    // SAFETY: plain flags; nothing of ours is written.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) }).map(drop)
}

/// Leaves the process at once, without running destructors that belong to the other side of a fork.
pub(super) fn exit_now(status: c_int) -> ! {
    // SAFETY: `_exit` does not return and touches nothing of ours.
    unsafe { libc::_exit(status) }
}

/// Lets this process outlive the signals that end its parent.
pub(super) fn ignore_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes every descriptor but these. Only for a process that uses none of the others any more, such as one fresh from
/// a fork that ends without running destructors.
pub(super) fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = 0;
    for kept in kept {
        if first < kept {
            // SAFETY: the caller does not use the descriptors that are closed here.
            unsafe { libc::close_range(first, kept - 1, 0) };
        }
        first = kept + 1;
    }
    // SAFETY: as above.
    unsafe { libc::close_range(first, u32::MAX, 0) };
}
