//! What each system call may do to the driver, by its manual page; and what the driver may answer then.

use nix::libc::{
    EACCES, EAGAIN, EBUSY, EDQUOT, EFBIG, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENODEV, ENOMEM, ENOSPC, ENXIO,
    EOPNOTSUPP, EPERM, EPIPE, EROFS, ESTALE, EXDEV,
};
use tonic::Code;

use crate::tracer::{Act, Call};

/// What may happen at one kind of call.
struct Row {
    kind: &'static str,
    /// Error numbers that it may give without having done anything, the likeliest first. One that says "it is not there" is
    /// an answer, not a fault, and left out.
    errors: &'static [i32],
    /// It changes something outside the process, so that it may have done so and seem to have failed.
    changes: bool,
    /// It reads what may be wrong.
    reads: bool,
}

const fn row(kind: &'static str, errors: &'static [i32]) -> Row {
    Row { kind, errors, changes: false, reads: false }
}

const fn change(kind: &'static str, errors: &'static [i32]) -> Row {
    Row { changes: true, ..row(kind, errors) }
}

const fn read(kind: &'static str, errors: &'static [i32]) -> Row {
    Row { reads: true, ..row(kind, errors) }
}

/// Errors of every call that names a file.
const NAMED: &[i32] = &[EIO, ENOMEM, EACCES, ESTALE];
const OPENED: &[i32] =
    &[EMFILE, EIO, ENFILE, ENOMEM, ENOSPC, EROFS, EINTR, EAGAIN, EACCES, EPERM, EXDEV, EBUSY, ESTALE];
const MADE: &[i32] = &[ENOSPC, EIO, EDQUOT, EROFS, ENOMEM, EACCES];
const FLUSHED: &[i32] = &[EIO, ENOSPC, EDQUOT, EROFS];
const WRITTEN: &[i32] = &[ENOSPC, EIO, EDQUOT, EINTR];

const TABLE: [Row; 52] = [
    row("open", OPENED),
    row("openat", OPENED),
    row("openat2", OPENED),
    row("stat", NAMED),
    row("newfstatat", NAMED),
    row("statx", NAMED),
    row("statfs", NAMED),
    row("fstat", &[EIO, ENOMEM]),
    row("fstatfs", &[EIO, ENOMEM, EINTR]),
    row("readlink", NAMED),
    row("getdents64", &[EIO, ENOMEM]),
    row("lseek", &[EIO, EINVAL]),
    read("lgetxattr", &[EIO, ENOMEM, ESTALE, EOPNOTSUPP]),
    read("pread64", &[EIO, EINTR]),
    read("read", &[EIO, EINTR, ENOMEM]),
    read("read of a pipe", &[EIO, EINTR]),
    row("read of the minder", &[EIO, ENOMEM]),
    row("read of a mount", &[EIO]),
    change("write", WRITTEN),
    change("pwrite64", WRITTEN),
    change("fsync", FLUSHED),
    change("fdatasync", FLUSHED),
    change("sync_file_range", &[EIO, ENOSPC, ENOMEM]),
    change("syncfs", FLUSHED),
    change("ftruncate", &[EIO, ENOSPC, EROFS, EFBIG, EINTR, EPERM]),
    change("fallocate", &[ENOSPC, EIO, EINTR, EOPNOTSUPP]),
    change("linkat", &[ENOSPC, EIO, EDQUOT, EROFS, ENOMEM, EPERM]),
    change("unlinkat", &[EIO, EBUSY, EROFS, ENOMEM, EACCES]),
    change("renameat", MADE),
    change("mkdir", MADE),
    change("mkdirat", MADE),
    change("mknodat", MADE),
    change("fsetxattr", &[ENOSPC, EIO, EDQUOT, EROFS, ENOMEM, EPERM]),
    change("copy_file_range", &[ENOSPC, EIO, EINTR, ENOMEM]),
    change("ioctl FICLONE", &[ENOSPC, EIO, EROFS, EPERM]),
    row("ioctl LOOP_CTL_GET_FREE", &[ENOMEM, EIO]),
    change("ioctl LOOP_CONFIGURE", &[EIO, EBUSY, ENOMEM, EINVAL]),
    row("ioctl LOOP_GET_STATUS64", &[EIO, EINTR]),
    change("ioctl LOOP_SET_STATUS64", &[EIO, EINTR]),
    change("ioctl LOOP_SET_CAPACITY", &[EIO, EINTR]),
    change("ioctl LOOP_CLR_FD", &[EIO, EINTR]),
    row("ioctl XFS_IOC_FSGEOMETRY_V1", &[EIO]),
    change("ioctl XFS_IOC_FSGROWFSDATA", &[ENOSPC, EIO, EAGAIN]),
    change("ioctl EXT4_IOC_RESIZE_FS", &[ENOSPC, EIO, EBUSY]),
    row("fcntl F_OFD_SETLK", &[ENOMEM, EINTR]),
    row("fcntl F_SETLEASE", &[ENOMEM, EAGAIN, EINVAL]),
    row("fcntl F_GETLEASE", &[]),
    row("fcntl F_DUPFD_CLOEXEC", &[EMFILE]),
    change("sendmsg", &[ENOMEM, EPIPE]),
    row("readlinkat", NAMED),
    change("umount2", &[EIO, EBUSY, ENOMEM]),
    change("rmdir", &[EIO, EBUSY]),
];

