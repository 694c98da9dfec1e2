//! A pool in memory: the same promises, kept by nothing that lasts longer than the process. For tests and for running
//! without root. Any call can be made to fail, or to wait until it is let go.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    Attach, Attached, Capacity, Detached, Held, Listing, Pool, Progress, Sharing, Trouble, Turn,
    record::{self, Content, Group, Snapshot, Volume},
};
use crate::{
    bytes::Bytes,
    error::{Error, ErrorKind, Result},
    filesystem::BLOCK,
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    sys::{
        device::DeviceNumber,
        fake::{FakeDevice, FakeKernel},
        superblock::{Contents, Superblock},
    },
};

/// An object as it lies on the disk.
#[derive(Clone, Debug)]
struct Stored {
    record: Vec<u8>,
    /// What was written, a token for all the blocks.
    data: Vec<u8>,
    length: Bytes,
    filesystem: Option<(Uuid, Bytes)>,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<Uuid, Stored>,
    snapshots: BTreeMap<Uuid, Stored>,
    groups: BTreeMap<Uuid, Vec<u8>>,
    faults: HashMap<&'static str, Fault>,
    calls: HashMap<&'static str, usize>,
}

impl State {
    /// What a snapshot would hold now.
    fn cut(&self, snapshot: &Snapshot, progress: &Progress) -> Result<(Snapshot, Stored)> {
        let source = self.volumes.get(&snapshot.volume.uuid);
        let mut stored = source.ok_or_else(|| FakePool::gone(snapshot.volume))?.clone();
        let used = Bytes::new(stored.data.len() as u64);
        progress.expect(used);
        progress.advance(used);
        let snapshot = Snapshot { size: stored.length, used, ..snapshot.clone() };
        stored.record = record::encode(&snapshot)?;
        Ok((snapshot, stored))
    }
}

/// What a call is to do instead of what it does.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Fail before anything is done.
    Fail(ErrorKind),
    /// Do it, and fail then: the answer is lost.
    FailAfter(ErrorKind),
    /// Wait until it is notified, then do it.
    Stall(Arc<Notify>),
}

/// What outlives a process: opened again, it holds the same. Clones share it.
#[derive(Clone, Debug)]
pub struct FakeDisk {
    id: PoolId,
    total: Bytes,
    state: Arc<Mutex<State>>,
}

impl FakeDisk {
    /// An empty disk of this size.
    #[must_use]
    pub fn new(total: Bytes) -> Self {
        Self { id: PoolId::random(), total, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every later call of this name behave so; `None` makes it well again.
    pub fn set_fault(&self, call: &'static str, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.state().faults.insert(call, fault),
            None => self.state().faults.remove(call),
        };
    }

    /// How often a call was made.
    #[must_use]
    pub fn calls(&self, call: &'static str) -> usize {
        self.state().calls.get(call).copied().unwrap_or(0)
    }

    /// Writes to a volume, as its user would.
    pub fn write(&self, id: VolumeId, data: &[u8]) {
        if let Some(stored) = self.state().volumes.get_mut(&id.uuid) {
            stored.data = data.to_vec();
        }
    }

    /// Reads a volume, as its user would.
    #[must_use]
    pub fn read(&self, id: VolumeId) -> Option<Vec<u8>> {
        self.state().volumes.get(&id.uuid).map(|stored| stored.data.clone())
    }

    /// Damages the record of a volume.
    pub fn damage(&self, id: VolumeId) {
        if let Some(stored) = self.state().volumes.get_mut(&id.uuid) {
            stored.record.truncate(20);
        }
    }

    /// Takes a volume off the disk, as an operator would who moves its file away.
    pub fn take_away(&self, id: VolumeId) {
        self.state().volumes.remove(&id.uuid);
    }

    /// Takes the record of a group off the disk likewise.
    pub fn take_away_group(&self, id: GroupId) {
        self.state().groups.remove(&id.uuid);
    }

    fn used(&self) -> Bytes {
        let state = self.state();
        let all = state.volumes.values().chain(state.snapshots.values());
        all.fold(Bytes::ZERO, |sum, stored| sum.plus(Bytes::new(stored.data.len() as u64)))
    }
}

/// A pool over such a disk.
#[derive(Clone, Debug)]
pub struct FakePool {
    disk: FakeDisk,
    kernel: FakeKernel,
}

impl FakePool {
    /// The pool on `disk`, whose devices appear in `kernel`.
    #[must_use]
    pub const fn new(disk: FakeDisk, kernel: FakeKernel) -> Self {
        Self { disk, kernel }
    }

