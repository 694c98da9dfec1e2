//! The real kernel: mounts through fsopen, fsconfig and move_mount (no option string is ever joined), paths through
//! openat2 from a root that was opened once, never through a link.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxAttributes, StatxFlags,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use super::{
    cmd::Commands,
    device::{Device, DeviceNumber},
    file, grow, holders,
    kernel::{
        Amounts, Attributes, FilesystemMount, Kernel, Mount, MountError, MountedAt, STAGING, Seen, Usage,
    },
    mountinfo, raw, repair,
    target::{BadTarget, Target, locate},
};
use crate::{bytes::Bytes, filesystem::Filesystem};

/// The kernel of this machine, and the roots below which it may be asked for mounts.
#[derive(Debug)]
pub struct Linux {
    roots: Vec<Root>,
    commands: Arc<Commands>,
}

/// A root is opened once: at the start, or at its first use where it did not exist yet.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    opened: OnceLock<Opened>,
}

#[derive(Debug)]
struct Opened {
    fd: OwnedFd,
    /// Where it really is: the root itself may be reached through links.
    real: PathBuf,
}

impl Root {
    fn open(&self) -> io::Result<&Opened> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let fd =
            rustix::fs::open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        Ok(self.opened.get_or_init(|| Opened { fd, real }))
    }
}

impl Linux {
    /// Opens those of `roots` that exist.
    #[must_use]
    pub fn new(roots: &[PathBuf], commands: Arc<Commands>) -> Self {
        let roots: Vec<Root> =
            roots.iter().map(|path| Root { path: path.clone(), opened: OnceLock::new() }).collect();
        for root in &roots {
            // A root that is missing now is opened when it is first named.
            drop(root.open());
        }
        Self { roots, commands }
    }

    fn root(&self, at: &Target) -> io::Result<BorrowedFd<'_>> {
        let root = self.roots.iter().find(|root| root.path == at.root).ok_or(Errno::NOENT)?;
        Ok(root.open()?.fd.as_fd())
    }

    /// The target that a line of the mount table, which shows real paths, is about.
    fn target_of(&self, mount_point: &Path) -> Option<Target> {
        let below = |root: &Root| {
            // One that has come since the start counts too: another process may have mounted below it.
            let relative = mount_point.strip_prefix(&root.open().ok()?.real).ok()?;
            Some(Target { root: root.path.clone(), relative: relative.to_owned() })
        };
        self.roots.iter().filter_map(below).min_by_key(|target| target.relative.as_os_str().len())
    }

    /// Opens the parent of what is to be made. A root that is missing is made: Swarm does not make that of stages.
    fn open_parent_or_make_root<'t>(&self, at: &'t Target) -> io::Result<(OwnedFd, &'t Path)> {
        match self.open_parent(at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.root(at).is_err() => {
                std::fs::create_dir_all(&at.root)?;
                self.open_parent(at)
            }
            other => other,
        }
    }

    /// Opens what is at a path without using it; mounts are crossed, links are not.
    fn open_path(&self, at: &Target) -> io::Result<OwnedFd> {
        open_beneath(self.root(at)?, &at.relative, OFlags::PATH)
    }

    /// Opens the directory that a path ends in, and the last name.
    fn open_parent<'t>(&self, at: &'t Target) -> io::Result<(OwnedFd, &'t Path)> {
        let name = at.relative.file_name().ok_or(Errno::INVAL)?;
        let parent = at.relative.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok((open_beneath(self.root(at)?, parent, flags)?, Path::new(name)))
    }

    /// What is at a path of which the kernel tells nothing: XFS answers EIO there once it has shut down. What is mounted, the
    /// table of mounts knows.
    fn look_at_dead(&self, at: &Target, found: &OwnedFd) -> io::Result<Seen> {
        let id = mountinfo::id_of(found.as_fd())?;
        let entry = mountinfo::read()?.into_iter().find(|entry| entry.id == id);
        let entry = entry.filter(|entry| self.target_of(&entry.mount_point).as_ref() == Some(at));
        match entry.map(|entry| device_of_entry(&entry)).transpose()?.flatten() {
            Some((device, block)) => {
                Ok(Seen::Mount(Mount { device, block, attributes: Attributes::NONE, dead: true }))
            }
            // It is somewhere inside.
            None => Err(Errno::IO.into()),
        }
    }

    /// Opens the root directory of the filesystem mounted at a path.
    fn open_directory(&self, at: &Target) -> io::Result<OwnedFd> {
        open_beneath(self.root(at)?, &at.relative, OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)?)
}

