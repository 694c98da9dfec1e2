//! Where a thin pool of LVM is, and how one is prepared. LVM runs here and nowhere else: one report at the start, and what
//! a person asks for.

use std::{fs::File, time::Duration};

use serde::Deserialize;

use super::{
    Place, below,
    slots::{Header, Slots},
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::{PoolId, VolumeId},
    pool::{Role, Sharing, byte_of},
    sys::{
        cmd::{AfterDeadline, Commands, Tool},
        device::DeviceNumber,
        dm::{self, Info, Mapper},
        file::ByteLock,
    },
};

/// How long a command of LVM may take before its caller stops waiting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Length of the device of records: room for 8,000 volumes and snapshots.
const RECORDS: &str = "64m";
/// Nobody to wait for (udev may not be there, and nodes are ours), nothing to write beside the volume group.
const CONFIG: &str = "backup{backup=0 archive=0} activation{monitoring=0 udev_sync=0 udev_rules=0 \
                      verify_udev_operations=1}";

/// A device of the pool's own that LVM made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Its name for device-mapper.
    name: String,
    number: DeviceNumber,
    what: String,
}

/// A pool that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The device of records.
    pub(super) records: Device,
    /// The thin pool.
    pub(super) below: (String, DeviceNumber),
}

impl Found {
    /// The pool's header.
    pub(super) fn header(&self) -> Result<Header> {
        Slots::header(&self.records.open()?)?.ok_or_else(|| {
            let what = format!(
                "{} holds no records: `lagan pool init` was never run, or they are lost",
                self.records.what
            );
            Error::new(ErrorKind::Unavailable, what)
        })
    }
}

impl Device {
    pub(super) fn open(&self) -> Result<File> {
        let info = Info {
            number: self.number,
            name: self.name.clone(),
            uuid: String::new(),
            open_count: 0,
            suspended: false,
            read_only: false,
            active: true,
            pending: false,
            transient: false,
        };
        dm::open(&info).doing(|| format!("open {}", self.what))
    }

    /// Takes the locks of a role. `Busy` where another process serves the pool.
    pub(super) fn lock(&self, role: Role) -> Result<Vec<ByteLock>> {
        let busy = |name: &str| format!("the pool is served by another {name} process: stop that one first");
        role.locks().map(|(byte, name)| self.lock_byte(byte, Sharing::Alone, || busy(name))).collect()
    }

    /// Takes a volume for one piece of work, against the other process that serves the pool.
    pub(super) fn take_turn(&self, id: VolumeId, sharing: Sharing) -> Result<ByteLock> {
        self.lock_byte(byte_of(id), sharing, || format!("another process is at work on volume {id}"))
    }

    fn lock_byte(&self, byte: i64, sharing: Sharing, busy: impl Fn() -> String) -> Result<ByteLock> {
        let lock = ByteLock::try_take(self.open()?, byte, sharing).doing(|| format!("lock {}", self.what))?;
        lock.ok_or_else(|| Error::new(ErrorKind::Busy, busy()))
    }
}

/// A line of `lvs`.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    vg_uuid: String,
    lv_uuid: String,
    lv_name: String,
    lv_attr: String,
    segtype: String,
    zero: String,
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Lines>,
}

#[derive(Deserialize)]
struct Lines {
    lv: Vec<Line>,
}

impl Line {
    /// What device-mapper calls it.
    fn uuid(&self, layer: &str) -> String {
        let plain = |uuid: &str| uuid.replace('-', "");
        format!("LVM-{}{}{layer}", plain(&self.vg_uuid), plain(&self.lv_uuid))
    }
}

fn records_of(place: &Place) -> String {
    format!("{}_lagan", place.thin_pool)
}

fn anchor_of(place: &Place) -> String {
    format!("{}_anchor", place.thin_pool)
}

