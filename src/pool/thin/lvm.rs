//! Where a thin pool of LVM is, and how one is prepared and extended. LVM runs here and nowhere else: a report at the start
//! and every few minutes, extensions by policy, and what a person asks for. Never for a volume.

use std::{
    fmt,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    below,
    header::Header,
    place::{Device, Foreign, Found, Start, open_mapper},
    slots::{self, Slots},
    tenants,
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    id::PoolId,
    pool::fill::Part,
    sys::{
        cmd::{AfterDeadline, Commands, Tool},
        dm::{Info, Mapper},
    },
};

/// How long a command of LVM may take before its caller stops waiting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Length of the device of records: room for 8,000 volumes and snapshots.
const RECORDS: &str = "64m";
/// How long a person or the guardian waits for the pool to be extended; the command goes on in any case.
const LONG_PATIENCE: Duration = Duration::from_secs(600);
/// Nobody to wait for (udev may not be there, and nodes are ours), nothing to write beside the volume group.
const CONFIG: &str = "backup{backup=0 archive=0} activation{monitoring=0 udev_sync=0 udev_rules=0 \
                      verify_udev_operations=1}";

/// A thin pool in a volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeGroup {
    /// The volume group.
    pub vg: String,
    /// The thin pool in it.
    pub thin_pool: String,
}

impl fmt::Display for VolumeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vg, self.thin_pool)
    }
}

/// A line of `lvs`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Line {
    vg_uuid: String,
    lv_uuid: String,
    lv_name: String,
    lv_attr: String,
    segtype: String,
    zero: String,
    /// In bytes.
    lv_size: String,
    /// The pool that it lies in.
    pool_lv: String,
    /// Of a thin pool: how often LVM has made or removed a thin volume.
    transaction_id: String,
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
    pub(super) fn uuid(&self, layer: &str) -> String {
        let plain = |uuid: &str| uuid.replace('-', "");
        format!("LVM-{}{}{layer}", plain(&self.vg_uuid), plain(&self.lv_uuid))
    }
}

fn records_of(place: &VolumeGroup) -> String {
    format!("{}_lagan", place.thin_pool)
}

fn anchor_of(place: &VolumeGroup) -> String {
    format!("{}_anchor", place.thin_pool)
}

pub(super) fn run(commands: &Commands, after: AfterDeadline, arguments: &[&str]) -> Result<String> {
    let (command, rest) = arguments.split_first().unwrap_or((&"version", &[]));
    let config = CONFIG.to_owned() + &hide_tenants(commands)?;
    let arguments = [&[*command, "--config", &config], rest].concat();
    let patience = if after == AfterDeadline::Kill { PATIENCE } else { LONG_PATIENCE };
    let finished = commands.run(Tool::Lvm, &arguments, patience, after)?;
    if finished.status.success() {
        return Ok(finished.output);
    }
    let what = format!("lvm {command}: {}", finished.output.trim());
    Err(Error::new(ErrorKind::Unavailable, what))
}

/// The setting that keeps LVM from reading what tenants have written.
fn hide_tenants(commands: &Commands) -> Result<String> {
    let devices = tenants::devices()?;
    if devices.is_empty() {
        return Ok(String::new());
    }
    let asked = ["lvmconfig", tenants::SETTING];
    let own = commands.run(Tool::Lvm, &asked, PATIENCE, AfterDeadline::Kill)?;
    Ok(tenants::hiding(&devices, if own.status.success() { &own.output } else { "" }))
}

/// The lines of a report, and those that LVM complains by, before it and amid it.
pub(super) fn apart(output: &str) -> (String, Vec<&str>) {
    let of_report = |line: &&str| line.starts_with(['{', '}', '[', ']', '"', ',']);
    let lines = output.lines().map(str::trim).filter(|line| !line.is_empty());
    let (report, complaints): (Vec<_>, Vec<_>) = lines.partition(of_report);
    (report.join("\n"), complaints)
}