/// Nothing is there, since nothing is, or a file, where a directory would have to be.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The name by which system calls that only take paths reach an open file.
fn through_proc(fd: &OwnedFd, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()).join(name)
}

/// Removes a file that is as empty as we made it. What was written into it while nothing was mounted stays.
fn remove_empty_file(parent: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size > 0 {
        return Err(Errno::NOTEMPTY.into());
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Kernel for Linux {
    fn locate(&self, path: &str) -> Result<Target, BadTarget> {
        locate(self.roots.iter().map(|root| root.path.as_path()), path)
    }

    fn look(&self, at: &Target) -> io::Result<Seen> {
        let found = match self.open_path(at) {
            Err(error) if is_absent(&error) => return Ok(Seen::Missing),
            other => other?,
        };
        let what = match rustix::fs::statx(&found, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS) {
            Err(Errno::IO) => return self.look_at_dead(at, &found),
            other => other?,
        };
        let kind = FileType::from_raw_mode(what.stx_mode.into());
        if kind == FileType::Symlink {
            // The last name is a link: it leads elsewhere, and is not ours to remove.
            return Err(Errno::LOOP.into());
        }
        let directory = kind == FileType::Directory;
        if !what.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(if directory { Seen::Directory } else { Seen::File });
        }
        let stat = rustix::fs::fstat(&found)?;
        let device = if directory { device_under(&found)? } else { DeviceNumber::of_special_file(&stat) };
        let flags = rustix::fs::fstatvfs(&found)?.f_flag;
        Ok(Seen::Mount(Mount { device, block: !directory, attributes: attributes_of(flags), dead: false }))
    }

    fn ensure_directory(&self, at: &Target) -> io::Result<()> {
        let (parent, name) = self.open_parent_or_make_root(at)?;
        // 0750: the workload's group and identity are applied inside the mount, not to the mount point.
        match rustix::fs::mkdirat(parent, name, Mode::RWXU | Mode::RGRP | Mode::XGRP) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn ensure_file(&self, at: &Target) -> io::Result<()> {
        let (parent, name) = self.open_parent_or_make_root(at)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::WRONLY;
        match rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&self, at: &Target) -> io::Result<()> {
        let (parent, name) = match self.open_parent(at) {
            Err(error) if is_absent(&error) => return Ok(()),
            other => other?,
        };
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => remove_empty_file(parent.as_fd(), name),
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn mount(&self, device: &Device, wanted: &FilesystemMount, at: &Target) -> Result<(), MountError> {
        let mounted = mount_detached(device, wanted)?;
        let plain = |step: &str| {
            let step = step.to_owned();
            move |error: io::Error| MountError { error, log: String::new(), step }
        };
        let found = device_under(&mounted).map_err(plain("read back what was mounted"))?;
        if found != device.number {
            let error = io::Error::other(format!("mounted device {found}, wanted {}", device.number));
            return Err(plain("check what was mounted")(error));
        }
        let to = self.open_path(at).map_err(plain("open the mount point"))?;
        attach(&mounted, &to).map_err(plain("attach the mount"))
    }

    fn bind(
        &self,
        from: &Target,
        device: DeviceNumber,
        to: &Target,
        attributes: Attributes,
    ) -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | cloexec();
        let clone = open_tree(self.open_path(from)?, c"", flags)?;
        if device_under(&clone)? != device {
            return Err(io::Error::other(format!("{from} is not the mount that was expected")));
        }
        // What is cleared and set in one call ends up set.
        raw::set_mount_attributes(clone.as_fd(), attributes, Attributes::ALL)?;
        attach(&clone, &self.open_path(to)?)
    }

    fn bind_device(&self, device: &Device, to: &Target) -> io::Result<()> {
        let node =
            rustix::fs::open(&device.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if DeviceNumber::of_special_file(&rustix::fs::fstat(&node)?) != device.number {
            return Err(io::Error::other(format!(
                "{} is not device {}",
                device.path.display(),
                device.number
            )));
        }
        let clone =
            open_tree(&node, c"", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | cloexec())?;
        // A device node below `nodev` could not be opened: the host's /dev never carries it, but make sure.
        raw::set_mount_attributes(clone.as_fd(), Attributes::NONE, Attributes::NODEV)?;
        attach(&clone, &self.open_path(to)?)
    }

    fn unmount(&self, at: &Target) -> io::Result<()> {
        // The mount itself must not be open here, or it would be busy: it is named through its parent directory.
        let (parent, name) = self.open_parent(at)?;
        match rustix::mount::unmount(through_proc(&parent, name), UnmountFlags::NOFOLLOW) {
            // Nothing is mounted there any more.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn mounts_of(&self, devices: &[DeviceNumber]) -> io::Result<Vec<MountedAt>> {
        let mut found = Vec::new();
        for entry in mountinfo::read()? {
            let Some(at) = self.target_of(&entry.mount_point) else { continue };
            if let Some((device, block)) = device_of_entry(&entry)?
                && devices.contains(&device)
            {
                let staging = entry.options.iter().any(|option| option == "nosymfollow");
                found.push(MountedAt { at, staging, block });
            }
        }
        Ok(found)
    }

    fn usage(&self, at: &Target) -> io::Result<Usage> {
        let stat = rustix::fs::fstatvfs(self.open_path(at)?)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Usage {
            bytes: Amounts {
                total: bytes(stat.f_blocks),
                used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
                available: bytes(stat.f_bavail),
            },
            inodes: Amounts {
                total: stat.f_files,
                used: stat.f_files.saturating_sub(stat.f_ffree),
                available: stat.f_favail,
            },
        })
    }

    fn grow(&self, filesystem: Filesystem, device: &Device, at: &Target) -> io::Result<Bytes> {
        let mount = self.open_directory(at)?;
        if device_under(&mount)? != device.number {
            return Err(io::Error::other(format!("{at} is not mounted from device {}", device.number)));
        }
        grow::grow(filesystem, device, mount.as_fd())
    }

    fn repair_ext4(&self, device: &Device) -> crate::error::Result<()> {
        repair::repair_ext4(device, &self.commands)
    }

    fn recorded_errors(&self, filesystem: Filesystem, device: DeviceNumber) -> u64 {
        grow::recorded_errors(filesystem, device)
    }

    fn holders(&self, devices: &[DeviceNumber]) -> Vec<String> {
        holders::find(devices)
    }
}

const fn cloexec() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLOEXEC
}

/// Puts a detached mount on a mount point that is held open.
fn attach(mount: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", to, c"", flags)?)
}

/// Mounts the filesystem on a device at a path of our own (never one of a request).
///
/// # Errors
/// The step that failed.
pub fn mount_path(device: &Device, wanted: &FilesystemMount, path: &Path) -> Result<(), MountError> {
    let mounted = mount_detached(device, wanted)?;
    let plain = |error: io::Error| MountError {
        error,
        log: String::new(),
        step: format!("attach the mount to {}", path.display()),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from).map_err(plain)?;
    attach(&mounted, &to).map_err(plain)
}

/// Takes away what is mounted at a path of our own.
///
/// # Errors
/// Those of umount2(2).
pub fn unmount_path(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)?)
}