pub(super) fn run(commands: &Commands, after: AfterDeadline, arguments: &[&str]) -> Result<String> {
    let (command, rest) = arguments.split_first().unwrap_or((&"version", &[]));
    let arguments = [&[*command, "--config", CONFIG], rest].concat();
    let finished = commands.run(Tool::Lvm, &arguments, PATIENCE, after)?;
    if finished.status.success() {
        return Ok(finished.output);
    }
    let what = format!("lvm {command}: {}", finished.output.trim());
    Err(Error::new(ErrorKind::Unavailable, what))
}

/// Every logical volume of the group, hidden ones too.
fn report(place: &Place, commands: &Commands) -> Result<Vec<Line>> {
    let fields = "vg_uuid,lv_uuid,lv_name,lv_attr,segtype,zero";
    let arguments = ["lvs", "-a", "--reportformat", "json", "-o", fields, "--", &place.vg];
    let output = run(commands, AfterDeadline::Kill, &arguments)?;
    // Warnings may come before it.
    let json = output.find('{').map_or("", |start| &output[start..]);
    let parsed: Report = serde_json::Deserializer::from_str(json)
        .into_iter()
        .next()
        .unwrap_or_else(|| Ok(Report { report: Vec::new() }))
        .map_err(|error| Error::new(ErrorKind::Unavailable, "read the report of lvs").because(error))?;
    Ok(parsed.report.into_iter().flat_map(|lines| lines.lv).collect())
}

fn line_of<'l>(lines: &'l [Line], name: &str) -> Option<&'l Line> {
    lines.iter().find(|line| line.lv_name == name)
}

/// Finds a pool's devices, and activates them where this process may.
///
/// # Errors
/// `Unavailable` where the group, the pool or its records are not there.
pub(super) fn find(place: &Place, mapper: &Mapper, commands: &Commands, role: Role) -> Result<Found> {
    let lines = report(place, commands)?;
    let missing = |name: &str| {
        let what = format!(
            "volume group {} has no {name}: is it the right one, and was `lagan pool init` run?",
            place.vg
        );
        Error::new(ErrorKind::Unavailable, what)
    };
    let (records, anchor) = (records_of(place), anchor_of(place));
    let pool = line_of(&lines, &place.thin_pool).ok_or_else(|| missing(&place.thin_pool))?;
    let record = line_of(&lines, &records).ok_or_else(|| missing(&records))?;
    let look = || -> Result<Option<Found>> {
        let what = || "look for the devices of the pool";
        let below = match mapper.find(&pool.uuid("-tpool")).doing(what)? {
            None => mapper.find(&pool.uuid("")).doing(what)?,
            found => found,
        };
        let found = below.zip(mapper.find(&record.uuid("")).doing(what)?);
        Ok(found.map(|(below, records)| Found {
            below: (below.name, below.number),
            records: Device {
                name: records.name,
                number: records.number,
                what: format!("the records of {}/{}", place.vg, place.thin_pool),
            },
        }))
    };
    if let Some(found) = look()? {
        return Ok(found);
    }
    if role != Role::Observer {
        for name in [&anchor, &records] {
            let full = format!("{}/{name}", place.vg);
            run(commands, AfterDeadline::LeaveRunning, &["lvchange", "-ay", "-K", "--", &full])?;
        }
    }
    look()?.ok_or_else(|| {
        let what = format!("{}/{} is not active: lvchange -ay {0}", place.vg, place.thin_pool);
        Error::new(ErrorKind::Unavailable, what)
    })
}