/// Every logical volume of the group, hidden ones too.
fn report(place: &VolumeGroup, commands: &Commands) -> Result<Vec<Line>> {
    let fields = "vg_uuid,lv_uuid,lv_name,lv_attr,segtype,zero,lv_size,pool_lv,transaction_id";
    let arguments =
        ["lvs", "-a", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, "--", &place.vg];
    lines_of(&run(commands, AfterDeadline::Kill, &arguments)?)
}

fn lines_of(output: &str) -> Result<Vec<Line>> {
    let (json, _complaints) = apart(output);
    let unread = || Error::new(ErrorKind::Unavailable, "read the report of lvs");
    let parsed: Report = serde_json::Deserializer::from_str(&json)
        .into_iter()
        .next()
        .ok_or_else(unread)?
        .map_err(|error| unread().because(error))?;
    Ok(parsed.report.into_iter().flat_map(|lines| lines.lv).collect())
}

/// Whether a logical volume is the pool, a part of it, or one of ours beside it.
fn belongs(place: &VolumeGroup, line: &Line) -> bool {
    let (name, pool) = (line.lv_name.trim_matches(['[', ']']), &place.thin_pool);
    let part_of = |whole: &str| name.strip_prefix(whole).is_some_and(|rest| rest.starts_with('_'));
    let parts = [format!("{pool}_tdata"), format!("{pool}_tmeta"), records_of(place), anchor_of(place)];
    name == pool || parts.iter().any(|part| name == part || part_of(part))
}

/// Has LVM load what it has agreed upon into the devices of the pool.
pub(super) fn refresh(place: &VolumeGroup, commands: &Commands) -> Result<()> {
    let pool = place.to_string();
    run(commands, AfterDeadline::LeaveRunning, &["lvchange", "--refresh", "--", &pool]).map(drop)
}

fn line_of<'l>(lines: &'l [Line], name: &str) -> Option<&'l Line> {
    lines.iter().find(|line| line.lv_name == name)
}

fn foreign_in(place: &VolumeGroup, lines: &[Line]) -> Foreign {
    let tenants = lines.iter().filter(|line| line.pool_lv == place.thin_pool);
    Foreign {
        lengths: tenants.map(|line| Bytes::new(line.lv_size.parse().unwrap_or_default())).collect(),
        as_of: line_of(lines, &place.thin_pool).and_then(|pool| pool.transaction_id.parse().ok()),
        asked: Some(Instant::now()),
    }
}

/// LVM's thin volumes in the pool.
pub(super) fn foreign(place: &VolumeGroup, commands: &Commands) -> Result<Foreign> {
    Ok(foreign_in(place, &report(place, commands)?))
}

/// Finds a pool's devices, and activates them as far as it is wanted.
///
/// # Errors
/// `Unavailable` where the group, the pool or its records are not there.
pub(super) fn find(
    place: &VolumeGroup,
    mapper: &Mapper,
    commands: &Commands,
    start: Start<'_>,
) -> Result<Found> {
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
    let look = |line: &Line, layers: &[&str]| -> Result<Option<Info>> {
        let mut found = layers.iter().map(|layer| mapper.find(&line.uuid(layer)));
        let found = found.find_map(|info| info.transpose()).transpose();
        found.doing(|| format!("look for the device of {}", line.lv_name))
    };
    let activate = |name: &str| {
        let full = format!("{}/{name}", place.vg);
        run(commands, AfterDeadline::LeaveRunning, &["lvchange", "-ay", "-K", "--", &full])
    };
    let mut records = look(record, &[""])?;
    if records.is_none() && !matches!(start, Start::Nothing) {
        activate(&records_of(place))?;
        records = look(record, &[""])?;
    }
    let inactive = || {
        let what = format!("{}/{} is not active", place.vg, records_of(place));
        Error::new(ErrorKind::Unavailable, what)
    };
    let records = records.ok_or_else(inactive)?;
    let records = Device {
        mapper: mapper.clone(),
        name: records.name,
        number: records.number,
        what: format!("the records of {place}"),
    };
    if let Start::Pool(_) = start
        && let Some(header) = Header::read(&records.open()?, Bytes::ZERO)?
    {
        start.check(&header)?;
    }
    // With an LV in it the pool is a layer of its own; its anchor makes it one.
    let layers = ["-tpool", ""];
    let mut below = look(pool, &layers)?;
    let mut why = String::new();
    if below.is_none() && start.runs_pool() {
        why = activate(&anchor).err().map(|error| format!(": {error}")).unwrap_or_default();
        below = look(pool, &layers)?;
    }
    let stopped = || {
        format!(
            "{place} does not run{why}; lvchange -ay {place} starts it, lvconvert --repair {place} repairs its metadata"
        )
    };
    let anchor = match line_of(&lines, &anchor) {
        Some(anchor) => look(anchor, &[""])?.map(|info| info.number),
        None => None,
    };
    Ok(Found {
        foreign: foreign_in(place, &lines),
        beside: [Some(records.number), anchor].into_iter().flatten().collect(),
        parts: lines.iter().filter(|line| belongs(place, line)).cloned().collect(),
        below: below.map(|info| (info.name, info.number)).ok_or_else(stopped),
        records,
    })
}

