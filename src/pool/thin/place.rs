//! Where a thin pool is: in a volume group, or on a disk of our own. What both have in common, and the way to each.

use std::{fmt, fs::File, path::PathBuf, time::Instant};

use super::{
    block,
    devices::Devices,
    header::Header,
    lvm::{self, Longer, VolumeGroup},
    model::Model,
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    id::{PoolId, VolumeId},
    pool::{Role, Sharing, byte_of, fill::Part},
    sys::{
        cmd::Commands,
        device::DeviceNumber,
        dm::{Info, Mapper, Store},
        lock::ByteLock,
    },
};

/// Where a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A thin pool of LVM.
    Lvm(VolumeGroup),
    /// A disk of our own, or a partition.
    Disk(PathBuf),
    /// A model, for tests.
    Model(Model),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm(group) => group.fmt(f),
            Self::Disk(path) => path.display().fmt(f),
            Self::Model(_) => f.write_str("a model"),
        }
    }
}

impl Place {
    /// The door to the device-mapper that the pool is in.
    pub(super) fn mapper(&self) -> Result<Mapper> {
        match self {
            Self::Lvm(_) | Self::Disk(_) => open_mapper(),
            Self::Model(model) => Ok(model.mapper()),
        }
    }
}

/// A device of the pool's own.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) mapper: Mapper,
    /// Its name for device-mapper.
    pub(super) name: String,
    pub(super) number: DeviceNumber,
    /// What it is, for people.
    pub(super) what: String,
}

/// How far a pool is started when it is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'m> {
    /// Not at all.
    Nothing,
    /// Its records can be read and written; the thin pool is left as it is.
    Records,
    /// The thin pool runs, if it belongs to this machine: two that run it destroy it, even if only one of them writes.
    Pool(&'m str),
    /// The thin pool runs, whoever it belongs to: it is being made.
    New,
}

impl Start<'_> {
    /// Refuses the pool of another machine, where it is to be run.
    pub(super) fn check(self, header: &Header) -> Result<()> {
        match self {
            Self::Pool(machine) if header.machine != machine => {
                let what = format!(
                    "it belongs to machine {}: if that one no longer serves it, run `lagan pool adopt`",
                    header.machine
                );
                Err(Error::new(ErrorKind::Unavailable, what))
            }
            _ => Ok(()),
        }
    }

    pub(super) const fn runs_pool(self) -> bool {
        matches!(self, Self::Pool(_) | Self::New)
    }
}

/// Thin volumes of LVM in a pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreign {
    pub(super) lengths: Vec<Bytes>,
    /// LVM's count of changes when it was asked.
    pub(super) as_of: Option<u64>,
    pub(super) asked: Option<Instant>,
}

/// A pool that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The device of records.
    pub(super) records: Device,
    /// The thin pool, or why it does not run: its records can be read all the same.
    pub(super) below: std::result::Result<(String, DeviceNumber), String>,
    pub(super) foreign: Foreign,
    /// What of LVM goes with the pool: the device of records, and the anchor where it is active.
    pub(super) beside: Vec<DeviceNumber>,
    /// Every logical volume that it is made of.
    pub(super) parts: Vec<lvm::Line>,
}

impl Found {
    /// The name of the thin pool.
    pub(super) fn below(&self) -> Result<&str> {
        match &self.below {
            Ok((name, _)) => Ok(name),
            Err(why) => Err(Error::new(ErrorKind::Unavailable, why)),
        }
    }