    /// Counts a call and lets it stall or fail, before (`true`) or after its work.
    async fn fault(&self, call: &'static str, before: bool) -> Result<()> {
        let fault = {
            let mut state = self.disk.state();
            if before {
                *state.calls.entry(call).or_default() += 1;
            }
            state.faults.get(call).cloned()
        };
        let fail = |kind| Err(Error::new(kind, format!("{call} was made to fail")));
        match fault {
            Some(Fault::Fail(kind)) if before => fail(kind),
            Some(Fault::FailAfter(kind)) if !before => fail(kind),
            Some(Fault::Stall(until)) if before => {
                until.notified().await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn describe(&self, id: Uuid) -> Vec<Attached> {
        let devices = self.kernel.devices(Some(id)).into_iter();
        devices
            .map(|(device, fake)| Attached { device, transient: fake.transient, label: fake.label })
            .collect()
    }

    fn gone(what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::NotFound, format!("{what} does not exist"))
    }
}

#[async_trait]
impl Pool for FakePool {
    fn id(&self) -> PoolId {
        self.disk.id
    }

    fn flushes(&self) -> u64 {
        0
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.fault("capacity", true).await?;
        Ok(Capacity {
            total: self.disk.total,
            free: self.disk.total.minus(self.disk.used()),
            foreign: Bytes::ZERO,
            reserve: self.disk.total.percent(5),
            overcommit_percent: 100,
            maximum: Bytes::MAX.round_down(BLOCK),
        })
    }

    async fn list(&self) -> Result<Listing> {
        self.fault("list", true).await?;
        let state = self.disk.state();
        let mut listing = Listing::default();
        for (uuid, stored) in &state.volumes {
            match record::decode(&stored.record) {
                Ok(volume) => listing.volumes.push(volume),
                Err(bad) => listing.damaged.push(format!("volume {}: {bad}", uuid.simple())),
            }
        }
        for (uuid, stored) in &state.snapshots {
            match record::decode(&stored.record) {
                Ok(snapshot) => listing.snapshots.push(snapshot),
                Err(bad) => listing.damaged.push(format!("snapshot {}: {bad}", uuid.simple())),
            }
        }
        for (uuid, stored) in &state.groups {
            match record::decode(stored) {
                Ok(group) => listing.groups.push(group),
                Err(bad) => listing.damaged.push(format!("group {}: {bad}", uuid.simple())),
            }
        }
        Ok(listing)
    }

    async fn take_turn(&self, _id: VolumeId, _sharing: Sharing) -> Result<Turn> {
        // One process has it.
        Ok(Box::new(()))
    }

    async fn find_volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        self.fault("find_volume", true).await?;
        match self.disk.state().volumes.get(&id.uuid) {
            None => Ok(None),
            Some(stored) => record::decode(&stored.record).map(Some).map_err(|bad| {
                Error::new(ErrorKind::Unavailable, format!("read the record of {id}")).because(bad)
            }),
        }
    }

    async fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.fault("find_snapshot", true).await?;
        match self.disk.state().snapshots.get(&id.uuid) {
            None => Ok(None),
            Some(stored) => record::decode(&stored.record).map(Some).map_err(|bad| {
                Error::new(ErrorKind::Unavailable, format!("read the record of {id}")).because(bad)
            }),
        }
    }

    async fn find_group(&self, id: GroupId) -> Result<Option<Group>> {
        self.fault("find_group", true).await?;
        match self.disk.state().groups.get(&id.uuid) {
            None => Ok(None),
            Some(stored) => record::decode(stored).map(Some).map_err(|bad| {
                Error::new(ErrorKind::Unavailable, format!("read the record of {id}")).because(bad)
            }),
        }
    }