/// Makes a pool of a thin pool that LVM has made: a device of records with the redundancy of the pool, an anchor, a tag.
///
/// # Errors
/// `Mismatch` where there is one already; `Invalid` where the thin pool does not do; those of LVM.
pub(super) fn init(place: &VolumeGroup, machine: &str, commands: &Commands) -> Result<PoolId> {
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
    let change = |arguments: &[&str]| run(commands, AfterDeadline::LeaveRunning, arguments);
    let mapper = open_mapper()?;
    if line_of(&lines, &records).is_none() {
        make_records(place, &lines, &mapper, commands)?;
    } else if find(place, &mapper, commands, Start::Records)?.header().is_ok() {
        return Err(Error::new(ErrorKind::Mismatch, format!("{}: there is one already", what())));
    }
    let full = format!("{}/{}", place.vg, place.thin_pool);
    if line_of(&lines, &anchor).is_none() {
        change(&["lvcreate", "-y", "-n", &anchor, "-V", "4m", "--thinpool", &full])?;
    }
    change(&["lvchange", "--addtag", "lagan", "--", &full])?;
    let found = find(place, &mapper, commands, Start::New)?;
    let (below, _) = found.below.map_err(|why| Error::new(ErrorKind::Unavailable, why))?;
    let header = Header::new(machine, None);
    if below::create(&mapper, &below, below::FIRST)? == below::Made::Taken {
        let what = format!(
            "{}: it holds thin devices of an earlier pool whose records are gone; nothing was changed in them",
            what()
        );
        return Err(Error::new(ErrorKind::InUse, what));
    }
    below::committed(&mapper, &below)?;
    Slots::format(&found.records.open()?, &header)?;
    Ok(header.id)
}

/// Makes the device of records, with the redundancy of the pool, and without a header: what lies there may be the records
/// of a pool that is no more.
fn make_records(place: &VolumeGroup, lines: &[Line], mapper: &Mapper, commands: &Commands) -> Result<()> {
    let data = line_of(lines, &format!("[{}_tdata]", place.thin_pool));
    let mirrored = data.is_some_and(|data| data.segtype.starts_with("raid"));
    let redundancy: &[&str] = if mirrored { &["--type", "raid1", "-m", "1"] } else { &[] };
    let make = ["lvcreate", "-y", "-Wy", "-Zy", "-n", &records_of(place), "-L", RECORDS];
    let arguments = [&make, redundancy, &["--", &place.vg]].concat();
    run(commands, AfterDeadline::LeaveRunning, &arguments)?;
    let made = find(place, mapper, commands, Start::Records)?.records.open()?;
    let blanked = made.write_all_at(&[0; 2 * slots::BLOCK], 0).and_then(|()| made.sync_data());
    blanked.doing(|| "blank the header of new records")
}

