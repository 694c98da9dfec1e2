//! A pool in memory that changes in steps, as real ones do: what is made has no name until all of it is flushed, what was
//! begun is cleared away by the next process. For tests and for running without root. Any call can be made to fail, or to
//! wait until it is let go; what becomes of each step is decided by a [`Fate`].

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Attach, Attached, Capacity, Detached, Held, Listing, Pool, Progress, Sharing, Trouble, Turn,
    record::{self, Content, Group, Snapshot, Source, Stage, Volume},
};
use crate::{
    bytes::Bytes,
    error::{Error, ErrorKind, Result},
    filesystem::BLOCK,
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    sys::{
        device::DeviceNumber,
        fake::{FakeDevice, FakeKernel},
        fate::{Fate, Well},
        superblock::{Contents, Superblock},
    },
};

mod disk;
mod steps;

pub use disk::{FakeDisk, Fault};

use disk::{Kind, State, Stored};
use steps::steps;

/// What a snapshot would hold now.
fn cut(state: &State, snapshot: &Snapshot, progress: &Progress) -> Result<(Snapshot, Stored)> {
    let source = state.find(Kind::Volume, snapshot.volume.uuid);
    let mut stored = source.ok_or_else(|| gone(snapshot.volume))?.clone();
    let used = Bytes::new(stored.data.len() as u64);
    progress.expect(used);
    progress.advance(used);
    let snapshot = Snapshot { size: stored.length, used, ..snapshot.clone() };
    (stored.record, stored.stage) = (record::encode(&snapshot)?, Stage::Making);
    Ok((snapshot, stored))
}

fn gone(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} does not exist"))
}

fn unreadable(what: impl std::fmt::Display, bad: record::BadRecord) -> Error {
    Error::new(ErrorKind::Unavailable, format!("read the record of {what}")).because(bad)
}

/// A pool over such a disk, as one process has it.
#[derive(Clone, Debug)]
pub struct FakePool {
    disk: FakeDisk,
    kernel: FakeKernel,
    fate: Arc<dyn Fate>,
    /// A flush has failed: this process believes the disk no more.
    broken: Arc<AtomicBool>,
    flushes: Arc<AtomicU64>,
}

impl FakePool {
    /// The pool on `disk`, whose devices appear in `kernel`.
    #[must_use]
    pub fn new(disk: FakeDisk, kernel: FakeKernel) -> Self {
        Self::under(Arc::new(Well), disk, kernel)
    }

    /// The same for a process that has a fate.
    #[must_use]
    pub fn under(fate: Arc<dyn Fate>, disk: FakeDisk, kernel: FakeKernel) -> Self {
        Self { disk, kernel, fate, broken: Arc::default(), flushes: Arc::default() }
    }

    fn describe(&self, id: Uuid) -> Vec<Attached> {
        let devices = self.kernel.devices(Some(id)).into_iter();
        devices
            .map(|(device, fake)| Attached { device, transient: fake.transient, label: fake.label })
            .collect()
    }

    /// The members of groups that are not there as a whole: nobody is told of them.
    fn hidden(&self, state: &State) -> Vec<Uuid> {
        let half = state.all(Kind::Group).filter(|(_, stored)| stored.stage != Stage::Ready);
        half.filter_map(|(_, stored)| record::decode::<Group>(&stored.record).ok())
            .flat_map(|group| group.members)
            .collect()
    }
}

#[async_trait]
impl Pool for FakePool {
    fn id(&self) -> PoolId {
        self.disk.id
    }

    fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.begin("capacity").await?;
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
        self.begin("list").await?;
        let state = self.disk.state();
        let hidden = self.hidden(&state);
        let mut listing = Listing::default();
        let ready = |(_, stored): &(Uuid, &Stored)| stored.stage == Stage::Ready;
        for (uuid, stored) in state.all(Kind::Volume).filter(ready) {
            match record::decode(&stored.record) {
                Ok(volume) => listing.volumes.push(volume),
                Err(bad) => listing.damaged.push(format!("volume {}: {bad}", uuid.simple())),
            }
        }
        for (uuid, stored) in state.all(Kind::Snapshot).filter(ready).filter(|(it, _)| !hidden.contains(it)) {
            match record::decode(&stored.record) {
                Ok(snapshot) => listing.snapshots.push(snapshot),
                Err(bad) => listing.damaged.push(format!("snapshot {}: {bad}", uuid.simple())),
            }
        }
        for (uuid, stored) in state.all(Kind::Group).filter(ready) {
            match record::decode(&stored.record) {
                Ok(group) => listing.groups.push(group),
                Err(bad) => listing.damaged.push(format!("group {}: {bad}", uuid.simple())),
            }
        }
        for kind in [Kind::Volume, Kind::Snapshot, Kind::Group] {
            let half = state.all(kind).filter(|(_, stored)| stored.stage != Stage::Ready);
            listing.leftovers.extend(half.map(|(uuid, _)| format!("half of {kind:?} {}", uuid.simple())));
        }
        Ok(listing)
    }

    async fn take_turn(&self, _id: VolumeId, _sharing: Sharing) -> Result<Turn> {
        // One process has it.
        Ok(Box::new(()))
    }

    async fn find_volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        self.begin("find_volume").await?;
        let state = self.disk.state();
        let stored = state.find(Kind::Volume, id.uuid);
        stored.map(|stored| record::decode(&stored.record)).transpose().map_err(|bad| unreadable(id, bad))
    }

    async fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.begin("find_snapshot").await?;
        let state = self.disk.state();
        let stored = state.find(Kind::Snapshot, id.uuid).filter(|_| !self.hidden(&state).contains(&id.uuid));
        stored.map(|stored| record::decode(&stored.record)).transpose().map_err(|bad| unreadable(id, bad))
    }

    async fn find_group(&self, id: GroupId) -> Result<Option<Group>> {
        self.begin("find_group").await?;
        let state = self.disk.state();
        let stored = state.find(Kind::Group, id.uuid);
        stored.map(|stored| record::decode(&stored.record)).transpose().map_err(|bad| unreadable(id, bad))
    }

    async fn occupied(&self, id: VolumeId) -> Result<Bytes> {
        self.begin("occupied").await?;
        let state = self.disk.state();
        let stored = state.find(Kind::Volume, id.uuid).ok_or_else(|| gone(id))?;
        Ok(Bytes::new(stored.data.len() as u64))
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) || self.disk.state().faults.contains_key("is_broken")
    }

    async fn probe(&self, id: VolumeId) -> Result<Contents> {
        self.begin("probe").await?;
        let volume = self.find_volume(id).await?.ok_or_else(|| gone(id))?;
        let state = self.disk.state();
        let found = state.find(Kind::Volume, id.uuid).and_then(|stored| stored.filesystem);
        Ok(match (found, volume.content) {
            (Some((uuid, size)), Content::Filesystem(filesystem)) => {
                Contents::Filesystem(Superblock { filesystem, uuid, size, clean: true, errors: false })
            }
            _ => Contents::Blank,
        })
    }

    async fn recover(&self) -> Result<Vec<String>> {
        self.begin("recover").await?;
        self.disk.state().reopen();
        // What an earlier process changed and did not flush is there for whoever reads it, and nobody would flush it again.
        self.sync("recover: flush").await?;
        let half: Vec<(Kind, Uuid, Vec<Uuid>)> = {
            let state = self.disk.state();
            let half = |kind: Kind| {
                let half = state.all(kind).filter(|(_, stored)| stored.stage != Stage::Ready);
                half.map(move |(uuid, stored)| {
                    let members = record::decode::<Group>(&stored.record).map(|group| group.members);
                    (kind, uuid, members.unwrap_or_default())
                })
            };
            // The groups first: they say which snapshots are theirs.
            [Kind::Group, Kind::Snapshot, Kind::Volume].into_iter().flat_map(half).collect()
        };
        for (kind, uuid, members) in &half {
            match kind {
                Kind::Group => self.remove_group(*uuid, members).await?,
                Kind::Snapshot | Kind::Volume => self.remove(steps!("recover"), *kind, *uuid).await?,
            }
        }
        Ok(half.iter().map(|(kind, uuid, _)| format!("removed half of {kind:?} {}", uuid.simple())).collect())
    }

    async fn create_volume(&self, volume: &Volume, progress: &Arc<Progress>) -> Result<()> {
        self.begin_change("create_volume").await?;
        let stored = {
            let state = self.disk.state();
            let source = match volume.source {
                None => None,
                Some(Source::Snapshot(id)) => {
                    Some(state.find(Kind::Snapshot, id.uuid).ok_or_else(|| gone(id))?.clone())
                }
                Some(Source::Volume(id)) => {
                    Some(state.find(Kind::Volume, id.uuid).ok_or_else(|| gone(id))?.clone())
                }
            };
            let data = source.as_ref().map(|source| source.data.clone()).unwrap_or_default();
            let amount = Bytes::new(data.len() as u64);
            progress.expect(amount);
            progress.advance(amount);
            let spans = source.map_or(volume.size, |source| source.length);
            let filesystem = volume.content.filesystem().map(|_| (Uuid::new_v4(), spans));
            let record = record::encode(volume)?;
            Stored { stage: Stage::Making, record, data, length: volume.size, filesystem }
        };
        let steps = steps!("create_volume");
        self.write(steps, Kind::Volume, volume.id.uuid, stored).await?;
        self.name(steps, Kind::Volume, volume.id.uuid, Stage::Ready).await?;
        self.end("create_volume")
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.begin_change("delete_volume").await?;
        if !self.describe(id.uuid).is_empty() {
            return Err(Error::new(ErrorKind::InUse, format!("volume {id} is open on this host")));
        }
        self.remove(steps!("delete_volume"), Kind::Volume, id.uuid).await?;
        self.end("delete_volume")
    }

    async fn update_volume(&self, volume: &Volume) -> Result<()> {
        self.begin_change("update_volume").await?;
        self.replace(steps!("update_volume"), volume, |_| {}).await?;
        self.end("update_volume")
    }

    async fn grow_volume(&self, volume: &Volume) -> Result<()> {
        self.begin_change("grow_volume").await?;
        let longer = |stored: &mut Stored| stored.length = stored.length.max(volume.size);
        self.replace(steps!("grow_volume"), volume, longer).await?;
        self.step("grow_volume: devices").await?;
        self.kernel.resize_devices(volume.id.uuid, volume.size);
        self.end("grow_volume")
    }

    async fn create_snapshot(&self, snapshot: &Snapshot, progress: &Arc<Progress>) -> Result<Snapshot> {
        self.begin_change("create_snapshot").await?;
        let (snapshot, stored) = cut(&self.disk.state(), snapshot, progress)?;
        let steps = steps!("create_snapshot");
        self.write(steps, Kind::Snapshot, snapshot.id.uuid, stored).await?;
        self.name(steps, Kind::Snapshot, snapshot.id.uuid, Stage::Ready).await?;
        self.end("create_snapshot")?;
        Ok(snapshot)
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.begin_change("delete_snapshot").await?;
        self.remove(steps!("delete_snapshot"), Kind::Snapshot, id.uuid).await?;
        self.end("delete_snapshot")
    }

    async fn create_group(
        &self,
        group: &Group,
        members: &[Snapshot],
        progress: &Arc<Progress>,
    ) -> Result<Vec<Snapshot>> {
        self.begin_change("create_group").await?;
        let cut = {
            let state = self.disk.state();
            members.iter().map(|member| cut(&state, member, progress)).collect::<Result<Vec<_>>>()?
        };
        let (steps, uuid) = (steps!("create_group"), group.id.uuid);
        let (record, length) = (record::encode(group)?, Bytes::ZERO);
        let stored = Stored { stage: Stage::Making, record, data: Vec::new(), length, filesystem: None };
        let made = async {
            self.write(steps, Kind::Group, uuid, stored).await?;
            let steps = steps!("create_group: member");
            for (snapshot, stored) in &cut {
                self.write(steps, Kind::Snapshot, snapshot.id.uuid, stored.clone()).await?;
                self.name(steps, Kind::Snapshot, snapshot.id.uuid, Stage::Ready).await?;
            }
            self.name(steps!("create_group"), Kind::Group, uuid, Stage::Ready).await
        };
        if let Err(error) = made.await {
            if !self.is_broken() {
                self.remove_group(uuid, &group.members).await?;
            }
            return Err(error);
        }
        self.end("create_group")?;
        Ok(cut.into_iter().map(|(snapshot, _)| snapshot).collect())
    }

    async fn delete_group(&self, id: GroupId) -> Result<()> {
        self.begin_change("delete_group").await?;
        // Also one whose end was begun.
        let stored = self.disk.state().get(Kind::Group, id.uuid).cloned();
        if let Some(stored) = stored {
            let group: Group = record::decode(&stored.record).map_err(|bad| unreadable(id, bad))?;
            self.name(steps!("delete_group"), Kind::Group, id.uuid, Stage::Removing).await?;
            self.remove_group(id.uuid, &group.members).await?;
        }
        self.end("delete_group")
    }

    async fn attach(&self, id: VolumeId, how: &Attach) -> Result<Held> {
        self.begin("attach").await?;
        let volume = self.find_volume(id).await?.ok_or_else(|| gone(id))?;
        let spans = self.disk.state().find(Kind::Volume, id.uuid).and_then(|stored| stored.filesystem);
        let (device, hold) = self.kernel.add_device(FakeDevice {
            owner: id.uuid,
            label: how.label.clone(),
            transient: how.transient,
            read_only: how.read_only,
            size: volume.size,
            // What is there, whatever the record says.
            filesystem: volume.content.filesystem().filter(|_| spans.is_some()),
            filesystem_size: spans.map_or(volume.size, |(_, size)| size),
        });
        let attached = Attached { device, transient: how.transient, label: how.label.clone() };
        Ok(Held { attached, guard: Box::new(hold) })
    }

    async fn attached(&self, id: VolumeId) -> Result<Vec<Attached>> {
        self.begin("attached").await?;
        Ok(self.describe(id.uuid))
    }

    async fn hold(&self, id: VolumeId, number: DeviceNumber) -> Result<Held> {
        self.begin("hold").await?;
        let attached = self.describe(id.uuid).into_iter().find(|attached| attached.device.number == number);
        match (attached, self.kernel.hold_device(id.uuid, number)) {
            (Some(attached), Some(hold)) => Ok(Held { attached, guard: Box::new(hold) }),
            _ => {
                Err(Error::new(ErrorKind::Busy, format!("device {number} does not stand for {id} any more")))
            }
        }
    }

    async fn detach(&self, id: VolumeId, which: Option<DeviceNumber>) -> Result<Detached> {
        self.begin("detach").await?;
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
        self.begin("refresh").await?;
        let length = self.disk.state().find(Kind::Volume, id.uuid).map(|stored| stored.length);
        self.kernel.resize_devices(id.uuid, length.ok_or_else(|| gone(id))?);
        Ok(())
    }

    async fn examine(&self, _volume: &Volume) -> Result<Vec<Trouble>> {
        self.begin("examine").await?;
        Ok(Vec::new())
    }

    async fn devices(&self) -> Result<Vec<(Uuid, Attached)>> {
        self.begin("devices").await?;
        let devices = self.kernel.devices(None).into_iter();
        Ok(devices
            .map(|(device, fake)| {
                (fake.owner, Attached { device, transient: fake.transient, label: fake.label })
            })
            .collect())
    }
}