/// Opens the root directory of the filesystem mounted from each of `devices`, once, where this process can see it.
///
/// # Errors
/// Those of reading the mount table and of open(2).
pub fn mounted_roots(devices: &[DeviceNumber]) -> io::Result<Vec<OwnedFd>> {
    let mut roots = Vec::new();
    let mut seen = Vec::new();
    for entry in mountinfo::read()? {
        // A device that is mounted itself has no root, wherever it is.
        if entry.filesystem != "btrfs" && entry.device.major() == 0 {
            continue;
        }
        let Some((device, false)) = device_of_entry(&entry)? else { continue };
        if !devices.contains(&device) || seen.contains(&device) {
            continue;
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&entry.mount_point, flags, Mode::empty())?;
        if device_under(&root)? == device {
            seen.push(device);
            roots.push(root);
        }
    }
    Ok(roots)
}

/// Mounts the filesystem on a device without giving it a place; it is gone when the descriptor is closed.
///
/// # Errors
/// The step that failed.
pub fn mount_detached(device: &Device, wanted: &FilesystemMount) -> Result<OwnedFd, MountError> {
    let context = fsopen(wanted.filesystem.name(), FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| refused(None, format!("open filesystem type {}", wanted.filesystem), error))?;
    let configure = |key: &str, value: Option<&str>| {
        let set = match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key, value),
            None => fsconfig_set_flag(context.as_fd(), key),
        };
        set.map_err(|error| refused(Some(&context), format!("set mount option {key}"), error))
    };
    configure("source", Some(&device.path.to_string_lossy()))?;
    if wanted.read_only {
        configure("ro", None)?;
    }
    for (key, value) in &wanted.options {
        configure(key, value.as_deref())?;
    }
    let describe = || format!("mount {} as {}", device.path.display(), wanted.filesystem);
    fsconfig_create(context.as_fd()).map_err(|error| refused(Some(&context), describe(), error))?;
    let attributes = MountAttrFlags::from_bits_retain(wanted.attributes.bits());
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|error| refused(Some(&context), describe(), error))
}

