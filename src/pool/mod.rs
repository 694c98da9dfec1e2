//! Pools: what volumes are cut from. The trait that every kind of pool keeps, and the words in which the rest of the
//! program speaks of one. One file or directory per kind below; none of them knows another.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;

use crate::{
    bytes::Bytes,
    error::Result,
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    sys::{
        device::{Device, DeviceNumber},
        superblock::Contents,
    },
};

pub use crate::sys::lock::Sharing;

pub mod backup;
pub mod fake;
pub mod file;
pub mod fill;
pub mod format;
mod identity;
pub mod import;
pub mod record;
pub mod set;
mod templates;
pub mod thin;

use fill::Fill;
use import::Import;
use record::{Group, Snapshot, Volume};

/// In which roles a process opens a pool. Each role has at most one process a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It changes the pool.
    Controller,
    /// It reads records and makes devices.
    Node,
    /// Both.
    Both,
    /// Neither: it looks, and takes no lock.
    Observer,
}

impl Role {
    /// It may change the pool.
    #[must_use]
    pub const fn changes(self) -> bool {
        matches!(self, Self::Controller | Self::Both)
    }

    /// It may make devices.
    #[must_use]
    pub const fn attaches(self) -> bool {
        matches!(self, Self::Node | Self::Both)
    }

    /// The bytes that a process in this role locks, and what it is called while it has them.
    fn locks(self) -> impl Iterator<Item = (i64, &'static str)> {
        let all = [(self.changes(), 0, "controller"), (self.attaches(), 1, "node")];
        all.into_iter().filter(|(wanted, ..)| *wanted).map(|(_, byte, name)| (byte, name))
    }
}

/// The byte that is locked while a process works on a volume, behind those of the roles. Two volumes with one byte would
/// only wait for one another.
fn byte_of(id: VolumeId) -> i64 {
    2 + i64::try_from(id.uuid.as_u128() >> 66).unwrap_or_default()
}

/// What a pool has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// All of its space.
    pub total: Bytes,
    /// Space that nothing occupies now.
    pub free: Bytes,
    /// Space taken by what is not ours.
    pub foreign: Bytes,
    /// Space that new volumes and snapshots must leave free.
    pub reserve: Bytes,
    /// How much of the space may be promised to volumes, in per cent; above 100 is over-commitment.
    pub overcommit_percent: u32,
    /// The longest volume that the pool's format can hold.
    pub maximum: Bytes,
}

/// Everything with a record in a pool, and what looks as if it had one.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Groups of them.
    pub groups: Vec<Group>,
    /// Objects in a place of ours whose record cannot be read, and why: never touched, always reported.
    pub damaged: Vec<String>,
    /// Objects in a place of ours without a record of their own: never touched, always reported.
    pub strangers: Vec<String>,
    /// What a call leaves behind where it is killed, and the next start clears away.
    pub leftovers: Vec<String>,
}

/// How a volume's device is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// It refuses writes.
    pub read_only: bool,
    /// It goes when its last user does, without being asked.
    pub transient: bool,
    /// A short text (at most 24 bytes) that the kernel keeps with the device: what it is used for.
    pub label: String,
}

/// A device that stands for a volume now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The device.
    pub device: Device,
    /// It goes when its last user does.
    pub transient: bool,
    /// What was said when it was made; empty where somebody else made it.
    pub label: String,
}

/// A volume is taken while this value lives.
pub type Turn = Box<dyn Send + Sync>;

/// A device that stays what it is while this value lives.
pub struct Held {
    /// The device.
    pub attached: Attached,
    /// Keeps the device open.
    pub guard: Box<dyn Send + Sync>,
}

/// Whether a volume's devices could be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// There is none any more.
    Done,
    /// One is open or mounted.
    StillUsed,
}

/// What a pool can say against a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How bad.
    pub severity: Severity,
    /// One word in CamelCase, stable, for programs.
    pub reason: &'static str,
    /// The same for people.
    pub message: String,
}

/// How bad a trouble is, in the terms of CSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It works, but not as it should.
    Degraded,
    /// It cannot be used.
    Inaccessible,
    /// Data is gone.
    DataLoss,
}

/// How far a long operation is. Written by the pool, read by whoever asks.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Says that there is so much more to do.
    pub fn expect(&self, more: Bytes) {
        self.total.fetch_add(more.get(), Ordering::Relaxed);
    }

    /// Adds to what is done.
    pub fn advance(&self, done: Bytes) {
        self.done.fetch_add(done.get(), Ordering::Relaxed);
    }

    /// Done, and to be done in all; both zero for what takes no time.
    pub fn read(&self) -> (Bytes, Bytes) {
        (Bytes::new(self.done.load(Ordering::Relaxed)), Bytes::new(self.total.load(Ordering::Relaxed)))
    }
}

/// A pool. Every call may be made again after a failure, a crash or a lost answer and then leads to the same end.
/// Calls that change something are made only by the holder of the pool's controller lock, and never two at a time
/// for one volume or snapshot: the engine sees to that.
///
/// Errors have the kinds of the crate: `NoSpace` (and what was begun is gone), `Unavailable` where the pool or its
/// disk cannot be reached, `NotFound` where an object that must be there is not, `InUse` where it is open.
#[async_trait]
pub trait Pool: Send + Sync {
    /// The pool's identity.
    fn id(&self) -> PoolId;

