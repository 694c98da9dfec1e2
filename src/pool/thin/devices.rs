//! Devices of thin volumes: made when a volume is staged, gone when nobody uses them. Each carries a uuid of ours, which
//! says of which pool and object it is and what it was made for, so that nothing has to be remembered.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use uuid::Uuid;

use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::BLOCK,
    id::PoolId,
    pool::{Attach, Attached, Detached, Held},
    sys::{
        device::{Device, DeviceNumber},
        dm::{Info, Line, Mapper, OURS, SECTOR},
    },
};

/// For a moment, by ourselves.
const WORK: &str = "work";

/// How long LVM may let the pool stand still.
const POOL_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may run in between before it is asked to stand still once more.
const BETWEEN_STOPS: Duration = Duration::from_secs(2);

/// What the names of devices of ours begin with.
const NAMED: &str = "lagan-";

/// Whether a device is of ours, whatever the pool.
pub(super) fn is_ours(mapper: &Mapper, name: &str) -> io::Result<bool> {
    Ok(name.starts_with(NAMED) && mapper.info(name)?.is_some_and(|info| info.uuid.starts_with(OURS)))
}

/// The device that keeps the pool from being removed.
pub(super) fn keeper_of(pool: PoolId) -> String {
    format!("lagan-keeper-{pool}")
}

/// The devices of one pool.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) mapper: Mapper,
    pub(super) pool: PoolId,
    /// The thin pool, by name and number, or why it does not run.
    below: std::result::Result<(String, DeviceNumber), String>,
}

/// A thin device that we use for a moment; gone with this value.
pub(super) struct Work<'d> {
    devices: &'d Devices,
    name: String,
    pub(super) file: Option<File>,
}

impl Work<'_> {
    pub(super) fn file(&self) -> Result<&File> {
        self.file.as_ref().ok_or_else(|| Error::new(ErrorKind::Broken, "the device is closed"))
    }

    /// The device as a mount wants it.
    pub(super) fn device(&self, size: Bytes) -> Result<Device> {
        Ok(self.devices.describe(&self.info()?, size))
    }

    fn info(&self) -> Result<Info> {
        let what = || format!("look at device {}", self.name);
        let info = self.devices.mapper.info(&self.name).doing(what)?;
        info.ok_or_else(|| Error::new(ErrorKind::Broken, what()))
    }

    /// Waits until nobody but us has it open: the kernel lets go of a filesystem in its own time.
    pub(super) fn wait_until_free(&self) -> Result<()> {
        for pause in [0, 2, 5, 10, 20, 50, 100, 200, 500, 1000] {
            std::thread::sleep(Duration::from_millis(pause));
            if self.info()?.open_count <= 1 {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Unsettled, format!("device {} is not released", self.name)))
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.file = None;
        // What cannot be removed now, because udev looks at it, goes when that is done.
        if !matches!(self.devices.mapper.remove(&self.name), Ok(true)) {
            self.devices.mapper.remove_when_closed(&self.name).unwrap_or_default();
        }
    }
}

/// The faces of an object: read and written, and only read.
fn names(object: Uuid) -> [String; 2] {
    let plain = format!("lagan-{}", object.simple());
    [plain.clone(), format!("{plain}-ro")]
}

/// What a device of a moment is called: two processes, or two threads of one, may look at an object at a time.
fn work_label() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{WORK}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn is_work(label: &str) -> bool {
    label.starts_with(&format!("{WORK}-"))
}

impl Devices {
    pub(super) fn new(
        mapper: Mapper,
        pool: PoolId,
        below: std::result::Result<(String, DeviceNumber), String>,
    ) -> Self {
        Self { mapper, pool, below }
    }

    /// The thin pool, by name and number.
    pub(super) fn below(&self) -> Result<(&str, DeviceNumber)> {
        match &self.below {
            Ok((name, number)) => Ok((name, *number)),
            Err(why) => Err(Error::new(ErrorKind::Unavailable, why)),
        }
    }

    /// The uuid of a device of an object, up to what it is for.
    fn prefix(&self, object: Uuid) -> String {
        format!("{OURS}{}-{}-", self.pool, object.simple())
    }

    fn table(&self, thin: u32, size: Bytes) -> Result<Vec<Line>> {
        let text = format!("{} {thin}", self.below()?.1);
        Ok(vec![Line { start: 0, length: size.get() / SECTOR, target: "thin".into(), text }])
    }

