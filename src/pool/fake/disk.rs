//! The disk of a modelled pool: what is on it, and what only the kernel's cache has of it. It outlives processes, and what
//! was flushed outlives the power.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    bytes::Bytes,
    error::ErrorKind,
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    pool::record::Stage,
};

/// What kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Volume,
    Snapshot,
    Group,
}

/// An object as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// What its name says: one that is being made has none yet.
    pub(super) stage: Stage,
    pub(super) record: Vec<u8>,
    /// What was written, a token for all the blocks.
    pub(super) data: Vec<u8>,
    pub(super) length: Bytes,
    pub(super) filesystem: Option<(Uuid, Bytes)>,
}

/// An object, as who asks now is told, and as it is after a power cut.
#[derive(Clone, Debug, Default)]
struct Kept {
    cached: Option<Stored>,
    durable: Option<Stored>,
    /// A flush of it failed. The kernel takes the cache for written since, so that a second flush is well and does nothing.
    lying: bool,
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

#[derive(Debug, Default)]
pub(super) struct State {
    objects: BTreeMap<(Kind, Uuid), Kept>,
    pub(super) faults: HashMap<&'static str, Fault>,
    pub(super) calls: HashMap<&'static str, usize>,
}

impl State {
    pub(super) fn get(&self, kind: Kind, uuid: Uuid) -> Option<&Stored> {
        self.objects.get(&(kind, uuid))?.cached.as_ref()
    }

    /// One that has a name.
    pub(super) fn find(&self, kind: Kind, uuid: Uuid) -> Option<&Stored> {
        self.get(kind, uuid).filter(|stored| stored.stage == Stage::Ready)
    }

    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = (Uuid, &Stored)> {
        let of_kind = self.objects.range((kind, Uuid::nil())..=(kind, Uuid::max()));
        of_kind.filter_map(|((_, uuid), kept)| Some((*uuid, kept.cached.as_ref()?)))
    }

    /// Changes an object in the cache.
    pub(super) fn put(&mut self, kind: Kind, uuid: Uuid, stored: Option<Stored>) {
        let kept = self.objects.entry((kind, uuid)).or_default();
        (kept.cached, kept.lying) = (stored, false);
    }

    /// Brings what the cache has of an object to the disk.
    pub(super) fn flush(&mut self, kind: Kind, uuid: Uuid) {
        if let Some(kept) = self.objects.get_mut(&(kind, uuid)).filter(|kept| !kept.lying) {
            kept.durable.clone_from(&kept.cached);
            if kept.durable.is_none() {
                self.objects.remove(&(kind, uuid));
            }
        }
    }

    /// The same for all.
    pub(super) fn flush_all(&mut self) {
        let all: Vec<_> = self.objects.keys().copied().collect();
        all.into_iter().for_each(|(kind, uuid)| self.flush(kind, uuid));
    }

    /// A flush of it fails.
    pub(super) fn lose(&mut self, kind: Kind, uuid: Uuid) {
        if let Some(kept) = self.objects.get_mut(&(kind, uuid)) {
            kept.lying = true;
        }
    }

    /// What a filesystem does that is opened anew after a flush of it has failed: it goes back to what it knows to be there.
    pub(super) fn reopen(&mut self) {
        for kept in self.objects.values_mut().filter(|kept| kept.lying) {
            kept.cached.clone_from(&kept.durable);
            kept.lying = false;
        }
    }

