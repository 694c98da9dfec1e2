//! Volumes: made, found, listed, grown, deleted.

use std::sync::Arc;

use super::{
    Engine, Page,
    index::Doubtful,
    plan::{self, SourceFacts},
};
use crate::{
    bytes::Bytes,
    digest::Digest,
    error::{Error, ErrorKind, Result},
    filesystem::{BLOCK, Filesystem},
    id::{PoolId, PoolName, VolumeId},
    pool::{
        Pool, Progress, Sharing,
        import::Import,
        record::{Asked, Content, Source, Timestamp, Volume},
    },
};

/// A volume that is asked for; its form has been checked.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// The caller's name for it.
    pub name: String,
    /// Least size.
    pub required: Option<Bytes>,
    /// Greatest size.
    pub limit: Option<Bytes>,
    /// To be used as a raw device.
    pub block: bool,
    /// To be used as a filesystem.
    pub mount: bool,
    /// Which one, where the request says so.
    pub filesystem: Option<Filesystem>,
    /// In which pool; the first one where the request does not say.
    pub pool: Option<PoolName>,
    /// To begin as a copy of this.
    pub source: Option<Source>,
    /// To be made of this, which is not ours.
    pub import: Option<Import>,
    /// Fingerprint of parameters and source.
    pub digest: Digest,
    /// The request's topology includes this host.
    pub reachable: bool,
}

/// Room for new volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What may still be promised.
    pub available: Bytes,
    /// The longest single volume.
    pub maximum: Bytes,
    /// The shortest.
    pub minimum: Bytes,
}

impl Engine {
    /// Makes a volume, or finds the one that the same request made before.
    ///
    /// # Errors
    /// `Mismatch` where the name is taken by another kind of volume; `NotFound` where the source is gone; `Invalid`
    /// where it is of the wrong kind; `OutOfRange`, `NoSpace`, `Unavailable`.
    pub async fn create_volume(&self, wanted: &NewVolume, progress: &Arc<Progress>) -> Result<Arc<Volume>> {
        if let Some(existing) = self.existing(wanted).await? {
            return Ok(existing);
        }
        if !wanted.reachable {
            let what = "the topology that is asked for does not include this host";
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        let (pool, source) = self.place(wanted).await?;
        let (content, block) = plan::content(wanted, source.as_ref())?;
        let capacity = pool.capacity().await?;
        let size = plan::size(wanted, content, source.as_ref(), capacity.maximum)?;
        let promise = self.promise(pool.id(), &capacity, size)?;
        let asked = Asked {
            required: wanted.required.unwrap_or_default(),
            limit: wanted.limit.unwrap_or_default(),
            digest: wanted.digest.clone(),
        };
        let volume = Volume {
            id: VolumeId::random(pool.id()),
            name: wanted.name.clone(),
            size,
            content,
            block,
            source: wanted.source,
            asked,
            created: Timestamp::now(),
            grants: Vec::new(),
        };
        let _turn = match wanted.source {
            Some(Source::Volume(source)) => Some(pool.take_turn(source, Sharing::Shared).await?),
            _ => None,
        };
        let volume = match &wanted.import {
            None => pool.create_volume(&volume, progress).await.map(|()| volume)?,
            Some(from) => pool.import_volume(&volume, from, progress).await?,
        };
        tracing::info!(volume = %volume.id, %size, "volume created");
        self.index().put_volume(volume.clone());
        drop(promise);
        Ok(Arc::new(volume))
    }

    /// The volume that the same request made before; none is made now.
    ///
    /// # Errors
    /// `NotFound` where there is none of this name, otherwise those of [`Engine::create_volume`].
    pub async fn find_same_volume(&self, wanted: &NewVolume) -> Result<Arc<Volume>> {
        let none = || Error::new(ErrorKind::NotFound, format!("there is no volume {:?} here", wanted.name));
        self.existing(wanted).await?.ok_or_else(none)
    }

    /// The volume of this name, if there is one and it is what is asked for.
    async fn existing(&self, wanted: &NewVolume) -> Result<Option<Arc<Volume>>> {
        let existing =
            self.find_named(|index| index.volume_named(&wanted.name), self.home_of(wanted)).await?;
        match &existing {
            Some(existing) if !wanted.reachable => {
                let what =
                    format!("volume {:?} exists ({}) where it was not asked for", existing.name, existing.id);
                return Err(Error::new(ErrorKind::Mismatch, what));
            }
            Some(existing) => plan::matches(existing, wanted)?,
            None => {}
        }
        Ok(existing)
    }

    /// The pool that a request goes to.
    async fn home_of(&self, wanted: &NewVolume) -> Result<PoolId> {
        match wanted.source {
            Some(Source::Snapshot(id)) => Ok(id.pool),
            Some(Source::Volume(id)) => Ok(id.pool),
            None => Ok(self.inner.pools.named(wanted.pool.as_ref()).await?.id()),
        }
    }

    /// Where a new volume goes, and what is known of its source, which decides that.
    async fn place(&self, wanted: &NewVolume) -> Result<(Arc<dyn Pool>, Option<SourceFacts>)> {
        let (pool, source) = match wanted.source {
            None => {
                let pool = self.inner.pools.named(wanted.pool.as_ref()).await?;
                self.ready(&pool).await?;
                let Some(from) = &wanted.import else { return Ok((pool, None)) };
                // What it holds is found out when it is here.
                let size = pool.importable(from).await?;
                return Ok((pool, Some(SourceFacts { size, content: Content::Raw, block: true })));
            }
            Some(Source::Snapshot(id)) => {
                let (pool, snapshot) = self.snapshot(id).await?;
                let (size, content, block) = (snapshot.size, snapshot.content, snapshot.block);
                (pool, SourceFacts { size, content, block })
            }
            Some(Source::Volume(id)) => {
                let (pool, volume) = self.volume(id).await?;
                let (size, content, block) = (volume.size, volume.content, volume.block);
                (pool, SourceFacts { size, content, block })
            }
        };
        if let Some(name) = &wanted.pool
            && self.inner.pools.named(Some(name)).await?.id() != pool.id()
        {
            let what =
                format!("the source is not in pool {name}, and a copy stays in the pool of its source");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok((pool, Some(source)))
    }

    /// Removes a volume; fine where it does not exist.
    ///
    /// # Errors
    /// `InUse` while it is granted to a node, attached or open; `Unavailable` where its pool is.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<()> {
        let Some(pool) = self.find_pool(id.pool).await? else { return Ok(()) };
        if let Some(volume) = self.index().volume(id)
            && let Some(grant) = volume.grants.first()
        {
            let what = format!("volume {id} is published to node {}", grant.node);
            return Err(Error::new(ErrorKind::InUse, what));
        }
        let _turn = pool.take_turn(id, Sharing::Alone).await?;
        pool.delete_volume(id).await.inspect_err(|_| self.index().doubt(Doubtful::Volume(id)))?;
        self.index().remove_volume(id);
        tracing::info!(volume = %id, "volume deleted");
        Ok(())
    }

    /// A volume's record.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` where its pool is.
    pub async fn get_volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        self.volume(id).await.map(|(_, volume)| volume)
    }

