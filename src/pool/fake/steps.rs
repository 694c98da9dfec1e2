//! How a modelled pool changes: step by step, each of which may be the last one of the process.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::{
    FakePool, Fault,
    disk::{Kind, Stored},
    gone,
};
use crate::{
    error::{Error, ErrorKind, Result},
    pool::record::{self, Stage, Volume},
};

/// The steps of a change to one object, by name.
macro_rules! steps {
    ($call:literal) => {
        [
            concat!($call, ": write"),
            concat!($call, ": flush"),
            concat!($call, ": name"),
            concat!($call, ": flush the name"),
        ]
    };
}

pub(super) use steps;

impl FakePool {
    /// Counts a call and lets it stall or fail.
    pub(super) async fn begin(&self, call: &'static str) -> Result<()> {
        let fault = {
            let mut state = self.disk.state();
            *state.calls.entry(call).or_default() += 1;
            state.faults.get(call).cloned()
        };
        match fault {
            Some(Fault::Fail(kind)) => return Err(made_to_fail(kind, call)),
            Some(Fault::Stall(until)) => until.notified().await,
            Some(Fault::FailAfter(_)) | None => {}
        }
        self.step(call).await
    }

    /// Lets a call fail after its work.
    pub(super) fn end(&self, call: &'static str) -> Result<()> {
        match self.disk.state().faults.get(call) {
            Some(Fault::FailAfter(kind)) => Err(made_to_fail(*kind, call)),
            _ => Ok(()),
        }
    }

    pub(super) async fn step(&self, step: &'static str) -> Result<()> {
        self.fate.step(step).await.map_err(|error| Error::io(step, error))
    }

    /// The same for a change: refused after a flush that failed.
    pub(super) async fn begin_change(&self, call: &'static str) -> Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "a flush failed: restart the driver"));
        }
        self.begin(call).await
    }

    /// Brings an object to the disk. After a failure nothing that this process has is believed any more.
    pub(super) async fn flush(&self, step: &'static str, kind: Kind, uuid: Uuid) -> Result<()> {
        let flushed = self.flushed(step).await;
        let mut state = self.disk.state();
        if flushed.is_ok() {
            state.flush(kind, uuid)
        } else {
            state.lose(kind, uuid)
        }
        flushed
    }

    /// Brings all that the cache has to the disk.
    pub(super) async fn sync(&self, step: &'static str) -> Result<()> {
        self.flushed(step).await?;
        self.disk.state().flush_all();
        Ok(())
    }

    async fn flushed(&self, step: &'static str) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.fate.step(step).await.map_err(|error| {
            self.broken.store(true, Ordering::Release);
            Error::io(step, error).as_kind(ErrorKind::Unavailable)
        })
    }

    /// Writes an object that has no name yet; what cannot be written is not left there.
    pub(super) async fn write(
        &self,
        steps: [&'static str; 4],
        kind: Kind,
        uuid: Uuid,
        stored: Stored,
    ) -> Result<()> {
        self.step(steps[0]).await?;
        self.disk.state().put(kind, uuid, Some(Stored { stage: Stage::Making, ..stored }));
        self.flush(steps[1], kind, uuid).await
    }

    /// Gives an object its name, or says that it is being removed, durably.
    pub(super) async fn name(
        &self,
        steps: [&'static str; 4],
        kind: Kind,
        uuid: Uuid,
        stage: Stage,
    ) -> Result<()> {
        self.step(steps[2]).await.inspect_err(|_| {
            // Nobody knows of it yet; but the record of a group says whose its members are, which have their names.
            if stage == Stage::Ready && kind != Kind::Group {
                self.disk.state().put(kind, uuid, None);
            }
        })?;
        {
            let mut state = self.disk.state();
            let named = state.get(kind, uuid).cloned().map(|stored| Stored { stage, ..stored });
            state.put(kind, uuid, named);
        }
        self.flush(steps[3], kind, uuid).await
    }

    /// Takes an object away, durably.
    pub(super) async fn remove(&self, steps: [&'static str; 4], kind: Kind, uuid: Uuid) -> Result<()> {
        if self.disk.state().get(kind, uuid).is_none() {
            return Ok(());
        }
        self.step(steps[2]).await?;
        self.disk.state().put(kind, uuid, None);
        self.flush(steps[3], kind, uuid).await
    }

    /// Replaces a volume as a whole, durably.
    pub(super) async fn replace(
        &self,
        steps: [&'static str; 4],
        volume: &Volume,
        change: impl FnOnce(&mut Stored) + Send,
    ) -> Result<()> {
        let record = record::encode(volume)?;
        let uuid = volume.id.uuid;
        self.step(steps[0]).await?;
        {
            let mut state = self.disk.state();
            let mut stored = state.find(Kind::Volume, uuid).cloned().ok_or_else(|| gone(volume.id))?;
            stored.record = record;
            change(&mut stored);
            state.put(Kind::Volume, uuid, Some(stored));
        }
        self.flush(steps[1], Kind::Volume, uuid).await
    }

    /// Removes the members of a group, then the group.
    pub(super) async fn remove_group(&self, uuid: Uuid, members: &[Uuid]) -> Result<()> {
        let steps = steps!("delete_group");
        for member in members {
            self.remove(steps!("delete_group: member"), Kind::Snapshot, *member).await?;
        }
        self.remove(steps, Kind::Group, uuid).await
    }
}

fn made_to_fail(kind: ErrorKind, call: &str) -> Error {
    Error::new(kind, format!("{call} was made to fail"))
}
