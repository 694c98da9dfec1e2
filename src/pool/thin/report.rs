//! What there is to be known of a pool of LVM, for a person who asks what ails it. Nothing is judged here, and nothing is
//! changed but that the pool holds a snapshot of its metadata for a moment.

use std::{path::Path, time::Duration};

use serde_json::{Map, Value};

use super::{
    Mode, Place, Status, VolumeGroup,
    below::FIRST,
    care, lvm, metadata,
    place::{self, Found, Start},
    slots::{Entry, Object, Slots},
};
use crate::{
    bytes::Bytes,
    error::{Chain, Error, ErrorKind, Result},
    id::PoolId,
    sys::{
        cmd::{AfterDeadline, Commands, Tool},
        dm::{Mapper, OURS},
        thin_metadata::ThinDevice,
    },
};

/// How long a report of LVM may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Apart from each other, so that the pause of a snapshot is not taken for one that lasts.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// The door to LVM's monitor, where that runs; to ask for it would start it.
const MONITOR: &str = "/run/dmeventd-client";

/// A fact, or why it is not known.
pub type Fact<T> = std::result::Result<T, String>;

/// What is known of a pool.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether device-mapper answers.
    pub mapper: Fact<()>,
    /// The kernel has the target of thin pools loaded.
    pub thin_target: bool,
    /// How many volume groups have the name; `None` for a pool without one.
    pub groups: Option<Fact<usize>>,
    /// What LVM complained of while it was asked, such as two devices with one identity.
    pub complaints: Vec<String>,
    /// What LVM knows of the thin pool, where it is one of LVM.
    pub lvm: Option<Fact<LvmFacts>>,
    /// What the kernel knows of it.
    pub kernel: Fact<KernelFacts>,
    /// What the records say.
    pub records: Fact<RecordFacts>,
    /// Devices that stand still, of the pool and of ours.
    pub suspended: Vec<Suspended>,
    /// Thin devices with numbers of ours that no record knows.
    pub strangers: Fact<Vec<ThinDevice>>,
}

/// What LVM knows of a thin pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LvmFacts {
    /// New blocks are zeroed.
    pub zeroing: bool,
    /// What the volume group has left.
    pub free: Bytes,
    /// Its count of changes.
    pub transaction: u64,
    /// LVM's monitor watches the pool.
    pub monitored: bool,
    /// Per cent from which on that extends the pool; 100 is never.
    pub threshold: u32,
    /// Length of LVM's own thin volumes in the pool, together.
    pub promised: Bytes,
}

/// What the kernel knows of a thin pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// What is wrong with it.
    pub trouble: Option<String>,
    /// No block of data is free.
    pub full: bool,
    /// The count of changes.
    pub transaction: u64,
    /// Data used, and in all.
    pub data: (Bytes, Bytes),
    /// Metadata used, and in all.
    pub metadata: (Bytes, Bytes),
    /// Length of its blocks.
    pub chunk: Bytes,
    /// Metadata that mapping all of the pool once would take.
    pub whole: Bytes,
    /// Metadata that it would take if every block of every device were its own.
    pub worst: Bytes,
}

/// What the records of a pool say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFacts {
    /// Which pool it is.
    pub id: PoolId,
    /// Places that cannot be read.
    pub damaged: usize,
    /// Length of all volumes, together.
    pub promised: Bytes,
}

/// A device that stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspended {
    /// Its name.
    pub name: String,
    /// It is of our making.
    pub ours: bool,
}

fn fact<T>(result: Result<T>) -> Fact<T> {
    result.map_err(|error| Chain(&error).to_string())
}

