//! The records of a file pool as text, and back onto the files that have lost theirs.

use std::path::Path;

use serde_json::Value;

use super::{
    admin::{open_directory, read_marker},
    groups,
    image::{self, Mounting},
    marker::{self, Marker},
    store::{ATTRIBUTE, Store, file_name},
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    pool::{
        Role,
        backup::{Backup, Line, Restored, refuse_different},
        record::{self, BadRecord, Group, RECORD_LIMIT, Snapshot, Volume},
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
    for group in &listing.groups {
        backup.lines.push(Line::of("group", group)?);
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
                plan.look_at(&store.volumes, file_name(volume.id.uuid), line, record::encode(&volume)?)?;
            }
            "snapshot" => {
                let snapshot: Snapshot = line.read()?;
                plan.look_at(
                    &store.snapshots,
                    file_name(snapshot.id.uuid),
                    line,
                    record::encode(&snapshot)?,
                )?;
            }
            "group" => {
                let group: Group = line.read()?;
                plan.look_at(
                    &store.snapshots,
                    groups::file_name(group.id.uuid),
                    line,
                    groups::stored(group)?,
                )?;
            }
            _ => plan.done.skipped.push(format!("{}: a pool of files has no such record", line.title())),
        }
    }
    if !replace {
        refuse_different(&plan.different)?;
    }
    for (directory, name, stored) in &plan.missing {
        let file = directory.open_file(name, Access::Read).doing(|| format!("open {name}"))?;
        store.put_back(&file, stored)?;
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
struct Plan<'s> {
    done: Restored,
    different: Vec<String>,
    missing: Vec<(&'s Directory, String, Vec<u8>)>,
}

impl<'s> Plan<'s> {
    fn look_at(
        &mut self,
        directory: &'s Directory,
        name: String,
        line: &Line,
        wanted: Vec<u8>,
    ) -> Result<()> {
        let title = line.title();
        let what = |doing: &str| format!("{doing} of {title}");
        if directory.stat(&name).doing(|| what("look at the file"))?.is_none() {
            self.done.skipped.push(format!("{title}: its file is gone"));
            return Ok(());
        }
        let there = directory.attribute(&name, ATTRIBUTE, RECORD_LIMIT).doing(|| what("read the record"))?;
        match there.map(|there| record::decode::<Value>(&there)) {
            Some(Ok(there)) if record::decode::<Value>(&wanted).is_ok_and(|wanted| wanted == there) => {
                self.done.kept += 1;
                return Ok(());
            }
            // Of a later version, and not ours to judge.
            Some(Err(bad @ BadRecord::Version(_))) => {
                return Err(Error::new(ErrorKind::Unavailable, what("replace the record")).because(bad));
            }
            Some(Ok(_)) => self.different.push(title),
            Some(Err(_)) | None => {}
        }
        self.missing.push((directory, name, wanted));
        Ok(())
    }
}
