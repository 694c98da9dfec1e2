//! What is known of the pools without asking them: names, sums, order. Built from the records when a pool is opened,
//! changed only after the pool was, thrown away with the process.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use crate::{
    bytes::Bytes,
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    pool::{
        Listing,
        record::{Group, Snapshot, Volume},
    },
};

/// Volumes, snapshots and groups of every pool that was opened.
#[derive(Debug, Default)]
pub(super) struct Index {
    pools: HashSet<PoolId>,
    volumes: BTreeMap<VolumeId, Arc<Volume>>,
    volume_names: HashMap<String, VolumeId>,
    snapshots: BTreeMap<SnapshotId, Arc<Snapshot>>,
    snapshot_names: HashMap<String, SnapshotId>,
    groups: BTreeMap<GroupId, Arc<Group>>,
    group_names: HashMap<String, GroupId>,
    committed: HashMap<PoolId, Bytes>,
    granted: usize,
    /// Records that could not be read when their pool was listed last.
    damaged: HashMap<PoolId, Vec<String>>,
    /// What a change has failed of: how far it came only the pool knows.
    doubtful: BTreeSet<Doubtful>,
}

/// Something that a change has failed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubtful {
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Group(GroupId),
}

impl Index {
    pub(super) fn knows(&self, pool: PoolId) -> bool {
        self.pools.contains(&pool)
    }

    /// Takes in a pool's listing.
    pub(super) fn load(&mut self, pool: PoolId, listing: Listing) {
        for volume in listing.volumes {
            self.put_volume(volume);
        }
        for snapshot in listing.snapshots {
            self.put_snapshot(snapshot);
        }
        for group in listing.groups {
            self.put_group(group);
        }
        self.note_damaged(pool, listing.damaged);
        self.pools.insert(pool);
    }

    /// Notes which records of a pool cannot be read.
    pub(super) fn note_damaged(&mut self, pool: PoolId, damaged: Vec<String>) {
        self.damaged.insert(pool, damaged);
    }

    /// Pools with records that could not be read: what is not known may be one of these.
    pub(super) fn damaged(&self) -> Vec<PoolId> {
        self.damaged.iter().filter(|(_, damaged)| !damaged.is_empty()).map(|(pool, _)| *pool).collect()
    }

    pub(super) fn volume(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes.get(&id).cloned()
    }

    pub(super) fn volume_named(&self, name: &str) -> Option<Arc<Volume>> {
        self.volume(*self.volume_names.get(name)?)
    }

    pub(super) fn snapshot(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        self.snapshots.get(&id).cloned()
    }

    pub(super) fn snapshot_named(&self, name: &str) -> Option<Arc<Snapshot>> {
        self.snapshot(*self.snapshot_names.get(name)?)
    }