/// Gathers all of it. What cannot be had is said in its place.
#[must_use]
pub fn report(place: &Place, commands: &Commands) -> Report {
    let mut complaints = Vec::new();
    let (groups, lvm) = match place {
        Place::Disk(_) | Place::Model(_) => (None, None),
        Place::Lvm(group) => {
            let groups = fact(groups(group, commands, &mut complaints));
            (Some(groups), Some(fact(lvm_facts(group, commands, &mut complaints))))
        }
    };
    let mapper = place.mapper();
    let below = mapper.as_ref().map_err(Clone::clone).and_then(|mapper| {
        let found = place::find(place, mapper, commands, Start::Nothing)?;
        Ok((mapper, found))
    });
    let records = below.as_ref().map_err(Clone::clone).and_then(|(_, found)| {
        let header = found.header()?;
        let (entries, damaged) = Slots::open(found.records.store()?, false)?.all()?;
        Ok((facts_of(header.id, &entries, damaged.len()), entries))
    });
    let kernel = below.as_ref().map_err(Clone::clone).and_then(|(mapper, found)| {
        let entries = records.as_ref().map(|(_, entries)| entries.as_slice()).unwrap_or_default();
        kernel(mapper, found, entries)
    });
    let strangers = below.as_ref().map_err(Clone::clone).and_then(|(mapper, found)| {
        strangers(mapper, found.below()?, || Ok(Slots::open(found.records.store()?, false)?.all()?.0))
    });
    Report {
        thin_target: Path::new("/sys/module/dm_thin_pool").exists(),
        groups,
        lvm,
        complaints,
        suspended: mapper.as_ref().map(suspended).unwrap_or_default(),
        kernel: fact(kernel),
        records: fact(records.map(|(facts, _)| facts)),
        strangers: fact(strangers),
        mapper: fact(mapper.map(drop)),
    }
}

fn facts_of(id: PoolId, entries: &[Entry], damaged: usize) -> RecordFacts {
    let sizes = entries.iter().filter_map(|entry| match &entry.object {
        Object::Volume(volume) => Some(volume.size),
        _ => None,
    });
    RecordFacts { id, damaged, promised: sizes.fold(Bytes::ZERO, Bytes::plus) }
}

/// Thin devices with numbers of ours that no record knows. Looked for twice: what comes or goes meanwhile is none.
pub(super) fn strangers(
    mapper: &Mapper,
    pool: &str,
    records: impl Fn() -> Result<Vec<Entry>>,
) -> Result<Vec<ThinDevice>> {
    let look = || -> Result<Vec<ThinDevice>> {
        let mut found = metadata::devices(mapper, pool)?;
        let known = records()?;
        found.retain(|device| device.number != FIRST && !known.iter().any(|it| it.thin == device.number));
        Ok(found)
    };
    let first = look()?;
    if first.is_empty() {
        return Ok(first);
    }
    let second = look()?;
    Ok(second.into_iter().filter(|device| first.iter().any(|it| it.number == device.number)).collect())
}

fn kernel(mapper: &Mapper, found: &Found, entries: &[Entry]) -> Result<KernelFacts> {
    let pool = found.below()?;
    let status = Status::read(mapper, pool)?;
    Ok(KernelFacts {
        trouble: status.health.check().err().map(|error| error.to_string()),
        full: status.health.mode == Mode::Full,
        transaction: status.transaction,
        data: (status.data.used, status.data.total),
        metadata: (status.metadata.used, status.metadata.total),
        chunk: status.chunk,
        whole: care::worst([status.data.total].into_iter(), status.data.total, status.chunk),
        worst: {
            let lengths = entries.iter().map(|entry| care::length_of(&entry.object));
            care::worst(lengths.chain(found.foreign.lengths.iter().copied()), status.data.total, status.chunk)
        },
    })
}