    /// A device of ours on an object, for what is to be done to it.
    pub(super) fn work_on(&self, object: Uuid, thin: u32, size: Bytes) -> Result<Work<'_>> {
        let label = work_label();
        let name = format!("lagan-{}-{label}", object.simple());
        let uuid = self.prefix(object) + &label;
        let info = start(&self.mapper, &name, &uuid, &self.table(thin, size)?, false)?;
        let mut work = Work { devices: self, name, file: None };
        work.file = Some(self.mapper.open(&info).doing(|| format!("open device {}", work.name))?);
        Ok(work)
    }

    /// Whether the pool has a thin device of this number, whosever it is: only then does the kernel take a table with it.
    pub(super) fn exists(&self, thin: u32) -> Result<bool> {
        let (name, what) =
            (format!("lagan-look-{}-{thin}", self.pool), || format!("look for thin device {thin}"));
        self.mapper.remove(&name).doing(what)?;
        self.mapper.create(&name, &format!("{OURS}{}-look-{thin}", self.pool)).doing(what)?;
        let loaded = load(&self.mapper, &name, &self.table(thin, Bytes::mib(1))?, true);
        self.mapper.remove(&name).doing(what)?;
        match loaded {
            Ok(()) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODATA) => Ok(false),
            Err(error) => Err(Error::io(what(), error)),
        }
    }

    /// Keeps the pool busy, and what belongs to it, with a device that nobody uses: LVM removes none of them.
    pub(super) fn keep(&self, thin: u32, beside: &[DeviceNumber]) -> Result<()> {
        let name = keeper_of(self.pool);
        if self.mapper.info(&name).doing(|| "look for the keeper")?.is_none_or(|keeper| !keeper.active) {
            let mut table = self.table(thin, Bytes::mib(1))?;
            for number in beside {
                let start = table.iter().map(|line| line.length).sum();
                let (target, text) = ("linear".into(), format!("{number} 0"));
                table.push(Line { start, length: BLOCK.get() / SECTOR, target, text });
            }
            let made = start(&self.mapper, &name, &format!("{OURS}{}-keeper", self.pool), &table, true);
            // The other process that serves the pool may have made it meanwhile.
            let there = self.mapper.info(&name).doing(|| "look for the keeper")?;
            if there.is_none_or(|keeper| !keeper.active) {
                made?;
            }
        }
        Ok(())
    }

    /// Takes the keeper away.
    pub(super) fn release(&self) -> Result<()> {
        if let Some((_, info, _)) = self.all()?.first() {
            let what = format!("device {} stands for a volume of the pool", info.name);
            return Err(Error::new(ErrorKind::InUse, what));
        }
        remove_unused(&self.mapper, &keeper_of(self.pool))
    }

    pub(super) fn attach(&self, object: Uuid, thin: u32, size: Bytes, how: &Attach) -> Result<Held> {
        let [plain, read_only] = names(object);
        let name = if how.read_only { read_only } else { plain };
        let uuid = self.prefix(object) + &how.label;
        let info = start(&self.mapper, &name, &uuid, &self.table(thin, size)?, how.read_only)?;
        let what = || format!("open device {name}");
        let guard = Box::new(self.mapper.open(&info).doing(what)?);
        if how.transient {
            self.mapper.remove_when_closed(&name).doing(what)?;
        }
        let attached = Attached {
            device: self.describe(&info, size),
            transient: how.transient,
            label: how.label.clone(),
        };
        Ok(Held { attached, guard })
    }

    /// The devices that stand for an object, but for ours of a moment.
    pub(super) fn attached(&self, object: Uuid) -> Result<Vec<(Info, Attached)>> {
        let [plain, read_only] = names(object);
        let mut found = Vec::new();
        for name in [plain, read_only] {
            let info = self.mapper.info(&name).doing(|| format!("look for device {name}"))?;
            found.extend(info.map(|info| self.attached_of(info, object)).transpose()?.flatten());
        }
        Ok(found)
    }

    fn attached_of(&self, info: Info, object: Uuid) -> Result<Option<(Info, Attached)>> {
        let Some(label) = info.uuid.strip_prefix(&self.prefix(object)).map(str::to_owned) else {
            return Ok(None);
        };
        if !info.active || is_work(&label) {
            return Ok(None);
        }
        let table = match self.mapper.table(&info.name) {
            // A transient one may go at any moment, with its last user.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => return Ok(None),
            table => table.doing(|| format!("read the table of {}", info.name))?,
        };
        let size = Bytes::new(table.iter().map(|line| line.length * SECTOR).sum());
        let attached = Attached { device: self.describe(&info, size), transient: info.transient, label };
        Ok(Some((info, attached)))
    }

    fn describe(&self, info: &Info, size: Bytes) -> Device {
        let path = self.mapper.node(info.number);
        Device { path, number: info.number, read_only: info.read_only, size }
    }

    /// Keeps a device that stands for an object what it is.
    pub(super) fn hold(&self, object: Uuid, number: DeviceNumber) -> Result<Held> {
        let find =
            || self.attached(object).map(|all| all.into_iter().find(|(info, _)| info.number == number));
        if let Some((info, _)) = find()? {
            let guard = Box::new(self.mapper.open(&info).doing(|| format!("open device {number}"))?);
            // While it is open it is not made anew for something else.
            if let Some((_, attached)) = find()? {
                return Ok(Held { attached, guard });
            }
        }
        let what = format!("device {number} stands for something else by now");
        Err(Error::new(ErrorKind::Busy, what))
    }

    /// Takes devices of an object away.
    pub(super) fn detach(&self, object: Uuid, which: Option<DeviceNumber>) -> Result<Detached> {
        let mut all = Detached::Done;
        for (info, _) in self.attached(object)? {
            if which.is_none_or(|which| which == info.number) && !remove(&self.mapper, &info.name)? {
                all = Detached::StillUsed;
            }
        }
        Ok(all)
    }

    /// Makes the devices of an object this long.
    pub(super) fn resize(&self, object: Uuid, thin: u32, size: Bytes) -> Result<()> {
        for (info, attached) in self.attached(object)? {
            if attached.device.size >= size {
                continue;
            }
            let what = || format!("resize device {}", info.name);
            load(&self.mapper, &info.name, &self.table(thin, size)?, info.read_only).doing(what)?;
            self.mapper.exchange(&info.name).doing(what)?;
        }
        Ok(())
    }

    /// Every device of this pool with its object, but for the keeper.
    pub(super) fn all(&self) -> Result<Vec<(Uuid, Info, Attached)>> {
        let what = || "list the devices of the pool";
        let mut found = Vec::new();
        for (name, _) in self.mapper.list().doing(what)? {
            let object = name.strip_prefix("lagan-").and_then(|rest| rest.get(..32));
            let Some(object) = object.and_then(|digits| Uuid::try_parse(digits).ok()) else { continue };
            let Some(info) = self.mapper.info(&name).doing(what)? else { continue };
            found.extend(self.attached_of(info, object)?.map(|(info, attached)| (object, info, attached)));
        }
        Ok(found)
    }

    /// Blocks that an object occupies.
    pub(super) fn mapped(&self, object: Uuid, thin: u32, size: Bytes) -> Result<Bytes> {
        let read = |name: &str| -> io::Result<Bytes> {
            let status = self.mapper.status(name)?;
            let sectors = status.first().and_then(|line| line.text.split(' ').next()?.parse::<u64>().ok());
            Ok(Bytes::new(sectors.unwrap_or(0) * SECTOR))
        };
        let what = |name: &str| format!("ask device {name}");
        if let Some((info, _)) = self.attached(object)?.first() {
            match read(&info.name) {
                // It has gone since, with its last user.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => {}
                answer => return answer.doing(|| what(&info.name)),
            }
        }
        let work = self.work_on(object, thin, size)?;
        read(&work.name).doing(|| what(&work.name))
    }
}