    fn write(&mut self, uuid: Uuid, data: &[u8]) {
        if let Some(kept) = self.objects.get_mut(&(Kind::Volume, uuid)) {
            for stored in [&mut kept.cached, &mut kept.durable].into_iter().flatten() {
                stored.data = data.to_vec();
            }
        }
    }
}

/// What outlives a process: opened again, it holds the same. Clones share it.
#[derive(Clone, Debug)]
pub struct FakeDisk {
    pub(super) id: PoolId,
    pub(super) total: Bytes,
    state: Arc<Mutex<State>>,
}

impl FakeDisk {
    /// An empty disk of this size.
    #[must_use]
    pub fn new(total: Bytes) -> Self {
        Self { id: PoolId::random(), total, state: Arc::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool that lies on it.
    #[must_use]
    pub const fn pool(&self) -> PoolId {
        self.id
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

    /// Writes to a volume and flushes it, as its user would.
    pub fn write(&self, id: VolumeId, data: &[u8]) {
        self.state().write(id.uuid, data);
    }

    /// Reads a volume, as its user would.
    #[must_use]
    pub fn read(&self, id: VolumeId) -> Option<Vec<u8>> {
        self.state().find(Kind::Volume, id.uuid).map(|stored| stored.data.clone())
    }

    /// What a snapshot holds.
    #[must_use]
    pub fn read_snapshot(&self, id: SnapshotId) -> Option<Vec<u8>> {
        self.state().find(Kind::Snapshot, id.uuid).map(|stored| stored.data.clone())
    }

    /// Damages the record of a volume; what it was comes back, for whoever wants to mend it.
    pub fn damage(&self, id: VolumeId) -> Option<Vec<u8>> {
        let mut state = self.state();
        let whole = state.find(Kind::Volume, id.uuid)?.clone();
        let damaged = Stored { record: whole.record.get(..20)?.to_vec(), ..whole.clone() };
        state.put(Kind::Volume, id.uuid, Some(damaged));
        state.flush(Kind::Volume, id.uuid);
        Some(whole.record)
    }

    /// Mends it.
    pub fn mend(&self, id: VolumeId, record: Vec<u8>) {
        let mut state = self.state();
        if let Some(damaged) = state.find(Kind::Volume, id.uuid).cloned() {
            state.put(Kind::Volume, id.uuid, Some(Stored { record, ..damaged }));
            state.flush(Kind::Volume, id.uuid);
        }
    }

    /// Takes a volume off the disk, as an operator would who moves its file away.
    pub fn take_away(&self, id: VolumeId) {
        self.state().objects.remove(&(Kind::Volume, id.uuid));
    }

    /// Takes the record of a group off the disk likewise.
    pub fn take_away_group(&self, id: GroupId) {
        self.state().objects.remove(&(Kind::Group, id.uuid));
    }

    /// Cuts the power. Of what was not flushed some is there and some is not, as `choose` says, which is given the number of
    /// possibilities: what an object holds and whether it has its name are two things, and what nobody can see yet may
    /// be written by half.
    pub fn power_cut(&self, mut choose: impl FnMut(usize) -> usize) {
        let mut state = self.state();
        for kept in state.objects.values_mut().filter(|kept| kept.cached != kept.durable) {
            let nameless = kept.durable.as_ref().is_none_or(|durable| durable.stage == Stage::Making);
            let (old, new) = (kept.durable.take(), kept.cached.take());
            let has_name = |stored: &Stored| stored.stage;
            let stage = if choose(2) == 0 { old.as_ref() } else { new.as_ref() }.map(has_name);
            let held = match choose(if nameless { 3 } else { 2 }) {
                0 => old.or_else(|| new.map(torn)),
                1 => new.or(old),
                _ => new.or(old).map(torn),
            };
            kept.durable = stage.zip(held).map(|(stage, held)| Stored { stage, ..held });
            (kept.cached, kept.lying) = (kept.durable.clone(), false);
        }
        state.objects.retain(|_, kept| kept.cached.is_some());
    }

    pub(super) fn used(&self) -> Bytes {
        let state = self.state();
        let all = state.all(Kind::Volume).chain(state.all(Kind::Snapshot));
        all.fold(Bytes::ZERO, |sum, (_, stored)| sum.plus(Bytes::new(stored.data.len() as u64)))
    }
}

/// Half of it was written.
fn torn(mut stored: Stored) -> Stored {
    stored.record.truncate(stored.record.len() / 2);
    stored
}
