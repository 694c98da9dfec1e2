//! Thin pools: a volume is a thin device inside a device-mapper thin pool, made by one kernel message. LVM makes, grows,
//! mirrors and repairs the pool, and never runs for a volume. This file says what the pool promises; the others how:
//! `below` the thin pool and its messages, `devices` devices of volumes, `slots` records, `objects` how volumes and
//! snapshots come and go, `groups` snapshots at one instant, `templates` new filesystems, `pause` volumes in use, `place`
//! where a pool is (`lvm`, or `block` with its `layout`), `tenants` what LVM is not to read, `left` what a killed
//! process leaves, `mend` what a killed LVM leaves, `import` what comes from elsewhere, `metadata` which thin devices there are, `report` what a person may want to
//! know, `care` what keeps it from running full, `restore` records as text, `state` what there is and how it is.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Attach, Attached, Capacity, Detached, Held, Listing, Pool, Progress, Role, Sharing, Trouble, Turn,
    fill::Fill,
    import::Import,
    record::{Group, Snapshot, Volume},
    templates::Templates,
};
use crate::{
    blocking::blocking,
    bytes::Bytes,
    error::{Chain, Error, ErrorKind, Result},
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    sys::{cmd::Commands, device::DeviceNumber, lock::ByteLock, minder::Minder, superblock::Contents},
};

mod below;
mod block;
mod care;
mod devices;
mod flush;
mod groups;
mod header;
mod import;
mod layout;
mod left;
mod lvm;
mod mend;
mod metadata;
mod model;
mod objects;
mod pause;
mod place;
pub mod report;
mod restore;
mod slots;
mod state;
mod templates;
mod tenants;

pub use block::repair;
pub use care::Extend;
pub use lvm::VolumeGroup;
pub use model::Model;
pub use place::{Place, adopt, extend, identify, init, stop};
pub use restore::{backup, restore};

use below::{Mode, Status};
use devices::Devices;
use place::Start;
use slots::{Entry, Object, Slots, Stage};
use templates::Thins;

/// How a thin pool is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub place: Place,
    /// The machine that we are.
    pub machine: String,
    /// Per cent of the space that new volumes and snapshots must leave free.
    pub reserve_percent: u32,
    /// Per cent of the space that may be promised to volumes.
    pub overcommit_percent: u32,
    /// How long a volume in use may stand still.
    pub freeze_limit: Duration,
    /// Most filesystem templates kept.
    pub templates: usize,
    /// When it is extended, by itself.
    pub extend: Option<Extend>,
}

/// A thin pool. Clones share it.
#[derive(Clone, Debug)]
pub struct ThinPool {
    inner: Arc<Inner>,
}

/// Numbers of thin devices.
#[derive(Debug)]
struct Numbers {
    taken: HashSet<u32>,
    /// Where a free one is looked for.
    next: u32,
}

#[derive(Debug)]
struct Inner {
    id: PoolId,
    role: Role,
    settings: Settings,
    records: place::Device,
    slots: Slots,
    devices: Devices,
    commands: Arc<Commands>,
    minder: Option<Arc<Minder>>,
    /// Numbers of thin devices that are in use, and those that were found taken.
    thins: Mutex<Numbers>,
    /// Whether those without a record are among them.
    numbers_known: OnceLock<()>,
    templates: Templates,
    template_thins: Mutex<Thins>,
    /// Deleting holds the pool: one at a time.
    deleting: Mutex<()>,
    extending: Mutex<()>,
    admitting: Mutex<()>,
    /// Since when the pool holds metadata for a reader.
    held_since: Mutex<Option<Instant>>,
    foreign: Mutex<place::Foreign>,
    _locks: Vec<ByteLock>,
}