    pub(super) fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.get(&id).cloned()
    }

    pub(super) fn group_named(&self, name: &str) -> Option<Arc<Group>> {
        self.group(*self.group_names.get(name)?)
    }

    /// Volumes behind `after` in the order of ids.
    pub(super) fn volumes_after(&self, after: Option<VolumeId>) -> impl Iterator<Item = &Arc<Volume>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.volumes.range((from, Bound::Unbounded)).map(|(_, volume)| volume)
    }

    /// Snapshots behind `after` in the order of ids.
    pub(super) fn snapshots_after(&self, after: Option<SnapshotId>) -> impl Iterator<Item = &Arc<Snapshot>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.snapshots.range((from, Bound::Unbounded)).map(|(_, snapshot)| snapshot)
    }

    /// A change has failed: what is known of this is asked of the pool before it is used again.
    pub(super) fn doubt(&mut self, what: Doubtful) {
        self.doubtful.insert(what);
    }

    /// Something in a pool that is in doubt.
    pub(super) fn doubtful(&self, pool: PoolId) -> Option<Doubtful> {
        let pool_of = |it: &&Doubtful| match it {
            Doubtful::Volume(id) => id.pool,
            Doubtful::Snapshot(id) => id.pool,
            Doubtful::Group(id) => id.pool,
        };
        self.doubtful.iter().find(|it| pool_of(it) == pool).copied()
    }

    /// Ends a doubt; `false` where a later change has done it meanwhile, and knows better.
    pub(super) fn settle(&mut self, what: Doubtful) -> bool {
        self.doubtful.remove(&what)
    }

    /// Adds a volume, or replaces what is known of it.
    pub(super) fn put_volume(&mut self, volume: Volume) {
        self.remove_volume(volume.id);
        let (id, pool) = (volume.id, volume.id.pool);
        self.volume_names.entry(volume.name.clone()).or_insert(id);
        self.granted += usize::from(!volume.grants.is_empty());
        self.commit(pool, volume.size);
        self.volumes.insert(id, Arc::new(volume));
    }

    pub(super) fn remove_volume(&mut self, id: VolumeId) {
        self.doubtful.remove(&Doubtful::Volume(id));
        if let Some(volume) = self.volumes.remove(&id) {
            if self.volume_names.get(&volume.name) == Some(&id) {
                self.volume_names.remove(&volume.name);
            }
            self.granted -= usize::from(!volume.grants.is_empty());
            self.release(id.pool, volume.size);
        }
    }

    pub(super) fn put_snapshot(&mut self, snapshot: Snapshot) {
        self.remove_snapshot(snapshot.id);
        // The name of a member is ours, not a caller's: nobody is kept from giving it to a snapshot.
        if snapshot.group.is_none() {
            self.snapshot_names.entry(snapshot.name.clone()).or_insert(snapshot.id);
        }
        self.commit(snapshot.id.pool, snapshot.used);
        self.snapshots.insert(snapshot.id, Arc::new(snapshot));
    }

    pub(super) fn remove_snapshot(&mut self, id: SnapshotId) {
        self.doubtful.remove(&Doubtful::Snapshot(id));
        if let Some(snapshot) = self.snapshots.remove(&id) {
            if self.snapshot_names.get(&snapshot.name) == Some(&id) {
                self.snapshot_names.remove(&snapshot.name);
            }
            self.release(id.pool, snapshot.used);
        }
    }

    pub(super) fn put_group(&mut self, group: Group) {
        self.group_names.entry(group.name.clone()).or_insert(group.id);
        self.groups.insert(group.id, Arc::new(group));
    }

    /// Removes a group, and its snapshots.
    pub(super) fn remove_group(&mut self, id: GroupId) {
        self.doubtful.remove(&Doubtful::Group(id));
        if let Some(group) = self.groups.remove(&id) {
            if self.group_names.get(&group.name) == Some(&id) {
                self.group_names.remove(&group.name);
            }
            group.snapshots().for_each(|member| self.remove_snapshot(member));
        }
    }

    /// Space promised in a pool: volumes at full length, snapshots at what they keep.
    pub(super) fn committed(&self, pool: PoolId) -> Bytes {
        self.committed.get(&pool).copied().unwrap_or_default()
    }

    pub(super) fn commit(&mut self, pool: PoolId, amount: Bytes) {
        let sum = self.committed.entry(pool).or_default();
        *sum = sum.plus(amount);
    }

    pub(super) fn release(&mut self, pool: PoolId, amount: Bytes) {
        let sum = self.committed.entry(pool).or_default();
        *sum = sum.minus(amount);
    }

    /// Volumes and snapshots of one pool, and the space promised to them.
    pub(super) fn counts_of(&self, pool: PoolId) -> (usize, usize, Bytes) {
        let volumes = self.volumes.range(VolumeId::all_of(pool)).count();
        (volumes, self.snapshots.range(SnapshotId::all_of(pool)).count(), self.committed(pool))
    }

    /// Volumes, volumes that are granted to a node, and snapshots.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.volumes.len(), self.granted, self.snapshots.len())
    }
}
