//! No call site is forgotten: each system call that the sources name is one that the operations make, or stands here with its
//! reason; and each that they make has its row in the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    life::{self, From, Of, Operation},
    rig::Kind,
    stage::Stage,
    table,
    tracer::Call,
};
use tokio::sync::OnceCell;

/// Where the driver of a file pool calls the system.
const PLACES: [&str; 3] = ["src/sys", "src/pool/file", "src/node"];

/// What in these places is not reached by a call for a file pool.
const ELSEWHERE: [(&str, &str); 8] = [
    ("src/sys/dm/", "thin pools: tests/thin/kills.rs, in the virtual machine"),
    ("src/sys/thin_metadata.rs", "thin pools"),
    ("src/sys/disk.rs", "pools on a disk of their own, and imports"),
    ("src/sys/foreign.rs", "imports of devices"),
    ("src/sys/host.rs", "the doctor, and the start"),
    ("src/sys/minder/process.rs", "another process: tests/kernel/freeze.rs and crash.rs kill it"),
    ("src/sys/fake", "a model"),
    ("src/sys/survey.rs", "the start of a pool"),
];

/// A function, and the system call it is; or why none is seen.
const NAMES: [(&str, Result<&str, &str>); 63] = [
    ("raw::btrfs_device", Err("filesystems of btrfs: their life is in tests/kernel")),
    ("raw::btrfs_grow", Err("filesystems of btrfs")),
    ("ioctl_getflags", Err("the making of a pool on btrfs")),
    ("ioctl_setflags", Err("the making of a pool on btrfs")),
    ("raw::trim", Err("imports, and the command line")),
    ("raw::fork", Err("the start of the minder")),
    ("raw::exit_now", Err("the minder's side of its fork")),
    ("socketpair", Err("the start of the minder")),
    ("raw::thaw", Err("the next start, and where the minder is gone: tests/kernel/freeze.rs")),
    ("raw::loop_set_status", Err("a device that somebody opens while it is released: tests/kernel/life.rs")),
    ("mknodat", Err("a /dev without nodes; made by the system elsewhere")),
    ("poll", Err("waits beside a program: it fails only for what is wrong in the caller")),
    ("libc::signal", Err("cannot fail with these signals")),
    ("libc::syscall", Ok("mount_setattr")),
    ("libc::ioctl", Ok("ioctl LOOP_CONFIGURE")),
    ("libc::fcntl", Ok("fcntl F_OFD_SETLK")),
    ("libc::sync_file_range", Ok("sync_file_range")),
    ("libc::unshare", Err("the start of a pool")),
    ("libc::mallopt", Err("no system call")),
    ("libc::fork", Err("the start of the minder")),
    ("libc::mlockall", Err("the minder")),
    ("libc::close_range", Err("the minder")),
    ("raw::end_lease", Ok("fcntl F_SETLEASE")),
    ("raw::lease", Ok("fcntl F_SETLEASE")),
    ("raw::has_lease", Ok("fcntl F_GETLEASE")),
    ("raw::lock_byte", Ok("fcntl F_OFD_SETLK")),
    ("raw::unlock_byte", Ok("fcntl F_OFD_SETLK")),
    ("raw::loop_clear", Ok("ioctl LOOP_CLR_FD")),
    ("raw::loop_configure", Ok("ioctl LOOP_CONFIGURE")),
    ("raw::loop_get_free", Ok("ioctl LOOP_CTL_GET_FREE")),
    ("raw::loop_set_capacity", Ok("ioctl LOOP_SET_CAPACITY")),
    ("raw::loop_status", Ok("ioctl LOOP_GET_STATUS64")),
    ("raw::set_mount_attributes", Ok("mount_setattr")),
    ("raw::write_dirty", Ok("sync_file_range")),
    ("raw::xfs_geometry", Ok("ioctl XFS_IOC_FSGEOMETRY_V1")),
    ("raw::xfs_grow", Ok("ioctl XFS_IOC_FSGROWFSDATA")),
    ("copy_file_range", Ok("copy_file_range")),
    ("fallocate", Ok("fallocate")),
    ("fsetxattr", Ok("fsetxattr")),
    ("fstat", Ok("fstat")),
    ("fstatfs", Ok("fstatfs")),
    ("fstatvfs", Ok("fstatfs")),
    ("fsync", Ok("fsync")),
    ("ftruncate", Ok("ftruncate")),
    ("ioctl_ficlone", Ok("ioctl FICLONE")),
    ("lgetxattr", Ok("lgetxattr")),
    ("linkat", Ok("linkat")),
    ("mkdirat", Ok("mkdirat")),
    ("open", Ok("open")),
    ("openat", Ok("openat")),
    ("openat2", Ok("openat2")),
    ("renameat", Ok("renameat")),
    ("seek", Ok("lseek")),
    ("statat", Ok("newfstatat")),
    ("statx", Ok("statx")),
    ("syncfs", Ok("syncfs")),
    ("unlinkat", Ok("unlinkat")),
    ("read", Ok("read of the minder")),
    ("unmount", Ok("umount2")),
    ("fsconfig_create", Ok("fsconfig FSCONFIG_CMD_CREATE")),
    ("fsconfig_set_flag", Ok("fsconfig FSCONFIG_SET_FLAG")),
    ("fsconfig_set_string", Ok("fsconfig FSCONFIG_SET_STRING")),
    ("sendmsg", Ok("sendmsg")),
];
/// Those whose name is that of the system call.
const SAME: [&str; 5] = ["fsmount", "fsopen", "move_mount", "open_tree", "pidfd_open"];
/// Arithmetic.
const NONE: [&str; 4] = ["major", "makedev", "minor", "fsconfig"];

