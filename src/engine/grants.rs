//! Grants: which node may use a volume. The host that owns the disk decides; a right that is taken back is first cut
//! off, then forgotten.

use std::sync::Arc;

use super::Engine;
use crate::{
    capability::AccessMode,
    error::{Error, ErrorKind, Result},
    id::{NodeId, VolumeId},
    pool::{
        Sharing,
        record::{GRANT_LIMIT, Grant, Volume},
    },
};

impl Engine {
    /// Lets a node use a volume; the same grant again is fine.
    ///
    /// # Errors
    /// `NotFound` for an unknown volume or node; `Mismatch` where the node has it in another way; `InUse` where
    /// another node has it; `NoSpace` where the node has as many volumes as it takes.
    pub async fn publish(
        &self,
        id: VolumeId,
        node: &NodeId,
        mode: AccessMode,
        read_only: bool,
    ) -> Result<()> {
        let (pool, volume) = self.volume(id).await?;
        if mode.writes_across_nodes() {
            let what = format!("volume {id} is reached by one node: multi-node writers are not supported");
            return Err(Error::new(ErrorKind::InUse, what));
        }
        if *node != self.inner.settings.node {
            return Err(Error::new(ErrorKind::NotFound, format!("node {node} does not exist here")));
        }
        let wanted = Grant { node: node.clone(), read_only, mode };
        if let Some(existing) = volume.grants.iter().find(|grant| grant.node == *node) {
            if *existing == wanted {
                return Ok(());
            }
            let what = format!("volume {id} is published to node {node} in another way");
            return Err(Error::new(ErrorKind::Mismatch, what));
        }
        if let Some(other) =
            volume.grants.first().filter(|_| !matches!(mode, AccessMode::MultiNodeReaderOnly))
        {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("volume {id} is published to node {}", other.node),
            ));
        }
        if volume.grants.len() >= GRANT_LIMIT {
            let what = format!("volume {id} is published to {GRANT_LIMIT} nodes, which is the limit");
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        let limit = usize::try_from(self.inner.settings.max_volumes).unwrap_or(usize::MAX);
        if limit > 0 && self.counts().granted >= limit {
            let what = format!("node {node} has {limit} volumes, which is its limit (max_volumes_per_node)");
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        let mut granted = Volume::clone(&volume);
        granted.grants.push(wanted);
        self.update(&pool, granted).await?;
        tracing::info!(volume = %id, %node, read_only, "volume published to node");
        Ok(())
    }

    /// Takes the right of a node back, or of every node (`None`). The volume is taken away from the host first, and
    /// only what is not in use can be: a local writer of a file cannot be cut off. Fine where there is no such
    /// right, volume or node.
    ///
    /// # Errors
    /// `InUse` where the volume is in use, naming where or by whom; `Unavailable` where its pool is.
    pub async fn unpublish(&self, id: VolumeId, node: Option<&NodeId>) -> Result<()> {
        let Some(pool) = self.find_pool(id.pool).await? else { return Ok(()) };
        let known = self.index().volume(id);
        let volume = match known {
            Some(volume) => volume,
            None => match pool.find_volume(id).await? {
                Some(volume) => Arc::new(volume),
                None => return Ok(()),
            },
        };
        let concerns = |grant: &Grant| node.is_none_or(|node| grant.node == *node);
        if !volume.grants.iter().any(concerns) {
            return Ok(());
        }
        let _turn = pool.take_turn(id, Sharing::Alone).await?;
        self.inner.uses.release(id).await?;
        let mut freed = Volume::clone(&volume);
        freed.grants.retain(|grant| !concerns(grant));
        self.update(&pool, freed).await?;
        tracing::info!(volume = %id, "volume unpublished");
        Ok(())
    }
}
