//! A command of LVM that was killed leaves devices of the pool standing still, and every volume with them, or tables that
//! wait for a resume and were never agreed upon. Here they are let go on as they were, then LVM brings them up to date.

use std::{
    fs::{File, create_dir_all},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::lvm::{self, Line, VolumeGroup};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    sys::{
        cmd::Commands,
        dm::{Info, Mapper},
    },
};

/// Where LVM keeps its locks (`global/locking_dir`).
const LOCKS: &str = "/run/lock/lvm";
/// How long a command of LVM that is at work is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lets the devices of the pool go on; what was done. The caller has the pool's locks.
///
/// # Errors
/// `Busy` where LVM is at work and does not end; those of device-mapper and LVM.
pub(super) fn mend(
    place: &VolumeGroup,
    parts: &[Line],
    mapper: &Mapper,
    commands: &Commands,
) -> Result<Vec<String>> {
    if stopped(mapper, parts)?.is_empty() {
        return Ok(Vec::new());
    }
    // LVM stops devices for a moment itself, under its lock: only what stands still without it is left from a dead command.
    let lock = wait_for_lvm(place)?;
    let mut done = Vec::new();
    // A device goes on after those below it.
    for _pass in 0..stopped(mapper, parts)?.len() {
        let left = stopped(mapper, parts)?;
        for info in &left {
            if stands_on(mapper, info, &left)? {
                continue;
            }
            let name = &info.name;
            // Loaded, and agreed upon or not: LVM loads what it has agreed upon once more.
            mapper.clear(name).doing(|| format!("drop the waiting table of {name}"))?;
            if info.suspended {
                mapper.resume(name).doing(|| format!("resume {name}"))?;
                done.push(format!("let device {name} of LVM go on"));
            }
        }
    }
    drop(lock);
    lvm::refresh(place, commands)?;
    Ok(done)
}

/// Devices of the pool that stand still, or have a table that waits.
fn stopped(mapper: &Mapper, parts: &[Line]) -> Result<Vec<Info>> {
    let what = || "look for devices of LVM that stand still";
    let mut found = Vec::new();
    for (name, _) in mapper.list().doing(what)? {
        let info = mapper.info(&name).doing(what)?.filter(|info| info.suspended || info.pending);
        found.extend(info.filter(|info| parts.iter().any(|part| info.uuid.starts_with(&part.uuid("")))));
    }
    Ok(found)
}

/// Whether a table of a device names one of the others.
fn stands_on(mapper: &Mapper, info: &Info, others: &[Info]) -> Result<bool> {
    let table = mapper.table(&info.name).doing(|| format!("read the table of {}", info.name))?;
    let named = |other: &Info| {
        let number = other.number.to_string();
        table.iter().any(|line| line.text.split(' ').any(|word| word == number))
    };
    Ok(others.iter().any(|other| other.number != info.number && other.suspended && named(other)))
}

/// Waits until no command of LVM works on the group, and keeps others waiting.
fn wait_for_lvm(place: &VolumeGroup) -> Result<File> {
    let path = Path::new(LOCKS).join(format!("V_{}", place.vg));
    let begun = Instant::now();
    loop {
        if let Some(lock) = lock(&path).doing(|| format!("lock {}", path.display()))? {
            return Ok(lock);
        }
        if begun.elapsed() > PATIENCE {
            let what = format!("devices of {} stand still, and a command of LVM is at work on it", place.vg);
            return Err(Error::new(ErrorKind::Busy, what));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Takes a lock as LVM does, which removes the file of one that it gives back.
fn lock(path: &Path) -> io::Result<Option<File>> {
    create_dir_all(LOCKS)?;
    let file = File::options().create(true).append(true).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other?,
    }
    let there =
        path.metadata().is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    Ok(there.then_some(file))
}