/// Makes the device of records of a pool that has lost it; `false` where it is there.
pub(super) fn ensure_records(place: &VolumeGroup, mapper: &Mapper, commands: &Commands) -> Result<bool> {
    let lines = report(place, commands)?;
    if line_of(&lines, &place.thin_pool).is_none() {
        let what = format!("volume group {} has no {}", place.vg, place.thin_pool);
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    let missing = line_of(&lines, &records_of(place)).is_none();
    if missing {
        make_records(place, &lines, mapper, commands)?;
    }
    Ok(missing)
}

/// What of a pool is made longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Longer {
    /// Its data, or its metadata, by so much.
    By(Part, Bytes),
    /// To this length, or to what there is: asked twice it is done once.
    To(Part, Bytes),
}

/// Makes the data or the metadata of a pool longer, from what the volume group has free. The pool may be in use. Nothing
/// kills the command: it would leave the pool standing still.
///
/// # Errors
/// What LVM says against it.
pub(super) fn extend(place: &VolumeGroup, longer: Longer, commands: &Commands) -> Result<()> {
    let (Longer::By(part, _) | Longer::To(part, _)) = longer;
    let option = if part == Part::Metadata { "--poolmetadatasize" } else { "--size" };
    let pool = place.to_string();
    let extend = |option: &str, size: &str| {
        run(commands, AfterDeadline::LeaveRunning, &["lvextend", option, size, "--", &pool]).map(drop)
    };
    match longer {
        Longer::By(_, by) => extend(option, &format!("+{}b", by.get())),
        Longer::To(_, length) => extend(option, &format!("{}b", length.get())).or_else(|error| {
            // Less than was wanted is better than nothing.
            if part == Part::Data {
                extend("--extents", "+100%FREE").map_err(|_none| error)
            } else {
                Err(error)
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_amid_a_report() {
        let output = "  WARNING: first\n  {\n      \"report\": [\n  WARNING: second\n      ]\n  }\n";
        let (report, complaints) = apart(output);
        assert_eq!(report, "{\n\"report\": [\n]\n}");
        assert_eq!(complaints, ["WARNING: first", "WARNING: second"]);
    }

    /// What LVM says of a small group, with a warning amid it.
    const REPORT: &str = r#"  {
      "report": [
          {
  WARNING: Device mismatch detected for vg/other.
              "lv": [
                  {"vg_uuid":"a-b", "lv_uuid":"c-d", "lv_name":"pool", "lv_attr":"twi-aotz--", "segtype":"thin-pool", "zero":"zero", "lv_size":"1073741824", "pool_lv":"", "transaction_id":"3"},
                  {"vg_uuid":"a-b", "lv_uuid":"e-f", "lv_name":"theirs", "lv_attr":"Vwi-a-tz--", "segtype":"thin", "zero":"", "lv_size":"4194304", "pool_lv":"pool", "transaction_id":""}
              ]
          }
      ]
  }"#;

    #[test]
    fn no_report_is_no_empty_group() {
        assert_eq!(lines_of(REPORT).unwrap().len(), 2);
        for nothing in ["", "  WARNING: nothing\n", "{", "{}", "null", "{\"report\":[{}]}"] {
            assert!(lines_of(nothing).is_err(), "{nothing:?}");
        }
        for cut in 0..REPORT.rfind(']').unwrap() {
            assert!(lines_of(&REPORT[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn hostile_input() {
        let place = VolumeGroup { vg: "vg".into(), thin_pool: "pool".into() };
        crate::hostile::feed("lvm", &[REPORT.as_bytes()], |input| {
            if let Ok(lines) = lines_of(&String::from_utf8_lossy(input)) {
                assert!(foreign_in(&place, &lines).lengths.len() <= lines.len());
                for line in &lines {
                    assert!(line.uuid("-tpool").starts_with("LVM-"));
                    std::hint::black_box(belongs(&place, line));
                }
            }
        });
    }
}
