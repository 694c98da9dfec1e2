//! A pool on a disk of our own, without LVM: how a disk is taken, and how its thin pool is started, stopped, extended and
//! repaired. The disk belongs to the pool from end to end; device-mapper cuts it up (`layout`).

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    below::{self, Made},
    devices,
    header::Header,
    layout::{self, LEAST, Layout, RECORDS},
    place::{Device, Foreign, Found, Start, open_mapper},
    slots::Slots,
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::PoolId,
    pool::{Role, Sharing},
    sys::{
        cmd::{AfterDeadline, Commands, Tool},
        device,
        disk::Disk,
        dm::{Info, Line, Mapper, OURS},
        lock::ByteLock,
    },
};

/// How long a look at all of the metadata may take.
const PATIENCE: Duration = Duration::from_secs(3600);
/// The lock of whoever starts the pool or changes what lies where: on the disk itself, while those of roles and volumes are
/// on the device of records.
const STARTING: i64 = 0;

/// What device-mapper makes of the disk, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Records,
    Metadata,
    Spare,
    Data,
    Pool,
}

impl Part {
    const ALL: [Self; 5] = [Self::Records, Self::Metadata, Self::Spare, Self::Data, Self::Pool];

    const fn word(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Metadata => "metadata",
            Self::Spare => "spare",
            Self::Data => "data",
            Self::Pool => "pool",
        }
    }

    fn name(self, id: PoolId) -> String {
        format!("lagan-{}-{id}", self.word())
    }
}

/// A disk with a pool on it, and what lies where.
struct Taken {
    disk: Disk,
    header: Header,
    layout: Layout,
}

impl Taken {
    fn open(path: &Path) -> Result<Self> {
        let disk = Disk::open(path)?;
        let missing = |what: &str| Error::new(ErrorKind::Unavailable, format!("{}: {what}", path.display()));
        let header = Header::read(disk.fresh()?, RECORDS.start)?;
        let header = header.ok_or_else(|| {
            missing("it holds no pool: is it the right disk, and was `lagan pool init --device` run?")
        })?;
        let layout = header.disk.clone().ok_or_else(|| missing("it holds the records of a pool of LVM"))?;
        Ok(Self { disk, header, layout })
    }

    /// Keeps others from starting or changing it meanwhile.
    fn lock(path: &Path) -> Result<ByteLock> {
        let what = || format!("lock {}", path.display());
        for pause in [0, 50, 200, 500, 1000, 2000, 5000] {
            std::thread::sleep(Duration::from_millis(pause));
            let file = File::options().read(true).write(true).open(path).doing(what)?;
            if let Some(lock) = ByteLock::try_take(file, STARTING, Sharing::Alone).doing(what)? {
                return Ok(lock);
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{}: another process is starting or changing the pool", what()),
        ))
    }

    fn table(&self, part: Part) -> Vec<Line> {
        let extents = match part {
            Part::Records => std::slice::from_ref(&RECORDS),
            Part::Metadata => &self.layout.metadata,
            Part::Spare => &self.layout.spare,
            Part::Data | Part::Pool => &self.layout.data,
        };
        layout::linear(self.disk.number, extents)
    }