impl ThinPool {
    /// Opens a pool in a role. `expected` is the pool that was here last time: another one in its place is refused.
    ///
    /// # Errors
    /// `Unavailable` where the pool is missing, foreign or another machine's; `Busy` where another process serves it in
    /// this role.
    pub fn open(
        settings: Settings,
        role: Role,
        expected: Option<PoolId>,
        commands: Arc<Commands>,
        minder: Option<Arc<Minder>>,
    ) -> Result<Self> {
        let mapper = settings.place.mapper()?;
        let start = if role == Role::Observer { Start::Nothing } else { Start::Pool(&settings.machine) };
        let found = place::find(&settings.place, &mapper, &commands, start)?;
        let header = found.header()?;
        if let Some(expected) = expected.filter(|expected| *expected != header.id) {
            let what =
                format!("pool {}: pool {} is here, where pool {expected} was", settings.place, header.id);
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Start::Pool(&settings.machine)
            .check(&header)
            .map_err(|error| error.within(format!("pool {}", settings.place)))?;
        let locks = found.records.lock(role)?;
        if let (Place::Lvm(group), true) = (&settings.place, role.changes()) {
            for done in mend::mend(group, &found.parts, &mapper, &commands)? {
                tracing::warn!(done, "left by a command of LVM that was killed");
            }
        }
        let devices = Devices::new(mapper, header.id, found.below);
        let slots = Slots::open(found.records.store()?, role.changes())?;
        if role != Role::Observer && devices.below().is_ok() {
            // A pool that takes no changes is served all the same.
            if let Err(error) = devices.keep(below::FIRST, &found.beside) {
                tracing::error!(error = %Chain(&error), "nothing keeps the pool from being removed");
            }
        }
        let taken = slots.all()?.0.iter().map(|entry| entry.thin).chain([below::FIRST]).collect();
        let next = slots.highest().clamp(below::FIRST, below::LAST - 1) + 1;
        let thins = Numbers { taken, next };
        let (templates, template_thins) = templates::known(&slots, &commands, settings.templates)?;
        let inner = Inner {
            templates,
            template_thins: Mutex::new(template_thins),
            id: header.id,
            role,
            settings,
            records: found.records,
            slots,
            devices,
            commands,
            minder,
            thins: Mutex::new(thins),
            numbers_known: OnceLock::new(),
            deleting: Mutex::default(),
            extending: Mutex::default(),
            admitting: Mutex::default(),
            held_since: Mutex::default(),
            foreign: Mutex::new(found.foreign),
            _locks: locks,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        blocking(move || step(&inner)).await
    }
}

impl Inner {
    /// Lengths of the thin volumes of LVM in the pool.
    fn foreign(&self) -> Vec<Bytes> {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner).lengths.clone()
    }

    fn status(&self) -> Result<Status> {
        Status::read(&self.devices.mapper, self.devices.below()?.0)
    }

    /// Refuses changes that could not be finished.
    fn check(&self) -> Result<Status> {
        self.slots.check()?;
        let status = self.status()?;
        status.health.check()?;
        Ok(status)
    }

    /// What is recorded of an object that is ready.
    fn ready(&self, uuid: Uuid) -> Result<Option<Entry>> {
        Ok(self.slots.find(uuid)?.filter(|entry| entry.stage == Stage::Ready))
    }

    fn ready_volume(&self, id: VolumeId) -> Result<(Entry, Volume)> {
        let gone = || Error::new(ErrorKind::NotFound, format!("volume {id} does not exist"));
        match self.ready(id.uuid)? {
            Some(entry) => match entry.object.clone() {
                Object::Volume(volume) if volume.id == id => Ok((entry, volume)),
                _ => Err(gone()),
            },
            None => Err(gone()),
        }
    }

    fn ready_snapshot(&self, id: SnapshotId) -> Result<Option<(Entry, Snapshot)>> {
        let found = self.ready(id.uuid)?.and_then(|entry| match entry.object.clone() {
            Object::Snapshot(snapshot) if snapshot.id == id => Some((entry, snapshot)),
            _ => None,
        });
        let group = found.as_ref().and_then(|(_, snapshot)| snapshot.group);
        let hidden = group.map(|group| self.is_unfinished(group)).transpose()?.unwrap_or(false);
        Ok(found.filter(|_| !hidden))
    }

    fn update_volume(&self, volume: &Volume) -> Result<()> {
        let (entry, _) = self.ready_volume(volume.id)?;
        self.slots.put(entry.thin, Stage::Ready, Object::Volume(volume.clone()))
    }

    fn grow_volume(&self, volume: &Volume) -> Result<()> {
        let (entry, before) = self.ready_volume(volume.id)?;
        let record = || self.slots.note(entry.thin, Stage::Ready, Object::Volume(volume.clone()));
        self.admitted(volume.size.minus(before.size), record)?;
        self.slots.flush()?;
        self.devices.resize(volume.id.uuid, entry.thin, volume.size)
    }
}

#[async_trait]
impl Pool for ThinPool {
    fn id(&self) -> PoolId {
        self.inner.id
    }

    fn flushes(&self) -> u64 {
        self.inner.slots.flushes()
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.run(Inner::capacity).await
    }

    async fn fills(&self) -> Result<Vec<Fill>> {
        self.run(|inner| inner.status()?.fills()).await
    }

    async fn tend(&self) -> Result<()> {
        self.run(Inner::tend).await
    }

    async fn changed(&self) {
        care::event(&self.inner.settings.place).await;
    }

    async fn list(&self) -> Result<Listing> {
        self.run(Inner::list).await
    }

    async fn take_turn(&self, id: VolumeId, sharing: Sharing) -> Result<Turn> {
        self.run(move |inner| Ok(Box::new(inner.records.take_turn(id, sharing)?) as Turn)).await
    }