    /// Volumes in the order of their ids, from behind `after`.
    ///
    /// # Errors
    /// `Unavailable` where a pool is: a list with gaps would be taken for a whole one.
    pub async fn list_volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume>> {
        self.all_pools().await?;
        let index = self.index();
        let mut entries: Vec<_> = index.volumes_after(after).take(limit.saturating_add(1)).cloned().collect();
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Page { entries, more })
    }

    /// Grows a volume to at least `required`; its size afterwards.
    ///
    /// # Errors
    /// `NotFound`; `OutOfRange` where it cannot be held by the limit; `NoSpace`.
    pub async fn grow_volume(
        &self,
        id: VolumeId,
        required: Bytes,
        limit: Option<Bytes>,
    ) -> Result<Arc<Volume>> {
        let (pool, volume) = self.volume(id).await?;
        let out_of_range = |what: String| Error::new(ErrorKind::OutOfRange, what);
        let capacity = pool.capacity().await?;
        let size = required.round_up(BLOCK).filter(|size| *size <= capacity.maximum);
        let size =
            size.ok_or_else(|| out_of_range(format!("{required} is more than a volume here can have")))?;
        let size = size.max(volume.size);
        if let Some(limit) = limit.filter(|limit| size > *limit) {
            return Err(out_of_range(format!(
                "volume {id} would have {size}, more than the limit of {limit}"
            )));
        }
        if size == volume.size {
            // An earlier call may have ended between the record and the device.
            pool.refresh(id).await?;
            return Ok(volume);
        }
        let promise = self.promise(pool.id(), &capacity, size.minus(volume.size))?;
        let _turn = pool.take_turn(id, Sharing::Alone).await?;
        let grown = Volume { size, ..(*volume).clone() };
        // The record may be stored when something else of it fails.
        pool.grow_volume(&grown).await.inspect_err(|_| self.index().doubt(Doubtful::Volume(id)))?;
        tracing::info!(volume = %id, from = %volume.size, to = %size, "volume grown");
        self.index().put_volume(grown.clone());
        drop(promise);
        Ok(Arc::new(grown))
    }

    /// Room for new volumes in a pool, the first one where none is named.
    ///
    /// # Errors
    /// `NoSpace` for an unknown pool; `Unavailable` where it is.
    pub async fn room(&self, pool: Option<&PoolName>) -> Result<Room> {
        // What CreateVolume would take: without a name, the first pool.
        let pool = self.inner.pools.named(pool).await?;
        self.ready(&pool).await?;
        let capacity = pool.capacity().await?;
        let available = plan::available(&capacity, self.index().committed(pool.id()));
        Ok(Room { available, maximum: available.min(capacity.maximum), minimum: BLOCK })
    }
}
