//! What a system call is, as far as tests tell one from another.

use std::{fs, os::unix::fs::FileExt};

use nix::libc::{self, c_long, user_regs_struct};

/// System calls that name a file by a path, with the place of the path among the arguments.
const BY_PATH: [(c_long, &str, usize); 22] = [
    (libc::SYS_open, "open", 0),
    (libc::SYS_openat, "openat", 1),
    (libc::SYS_openat2, "openat2", 1),
    (libc::SYS_stat, "stat", 0),
    (libc::SYS_newfstatat, "newfstatat", 1),
    (libc::SYS_statx, "statx", 1),
    (libc::SYS_statfs, "statfs", 0),
    (libc::SYS_readlink, "readlink", 0),
    (libc::SYS_readlinkat, "readlinkat", 1),
    (libc::SYS_linkat, "linkat", 3),
    (libc::SYS_unlink, "unlink", 0),
    (libc::SYS_unlinkat, "unlinkat", 1),
    (libc::SYS_rename, "rename", 0),
    (libc::SYS_renameat, "renameat", 1),
    (libc::SYS_renameat2, "renameat2", 1),
    (libc::SYS_mkdir, "mkdir", 0),
    (libc::SYS_mkdirat, "mkdirat", 1),
    (libc::SYS_rmdir, "rmdir", 0),
    (libc::SYS_mknodat, "mknodat", 1),
    (libc::SYS_umount2, "umount2", 0),
    (libc::SYS_open_tree, "open_tree", 1),
    (libc::SYS_lgetxattr, "lgetxattr", 0),
];

/// System calls on a descriptor that count whatever it is.
const BY_DESCRIPTOR: [(c_long, &str); 21] = [
    (libc::SYS_fstat, "fstat"),
    (libc::SYS_fstatfs, "fstatfs"),
    (libc::SYS_getdents64, "getdents64"),
    (libc::SYS_lseek, "lseek"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fsetxattr, "fsetxattr"),
    (libc::SYS_fgetxattr, "fgetxattr"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_mount_setattr, "mount_setattr"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_pidfd_open, "pidfd_open"),
    (libc::SYS_wait4, "wait4"),
];

/// Requests of ioctl(2) that the driver makes.
const REQUESTS: [(u64, &str); 17] = [
    (0x4C01, "LOOP_CLR_FD"),
    (0x4C04, "LOOP_SET_STATUS64"),
    (0x4C05, "LOOP_GET_STATUS64"),
    (0x4C07, "LOOP_SET_CAPACITY"),
    (0x4C0A, "LOOP_CONFIGURE"),
    (0x4C82, "LOOP_CTL_GET_FREE"),
    (0xC004_5877, "FIFREEZE"),
    (0xC004_5878, "FITHAW"),
    (0xC018_5879, "FITRIM"),
    (0x8070_5864, "XFS_IOC_FSGEOMETRY_V1"),
    (0x4010_586E, "XFS_IOC_FSGROWFSDATA"),
    (0x5000_9403, "BTRFS_IOC_RESIZE"),
    (0xD000_941E, "BTRFS_IOC_DEV_INFO"),
    (0x4004_9409, "FICLONE"),
    (0x4008_6610, "EXT4_IOC_RESIZE_FS"),
    (0x8008_6601, "FS_IOC_GETFLAGS"),
    (0x4008_6602, "FS_IOC_SETFLAGS"),
];

const COMMANDS: [(u64, &str); 5] = [
    (37, "F_OFD_SETLK"),
    (1024, "F_SETLEASE"),
    (1025, "F_GETLEASE"),
    (1030, "F_DUPFD_CLOEXEC"),
    (3, "F_GETFL"),
];

/// Commands of fsconfig(2).
const SETTINGS: [(u64, &str); 3] =
    [(0, "FSCONFIG_SET_FLAG"), (1, "FSCONFIG_SET_STRING"), (6, "FSCONFIG_CMD_CREATE")];