    /// Makes a part of the disk a device, where it is not one yet.
    fn start(&self, mapper: &Mapper, part: Part) -> Result<Info> {
        let (name, table) = (part.name(self.header.id), self.table(part));
        if let Some(info) = running(mapper, &name)? {
            let there = mapper.table(&name).doing(|| format!("read the table of {name}"))?;
            if there.first().map(|line| &line.text) != table.first().map(|line| &line.text) {
                let what = format!(
                    "pool {} runs from another disk: a copy of it is not served beside it",
                    self.header.id
                );
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            return Ok(info);
        }
        devices::start(mapper, &name, &uuid_of(self.header.id, part), &table, false)
    }

    /// Starts the thin pool, if nothing is wrong with its metadata.
    fn start_pool(&self, mapper: &Mapper, commands: &Commands) -> Result<Info> {
        let name = Part::Pool.name(self.header.id);
        if let Some(info) = running(mapper, &name)? {
            return Ok(info);
        }
        let metadata = self.start(mapper, Part::Metadata)?;
        if let Err(error) = check(&metadata, commands) {
            devices::remove_unused(mapper, &metadata.name)?;
            return Err(error);
        }
        let data = self.start(mapper, Part::Data)?;
        let table = self.layout.pool_table(metadata.number, data.number);
        devices::start(mapper, &name, &uuid_of(self.header.id, Part::Pool), &table, false)
    }

    fn records(&self, mapper: &Mapper, info: Info) -> Device {
        Device {
            mapper: mapper.clone(),
            name: info.name,
            number: info.number,
            what: format!("the records of pool {}", self.header.id),
        }
    }
}

fn uuid_of(id: PoolId, part: Part) -> String {
    format!("{OURS}{id}-{}", part.word())
}

/// A device that runs; one that stands still is let go on, and described as it is then. One that was never started is none:
/// it is made anew.
fn running(mapper: &Mapper, name: &str) -> Result<Option<Info>> {
    let look = || mapper.info(name).doing(|| format!("look for device {name}"));
    let found = look()?.filter(|info| info.active);
    if found.as_ref().is_some_and(|info| info.suspended) {
        // By a process that has died while it extended the pool.
        mapper.resume(name).doing(|| format!("resume {name}"))?;
        return look();
    }
    Ok(found)
}

/// Asks the checker whether a pool may run on this metadata. The kernel asks for a check after a failure, and runs the pool
/// read-only until it is told that there was one.
fn check(metadata: &Info, commands: &Commands) -> Result<()> {
    let node = device::node_of("dm-", metadata.number);
    let arguments = [Path::new("--clear-needs-check-flag"), &node];
    let finished = commands.run(Tool::ThinCheck, &arguments, PATIENCE, AfterDeadline::Kill)?;
    if finished.status.success() {
        return Ok(());
    }
    let what = format!(
        "the metadata of the thin pool is damaged: `lagan pool repair` writes it anew ({})",
        finished.output.trim()
    );
    Err(Error::new(ErrorKind::Unavailable, what))
}

/// The header of the pool on a disk; nothing is changed.
pub(super) fn header(path: &Path) -> Result<Header> {
    Ok(Taken::open(path)?.header)
}

/// Writes a header that is lost: without one nothing says what lies where.
pub(super) fn ensure_header(path: &Path, header: &Header) -> Result<()> {
    let _alone = Taken::lock(path)?;
    let disk = Disk::open_alone(path)?;
    if Header::read(disk.fresh()?, RECORDS.start)?.is_some() {
        return Ok(());
    }
    let Some(layout) = header.disk.clone() else {
        let what = format!("{}: the backup is of a pool of LVM", path.display());
        return Err(Error::new(ErrorKind::Mismatch, what));
    };
    drop(disk);
    let taken = Taken { disk: Disk::open(path)?, header: header.clone(), layout };
    let mapper = open_mapper()?;
    let records = taken.start(&mapper, Part::Records)?;
    header.write(&taken.records(&mapper, records).open()?)
}

/// Finds the pool on a disk, and starts it as far as it is wanted.
pub(super) fn find(path: &Path, mapper: &Mapper, commands: &Commands, start: Start<'_>) -> Result<Found> {
    let found = |taken: &Taken, records: Info, below: Result<Info>| Found {
        records: taken.records(mapper, records),
        below: below.map(|info| (info.name, info.number)).map_err(|error| error.to_string()),
        foreign: Foreign::default(),
        beside: Vec::new(),
        parts: Vec::new(),
    };
    let look = |taken: &Taken, part: Part| -> Result<Info> {
        let name = part.name(taken.header.id);
        let stopped = || Error::new(ErrorKind::Unavailable, format!("{} is not started", path.display()));
        mapper.info(&name).doing(|| format!("look for device {name}"))?.ok_or_else(stopped)
    };
    if let Start::Nothing = start {
        let taken = Taken::open(path)?;
        return Ok(found(&taken, look(&taken, Part::Records)?, look(&taken, Part::Pool)));
    }
    let _alone = Taken::lock(path)?;
    let taken = Taken::open(path)?;
    start.check(&taken.header)?;
    let records = taken.start(mapper, Part::Records)?;
    let below = if start.runs_pool() { taken.start_pool(mapper, commands) } else { look(&taken, Part::Pool) };
    Ok(found(&taken, records, below))
}

/// Makes a pool of a blank disk. One that is not blank is destroyed only where `destroy` names it: by its serial number, or
/// by a uuid that lies on it.
///
/// # Errors
/// `Invalid` where something is on it, saying what; `InUse` where it is mounted or part of something; those of writing.
pub(super) fn init(path: &Path, machine: &str, destroy: Option<&str>, commands: &Commands) -> Result<PoolId> {
    let what = || format!("make a pool of {}", path.display());
    let refuse = |kind, why: String| Err(Error::new(kind, format!("{}: {why}", what())));
    let mapper = open_mapper()?;
    let mut disk = Disk::open_alone(path)?;
    let Some(layout) = Layout::new(disk.size) else {
        return refuse(ErrorKind::Invalid, format!("it has {}, and {LEAST} are needed", disk.size));
    };
    if let Some(content) = disk.content(commands)? {
        let names = disk.identities(commands)?;
        match destroy {
            None => {
                let how = match names.first() {
                    Some(name) => format!("to destroy that for good, add --destroy {name:?}"),
                    None => "wipe it first: it has no serial number by which it could be named".into(),
                };
                return refuse(ErrorKind::Invalid, format!("it is not blank ({content}); {how}"));
            }
            Some(name) if !names.iter().any(|known| known == name) => {
                let why = format!("{name:?} is not the name of this disk, which is {names:?}");
                return refuse(ErrorKind::Invalid, why);
            }
            Some(_) => {}
        }
    }
    let header = Header::new(machine, Some(layout.clone()));
    let id = header.id;
    disk.wipe()?;
    disk.take(id.uuid())?;
    // Device-mapper wants it for itself.
    drop(disk);
    let taken = Taken { disk: Disk::open(path)?, header, layout };
    let made = fill(&taken, &mapper).map_err(|error| error.within(what()));
    if made.is_err() {
        // Nobody could find them without a header.
        Part::ALL
            .iter()
            .rev()
            .for_each(|part| devices::remove_unused(&mapper, &part.name(id)).unwrap_or_default());
    }
    made.map(|()| id)
}

/// Puts an empty thin pool and empty records on a disk that was taken; the header comes last.
fn fill(taken: &Taken, mapper: &Mapper) -> Result<()> {
    let id = taken.header.id;
    let records = taken.start(mapper, Part::Records)?;
    let metadata = taken.start(mapper, Part::Metadata)?;
    // The kernel makes new metadata where the first block is blank.
    let blank = mapper.open(&metadata).and_then(|device| {
        device.write_all_at(&[0; 4096], 0)?;
        device.sync_data()
    });
    blank.doing(|| "blank the metadata")?;
    let data = taken.start(mapper, Part::Data)?;
    let table = taken.layout.pool_table(metadata.number, data.number);
    let pool = devices::start(mapper, &Part::Pool.name(id), &uuid_of(id, Part::Pool), &table, false)?;
    if below::create(mapper, &pool.name, below::FIRST)? == Made::Taken {
        return Err(Error::new(ErrorKind::Broken, "the new thin pool is not empty"));
    }
    below::committed(mapper, &pool.name)?;
    Slots::format(&taken.records(mapper, records).open()?, &taken.header)
}

/// Removes the devices of a pool that nobody uses.
pub(super) fn stop(mapper: &Mapper, id: PoolId) -> Result<()> {
    Part::ALL.into_iter().rev().try_for_each(|part| devices::remove_unused(mapper, &part.name(id)))
}

/// Takes in what the disk has become longer by; the pool may be in use. `false` where that is nothing.
///
/// # Errors
/// `Busy` while it is started or changed by somebody else; those of device-mapper.
pub(super) fn extend(path: &Path, machine: &str, commands: &Commands) -> Result<bool> {
    let what = || format!("extend the pool on {}", path.display());
    let mapper = open_mapper()?;
    let records = find(path, &mapper, commands, Start::Pool(machine))?.records;
    let _alone = Taken::lock(path)?;
    let mut taken = Taken::open(path)?;
    if taken.layout.extend(taken.disk.size) {
        Disk::open_beside(path)?.take(taken.header.id.uuid())?;
        taken.header.with_disk(taken.layout.clone()).replace(&records.open()?)?;
    }
    let find = |part: Part| running(&mapper, &part.name(taken.header.id));
    let (Some(metadata), Some(data), Some(pool)) =
        (find(Part::Metadata)?, find(Part::Data)?, find(Part::Pool)?)
    else {
        return Err(Error::new(ErrorKind::Unavailable, format!("{}: its thin pool does not run", what())));
    };
    // What is below grows first; the pool takes it in when it goes on. An earlier try may have come half-way.
    let tables = [
        (metadata.name, taken.table(Part::Metadata)),
        (data.name, taken.table(Part::Data)),
        (pool.name, taken.layout.pool_table(metadata.number, data.number)),
    ];
    let mut longer = false;
    for (name, table) in tables {
        let change = || format!("extend device {name}");
        let length = |table: &[Line]| table.iter().map(|line| line.length).sum::<u64>();
        if length(&mapper.table(&name).doing(change)?) < length(&table) || longer {
            mapper.load(&name, &table, false).and_then(|()| mapper.exchange(&name)).doing(change)?;
            longer = true;
        }
    }
    Ok(longer)
}

/// Writes the metadata of a pool that does not start anew, as far as it can be read, into the spare room; what was
/// there before stays there, as the new spare.
///
/// # Errors
/// `Mismatch` where nothing is wrong with it; `InUse` where the pool runs; what the tools say.
pub fn repair(path: &Path, machine: &str, commands: &Commands) -> Result<()> {
    let mapper = open_mapper()?;
    let _alone = Taken::lock(path)?;
    let taken = Taken::open(path)?;
    Start::Pool(machine).check(&taken.header)?;
    let (id, what) = (taken.header.id, || format!("repair the pool on {}", path.display()));
    if running(&mapper, &Part::Pool.name(id))?.is_some() {
        let what = format!("{}: it runs; stop the driver, then `lagan pool stop`", what());
        return Err(Error::new(ErrorKind::InUse, what));
    }
    let records = taken.start(&mapper, Part::Records)?;
    let records = taken.records(&mapper, records);
    let locks = records.lock(Role::Both)?;
    let [metadata, spare] = [taken.start(&mapper, Part::Metadata)?, taken.start(&mapper, Part::Spare)?];
    let repaired = if check(&metadata, commands).is_ok() {
        Err(Error::new(ErrorKind::Mismatch, format!("{}: nothing is wrong with its metadata", what())))
    } else {
        rewrite(&metadata, &spare, commands).and_then(|()| {
            let Layout { metadata: spare, spare: metadata, .. } = taken.layout.clone();
            let layout = Layout { metadata, spare, ..taken.layout.clone() };
            taken.header.with_disk(layout).replace(&records.open()?)
        })
    };
    drop(locks);
    let removed = [Part::Metadata, Part::Spare, Part::Records]
        .map(|part| devices::remove_unused(&mapper, &part.name(id)));
    repaired.and(removed.into_iter().collect())
}

fn rewrite(from: &Info, to: &Info, commands: &Commands) -> Result<()> {
    let node = |info: &Info| device::node_of("dm-", info.number);
    let arguments: [PathBuf; 4] = ["-i".into(), node(from), "-o".into(), node(to)];
    commands.succeed(Tool::ThinRepair, &arguments, PATIENCE)?;
    check(to, commands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        sys::dm::{Door, Suspend, fake::FakeMapper},
    };

    #[test]
    fn what_stood_still_is_described_as_it_goes_on() {
        let model = FakeMapper::new(&std::env::temp_dir(), Bytes::gib(1)).unwrap();
        model.make_records("records").unwrap();
        model.suspend("records", Suspend::Brief).unwrap();
        let mapper = Mapper::from(model);
        let info = running(&mapper, "records").unwrap().unwrap();
        assert!(!info.suspended && mapper.open(&info).is_ok());
        assert_eq!(running(&mapper, "nothing").unwrap(), None);
    }
}
