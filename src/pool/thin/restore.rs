//! The records of a thin pool as text, and back onto a device of records that is lost or damaged. Thin devices are not
//! touched: a record is put back only where its device is there, and is the one that it was.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt};

use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    Place, below,
    below::FIRST,
    block,
    devices::Devices,
    groups,
    header::Header,
    lvm, metadata,
    place::{Found, Start, find},
    slots::{self, Entry, Object, Slots, Stage},
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    pool::{
        Role,
        backup::{Backup, Line, Restored, refuse_different},
        record::BadRecord,
    },
    sys::cmd::Commands,
};

/// All records of a pool; no lock is taken, and nothing is changed but that the pool holds a snapshot of its metadata for a
/// moment.
///
/// # Errors
/// `Unavailable` where the pool or its records are not there.
pub fn backup(place: &Place, commands: &Commands) -> Result<Backup> {
    let mapper = place.mapper()?;
    let found = find(place, &mapper, commands, Start::Nothing)?;
    let header = found.header()?;
    let (entries, damaged) = Slots::open(found.records.store()?, false)?.all()?;
    let mut backup = Backup::new(header.id, &header.machine);
    let disk = header.disk.map(serde_json::to_value).transpose();
    backup.header.disk =
        disk.map_err(|error| Error::new(ErrorKind::Broken, "write the layout as text").because(error))?;
    backup.missing = damaged;
    // Without them a restore still works; it then cannot tell a device from another that got its number later.
    let times = match found.below().and_then(|below| metadata::devices(&mapper, below)) {
        Ok(devices) => devices.into_iter().map(|device| (device.number, device.time)).collect(),
        Err(error) => {
            tracing::warn!(%error, "the backup does not say when the thin devices were made");
            HashMap::new()
        }
    };
    let hidden = groups::unfinished(&entries);
    for entry in entries.iter().filter(|entry| entry.stage == Stage::Ready) {
        // Cut for a set that is not whole: the start of a controller takes it back.
        if let Object::Snapshot(snapshot) = &entry.object
            && snapshot.group.is_some_and(|group| hidden.contains(&group))
        {
            continue;
        }
        let line = line_of(entry)?;
        backup.lines.push(Line { time: times.get(&entry.thin).copied(), ..line });
    }
    Ok(backup)
}

/// The text of an entry: objects of every kind serialize as their kind and what they are.
fn line_of(entry: &Entry) -> Result<Line> {
    let broken = || Error::new(ErrorKind::Broken, "write a record as text");
    let object = serde_json::to_value(&entry.object).map_err(|error| broken().because(error))?;
    let Value::Object(tagged) = object else { return Err(broken()) };
    let (kind, record) = tagged.into_iter().next().ok_or_else(broken)?;
    Ok(Line { thin: Some(entry.thin), ..Line::of(&kind, &record)? })
}

fn object_of(line: &Line) -> Result<Object> {
    let tagged: Map<String, Value> = [(line.kind.clone(), line.record.clone())].into_iter().collect();
    Line { record: tagged.into(), ..line.clone() }.read()
}

/// Writes the records of a backup where they are missing; over others only with `replace`. The device of records is made
/// anew where it is gone. No process may be serving the pool.
///
/// # Errors
/// `Busy` where it is served; `Mismatch` where another pool, or another record, is there, and no record was changed.
pub fn restore(
    place: &Place,
    machine: &str,
    backup: &Backup,
    replace: bool,
    commands: &Commands,
) -> Result<Restored> {
    let mapper = place.mapper()?;
    let header = header_of(backup)?;
    let made = match place {
        Place::Lvm(group) => lvm::ensure_records(group, &mapper, commands)?,
        Place::Disk(path) => block::ensure_header(path, &header).map(|()| false)?,
        Place::Model(_) => false,
    };
    let found = find(place, &mapper, commands, Start::Pool(machine))?;
    let _locks = found.records.lock(Role::Both)?;
    let device = found.records.open()?;
    if made {
        // What lies there are the records of a device that was there before.
        Slots::format(&device, &header)?;
    }
    let known = Header::read(&device, Bytes::ZERO)?;
    if let Some(other) = known.as_ref().filter(|known| known.id != header.id) {
        let what = format!("the records are of pool {}, and the backup is of pool {}", other.id, header.id);
        return Err(Error::new(ErrorKind::Mismatch, what));
    }
    let devices = Devices::new(mapper, header.id, found.below.clone());
    let (entries, _) = Slots::open(found.records.store()?, true)?.all()?;
    let plan = Plan::make(backup, &entries, &devices)?;
    if !replace {
        refuse_different(&plan.different)?;
    }
    carry_out(plan, replace, &found, &devices, known.is_none().then_some(header))
}

fn header_of(backup: &Backup) -> Result<Header> {
    let disk = backup.header.disk.clone().map(serde_json::from_value).transpose();
    let unreadable = |error| Error::new(ErrorKind::Invalid, "the layout in the backup").because(error);
    Ok(Header::of(backup.header.pool, &backup.header.machine, disk.map_err(unreadable)?))
}