/// What the call is that a thread is about to make, and what it is about; `None` for those of the runtime: its memory, its
/// threads, its clocks, its sockets, the log.
pub(crate) fn describe(thread: i32, regs: &user_regs_struct) -> Option<(String, String)> {
    let number = regs.orig_rax.cast_signed();
    let arguments = [regs.rdi, regs.rsi, regs.rdx, regs.r10];
    if let Some((_, name, at)) = BY_PATH.into_iter().find(|(call, ..)| *call == number) {
        return Some((name.into(), text(thread, arguments[at])));
    }
    let file = || link(thread, regs.rdi);
    if let Some((_, name)) = BY_DESCRIPTOR.into_iter().find(|(call, _)| *call == number) {
        return Some((name.into(), file()));
    }
    let named = |table: &[(u64, &str)], value: u64| {
        let known = table.iter().find(|(known, _)| *known == value);
        known.map_or_else(|| format!("{value:#x}"), |(_, name)| (*name).into())
    };
    match number {
        libc::SYS_ioctl => Some((format!("ioctl {}", named(&REQUESTS, regs.rsi & 0xffff_ffff)), file())),
        // F_GETFD is a check of debug builds alone.
        libc::SYS_fcntl if regs.rsi == 1 => None,
        libc::SYS_fcntl => Some((format!("fcntl {}", named(&COMMANDS, regs.rsi)), file())),
        libc::SYS_fsconfig => {
            Some((format!("fsconfig {}", named(&SETTINGS, regs.rsi)), text(thread, regs.rdx)))
        }
        libc::SYS_fsopen => Some(("fsopen".into(), text(thread, regs.rdi))),
        libc::SYS_pipe2 => Some(("pipe2".into(), String::new())),
        libc::SYS_kill => Some(("kill".into(), regs.rsi.to_string())),
        libc::SYS_read | libc::SYS_write => transfer(number == libc::SYS_read, regs.rdi, file()),
        libc::SYS_clone if regs.rdi & THREAD == 0 => Some(("start a program".into(), String::new())),
        libc::SYS_clone3 if flags(thread, regs.rdi) & THREAD == 0 => {
            Some(("start a program".into(), String::new()))
        }
        libc::SYS_vfork => Some(("start a program".into(), String::new())),
        _ => None,
    }
}

const THREAD: u64 = libc::CLONE_THREAD as u64;

/// Files count, pipes of programs, the line to the minder, the log of a mount; not what the runtime wakes itself by.
fn transfer(reads: bool, descriptor: u64, file: String) -> Option<(String, String)> {
    let name = if reads { "read" } else { "write" };
    let kind = match file.split(':').next()? {
        _ if descriptor <= 2 => return None,
        "pipe" => " of a pipe",
        // The sockets of calls are read and written by other system calls.
        "socket" if reads => " of the minder",
        "anon_inode" if file.contains("fscontext") => " of a mount",
        path if path.starts_with('/') => "",
        _ => return None,
    };
    Some((format!("{name}{kind}"), file))
}

fn link(thread: i32, descriptor: u64) -> String {
    let target = fs::read_link(format!("/proc/{thread}/fd/{descriptor}"));
    target.map(|target| target.display().to_string()).unwrap_or_default()
}

/// A string in the memory of a process.
fn text(thread: i32, at: u64) -> String {
    let mut bytes = [0; 256];
    let read =
        fs::File::open(format!("/proc/{thread}/mem")).and_then(|memory| memory.read_at(&mut bytes, at));
    let bytes = &bytes[..read.unwrap_or_default()];
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

fn flags(thread: i32, at: u64) -> u64 {
    let mut bytes = [0; 8];
    let read =
        fs::File::open(format!("/proc/{thread}/mem")).and_then(|memory| memory.read_exact_at(&mut bytes, at));
    if read.is_ok() { u64::from_ne_bytes(bytes) } else { THREAD }
}
