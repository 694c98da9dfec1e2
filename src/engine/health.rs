//! What ails volumes, as the pools see it.

use std::sync::Arc;

use super::{Engine, Page};
use crate::{
    error::Result,
    id::VolumeId,
    pool::{Trouble, record::Volume},
};

/// A volume that is not well.
#[derive(Clone, Debug)]
pub struct SickVolume {
    /// Which.
    pub volume: Arc<Volume>,
    /// What ails it, never nothing.
    pub troubles: Vec<Trouble>,
}

impl Engine {
    /// Examines one volume; empty for a healthy one.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` where its pool is. An error is no statement about health.
    pub async fn volume_health(&self, id: VolumeId) -> Result<Vec<Trouble>> {
        let (pool, volume) = self.volume(id).await?;
        pool.examine(&volume).await
    }

    /// Examines volumes in the order of their ids, from behind `after`, and returns those that are not well.
    ///
    /// # Errors
    /// `Unavailable` where a pool is.
    pub async fn list_volume_health(
        &self,
        after: Option<VolumeId>,
        limit: usize,
    ) -> Result<Page<SickVolume>> {
        let all = self.list_volumes(after, usize::MAX).await?;
        let mut entries = Vec::new();
        for volume in all.entries {
            let troubles = self.pool(volume.id.pool).await?.examine(&volume).await?;
            if !troubles.is_empty() {
                entries.push(Arc::new(SickVolume { volume, troubles }));
            }
            if entries.len() > limit {
                entries.truncate(limit);
                return Ok(Page { entries, more: true });
            }
        }
        Ok(Page { entries, more: false })
    }
}
