//! Volumes and snapshots of a thin pool made and removed: what is begun is recorded first, what was begun and cannot be
//! finished is taken back.

use std::{cell::Cell, sync::PoisonError, time::Duration};

use uuid::Uuid;

use super::{
    Inner,
    below::{self, Made},
    care::length_of,
    metadata,
    slots::{Entry, Object, Stage},
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::{SnapshotId, VolumeId},
    pool::{
        format, identity,
        record::{Content, Snapshot, Source, Volume},
    },
};

/// How long the making of a filesystem may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// What a new thin device begins as.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    Blank,
    /// A copy of this one, which nobody writes to.
    Quiet(u32),
    /// A copy of this one of a volume, which may be in use.
    Live(u32, Uuid),
    /// A copy of this one, which is not ours and may be in use.
    Foreign(u32),
}

impl Inner {
    /// A number that no record knows; taken from now on.
    fn take_number(&self) -> Result<u32> {
        let mut numbers = self.thins.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was given back comes last: a backup of records may still name it.
        let all = (numbers.next..below::LAST).chain(below::FIRST + 1..numbers.next);
        let free = all.into_iter().find(|number| !numbers.taken.contains(number));
        let free =
            free.ok_or_else(|| Error::new(ErrorKind::NoSpace, "every number of a thin device is taken"))?;
        numbers.taken.insert(free);
        numbers.next = free + 1;
        Ok(free)
    }

