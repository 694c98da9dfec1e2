//! Groups: snapshots of several volumes, cut at one instant, found and deleted together.

use std::{collections::BTreeSet, sync::Arc};

use super::{Engine, index::Doubtful};
use crate::{
    bytes::Bytes,
    digest::Digest,
    error::{Error, ErrorKind, Result},
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    pool::{
        Pool, Progress, Sharing,
        record::{Group, Snapshot, Timestamp, Volume},
    },
};

/// A group that is asked for; its form has been checked.
#[derive(Clone, Debug)]
pub struct NewGroup {
    /// The caller's name for it.
    pub name: String,
    /// Of which volumes: at least one.
    pub volumes: BTreeSet<VolumeId>,
    /// What a later request of the same name must have in common.
    pub digest: Digest,
}

/// A group and its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeGroup {
    /// The group.
    pub group: Arc<Group>,
    /// Its snapshots.
    pub snapshots: Vec<Arc<Snapshot>>,
}

/// The snapshots that a caller takes for those of a group; `None` where they are none of ours.
pub type Claim = Option<BTreeSet<SnapshotId>>;

impl Engine {
    /// Cuts snapshots of several volumes at one instant, or finds those that the same request cut before.
    ///
    /// # Errors
    /// `Mismatch` where the name is taken by another request; `NotFound` where a volume is gone; `InUse` where they
    /// cannot be cut at one instant; `NoSpace`, `Unavailable`.
    pub async fn create_group(&self, wanted: &NewGroup, progress: &Arc<Progress>) -> Result<WholeGroup> {
        if let Some(existing) = self.existing_group(wanted).await? {
            return self.whole(existing);
        }
        let pool = self.pool(one_pool(wanted)?).await?;
        let mut volumes = Vec::new();
        let mut occupied = Bytes::ZERO;
        for id in &wanted.volumes {
            let volume = self.volume(*id).await?.1;
            occupied = occupied.plus(pool.occupied(*id).await?);
            volumes.push(volume);
        }
        let promise = self.promise(pool.id(), &pool.capacity().await?, occupied)?;
        let (group, members) = describe(wanted, pool.id(), &volumes);
        let mut turns = Vec::new();
        for id in &wanted.volumes {
            turns.push(pool.take_turn(*id, Sharing::Shared).await?);
        }
        let members = pool.create_group(&group, &members, progress).await?;
        tracing::info!(group = %group.id, members = members.len(), "group cut");
        let mut index = self.index();
        members.iter().for_each(|member| index.put_snapshot(member.clone()));
        index.put_group(group.clone());
        drop(index);
        drop((turns, promise));
        Ok(WholeGroup { group: Arc::new(group), snapshots: members.into_iter().map(Arc::new).collect() })
    }

    async fn existing_group(&self, wanted: &NewGroup) -> Result<Option<Arc<Group>>> {
        let home = async { one_pool(wanted) };
        match self.find_named(|index| index.group_named(&wanted.name), home).await? {
            None => Ok(None),
            Some(existing) if existing.digest != wanted.digest => {
                let what = format!("group {:?} exists ({}) of other volumes", existing.name, existing.id);
                Err(Error::new(ErrorKind::Mismatch, what))
            }
            existing => Ok(existing),
        }
    }

    /// A group and its snapshots.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where its snapshots are not those that are claimed; `Unavailable` where its pool is, or a
    /// snapshot of it is missing.
    pub async fn get_group(&self, id: GroupId, claim: &Claim) -> Result<WholeGroup> {
        let pool = self.pool(id.pool).await?;
        let gone = || Error::new(ErrorKind::NotFound, format!("group {id} does not exist"));
        let group = self.find_group(&pool, id).await?.ok_or_else(gone)?;
        self.check_claim(&group, claim)?;
        self.whole(group)
    }

