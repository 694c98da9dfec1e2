//! What a run made is removed again, whatever became of it: by the ledger of each driver, and by nothing else. A call that was
//! cut off has no id; the same call again tells it.

use std::time::{Duration, Instant};

use super::{
    super::{client::refused, scratch::gone},
    driver::{Asked, Driver},
};
use crate::{
    error::{ErrorKind, Result},
    proto::{CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest},
};
use futures_util::{StreamExt, TryStreamExt, stream};

/// How long work that goes on is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Calls at a time.
const AT_ONCE: usize = 16;

impl Driver {
    /// Removes all that was made and not removed yet, and the directory that it was mounted in.
    ///
    /// # Errors
    /// That of the first call that is refused; the rest is left then.
    pub(super) async fn clean(&self) -> Result<()> {
        let volumes: Vec<_> = self.ledger().volumes.clone().into_iter().collect();
        let snapshots: Vec<_> = self.ledger().snapshots.clone().into_values().collect();
        // A copy may need its source to be told by its name.
        let (copies, first): (Vec<_>, Vec<_>) =
            volumes.into_iter().partition(|(_, asked)| asked.request.volume_content_source.is_some());
        self.clean_volumes(copies).await?;
        stream::iter(snapshots)
            .map(|asked| self.clean_snapshot(asked))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.clean_volumes(first).await?;
        *self.ledger() = Default::default();
        Ok(())
    }

    async fn clean_volumes(&self, volumes: Vec<(String, Asked<CreateVolumeRequest>)>) -> Result<()> {
        let clean = stream::iter(volumes).map(|(name, asked)| self.clean_volume(name, asked));
        clean.buffer_unordered(AT_ONCE).try_collect::<()>().await
    }

    async fn clean_volume(&self, name: String, asked: Asked<CreateVolumeRequest>) -> Result<()> {
        let known = async || self.create_again(asked.request.clone()).await;
        let id = match asked.id {
            Some(id) => id,
            None => match settled(known).await? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        if asked.used {
            settled(async || self.unpublish_name(&id, &name).await).await?;
            settled(async || self.unstage_name(&id, &name).await).await?;
            settled(async || self.ungrant_name(&id, &name).await).await?;
            gone(&self.root.join(&name), std::fs::remove_dir)?;
        }
        let request = || DeleteVolumeRequest { volume_id: id.clone(), ..DeleteVolumeRequest::default() };
        settled(async || self.daemon.controller().delete_volume(request()).await.map_err(refused)).await?;
        Ok(())
    }

    async fn create_again(&self, request: CreateVolumeRequest) -> Result<String> {
        let answer = self.daemon.controller().create_volume(request).await.map_err(refused)?.into_inner();
        Ok(answer.volume.unwrap_or_default().volume_id)
    }

    async fn clean_snapshot(&self, asked: Asked<CreateSnapshotRequest>) -> Result<()> {
        let cut = async || {
            let answer = self.daemon.controller().create_snapshot(asked.request.clone()).await;
            Ok(answer.map_err(refused)?.into_inner().snapshot.unwrap_or_default().snapshot_id)
        };
        let snapshot_id = match &asked.id {
            Some(id) => id.clone(),
            None => match settled(cut).await? {
                Some(id) => id,
                None => return Ok(()),
            },
        };
        let request =
            || DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), ..DeleteSnapshotRequest::default() };
        settled(async || self.daemon.controller().delete_snapshot(request()).await.map_err(refused)).await?;
        Ok(())
    }
}

/// Makes a call until it is settled. `None` where it is refused for good, which leaves nothing behind.
async fn settled<T>(call: impl AsyncFn() -> Result<T>) -> Result<Option<T>> {
    let begun = Instant::now();
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        match error.kind() {
            // What was cut off goes on for a while.
            ErrorKind::Busy | ErrorKind::InUse | ErrorKind::Unsettled if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::OutOfRange | ErrorKind::NoSpace => {
                return Ok(None);
            }
            _ => return Err(error),
        }
    }
}