    /// Flushes to its disk so far: what changes have cost.
    fn flushes(&self) -> u64;

    /// Room in the pool. Cheap: asked before every creation.
    async fn capacity(&self) -> Result<Capacity>;

    /// How full each part of the pool is.
    async fn fills(&self) -> Result<Vec<Fill>> {
        let Capacity { total, free, .. } = self.capacity().await?;
        Ok(vec![Fill { part: fill::Part::Data, used: total.minus(free), total }])
    }

    /// Does what the configuration wants done before the pool is full. Fine where that is nothing.
    async fn tend(&self) -> Result<()> {
        Ok(())
    }

    /// Waits until the system below says that something has changed in the pool; for ever where it says nothing.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// Everything in the pool: a complete listing, or an error.
    async fn list(&self) -> Result<Listing>;

    /// Takes a volume for one piece of work, against another process that serves the pool in another role; inside a
    /// process the engine's locks do the same. It is given back when the value is dropped. `Busy` where it is taken.
    async fn take_turn(&self, id: VolumeId, sharing: Sharing) -> Result<Turn>;

    /// The record of a volume, read afresh.
    async fn find_volume(&self, id: VolumeId) -> Result<Option<Volume>>;

    /// The record of a snapshot likewise.
    async fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>>;

    /// The record of a group likewise.
    async fn find_group(&self, id: GroupId) -> Result<Option<Group>>;

    /// Whether something happened after which only a new process may believe the disk again.
    fn is_broken(&self) -> bool;

    /// Space that a volume occupies now.
    async fn occupied(&self, id: VolumeId) -> Result<Bytes>;

    /// What a volume really holds: its first blocks are read, whatever its record says.
    async fn probe(&self, id: VolumeId) -> Result<Contents>;

    /// Ends and undoes what an earlier process began and did not finish; one line for each thing done.
    async fn recover(&self) -> Result<Vec<String>>;

    /// The same, and everything that is there then: what a start needs of a pool.
    async fn begin(&self) -> Result<(Vec<String>, Listing)> {
        let done = self.recover().await?;
        Ok((done, self.list().await?))
    }

    /// Makes the volume that the record describes, with the content of its source or a new filesystem. It is there
    /// as a whole, durably, or not at all.
    async fn create_volume(&self, volume: &Volume, progress: &Arc<Progress>) -> Result<()>;

    /// How long the volume would be that is made of something that is not ours. `Invalid` where this pool cannot.
    async fn importable(&self, from: &Import) -> Result<Bytes> {
        Err(import::cannot(from))
    }

    /// Makes a volume of something that is not ours, which stays as it is. The record comes back with what was found to
    /// be in it. As a whole and durably, or not at all, as with any other.
    async fn import_volume(
        &self,
        _volume: &Volume,
        from: &Import,
        _progress: &Arc<Progress>,
    ) -> Result<Volume> {
        Err(import::cannot(from))
    }

    /// Removes a volume; fine where there is none. Snapshots of it are not affected.
    async fn delete_volume(&self, id: VolumeId) -> Result<()>;

    /// Replaces a volume's record, durably. Its size is not changed by this.
    async fn update_volume(&self, volume: &Volume) -> Result<()>;

    /// Makes a volume as long as `volume.size` says, and stores that record. A device that stands for it grows too.
    async fn grow_volume(&self, volume: &Volume) -> Result<()>;

    /// Cuts a snapshot; the record comes back with what was found while cutting.
    async fn create_snapshot(&self, snapshot: &Snapshot, progress: &Arc<Progress>) -> Result<Snapshot>;

    /// Removes a snapshot; fine where there is none. Volumes made from it are not affected.
    async fn delete_snapshot(&self, id: SnapshotId) -> Result<()>;

    /// Cuts the snapshots of a group, `members`, at one instant: with a write that one of them holds, they hold every
    /// write that was done before that one began. All of them are there, durably, and the group with them, or none is.
    /// `InUse` where a volume in use cannot be made to stand still. The records of the snapshots come back.
    async fn create_group(
        &self,
        group: &Group,
        members: &[Snapshot],
        progress: &Arc<Progress>,
    ) -> Result<Vec<Snapshot>>;

    /// Removes a group and all its snapshots; fine where there is none.
    async fn delete_group(&self, id: GroupId) -> Result<()>;

    /// Makes a device for a volume. `Busy` while the volume is being deleted.
    async fn attach(&self, id: VolumeId, how: &Attach) -> Result<Held>;

    /// The devices that stand for a volume now, whoever made them; also for a volume whose record is gone.
    async fn attached(&self, id: VolumeId) -> Result<Vec<Attached>>;

    /// Keeps a device that stands for a volume what it is. `Busy` where it is not that any more.
    async fn hold(&self, id: VolumeId, device: DeviceNumber) -> Result<Held>;

    /// Takes one device of a volume away, or all (`None`).
    async fn detach(&self, id: VolumeId, which: Option<DeviceNumber>) -> Result<Detached>;

    /// Makes the devices of a volume as long as the volume is now.
    async fn refresh(&self, id: VolumeId) -> Result<()>;

    /// What is wrong with a volume, as far as the pool can see.
    async fn examine(&self, volume: &Volume) -> Result<Vec<Trouble>>;

    /// Every device that stands for an object of this pool, with the object's uuid.
    async fn devices(&self) -> Result<Vec<(uuid::Uuid, Attached)>>;
}