    pub(super) fn free_number(&self, thin: u32) {
        self.thins.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&thin);
    }

    /// Whether the numbers that the pool has given away are taken, whether a record knows them or not. Asked once: LVM
    /// never comes to numbers of ours.
    fn knows_numbers(&self) -> bool {
        if self.numbers_known.get().is_some() {
            return true;
        }
        let mapper = &self.devices.mapper;
        // Nobody is waited for: there is another way to know of one number.
        let free = |pool: &str| metadata::is_held(mapper, pool).is_ok_and(|held| !held);
        let below = self.devices.below().ok().filter(|(pool, _)| free(pool));
        let Some(Ok(found)) = below.map(|(pool, _)| metadata::devices(mapper, pool)) else { return false };
        let there = found.iter().map(|device| device.number);
        self.thins.lock().unwrap_or_else(PoisonError::into_inner).taken.extend(there);
        // Another thread may have asked too.
        self.numbers_known.set(()).unwrap_or_default();
        true
    }

    /// The same, of which the pool says that nobody has it.
    pub(super) fn take_free_number(&self) -> Result<u32> {
        if self.knows_numbers() {
            return self.take_number();
        }
        // A number that is taken stays so: it is somebody's, and nobody's record says whose.
        for _attempt in 0..64 {
            let thin = self.take_number()?;
            if !self.devices.exists(thin)? {
                return Ok(thin);
            }
        }
        let what = "thin devices that no record knows are in the way: see `lagan doctor --check`";
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    /// Makes a thin device for an object: the intent is recorded first, so that nothing is left that no record knows.
    pub(super) fn make(&self, object: &Object, origin: Origin) -> Result<u32> {
        let (mapper, (pool, _)) = (&self.devices.mapper, self.devices.below()?);
        loop {
            // Asked before the intent is recorded: what an intent names is removed when it cannot be finished.
            let thin = self.take_free_number()?;
            let begin = || self.slots.note(thin, Stage::Making, object.clone());
            self.admitted(length_of(object), begin).inspect_err(|_| self.free_number(thin))?;
            self.slots.flush()?;
            let sent = Cell::new(false);
            let cut = |origin| {
                sent.set(true);
                below::snapshot(mapper, pool, thin, origin)
            };
            let made = match origin {
                Origin::Blank => {
                    sent.set(true);
                    below::create(mapper, pool, thin)
                }
                Origin::Quiet(origin) => cut(origin),
                Origin::Live(origin, owner) => self.paused(&[owner], || cut(origin)),
                Origin::Foreign(origin) => self.foreign_paused(origin, || cut(origin)),
            };
            match made.and_then(|made| below::committed(mapper, pool).map(|()| made)) {
                Ok(Made::Yes) => return Ok(thin),
                // Somebody made it since it was looked for: not ours to remove.
                Ok(Made::Taken) => self.slots.forget(thin, object.clone())?,
                // It may have been made, and only too late to be what was asked for.
                Err(error) if sent.get() => return Err(self.unmake(thin, object, error)),
                Err(error) => {
                    self.slots.forget(thin, object.clone())?;
                    self.free_number(thin);
                    return Err(error);
                }
            }
        }
    }

    /// Takes back what was begun. What cannot be, the next start does.
    pub(super) fn unmake(&self, thin: u32, object: &Object, why: Error) -> Error {
        // If a flush has failed nobody knows what the records say by now: only the next start may decide.
        let undone = self
            .slots
            .check()
            .and_then(|()| self.remove_thin(thin))
            .and_then(|()| self.slots.forget(thin, object.clone()));
        match undone {
            Ok(()) => {
                self.free_number(thin);
                why
            }
            Err(error) => {
                tracing::warn!(%error, thin, "not undone; the next start does it");
                why.as_kind(ErrorKind::Unsettled)
            }
        }
    }

    pub(super) fn create_volume(&self, volume: &Volume) -> Result<()> {
        let template = match (volume.source, volume.content) {
            (None, Content::Filesystem(filesystem)) => self.template_of(filesystem, volume.size),
            _ => None,
        };
        let origin = match volume.source {
            None => match template {
                Some(thin) => Origin::Quiet(thin),
                None => Origin::Blank,
            },
            Some(Source::Snapshot(id)) => {
                let found = self.ready_snapshot(id)?;
                let gone = || Error::new(ErrorKind::NotFound, format!("snapshot {id} does not exist"));
                Origin::Quiet(found.ok_or_else(gone)?.0.thin)
            }
            Some(Source::Volume(id)) => Origin::Live(self.ready_volume(id)?.0.thin, id.uuid),
        };
        let object = Object::Volume(volume.clone());
        let thin = self.make(&object, origin)?;
        match self
            .fill(volume, thin, template.is_some())
            .and_then(|()| self.slots.put(thin, Stage::Ready, object.clone()))
        {
            Ok(()) => Ok(()),
            Err(error) => Err(self.unmake(thin, &object, error)),
        }
    }

    /// Makes the filesystem, or gives a copied one an identity of its own.
    fn fill(&self, volume: &Volume, thin: u32, from_template: bool) -> Result<()> {
        let Content::Filesystem(filesystem) = volume.content else { return Ok(()) };
        let work = self.devices.work_on(volume.id.uuid, thin, volume.size)?;
        if from_template {
            self.make_own(work.file()?, volume.size)?;
        } else if volume.source.is_none() {
            format::make(work.file()?, volume.size, filesystem, &self.commands, PATIENCE)?;
        } else {
            identity::renew(work.file()?, filesystem, volume.size, || {
                identity::replay(&work.device(volume.size)?, filesystem)?;
                work.wait_until_free()
            })?;
        }
        work.file()?.sync_all().doing(|| "flush the new filesystem")?;
        drop(work);
        if volume.source.is_none() && !from_template {
            self.keep_template(filesystem, volume.size, thin);
        }
        Ok(())
    }

    pub(super) fn create_snapshot(&self, snapshot: &Snapshot) -> Result<Snapshot> {
        let (entry, volume) = self.ready_volume(snapshot.volume)?;
        // What waits in memory counts too; and the pause has less to write.
        self.settle(&[volume.id.uuid])?;
        let used = self.devices.mapped(volume.id.uuid, entry.thin, volume.size)?;
        let snapshot = Snapshot { size: volume.size, used, ..snapshot.clone() };
        let object = Object::Snapshot(snapshot.clone());
        let thin = self.make(&object, Origin::Live(entry.thin, volume.id.uuid))?;
        match self.slots.put(thin, Stage::Ready, object.clone()) {
            Ok(()) => Ok(snapshot),
            Err(error) => Err(self.unmake(thin, &object, error)),
        }
    }

    pub(super) fn remove_thin(&self, thin: u32) -> Result<()> {
        below::delete(&self.devices.mapper, self.devices.below()?.0, thin)
    }

    /// Removes an object whose devices are gone.
    pub(super) fn delete(&self, entry: Entry) -> Result<()> {
        self.slots.put(entry.thin, Stage::Removing, entry.object.clone())?;
        let one = self.deleting.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove_thin(entry.thin)?;
        drop(one);
        self.slots.forget(entry.thin, entry.object)?;
        self.free_number(entry.thin);
        Ok(())
    }

    pub(super) fn delete_volume(&self, id: VolumeId) -> Result<()> {
        let Some(entry) = self.slots.find(id.uuid)? else { return Ok(()) };
        self.check()?;
        if let Some((info, _)) = self.devices.attached(id.uuid)?.first() {
            let what = format!("volume {id} stands at device {} on this host", info.number);
            return Err(Error::new(ErrorKind::InUse, what));
        }
        self.delete(entry)
    }

    pub(super) fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        let Some(entry) = self.slots.find(id.uuid)? else { return Ok(()) };
        self.check()?;
        self.delete(entry)
    }
}