/// Devices that stand still, now and a moment later. Those of somebody else's are none of ours to name.
fn suspended(mapper: &Mapper) -> Vec<Suspended> {
    let look = || -> Vec<Suspended> {
        let named = mapper.list().unwrap_or_default();
        let infos = named.iter().filter_map(|(name, _)| mapper.info(name).ok().flatten());
        let still = infos.filter(|info| info.suspended && info.active);
        let known = still.filter(|info| info.uuid.starts_with(OURS) || info.uuid.starts_with("LVM-"));
        known.map(|info| Suspended { ours: info.uuid.starts_with(OURS), name: info.name }).collect()
    };
    let first = look();
    if first.is_empty() {
        return first;
    }
    std::thread::sleep(BETWEEN_LOOKS);
    look().into_iter().filter(|device| first.contains(device)).collect()
}

type Row = Map<String, Value>;

fn text<'r>(row: &'r Row, field: &str) -> &'r str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn number(row: &Row, field: &str) -> u64 {
    text(row, field).parse().unwrap_or_default()
}

/// The rows of a report, and what LVM complained of.
fn rows(output: &str, kind: &str, complaints: &mut Vec<String>) -> Result<Vec<Row>> {
    let (json, said) = lvm::apart(output);
    for line in said {
        if !complaints.iter().any(|known| known == line) {
            complaints.push(line.to_owned());
        }
    }
    let mut stream = serde_json::Deserializer::from_str(&json).into_iter::<Value>();
    let value = stream
        .next()
        .unwrap_or(Ok(Value::Null))
        .map_err(|error| Error::new(ErrorKind::Unavailable, "read a report of LVM").because(error))?;
    // A report that lists nothing says so: one that is missing says nothing.
    let missing = || Error::new(ErrorKind::Unavailable, format!("LVM has printed no report of any {kind}"));
    let reports = value.get("report").and_then(Value::as_array).ok_or_else(missing)?;
    let lists: Vec<_> = reports.iter().filter_map(|report| report.get(kind)?.as_array()).collect();
    if lists.is_empty() {
        return Err(missing());
    }
    Ok(lists.into_iter().flatten().filter_map(Value::as_object).cloned().collect())
}

fn groups(place: &VolumeGroup, commands: &Commands, complaints: &mut Vec<String>) -> Result<usize> {
    let arguments = ["vgs", "--reportformat", "json", "-o", "vg_name,vg_uuid"];
    let output = lvm::run(commands, AfterDeadline::Kill, &arguments)?;
    let all = rows(&output, "vg", complaints)?;
    Ok(all.iter().filter(|row| text(row, "vg_name") == place.vg).count())
}