/// Writes what is missing, each step of it safe to be done again.
fn carry_out(
    plan: Plan,
    replace: bool,
    found: &Found,
    devices: &Devices,
    header: Option<Header>,
) -> Result<Restored> {
    let device = found.records.open()?;
    let mut done = plan.done;
    let (damaged, missing) = (damaged(&device)?, plan.missing.len());
    if damaged.len() > missing && !replace {
        let what = format!(
            "{} records cannot be read, and the backup has only {missing} that are missing: others were made since, and \
             their names must not be given away; --replace clears them all the same; nothing was changed",
            damaged.len()
        );
        return Err(Error::new(ErrorKind::Mismatch, what));
    }
    let cleared = clear(&device, &damaged)?;
    if cleared > 0 {
        tracing::warn!(cleared, "records that could not be read were cleared");
    }
    if let Some(header) = header {
        header.replace(&device)?;
    }
    let slots = Slots::open(Box::new(device), true)?;
    for (thin, object) in plan.missing {
        slots.put(thin, Stage::Ready, object)?;
        done.written += 1;
    }
    // The one that keeps the pool from being removed.
    if !devices.exists(FIRST)? {
        below::create(&devices.mapper, devices.below()?.0, FIRST)?;
    }
    Ok(done)
}

/// What is to be done, found out before anything is.
struct Plan {
    done: Restored,
    different: Vec<String>,
    missing: Vec<(u32, Object)>,
}

impl Plan {
    fn make(backup: &Backup, entries: &[Entry], devices: &Devices) -> Result<Self> {
        let by_uuid: HashMap<Uuid, &Entry> =
            entries.iter().map(|entry| (entry.object.uuid(), entry)).collect();
        let owners: HashMap<u32, Uuid> =
            entries.iter().map(|entry| (entry.thin, entry.object.uuid())).collect();
        let times: Option<HashMap<u32, u32>> = metadata::devices(&devices.mapper, devices.below()?.0)
            .map(|all| all.into_iter().map(|device| (device.number, device.time)).collect())
            .ok();
        let mut plan = Self { done: Restored::default(), different: Vec::new(), missing: Vec::new() };
        for line in &backup.lines {
            let (object, thin) = (object_of(line)?, line.thin.unwrap_or_default());
            let there = by_uuid.get(&object.uuid());
            if there.is_some_and(|it| it.thin == thin && it.stage == Stage::Ready && it.object == object) {
                plan.done.kept += 1;
                continue;
            }
            if let Some(reason) = plan.against(line, thin, &object, &owners, times.as_ref(), devices)? {
                plan.done.skipped.push(format!("{}: {reason}", line.title()));
                continue;
            }
            if there.is_some() {
                plan.different.push(line.title());
            }
            plan.missing.push((thin, object));
        }
        Ok(plan)
    }

    /// Why a record is not put back.
    fn against(
        &self,
        line: &Line,
        thin: u32,
        object: &Object,
        owners: &HashMap<u32, Uuid>,
        times: Option<&HashMap<u32, u32>>,
        devices: &Devices,
    ) -> Result<Option<String>> {
        // A kind of record that has no device.
        if thin < FIRST {
            return Ok(None);
        }
        if let Some(owner) = owners.get(&thin).filter(|owner| **owner != object.uuid()) {
            return Ok(Some(format!("thin device {thin} belongs to {} by now", owner.simple())));
        }
        if self.missing.iter().any(|(taken, _)| *taken == thin) {
            return Ok(Some(format!("the backup has thin device {thin} twice")));
        }
        let there = match times {
            Some(times) => times.contains_key(&thin),
            None => devices.exists(thin)?,
        };
        if !there {
            return Ok(Some(format!("its thin device {thin} is gone")));
        }
        let now = times.and_then(|times| times.get(&thin));
        if now.zip(line.time).is_some_and(|(now, then)| *now != then) {
            return Ok(Some(format!("thin device {thin} was made for something else since")));
        }
        Ok(None)
    }
}

/// Places whose record cannot be read; those that a later version has written are refused.
fn damaged(device: &File) -> Result<Vec<u64>> {
    let what = || "look through the records";
    let length = slots::length_of(device).doing(what)?;
    let mut found = Vec::new();
    let mut pair = vec![0; 2 * slots::BLOCK];
    for index in 0.. {
        let offset = slots::offset_of(index, 0);
        if offset + pair.len() as u64 > length {
            break;
        }
        device.read_exact_at(&mut pair, offset).doing(what)?;
        match slots::later(&pair) {
            Ok(_) => {}
            Err(bad @ BadRecord::Version(_)) => {
                return Err(Error::new(ErrorKind::Unavailable, what()).because(bad));
            }
            Err(_) => found.push(offset),
        }
    }
    Ok(found)
}

fn clear(device: &File, places: &[u64]) -> Result<usize> {
    let what = || "clear damaged records";
    for offset in places {
        device.write_all_at(&[0; 2 * slots::BLOCK], *offset).doing(what)?;
    }
    device.sync_data().doing(what)?;
    Ok(places.len())
}