    async fn occupied(&self, id: VolumeId) -> Result<Bytes> {
        self.fault("occupied", true).await?;
        let state = self.disk.state();
        let stored = state.volumes.get(&id.uuid).ok_or_else(|| Self::gone(id))?;
        Ok(Bytes::new(stored.data.len() as u64))
    }

    fn is_broken(&self) -> bool {
        self.disk.state().faults.contains_key("is_broken")
    }

    async fn probe(&self, id: VolumeId) -> Result<Contents> {
        self.fault("probe", true).await?;
        let volume = self.find_volume(id).await?.ok_or_else(|| Self::gone(id))?;
        let state = self.disk.state();
        let found = state.volumes.get(&id.uuid).and_then(|stored| stored.filesystem);
        Ok(match (found, volume.content) {
            (Some((uuid, size)), Content::Filesystem(filesystem)) => {
                Contents::Filesystem(Superblock { filesystem, uuid, size, clean: true, errors: false })
            }
            _ => Contents::Blank,
        })
    }

    async fn recover(&self) -> Result<Vec<String>> {
        self.fault("recover", true).await?;
        Ok(Vec::new())
    }

    async fn create_volume(&self, volume: &Volume, progress: &Arc<Progress>) -> Result<()> {
        self.fault("create_volume", true).await?;
        {
            let mut state = self.disk.state();
            let source = match volume.source {
                None => None,
                Some(record::Source::Snapshot(id)) => {
                    Some(state.snapshots.get(&id.uuid).ok_or_else(|| Self::gone(id))?.clone())
                }
                Some(record::Source::Volume(id)) => {
                    Some(state.volumes.get(&id.uuid).ok_or_else(|| Self::gone(id))?.clone())
                }
            };
            let data = source.as_ref().map(|source| source.data.clone()).unwrap_or_default();
            let amount = Bytes::new(data.len() as u64);
            progress.expect(amount);
            progress.advance(amount);
            let spans = source.map_or(volume.size, |source| source.length);
            let filesystem = volume.content.filesystem().map(|_| (Uuid::new_v4(), spans));
            let stored = Stored { record: record::encode(volume)?, data, length: volume.size, filesystem };
            state.volumes.insert(volume.id.uuid, stored);
        }
        self.fault("create_volume", false).await
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.fault("delete_volume", true).await?;
        if !self.describe(id.uuid).is_empty() {
            return Err(Error::new(ErrorKind::InUse, format!("volume {id} is open on this host")));
        }
        self.disk.state().volumes.remove(&id.uuid);
        self.fault("delete_volume", false).await
    }

    async fn update_volume(&self, volume: &Volume) -> Result<()> {
        self.fault("update_volume", true).await?;
        {
            let mut state = self.disk.state();
            let stored = state.volumes.get_mut(&volume.id.uuid).ok_or_else(|| Self::gone(volume.id))?;
            stored.record = record::encode(volume)?;
        }
        self.fault("update_volume", false).await
    }

    async fn grow_volume(&self, volume: &Volume) -> Result<()> {
        self.fault("grow_volume", true).await?;
        {
            let mut state = self.disk.state();
            let stored = state.volumes.get_mut(&volume.id.uuid).ok_or_else(|| Self::gone(volume.id))?;
            stored.record = record::encode(volume)?;
            stored.length = stored.length.max(volume.size);
        }
        self.kernel.resize_devices(volume.id.uuid, volume.size);
        self.fault("grow_volume", false).await
    }

    async fn create_snapshot(&self, snapshot: &Snapshot, progress: &Arc<Progress>) -> Result<Snapshot> {
        self.fault("create_snapshot", true).await?;
        let snapshot = {
            let mut state = self.disk.state();
            let (snapshot, stored) = state.cut(snapshot, progress)?;
            state.snapshots.insert(snapshot.id.uuid, stored);
            snapshot
        };
        self.fault("create_snapshot", false).await?;
        Ok(snapshot)
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.fault("delete_snapshot", true).await?;
        self.disk.state().snapshots.remove(&id.uuid);
        self.fault("delete_snapshot", false).await
    }