fn lvm_facts(place: &VolumeGroup, commands: &Commands, complaints: &mut Vec<String>) -> Result<LvmFacts> {
    let fields = "lv_name,zero,vg_free,transaction_id,seg_monitor,pool_lv,lv_size";
    // Whether the pool is watched is only told by an LVM that may watch.
    let watches = Path::new(MONITOR).exists();
    let fields = if watches { fields.to_owned() } else { fields.replace("seg_monitor,", "") };
    let options =
        ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", &fields, "--", &place.vg];
    let finished = commands.run(Tool::Lvm, &options, PATIENCE, AfterDeadline::Kill)?;
    if !finished.status.success() {
        let what = format!("lvm lvs: {}", finished.output.trim());
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let all = rows(&finished.output, "lv", complaints)?;
    let pool = all.iter().find(|row| text(row, "lv_name") == place.thin_pool).ok_or_else(|| {
        let what = format!("volume group {} has no {}", place.vg, place.thin_pool);
        Error::new(ErrorKind::Unavailable, what)
    })?;
    let inside = all.iter().filter(|row| text(row, "pool_lv") == place.thin_pool);
    Ok(LvmFacts {
        zeroing: matches!(text(pool, "zero"), "zero" | "1"),
        free: Bytes::new(number(pool, "vg_free")),
        transaction: number(pool, "transaction_id"),
        monitored: text(pool, "seg_monitor") == "monitored",
        threshold: threshold(commands)?,
        promised: inside.fold(Bytes::ZERO, |sum, row| sum.plus(Bytes::new(number(row, "lv_size")))),
    })
}

/// A thin volume of LVM in the same thin pool, by its name: its number there and its length.
///
/// # Errors
/// `Invalid` where it is none; `NotFound` where there is no volume of the name; those of LVM.
pub(super) fn thin_volume(place: &VolumeGroup, commands: &Commands, name: &str) -> Result<(u32, Bytes)> {
    let (vg, plain) = name.split_once('/').unwrap_or((&place.vg, name));
    let wrong = |kind, reason: &str| Err(Error::new(kind, format!("import {name}: {reason}")));
    let elsewhere = "it is no thin volume of this pool: import it as a device";
    if vg != place.vg {
        return wrong(ErrorKind::Invalid, elsewhere);
    }
    let fields = "lv_name,pool_lv,thin_id,lv_size,origin";
    let options = ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, "--", vg];
    let all = rows(&lvm::run(commands, AfterDeadline::Kill, &options)?, "lv", &mut Vec::new())?;
    let find = |name: &str| all.iter().find(|row| text(row, "lv_name") == name);
    let Some(row) = find(plain) else {
        return wrong(ErrorKind::NotFound, "there is no volume of this name");
    };
    // Blocks that a thin volume never wrote may be those of a volume outside the pool, which a snapshot would not have.
    let mut origin = text(row, "origin");
    for _generation in 0..all.len() {
        let Some(older) = find(origin) else { break };
        if text(older, "pool_lv") != place.thin_pool {
            return wrong(ErrorKind::Invalid, "part of it is outside the pool: import it as a device");
        }
        origin = text(older, "origin");
    }
    match u32::try_from(number(row, "thin_id")) {
        Ok(thin @ 1..) if text(row, "pool_lv") == place.thin_pool => {
            Ok((thin, Bytes::new(number(row, "lv_size"))))
        }
        _ => wrong(ErrorKind::Invalid, elsewhere),
    }
}

/// From which per cent on LVM's monitor extends a pool.
fn threshold(commands: &Commands) -> Result<u32> {
    let name = "activation/thin_pool_autoextend_threshold";
    let output = lvm::run(commands, AfterDeadline::Kill, &["lvmconfig", "--type", "full", name])?;
    let value = output.lines().find_map(|line| line.trim().split_once("thin_pool_autoextend_threshold="));
    Ok(value.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_lvm_with_what_it_complains_of() {
        let output = "  WARNING: PV x was already found on /dev/a.\n  {\"report\": [{\"vg\": [\n\
                      {\"vg_name\":\"a\",\"vg_uuid\":\"1\"}, {\"vg_name\":\"a\",\"vg_uuid\":\"2\"}]}],\"log\": []}\n";
        let mut complaints = Vec::new();
        let found = rows(output, "vg", &mut complaints).unwrap();
        assert_eq!(found.iter().map(|row| number(row, "vg_uuid")).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(complaints, ["WARNING: PV x was already found on /dev/a."]);
        assert!(rows("{\"report\":[{\"vg\":[]}]}", "vg", &mut complaints).unwrap().is_empty());
        for nothing in ["", "  WARNING: nothing\n", "{}", "{\"report\":[{\"lv\":[]}]}"] {
            assert!(rows(nothing, "vg", &mut complaints).is_err(), "{nothing:?}");
        }
        assert!(rows("{\"report\": [", "vg", &mut complaints).is_err());
    }

    #[test]
    fn hostile_input() {
        let sample =
            b"{\"report\": [{\"lv\": [{\"lv_name\":\"pool\",\"vg_free\":\"4096\",\"lv_size\":\"8\"}]}]}";
        crate::hostile::feed("lvm-rows", &[sample], |input| {
            let mut complaints = Vec::new();
            if let Ok(rows) = rows(&String::from_utf8_lossy(input), "lv", &mut complaints) {
                for row in &rows {
                    std::hint::black_box((text(row, "lv_name").len(), number(row, "vg_free")));
                }
            }
        });
    }
}