/// The system call that a function makes, `None` where it makes none that must be seen; an error for one that nobody knows.
fn call_of(name: &str) -> Result<Option<&str>, String> {
    if NONE.contains(&name) {
        return Ok(None);
    }
    if let Some(same) = SAME.into_iter().find(|same| *same == name) {
        return Ok(Some(same));
    }
    // Growing is for those who may.
    if name == "ext4_ioc_resize_fs" {
        let may = lagan::sys::host::may_grow_ext4();
        return Ok(may.then_some("ioctl EXT4_IOC_RESIZE_FS"));
    }
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, call)| call.ok())
        .ok_or_else(|| format!("{name} is new: which system call is it, and who makes it?"))
}

/// The system calls of every operation; on ext4, where blocks cannot be shared, those of copies. Recorded once.
pub(crate) async fn recorded() -> &'static [(Kind, Operation, Vec<Call>)] {
    static RECORDED: OnceCell<Vec<(Kind, Operation, Vec<Call>)>> = OnceCell::const_new();
    let record = || async {
        let all = [Of::Volumes, Of::Snapshots, Of::Node].into_iter().flat_map(life::every).collect();
        let copies = vec![Operation::Create(From::Volume), Operation::CutUsed];
        let mut recorded = Vec::new();
        for (kind, operations) in [(Kind::Image, all), (Kind::On("ext4"), copies)] {
            let mut stage = Stage::new(kind).await;
            for operation in operations {
                recorded.push((kind, operation, stage.record(operation).await.calls));
            }
            stage.end().await;
        }
        recorded
    };
    RECORDED.get_or_init(record).await
}

fn is_elsewhere(path: &Path) -> bool {
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
    ELSEWHERE.iter().any(|(place, _)| path.starts_with(place))
}

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut left: Vec<_> = PLACES.iter().map(|place| root.join(place)).collect();
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.path().is_dir() { left.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.retain(|path| !is_elsewhere(path));
    found
}

/// The functions of the system that a source names: those behind `rustix::…::`, `raw::` and `libc::`, and those that it
/// imports from rustix.
fn named(text: &str) -> BTreeSet<String> {
    let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = shipped.lines().map(|line| line.split("//").next().unwrap());
    let text = lines.collect::<Vec<_>>().join("\n");
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (prefix, kept) in [("rustix::", ""), ("raw::", "raw::"), ("libc::", "libc::")] {
        for (at, _) in text.match_indices(prefix) {
            let rest = &text[at + prefix.len()..];
            // Behind the module, if there is one.
            let rest =
                rest.split_once("::").filter(|(module, _)| word(module) == *module).map_or(rest, |it| it.1);
            let name = word(rest);
            let called = rest[name.len()..].starts_with('(');
            if called && name.starts_with(|c: char| c.is_lowercase()) {
                found.insert(format!("{kept}{name}"));
            }
        }
    }
    for import in text.split("use rustix::").skip(1) {
        let list = import.split(';').next().unwrap();
        for part in list.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            if part.starts_with(|c: char| c.is_lowercase()) && !part.contains(':') {
                found.insert(part.to_owned());
            }
        }
    }
    found
}

#[test]
fn names_are_seen_in_every_form() {
    let text = "use rustix::{\n    fs::{AtFlags, fstat},\n    io::Errno,\n};\nfn f() { rustix::fs::linkat(a); raw::lease(b); \
                libc::fork(); } // rustix::fs::fsync(c)\n";
    let found = named(text).into_iter().collect::<Vec<_>>();
    assert_eq!(found, ["fstat", "libc::fork", "linkat", "raw::lease"]);
    assert!(call_of("no_such_call").is_err());
}

#[tokio::test]
async fn each_call_that_the_sources_name_is_reached() {
    let mut seen = BTreeMap::<&str, Operation>::new();
    for (_, operation, calls) in recorded().await {
        for call in calls {
            let row = table::acts(call, true);
            assert!(row.is_ok(), "{operation:?}: {}", row.unwrap_err());
            seen.entry(&call.kind).or_insert(*operation);
        }
    }
    let mut missing = Vec::new();
    for source in sources() {
        for name in named(&fs::read_to_string(&source).unwrap()) {
            match call_of(&name) {
                Ok(Some(call)) if !seen.contains_key(call) => {
                    missing.push(format!("{}: {name} ({call}) is never reached", source.display()));
                }
                Ok(_) => {}
                Err(unknown) => missing.push(format!("{}: {unknown}", source.display())),
            }
        }
    }
    println!("{} kinds of system calls: {}", seen.len(), seen.keys().copied().collect::<Vec<_>>().join(", "));
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