/// Makes a pool of a thin pool that LVM has made: a device of records with the redundancy of the pool, an anchor, a tag.
///
/// # Errors
/// `Mismatch` where there is one already; `Invalid` where the thin pool does not do; those of LVM.
pub fn init(place: &Place, machine: &str, commands: &Commands) -> Result<PoolId> {
    let what = || format!("make a pool of {}/{}", place.vg, place.thin_pool);
    let lines = report(place, commands)?;
    let pool = line_of(&lines, &place.thin_pool).filter(|pool| pool.lv_attr.starts_with('t'));
    let Some(pool) = pool else {
        let what = format!("{}: that is no thin pool (lvcreate --type thin-pool makes one)", what());
        return Err(Error::new(ErrorKind::Invalid, what));
    };
    if pool.zero != "zero" && pool.zero != "1" {
        let what = format!(
            "{}: it does not zero new blocks, so one tenant could read another's: lvchange --zero y {}/{}",
            what(),
            place.vg,
            place.thin_pool
        );
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let (records, anchor) = (records_of(place), anchor_of(place));
    if line_of(&lines, &records).is_some() {
        return Err(Error::new(ErrorKind::Mismatch, format!("{}: there is one already", what())));
    }
    let change = |arguments: &[&str]| run(commands, AfterDeadline::LeaveRunning, arguments);
    make_records(place, &lines, commands)?;
    let full = format!("{}/{}", place.vg, place.thin_pool);
    if line_of(&lines, &anchor).is_none() {
        change(&["lvcreate", "-y", "-n", &anchor, "-V", "4m", "--thinpool", &full])?;
    }
    change(&["lvchange", "--addtag", "lagan", "--", &full])?;
    let mapper = Mapper::open().doing(|| "open device-mapper")?;
    let found = find(place, &mapper, commands, Role::Both)?;
    let header = Slots::new_header(machine);
    if below::create(&mapper, &found.below.0, below::FIRST)? == below::Made::Taken {
        let what = format!(
            "{}: it holds thin devices of an earlier pool whose records are gone; nothing was changed in them",
            what()
        );
        return Err(Error::new(ErrorKind::InUse, what));
    }
    Slots::format(&found.records.open()?, &header)?;
    Ok(header.id)
}

/// Makes the device of records, with the redundancy of the pool.
fn make_records(place: &Place, lines: &[Line], commands: &Commands) -> Result<()> {
    let data = line_of(lines, &format!("[{}_tdata]", place.thin_pool));
    let mirrored = data.is_some_and(|data| data.segtype.starts_with("raid"));
    let redundancy: &[&str] = if mirrored { &["--type", "raid1", "-m", "1"] } else { &[] };
    let make = ["lvcreate", "-y", "-Wy", "-Zy", "-n", &records_of(place), "-L", RECORDS];
    let arguments = [&make, redundancy, &["--", &place.vg]].concat();
    run(commands, AfterDeadline::LeaveRunning, &arguments).map(drop)
}

/// Makes the device of records of a pool that has lost it; `false` where it is there.
pub(super) fn ensure_records(place: &Place, commands: &Commands) -> Result<bool> {
    let lines = report(place, commands)?;
    if line_of(&lines, &place.thin_pool).is_none() {
        let what = format!("volume group {} has no {}", place.vg, place.thin_pool);
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let missing = line_of(&lines, &records_of(place)).is_none();
    if missing {
        make_records(place, &lines, commands)?;
    }
    Ok(missing)
}

/// Makes this machine the one that serves the pool. No process may be serving it.
///
/// # Errors
/// `Busy` where it is served; `Unavailable` where there is no pool.
pub fn adopt(place: &Place, machine: &str, commands: &Commands) -> Result<PoolId> {
    let mapper = Mapper::open().doing(|| "open device-mapper")?;
    let found = find(place, &mapper, commands, Role::Both)?;
    let _locks = found.records.lock(Role::Both)?;
    let header = Header { machine: machine.to_owned(), ..found.header()? };
    let id = header.id;
    Slots::set_header(&found.records.open()?, header)?;
    Ok(id)
}

/// The identity of a pool, and the machine that it belongs to; nothing is changed.
///
/// # Errors
/// `Unavailable` where there is none.
pub fn identify(place: &Place, commands: &Commands) -> Result<(PoolId, String)> {
    let mapper = Mapper::open().doing(|| "open device-mapper")?;
    let header = find(place, &mapper, commands, Role::Observer)?.header()?;
    Ok((header.id, header.machine))
}
