//! A source in use: what was written to it is brought to its file before a reflink, and its filesystem is frozen for a
//! copy. A freeze is watched by the minder; its intent is on disk before it begins.

use std::{os::fd::OwnedFd, time::Duration};

use uuid::Uuid;

use super::store::{Store, file_name};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::VolumeId,
    sys::{
        device::DeviceNumber,
        file::Directory,
        minder::{self, Minder},
        mount::mounted_roots,
    },
};

/// Where the intents are: an empty file for each volume that is being paused.
const INTENTS: &str = "pauses";

/// Brings what was written to a volume before this call to its file: a reflink alone would miss what the page cache
/// above the device still holds. Sees only mounts of this process's namespace; of others the copy is as after a
/// power cut, which every filesystem survives.
pub(super) fn settle(id: VolumeId, devices: &[DeviceNumber]) -> Result<()> {
    let what = || format!("flush {id} before it is copied");
    for root in mounted_roots(devices).doing(what)? {
        rustix::fs::syncfs(root).doing(what)?;
    }
    for device in devices {
        // A raw device that is written through the page cache.
        let node = std::fs::read_link(format!("/sys/dev/block/{device}")).doing(what)?;
        let node = std::path::Path::new("/dev").join(node.file_name().unwrap_or_default());
        std::fs::File::open(node).and_then(|node| node.sync_all()).doing(what)?;
    }
    Ok(())
}

/// Freezes the filesystems of mounted volumes, all together, runs `work` with nothing else going on, and thaws them. The
/// result of `work` counts only if all of it lay inside the freeze.
pub(super) fn frozen<T>(
    store: &Store,
    minder: &Minder,
    volumes: &[(VolumeId, Vec<DeviceNumber>)],
    limit: Duration,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let names: Vec<_> = volumes.iter().map(|(id, _)| id.to_string()).collect();
    let names = names.join(", ");
    let what = || format!("freeze {names}");
    let mut roots = Vec::new();
    for (id, devices) in volumes {
        let its = mounted_roots(devices).doing(what)?;
        if its.is_empty() {
            let what = format!(
                "{id} is in use, but not mounted where this process could freeze it: unpublish it first"
            );
            return Err(Error::new(ErrorKind::InUse, what));
        }
        roots.extend(its);
    }
    // What is dirty is written while writers still run: the freeze itself then has little to flush.
    roots.iter().try_for_each(rustix::fs::syncfs).doing(what)?;
    let mut intent = Intent::record(store, volumes.iter().map(|(id, _)| id.uuid))?;
    let pause = match minder.pause(&roots, limit) {
        Ok(pause) => pause,
        Err(error) => {
            match error.kind() {
                std::io::ErrorKind::BrokenPipe => intent.thaw_ourselves(&roots)?,
                // The minder thaws it as soon as it is frozen after all; the next start does, if that dies first.
                std::io::ErrorKind::TimedOut => intent.kept = true,
                _ => {}
            }
            return Err(not_frozen(&what(), error));
        }
    };
    let result = work();
    let in_time = match pause.end() {
        Ok(in_time) => in_time,
        Err(error) => {
            intent.thaw_ourselves(&roots)?;
            return Err(not_frozen(&what(), error));
        }
    };
    let result = result?;
    if in_time {
        return Ok(result);
    }
    let limit = humantime::format_duration(limit);
    Err(Error::new(
        ErrorKind::InUse,
        format!("{names} could not be copied within the freeze limit of {limit}"),
    ))
}

fn not_frozen(what: &str, error: std::io::Error) -> Error {
    let (reason, kind) = match error.kind() {
        std::io::ErrorKind::WouldBlock => ("another one is being frozen", ErrorKind::Busy),
        std::io::ErrorKind::ResourceBusy => ("it is frozen by somebody else", ErrorKind::Busy),
        std::io::ErrorKind::TimedOut => ("a write in it did not end in time", ErrorKind::InUse),
        _ => ("the minder does not answer: restart the driver where that lasts", ErrorKind::Unavailable),
    };
    Error::io(format!("{what}: {reason}"), error).as_kind(kind)
}

/// The note that volumes are being paused; gone with this value.
struct Intent {
    directory: Directory,
    names: Vec<String>,
    /// It is not known to be thawed: the note stays for the next start.
    kept: bool,
}

impl Intent {
    fn record(store: &Store, volumes: impl Iterator<Item = Uuid>) -> Result<Self> {
        let what = || "note a pause";
        let directory = store.root.ensure_directory(INTENTS).doing(what)?;
        let mut intent = Self { directory, names: Vec::new(), kept: false };
        for uuid in volumes {
            intent.names.push(file_name(uuid));
            intent.directory.write_file(&file_name(uuid), b"").doing(what)?;
        }
        Ok(intent)
    }

    /// Thaws what a minder that died may have left frozen.
    fn thaw_ourselves(&mut self, roots: &[OwnedFd]) -> Result<()> {
        self.kept = true;
        roots.iter().try_for_each(minder::thaw).doing(|| "thaw in the place of the minder")?;
        self.kept = false;
        Ok(())
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Left behind it costs the next start a needless thaw, no more.
        for name in &self.names {
            self.directory.remove_file(name).unwrap_or_default();
        }
    }
}

/// Ends pauses that an earlier process began. The minder has usually done it; a machine that lost both has not.
pub(super) fn recover(
    store: &Store,
    devices_of: impl Fn(Uuid) -> Result<Vec<DeviceNumber>>,
) -> Result<Vec<String>> {
    let what = || "end pauses of an earlier process";
    let mut done = Vec::new();
    let intents = match store.root.open_directory(INTENTS) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(done),
        other => other.doing(what)?,
    };
    for name in intents.names().doing(what)? {
        if let Some(uuid) = super::store::uuid_of(&name) {
            let roots: Vec<OwnedFd> = mounted_roots(&devices_of(uuid)?).doing(what)?;
            roots.iter().try_for_each(minder::thaw).doing(what)?;
            done.push(format!("ended the pause of volume {}", uuid.simple()));
        }
        intents.remove_file(&name).doing(what)?;
    }
    Ok(done)
}