/// Adds what the kernel wrote to the log of the mount: one message a read, `e`, `w` or `i` and a space before it.
fn refused(context: Option<&OwnedFd>, step: String, error: Errno) -> MountError {
    let mut log = Vec::new();
    let mut message = [0; 512];
    while let Some(Ok(length)) = context.map(|context| rustix::io::read(context, &mut message))
        && log.len() < 8
        && length > 0
    {
        let text = String::from_utf8_lossy(&message[..length]);
        log.push(text.get(2..).unwrap_or_default().trim().to_owned());
    }
    MountError { error: error.into(), log: log.join("; "), step }
}

/// The block device under a mounted filesystem. btrfs gives its files a device number of their own, so it is asked
/// for its device.
fn device_under(directory: &OwnedFd) -> io::Result<DeviceNumber> {
    let stat = rustix::fs::fstat(directory)?;
    if file::filesystem_of_magic(rustix::fs::fstatfs(directory)?.f_type) != Some(Filesystem::Btrfs) {
        return Ok(DeviceNumber::of_file(&stat));
    }
    // An ioctl needs a real opening; the descriptor at hand may be a mere handle.
    let opened = rustix::fs::openat(directory, c".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let device = raw::btrfs_device(opened.as_fd())?;
    let path = device.path.split(|&byte| byte == 0).next().unwrap_or_default();
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    Ok(DeviceNumber::of_special_file(&stat))
}

/// The block device that a line of the mount table is about, and whether the device itself is what is mounted.
///
/// # Errors
/// Those of fstatat(2): what could not be looked at may be the mount that somebody uses.
pub(super) fn device_of_entry(entry: &mountinfo::Entry) -> io::Result<Option<(DeviceNumber, bool)>> {
    let special = |path: &Path, itself: bool| match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => {
            let block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
            Ok(block.then(|| (DeviceNumber::of_special_file(&stat), itself)))
        }
        // Gone since the table was read, or of another mount namespace.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    };
    match entry.filesystem.as_str() {
        "btrfs" => special(Path::new(&entry.source), false),
        "devtmpfs" | "tmpfs" if entry.root != "/" => special(&entry.mount_point, true),
        _ if entry.device.major() == 0 => Ok(None),
        _ => Ok(Some((entry.device, false))),
    }
}

fn attributes_of(flags: StatVfsMountFlags) -> Attributes {
    /// `ST_NOSYMFOLLOW` of statvfs(3), since Linux 5.10.
    const NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);
    let table = [
        (StatVfsMountFlags::RDONLY, Attributes::READ_ONLY),
        (StatVfsMountFlags::NOSUID, Attributes::NOSUID),
        (StatVfsMountFlags::NODEV, Attributes::NODEV),
        (StatVfsMountFlags::NOEXEC, Attributes::NOEXEC),
        (StatVfsMountFlags::NOATIME, Attributes::NOATIME),
        (StatVfsMountFlags::NODIRATIME, Attributes::NODIRATIME),
        (NOSYMFOLLOW, STAGING),
    ];
    let set = table.into_iter().filter(|(flag, _)| flags.contains(*flag));
    let seen = set.fold(Attributes::NONE, |sum, (_, attribute)| sum.and(attribute));
    let relaxed = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME;
    if flags.intersects(relaxed) { seen } else { seen.and(Attributes::STRICTATIME) }
}
