//! Snapshots: cut, found, listed, deleted.

use std::sync::Arc;

use super::{Engine, Page, index::Doubtful};
use crate::{
    bytes::Bytes,
    error::{Error, ErrorKind, Result},
    id::{SnapshotId, VolumeId},
    pool::{
        Progress, Sharing,
        record::{Snapshot, Timestamp},
    },
};

/// A snapshot that is asked for; its form has been checked.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// The caller's name for it.
    pub name: String,
    /// Of which volume.
    pub volume: VolumeId,
}

/// Which snapshots are to be listed.
#[derive(Clone, Copy, Debug, Default)]
pub struct SnapshotFilter {
    /// Only this one.
    pub id: Option<SnapshotId>,
    /// Only those of this volume.
    pub volume: Option<VolumeId>,
}

impl Engine {
    /// Cuts a snapshot, or finds the one that the same request cut before.
    ///
    /// # Errors
    /// `Mismatch` where the name is taken by a snapshot of another volume; `NotFound` where the volume is gone;
    /// `InUse` where it would have to stand still and does not; `NoSpace`, `Unavailable`.
    pub async fn create_snapshot(
        &self,
        wanted: &NewSnapshot,
        progress: &Arc<Progress>,
    ) -> Result<Arc<Snapshot>> {
        if let Some(existing) = self.existing_snapshot(wanted).await? {
            return Ok(existing);
        }
        let (pool, volume) = self.volume(wanted.volume).await?;
        // At most what the volume occupies now: all that the snapshot keeps once the volume is overwritten.
        let promise = self.promise(pool.id(), &pool.capacity().await?, pool.occupied(volume.id).await?)?;
        let snapshot = Snapshot {
            id: SnapshotId::random(pool.id()),
            name: wanted.name.clone(),
            volume: volume.id,
            size: volume.size,
            content: volume.content,
            block: volume.block,
            used: Bytes::ZERO,
            created: Timestamp::now(),
            group: None,
        };
        let _turn = pool.take_turn(volume.id, Sharing::Shared).await?;
        let snapshot = pool.create_snapshot(&snapshot, progress).await?;
        tracing::info!(snapshot = %snapshot.id, volume = %volume.id, "snapshot cut");
        self.index().put_snapshot(snapshot.clone());
        drop(promise);
        Ok(Arc::new(snapshot))
    }

    async fn existing_snapshot(&self, wanted: &NewSnapshot) -> Result<Option<Arc<Snapshot>>> {
        let home = async { Ok(wanted.volume.pool) };
        match self.find_named(|index| index.snapshot_named(&wanted.name), home).await? {
            Some(existing) if existing.volume != wanted.volume => {
                let what = format!("snapshot {:?} exists ({}) of another volume", existing.name, existing.id);
                Err(Error::new(ErrorKind::Mismatch, what))
            }
            existing => Ok(existing),
        }
    }

    /// Removes a snapshot; fine where it does not exist.
    ///
    /// # Errors
    /// `Invalid` where it belongs to a group: that goes as a whole. `Unavailable` where its pool is.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        let Some(pool) = self.find_pool(id.pool).await? else { return Ok(()) };
        self.expect_alone(id)?;
        pool.delete_snapshot(id).await.inspect_err(|_| self.index().doubt(Doubtful::Snapshot(id)))?;
        self.index().remove_snapshot(id);
        tracing::info!(snapshot = %id, "snapshot deleted");
        Ok(())
    }

    /// A snapshot's record.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` where its pool is.
    pub async fn get_snapshot(&self, id: SnapshotId) -> Result<Arc<Snapshot>> {
        self.snapshot(id).await.map(|(_, snapshot)| snapshot)
    }

    /// Snapshots in the order of their ids, from behind `after`.
    ///
    /// # Errors
    /// `Unavailable` where a pool that may hold some is.
    pub async fn list_snapshots(
        &self,
        filter: SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot>> {
        match filter.id {
            Some(id) => self.pool(id.pool).await.map(drop)?,
            None => self.all_pools().await.map(drop)?,
        }
        let index = self.index();
        let wanted = |snapshot: &&Arc<Snapshot>| {
            filter.id.is_none_or(|id| snapshot.id == id)
                && filter.volume.is_none_or(|volume| snapshot.volume == volume)
        };
        // One id is looked up, not searched for.
        let mut entries: Vec<_> = match filter.id {
            Some(id) => index.snapshot(id).iter().filter(wanted).cloned().collect(),
            None => {
                index.snapshots_after(after).filter(wanted).take(limit.saturating_add(1)).cloned().collect()
            }
        };
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Page { entries, more })
    }
}