    /// The pool's header.
    pub(super) fn header(&self) -> Result<Header> {
        Header::read(&self.records.open()?, Bytes::ZERO)?.ok_or_else(|| {
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
        self.mapper.open(&self.look()?).doing(|| format!("open {}", self.what))
    }

    /// The same, for records.
    pub(super) fn store(&self) -> Result<Box<dyn Store>> {
        self.mapper.open_store(&self.look()?).doing(|| format!("open {}", self.what))
    }

    fn look(&self) -> Result<Info> {
        let what = || format!("open {}", self.what);
        let info = self.mapper.info(&self.name).doing(what)?.filter(|info| info.number == self.number);
        let info =
            info.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("{}: it is gone", what())))?;
        if info.suspended {
            let what = format!("{}: it stands still: dmsetup resume {}", what(), self.name);
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Ok(info)
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

/// Finds a pool's devices, and makes them as far as it is wanted.
///
/// # Errors
/// `Unavailable` where the pool or its records are not there, or it belongs to another machine.
pub(super) fn find(place: &Place, mapper: &Mapper, commands: &Commands, start: Start<'_>) -> Result<Found> {
    let found = match place {
        Place::Lvm(group) => lvm::find(group, mapper, commands, start),
        Place::Disk(path) => block::find(path, mapper, commands, start),
        Place::Model(model) => model.find(mapper),
    };
    found.map_err(|error| error.within(format!("pool {place}")))
}

pub(super) fn open_mapper() -> Result<Mapper> {
    Mapper::open()
        .map_err(|error| Error::io("open device-mapper (is the module dm_mod there?)", error))
        .map_err(|error| error.as_kind(ErrorKind::Unavailable))
}

fn no_model() -> Error {
    Error::new(ErrorKind::Invalid, "this is done to real pools, not to a model")
}

/// Makes a pool: of a thin pool that LVM has made, or of a blank disk. A disk that is not blank is destroyed only where
/// `destroy` names it, by its serial number or by a uuid that lies on it.
///
/// # Errors
/// `Mismatch` where there is one already; `Invalid` where the place does not do, saying why; `InUse` where somebody uses
/// the disk; those of LVM and of writing.
pub fn init(place: &Place, machine: &str, destroy: Option<&str>, commands: &Commands) -> Result<PoolId> {
    match place {
        Place::Lvm(group) => lvm::init(group, machine, commands),
        Place::Disk(path) => block::init(path, machine, destroy, commands),
        Place::Model(_) => Err(no_model()),
    }
}

/// Makes a pool longer, which may be in use: by so much data and metadata from what its volume group has free, or by
/// what its disk has become longer. `false` where that is nothing.
///
/// # Errors
/// `Busy` while somebody else starts or changes it; what LVM says against it; those of device-mapper.
pub fn extend(
    place: &Place,
    machine: &str,
    data: Option<Bytes>,
    metadata: Option<Bytes>,
    commands: &Commands,
) -> Result<bool> {
    match place {
        Place::Lvm(group) => {
            // Metadata first: more data needs more of it.
            let parts = [(Part::Metadata, metadata), (Part::Data, data)];
            let mut wanted = parts.into_iter().filter_map(|(part, by)| Some(Longer::By(part, by?)));
            wanted.try_for_each(|longer| lvm::extend(group, longer, commands)).map(|()| true)
        }
        Place::Disk(path) => block::extend(path, machine, commands),
        Place::Model(_) => Err(no_model()),
    }
}

/// Makes this machine the one that serves the pool. No process may be serving it.
///
/// # Errors
/// `Busy` where it is served; `Unavailable` where there is no pool.
pub fn adopt(place: &Place, machine: &str, commands: &Commands) -> Result<PoolId> {
    let found = find(place, &place.mapper()?, commands, Start::Records)?;
    let _locks = found.records.lock(Role::Both)?;
    let header = found.header()?;
    if header.machine != machine && matches!(place, Place::Disk(_)) && found.below.is_ok() {
        // It has run since before the other machine wrote: what it knows of the disk is old.
        let what = format!(
            "pool {place} runs here, while it belongs to {}: `lagan pool stop` first",
            header.machine
        );
        return Err(Error::new(ErrorKind::InUse, what));
    }
    header.with_machine(machine).replace(&found.records.open()?)?;
    Ok(header.id)
}

/// The identity of a pool, and the machine that it belongs to; nothing is changed.
///
/// # Errors
/// `Unavailable` where there is none.
pub fn identify(place: &Place, commands: &Commands) -> Result<(PoolId, String)> {
    let header = match place {
        Place::Lvm(group) => lvm::find(group, &open_mapper()?, commands, Start::Nothing)?.header()?,
        Place::Disk(path) => block::header(path)?,
        Place::Model(model) => model.find(&place.mapper()?)?.header()?,
    };
    Ok((header.id, header.machine))
}

/// Lets go of a pool that is not served, so that it can be moved or removed: the device that keeps it busy goes, and on
/// a disk of our own the thin pool with it.
///
/// # Errors
/// `Busy` where it is served; `InUse` where a volume of it has a device.
pub fn stop(place: &Place, commands: &Commands) -> Result<()> {
    let mapper = place.mapper()?;
    let found = find(place, &mapper, commands, Start::Nothing)?;
    let locks = found.records.lock(Role::Both)?;
    let id = found.header()?.id;
    let devices = Devices::new(mapper, id, Err("the pool is being stopped".into()));
    devices.release()?;
    // Their file is open on what is to go.
    drop(locks);
    match place {
        Place::Lvm(_) | Place::Model(_) => Ok(()),
        Place::Disk(_) => block::stop(&devices.mapper, id),
    }
}