    /// Removes a group with its snapshots; fine where it does not exist.
    ///
    /// # Errors
    /// `Invalid` where its snapshots are not those that are claimed; `Unavailable` where its pool is.
    pub async fn delete_group(&self, id: GroupId, claim: &Claim) -> Result<()> {
        let Some(pool) = self.find_pool(id.pool).await? else { return Ok(()) };
        // One whose end was begun is found no more, and may have left something.
        if let Some(group) = self.find_group(&pool, id).await? {
            self.check_claim(&group, claim)?;
        }
        pool.delete_group(id).await.inspect_err(|_| self.index().doubt(Doubtful::Group(id)))?;
        self.index().remove_group(id);
        tracing::info!(group = %id, "group deleted");
        Ok(())
    }

    async fn find_group(&self, pool: &Arc<dyn Pool>, id: GroupId) -> Result<Option<Arc<Group>>> {
        let group = self.index().group(id);
        match group {
            // What cannot be read is not gone: only the pool knows the difference.
            None => Ok(pool.find_group(id).await?.map(Arc::new)),
            known => Ok(known),
        }
    }

    fn whole(&self, group: Arc<Group>) -> Result<WholeGroup> {
        let index = self.index();
        let snapshots = group.snapshots().map(|member| {
            let missing = || format!("snapshot {member} of group {} is missing", group.id);
            index.snapshot(member).ok_or_else(|| Error::new(ErrorKind::Unavailable, missing()))
        });
        let snapshots = snapshots.collect::<Result<_>>()?;
        drop(index);
        Ok(WholeGroup { group, snapshots })
    }

    /// A caller who does not mean the group that is here must not have it. One that is lost need not be named.
    fn check_claim(&self, group: &Group, claim: &Claim) -> Result<()> {
        let index = self.index();
        let members: BTreeSet<SnapshotId> = group.snapshots().collect();
        let named = |member: &SnapshotId, claim: &BTreeSet<SnapshotId>| {
            claim.contains(member) || index.snapshot(*member).is_none()
        };
        match claim {
            Some(claim) if claim.is_subset(&members) && members.iter().all(|it| named(it, claim)) => Ok(()),
            _ => {
                let what =
                    format!("snapshot_ids are not those of group {}, which has {}", group.id, members.len());
                Err(Error::new(ErrorKind::Invalid, what))
            }
        }
    }

    /// Refuses to remove one snapshot of a group. One whose group is gone is kept by nobody else.
    pub(super) fn expect_alone(&self, id: SnapshotId) -> Result<()> {
        let index = self.index();
        let group = index.snapshot(id).and_then(|snapshot| index.group(snapshot.group?));
        match group {
            None => Ok(()),
            Some(group) => {
                let what = format!("snapshot {id} belongs to group {}: delete that as a whole", group.id);
                Err(Error::new(ErrorKind::Invalid, what))
            }
        }
    }
}

/// The pool that all volumes are in: only there is there one instant.
fn one_pool(wanted: &NewGroup) -> Result<PoolId> {
    let pools: BTreeSet<PoolId> = wanted.volumes.iter().map(|id| id.pool).collect();
    match (pools.first(), pools.len()) {
        (Some(pool), 1) => Ok(*pool),
        (_, count) => {
            let what =
                format!("the volumes are in {count} pools: only those of one can be cut at one instant");
            Err(Error::new(ErrorKind::InUse, what))
        }
    }
}

/// The records of a new group. The name of a member follows from the group's, which is unique: it is there for people,
/// and callers' names of snapshots are looked for elsewhere.
fn describe(wanted: &NewGroup, pool: PoolId, volumes: &[Arc<Volume>]) -> (Group, Vec<Snapshot>) {
    let (id, created) = (GroupId::random(pool), Timestamp::now());
    let member = |volume: &Arc<Volume>| Snapshot {
        id: SnapshotId::random(pool),
        name: format!("{}/{}", wanted.name, volume.id.uuid.simple()),
        volume: volume.id,
        size: volume.size,
        content: volume.content,
        block: volume.block,
        used: Bytes::ZERO,
        created,
        group: Some(id),
    };
    let snapshots: Vec<Snapshot> = volumes.iter().map(member).collect();
    let members = snapshots.iter().map(|snapshot| snapshot.id.uuid).collect();
    let (name, digest) = (wanted.name.clone(), wanted.digest.clone());
    (Group { id, name, members, digest, created }, snapshots)
}