/// Gives a device a table. While LVM extends the pool it stands still for a moment, and takes no device.
fn load(mapper: &Mapper, name: &str, table: &[Line], read_only: bool) -> io::Result<()> {
    let begun = Instant::now();
    let mut running_since = begun;
    loop {
        match mapper.load(name, table, read_only) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                if stands_on_a_stopped(mapper, table)? {
                    running_since = Instant::now();
                }
                // It stands still several times, for moments that a look may miss.
                if begun.elapsed() > POOL_PATIENCE || running_since.elapsed() > BETWEEN_STOPS {
                    return Err(error);
                }
            }
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a device that a table names stands still.
fn stands_on_a_stopped(mapper: &Mapper, table: &[Line]) -> io::Result<bool> {
    for (name, number) in mapper.list()? {
        let number = number.to_string();
        let named = table.iter().any(|line| line.text.split(' ').any(|word| word == number));
        if named && mapper.info(&name)?.is_some_and(|info| info.suspended) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes and starts a device.
pub(super) fn start(
    mapper: &Mapper,
    name: &str,
    uuid: &str,
    table: &[Line],
    read_only: bool,
) -> Result<Info> {
    let what = || format!("make device {name}");
    // Made and not started: by a process that has died, and of no use to anybody.
    if mapper.info(name).doing(what)?.is_some_and(|left| !left.active && left.open_count == 0) {
        mapper.remove(name).doing(what)?;
    }
    mapper.create(name, uuid).doing(what)?;
    let started = load(mapper, name, table, read_only)
        .and_then(|()| mapper.resume(name))
        .and_then(|()| mapper.info(name))
        .doing(what);
    match started {
        Ok(Some(info)) => Ok(info),
        Ok(None) => Err(Error::new(ErrorKind::Broken, what())),
        Err(error) => {
            mapper.remove(name).doing(what)?;
            Err(error)
        }
    }
}

/// Removes a device, with some patience for udev, which opens each for a moment; `false` where it is in use.
pub(super) fn remove(mapper: &Mapper, name: &str) -> Result<bool> {
    super::below::patiently(|| mapper.remove(name).doing(|| format!("remove device {name}")))
}

/// Removes a device that nobody may be using.
///
/// # Errors
/// `InUse` where somebody does.
pub(super) fn remove_unused(mapper: &Mapper, name: &str) -> Result<()> {
    if remove(mapper, name)? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InUse, format!("device {name} is in use")))
}