    async fn find_volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        self.run(move |inner| match inner.ready_volume(id) {
            Ok((_, volume)) => Ok(Some(volume)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.run(move |inner| Ok(inner.ready_snapshot(id)?.map(|(_, snapshot)| snapshot))).await
    }

    async fn find_group(&self, id: GroupId) -> Result<Option<Group>> {
        self.run(move |inner| {
            let ready = inner.group(id)?.filter(|(stage, _)| *stage == Stage::Ready);
            Ok(ready.map(|(_, group)| group))
        })
        .await
    }

    async fn occupied(&self, id: VolumeId) -> Result<Bytes> {
        self.run(move |inner| {
            let (entry, volume) = inner.ready_volume(id)?;
            inner.devices.mapped(id.uuid, entry.thin, volume.size)
        })
        .await
    }

    fn is_broken(&self) -> bool {
        self.inner.slots.is_broken()
    }

    async fn probe(&self, id: VolumeId) -> Result<Contents> {
        self.run(move |inner| inner.probe(id)).await
    }

    async fn recover(&self) -> Result<Vec<String>> {
        self.run(Inner::recover).await
    }

    async fn create_volume(&self, volume: &Volume, _progress: &Arc<Progress>) -> Result<()> {
        let volume = volume.clone();
        self.run(move |inner| inner.create_volume(&volume)).await
    }

    async fn importable(&self, from: &Import) -> Result<Bytes> {
        let from = from.clone();
        self.run(move |inner| inner.importable(&from)).await
    }

    async fn import_volume(
        &self,
        volume: &Volume,
        from: &Import,
        progress: &Arc<Progress>,
    ) -> Result<Volume> {
        let (volume, from, progress) = (volume.clone(), from.clone(), Arc::clone(progress));
        self.run(move |inner| inner.import_volume(&volume, &from, &progress)).await
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.run(move |inner| inner.delete_volume(id)).await
    }

    async fn update_volume(&self, volume: &Volume) -> Result<()> {
        let volume = volume.clone();
        self.run(move |inner| inner.update_volume(&volume)).await
    }

    async fn grow_volume(&self, volume: &Volume) -> Result<()> {
        let volume = volume.clone();
        self.run(move |inner| inner.grow_volume(&volume)).await
    }

    async fn create_snapshot(&self, snapshot: &Snapshot, _progress: &Arc<Progress>) -> Result<Snapshot> {
        let snapshot = snapshot.clone();
        self.run(move |inner| inner.create_snapshot(&snapshot)).await
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.run(move |inner| inner.delete_snapshot(id)).await
    }

    async fn create_group(
        &self,
        group: &Group,
        members: &[Snapshot],
        _progress: &Arc<Progress>,
    ) -> Result<Vec<Snapshot>> {
        let (group, members) = (group.clone(), members.to_vec());
        self.run(move |inner| inner.create_group(&group, &members)).await
    }

    async fn delete_group(&self, id: GroupId) -> Result<()> {
        self.run(move |inner| inner.delete_group(id)).await
    }

    async fn attach(&self, id: VolumeId, how: &Attach) -> Result<Held> {
        let how = how.clone();
        self.run(move |inner| {
            let (entry, volume) = inner.ready_volume(id)?;
            inner.devices.attach(id.uuid, entry.thin, volume.size, &how)
        })
        .await
    }

    async fn attached(&self, id: VolumeId) -> Result<Vec<Attached>> {
        self.run(move |inner| {
            let attached = inner.devices.attached(id.uuid)?;
            Ok(attached.into_iter().map(|(_, attached)| attached).collect())
        })
        .await
    }

    async fn hold(&self, id: VolumeId, device: DeviceNumber) -> Result<Held> {
        self.run(move |inner| inner.devices.hold(id.uuid, device)).await
    }

    async fn detach(&self, id: VolumeId, which: Option<DeviceNumber>) -> Result<Detached> {
        self.run(move |inner| inner.devices.detach(id.uuid, which)).await
    }

    async fn refresh(&self, id: VolumeId) -> Result<()> {
        self.run(move |inner| {
            let (entry, volume) = inner.ready_volume(id)?;
            inner.devices.resize(id.uuid, entry.thin, volume.size)
        })
        .await
    }

    async fn examine(&self, _volume: &Volume) -> Result<Vec<Trouble>> {
        self.run(Inner::examine).await
    }

    async fn devices(&self) -> Result<Vec<(Uuid, Attached)>> {
        self.run(|inner| {
            Ok(inner.devices.all()?.into_iter().map(|(uuid, _, attached)| (uuid, attached)).collect())
        })
        .await
    }
}