    async fn create_group(
        &self,
        group: &Group,
        members: &[Snapshot],
        progress: &Arc<Progress>,
    ) -> Result<Vec<Snapshot>> {
        self.fault("create_group", true).await?;
        let cut = {
            let mut state = self.disk.state();
            let cut = members.iter().map(|member| state.cut(member, progress)).collect::<Result<Vec<_>>>()?;
            state.groups.insert(group.id.uuid, record::encode(group)?);
            state.snapshots.extend(cut.iter().map(|(snapshot, stored)| (snapshot.id.uuid, stored.clone())));
            cut.into_iter().map(|(snapshot, _)| snapshot).collect()
        };
        self.fault("create_group", false).await?;
        Ok(cut)
    }

    async fn delete_group(&self, id: GroupId) -> Result<()> {
        self.fault("delete_group", true).await?;
        if let Some(group) = self.find_group(id).await? {
            let mut state = self.disk.state();
            group.members.iter().for_each(|uuid| drop(state.snapshots.remove(uuid)));
            state.groups.remove(&id.uuid);
        }
        self.fault("delete_group", false).await
    }

    async fn attach(&self, id: VolumeId, how: &Attach) -> Result<Held> {
        self.fault("attach", true).await?;
        let volume = self.find_volume(id).await?.ok_or_else(|| Self::gone(id))?;
        let spans = self.disk.state().volumes.get(&id.uuid).and_then(|stored| stored.filesystem);
        let (device, hold) = self.kernel.add_device(FakeDevice {
            owner: id.uuid,
            label: how.label.clone(),
            transient: how.transient,
            read_only: how.read_only,
            size: volume.size,
            filesystem: volume.content.filesystem(),
            filesystem_size: spans.map_or(volume.size, |(_, size)| size),
        });
        let attached = Attached { device, transient: how.transient, label: how.label.clone() };
        Ok(Held { attached, guard: Box::new(hold) })
    }

    async fn attached(&self, id: VolumeId) -> Result<Vec<Attached>> {
        self.fault("attached", true).await?;
        Ok(self.describe(id.uuid))
    }

    async fn hold(&self, id: VolumeId, number: DeviceNumber) -> Result<Held> {
        self.fault("hold", true).await?;
        let attached = self.describe(id.uuid).into_iter().find(|attached| attached.device.number == number);
        match (attached, self.kernel.hold_device(id.uuid, number)) {
            (Some(attached), Some(hold)) => Ok(Held { attached, guard: Box::new(hold) }),
            _ => {
                Err(Error::new(ErrorKind::Busy, format!("device {number} does not stand for {id} any more")))
            }
        }
    }

    async fn detach(&self, id: VolumeId, which: Option<DeviceNumber>) -> Result<Detached> {
        self.fault("detach", true).await?;
        let mut all = Detached::Done;
        for attached in self.describe(id.uuid) {
            let number = attached.device.number;
            if which.is_none_or(|which| which == number) && !self.kernel.remove_device(number) {
                all = Detached::StillUsed;
            }
        }
        Ok(all)
    }

    async fn refresh(&self, id: VolumeId) -> Result<()> {
        self.fault("refresh", true).await?;
        let length = self.disk.state().volumes.get(&id.uuid).map(|stored| stored.length);
        self.kernel.resize_devices(id.uuid, length.ok_or_else(|| Self::gone(id))?);
        Ok(())
    }

    async fn examine(&self, _volume: &Volume) -> Result<Vec<Trouble>> {
        self.fault("examine", true).await?;
        Ok(Vec::new())
    }

    async fn devices(&self) -> Result<Vec<(Uuid, Attached)>> {
        self.fault("devices", true).await?;
        let devices = self.kernel.devices(None).into_iter();
        Ok(devices
            .map(|(device, fake)| {
                (fake.owner, Attached { device, transient: fake.transient, label: fake.label })
            })
            .collect())
    }
}
