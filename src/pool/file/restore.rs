//! The records of a file pool as text, and back onto the files that have lost theirs.

use std::{fmt::Display, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    admin::{open_directory, read_marker},
    image::{self, Mounting},
    marker::{self, Marker},
    store::{ATTRIBUTE, Store, file_name},
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    pool::{
        Role,
        backup::{Backup, Line, Restored, refuse_different},
        record::{self, BadRecord, RECORD_LIMIT, Snapshot, Volume},
    },
    sys::file::{Access, Directory},
};

/// All records of the pool at `path`; nothing is changed, mounted or locked.
///
/// # Errors
/// `Unavailable` where there is no pool, or its image is not mounted.
pub fn backup(path: &Path) -> Result<Backup> {
    let directory = open_directory(path)?;
    let marker = read_marker(&directory)?;
    let root = image::resolve(&directory, Mounting::Never)?;
    let listing = Store::open(root, marker.id, false)?.list()?;
    let mut backup = Backup::new(marker.id, &marker.machine);
    for volume in &listing.volumes {
        backup.lines.push(Line::of("volume", volume)?);
    }
    for snapshot in &listing.snapshots {
        backup.lines.push(Line::of("snapshot", snapshot)?);
    }
    backup.missing = listing.damaged;
    Ok(backup)
}

/// Puts records back onto files that have none, or one that cannot be read; onto others only with `replace`. No process
/// may be serving the pool.
///
/// # Errors
/// `Busy` where it is served; `Mismatch` where another pool, or another record, is there, and nothing was changed.
pub fn restore(path: &Path, backup: &Backup, replace: bool) -> Result<Restored> {
    let outer = open_directory(path)?;
    // Beside an image, the marker says whose it is before it is mounted.
    let known = expect_same(&outer, backup)?;
    let locks = if known { marker::lock(&outer, Role::Both)? } else { Vec::new() };
    let root = image::resolve(&outer, Mounting::AsNeeded)?;
    if root.stat("volumes").doing(|| "look at the pool")?.is_none() {
        let what = format!("{} holds no volumes: mount what the pool lies on", path.display());
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    for place in [&root, &outer] {
        if !expect_same(place, backup)? {
            Marker::of(backup.header.pool, &backup.header.machine).write(place)?;
        }
    }
    let locks = if known { locks } else { marker::lock(&outer, Role::Both)? };
    let store = Store::open(root, backup.header.pool, true)?;
    store.check_writable()?;
    let mut plan = Plan::default();
    for line in &backup.lines {
        match line.kind.as_str() {
            "volume" => {
                let volume: Volume = line.read()?;
                plan.look_at(&store.volumes, volume.id.uuid, line, volume)?;
            }
            "snapshot" => {
                let snapshot: Snapshot = line.read()?;
                plan.look_at(&store.snapshots, snapshot.id.uuid, line, snapshot)?;
            }
            _ => plan.done.skipped.push(format!("{}: a pool of files has no such record", line.title())),
        }
    }
    if !replace {
        refuse_different(&plan.different)?;
    }
    for (directory, uuid, stored) in &plan.missing {
        let directory = if *directory == store.volumes.path() { &store.volumes } else { &store.snapshots };
        store.put_back(&store.open_file(directory, *uuid, Access::Read)?, stored)?;
        plan.done.written += 1;
    }
    drop(locks);
    Ok(plan.done)
}

/// Whether the marker in a directory is there; `Mismatch` where it is that of another pool.
fn expect_same(directory: &Directory, backup: &Backup) -> Result<bool> {
    match Marker::read(directory)? {
        Some(marker) if marker.id != backup.header.pool => {
            let what = format!(
                "pool {} is in {}, and the backup is of pool {}",
                marker.id,
                directory.path().display(),
                backup.header.pool
            );
            Err(Error::new(ErrorKind::Mismatch, what))
        }
        marker => Ok(marker.is_some()),
    }
}

/// What is to be done, found out before anything is.
#[derive(Default)]
struct Plan {
    done: Restored,
    different: Vec<String>,
    missing: Vec<(std::path::PathBuf, Uuid, Vec<u8>)>,
}

impl Plan {
    fn look_at<T: Serialize + DeserializeOwned + PartialEq>(
        &mut self,
        directory: &Directory,
        uuid: Uuid,
        line: &Line,
        wanted: T,
    ) -> Result<()> {
        let title = line.title();
        let what = |doing: &dyn Display| format!("{doing} of {title}");
        if directory.stat(&file_name(uuid)).doing(|| what(&"look at the file"))?.is_none() {
            self.done.skipped.push(format!("{title}: its file is gone"));
            return Ok(());
        }
        let stored = directory.attribute(&file_name(uuid), ATTRIBUTE, RECORD_LIMIT);
        match stored.doing(|| what(&"read the record"))?.map(|stored| record::decode::<T>(&stored)) {
            Some(Ok(there)) if there == wanted => {
                self.done.kept += 1;
                return Ok(());
            }
            // Of a later version, and not ours to judge.
            Some(Err(bad @ BadRecord::Version(_))) => {
                return Err(Error::new(ErrorKind::Unavailable, what(&"replace the record")).because(bad));
            }
            Some(Ok(_)) => self.different.push(title.clone()),
            Some(Err(_)) | None => {}
        }
        self.missing.push((directory.path().to_owned(), uuid, record::encode(&wanted)?));
        Ok(())
    }
}