/// Calls that put a mount together, and those that start programs.
const MOUNTS: [Row; 13] = [
    row("fsopen", &[EMFILE, ENOMEM, ENODEV]),
    row("fsconfig FSCONFIG_SET_STRING", &[ENOMEM]),
    row("fsconfig FSCONFIG_SET_FLAG", &[ENOMEM]),
    change("fsconfig FSCONFIG_CMD_CREATE", &[EIO, EBUSY, ENOMEM, ENOSPC, ENXIO]),
    row("fsmount", &[ENOMEM, EMFILE, EBUSY]),
    row("open_tree", &[ENOMEM, EMFILE]),
    change("mount_setattr", &[ENOMEM, EBUSY]),
    change("move_mount", &[ENOMEM, EBUSY, EACCES]),
    row("pipe2", &[EMFILE, ENFILE]),
    row("start a program", &[EAGAIN, ENOMEM]),
    row("pidfd_open", &[EMFILE, ENOMEM]),
    row("wait4", &[EINTR]),
    row("kill", &[]),
];

fn find(kind: &str) -> Option<&'static Row> {
    TABLE.iter().chain(&MOUNTS).find(|row| row.kind == kind)
}

/// What is tried at a call: everything that may happen, or the likeliest error with and without effect and the likeliest
/// wrong reading. An error where the table does not know the call.
pub(crate) fn acts(call: &Call, everything: bool) -> Result<Vec<Act>, String> {
    let row = find(&call.kind).ok_or_else(|| format!("the table has no row for {call:?}"))?;
    let errors = if everything { row.errors } else { &row.errors[..row.errors.len().min(1)] };
    let mut acts: Vec<_> = errors.iter().map(|errno| Act::Fail(*errno)).collect();
    if row.changes {
        acts.push(Act::Lose(EIO));
    }
    if row.reads {
        let wrong = [Act::Garbage, Act::Zeros, Act::Empty, Act::Short];
        acts.extend(if everything { &wrong[..] } else { &wrong[..1] });
    }
    Ok(acts)
}

/// Whether a call changes something outside the process, so that a crash before it or after it are two things.
pub(crate) fn changes(call: &Call) -> bool {
    // A program that was started goes on.
    call.kind == "start a program" || find(&call.kind).is_some_and(|row| row.changes)
}

/// Codes by which the driver may answer once this has happened, besides success where the effect is there, and besides
/// DEADLINE_EXCEEDED, which claims nothing. It is the table of errors, read from the other side: what an orchestrator does
/// after each must fit what happened.
pub(crate) fn expected(act: Act) -> &'static [Code] {
    match act {
        Act::Fail(ENOSPC | EDQUOT) => &[Code::ResourceExhausted, Code::Unavailable],
        Act::Fail(EINTR | EAGAIN) => &[Code::Aborted, Code::Unavailable],
        Act::Fail(EBUSY) => &[Code::FailedPrecondition, Code::Aborted, Code::Unavailable],
        Act::Fail(EFBIG) => &[Code::OutOfRange, Code::Unavailable],
        // A device that cannot be opened for writing is tried for reading, and then cannot be mounted.
        Act::Fail(EROFS | EACCES | EPERM | EINVAL | EXDEV | EOPNOTSUPP) => {
            &[Code::Internal, Code::Unavailable]
        }
        Act::Fail(_) | Act::Lose(_) => &[Code::Unavailable],
        // What cannot be believed says nothing of the volume.
        Act::Garbage | Act::Zeros | Act::Empty | Act::Short => {
            &[Code::Unavailable, Code::Internal, Code::Aborted, Code::FailedPrecondition]
        }
        Act::KillBefore | Act::KillAfter | Act::Delay(_) => &[],
    }
}

/// Codes after which an orchestrator gives up, or takes it that nothing was left behind. What is in use is asked for again
/// once it is not, and goes on from where it stands.
pub(crate) fn says_nothing_happened(code: Code) -> bool {
    !asks_again(code) && code != Code::FailedPrecondition
}

/// Codes after which an orchestrator makes the same request again.
pub(crate) fn asks_again(code: Code) -> bool {
    matches!(code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded)
}
