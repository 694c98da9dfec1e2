//! What there is in a pool, how it is, and what an earlier process has left.

use super::{
    Inner,
    below::Mode,
    groups::unfinished,
    metadata, report,
    slots::{Object, Stage},
};
use crate::{
    bytes::Bytes,
    error::{Chain, Doing, Result},
    filesystem::BLOCK,
    id::VolumeId,
    pool::{Capacity, Detached, Listing, Role, Severity, Trouble, fill::Fill},
    sys::superblock::{self, Contents},
};

impl Inner {
    pub(super) fn list(&self) -> Result<Listing> {
        let (entries, damaged) = self.slots.all()?;
        let mut listing = Listing { damaged, ..Listing::default() };
        let hidden = unfinished(&entries);
        for entry in entries.into_iter().filter(|entry| entry.stage == Stage::Ready) {
            match entry.object {
                Object::Volume(volume) => listing.volumes.push(volume),
                Object::Snapshot(snapshot) => listing.snapshots.push(snapshot),
                Object::Template(_) => {}
                Object::Group(group) => listing.groups.push(group),
            }
        }
        listing.snapshots.retain(|snapshot| snapshot.group.is_none_or(|group| !hidden.contains(&group)));
        if self.role == Role::Observer {
            listing.strangers = self.strangers();
            listing.leftovers = self.devices.leftovers()?;
        }
        Ok(listing)
    }

    /// Thin devices with numbers of ours that no record knows. Only asked for by whoever looks for such things.
    fn strangers(&self) -> Vec<String> {
        let records = || Ok(self.slots.all()?.0);
        let found =
            self.devices.below().and_then(|(pool, _)| report::strangers(&self.devices.mapper, pool, records));
        match found {
            Ok(found) => found.iter().map(|device| format!("thin device {}", device.number)).collect(),
            Err(error) => vec![format!("a thin device that could not be looked for ({})", Chain(&error))],
        }
    }

    /// Ends pauses, then takes back what was begun to be made and finishes what was begun to be removed.
    pub(super) fn recover(&self) -> Result<Vec<String>> {
        let mut done = self.devices.sweep()?;
        // What an earlier process recorded and did not live to flush is there for whoever reads it.
        self.slots.flush()?;
        let below = match self.devices.below() {
            Ok((below, _)) => below,
            Err(error) => {
                done.push(format!("left as it is, since the thin pool does not run: {error}"));
                return Ok(done);
            }
        };
        if let Err(error) = self.check() {
            done.push(format!("left as it is, since the thin pool takes no changes: {error}"));
            return Ok(done);
        }
        done.extend(self.recover_groups()?);
        if metadata::release_left(&self.devices.mapper, below)? {
            done.push("let go of metadata that a reader had left held".to_owned());
        }
        let (entries, _) = self.slots.all()?;
        for entry in entries.into_iter().filter(|entry| entry.stage != Stage::Ready) {
            let uuid = entry.object.uuid();
            if self.devices.detach(uuid, None)? == Detached::StillUsed {
                done.push(format!("left {} alone: its device is in use", uuid.simple()));
                continue;
            }
            let verb =
                if entry.stage == Stage::Making { "undid the making" } else { "finished the removing" };
            done.push(match self.delete(entry) {
                Ok(()) => format!("{verb} of {}", uuid.simple()),
                Err(error) => format!("left {} to the next start: {}", uuid.simple(), Chain(&error)),
            });
        }
        Ok(done)
    }

    pub(super) fn capacity(&self) -> Result<Capacity> {
        let status = self.status()?;
        if status.health.mode == Mode::Failed {
            // It says nothing of its space.
            status.health.check()?;
        }
        let data = status.data;
        Ok(Capacity {
            total: data.total,
            free: data.total.minus(data.used),
            foreign: self.foreign().into_iter().fold(Bytes::ZERO, Bytes::plus),
            reserve: data.total.percent(self.settings.reserve_percent),
            overcommit_percent: self.settings.overcommit_percent,
            maximum: Bytes::MAX.round_down(BLOCK),
        })
    }

    pub(super) fn probe(&self, id: VolumeId) -> Result<Contents> {
        let (entry, volume) = self.ready_volume(id)?;
        let what = || format!("read the first blocks of {id}");
        let held = match self.devices.attached(id.uuid)?.first() {
            Some((info, _)) => Some(self.devices.hold(id.uuid, info.number)?),
            None => None,
        };
        if let Some(held) = held {
            let file = std::fs::File::open(&held.attached.device.path).doing(what)?;
            return superblock::probe(&file, held.attached.device.size).doing(what);
        }
        let work = self.devices.work_on(id.uuid, entry.thin, volume.size)?;
        superblock::probe(work.file()?, volume.size).doing(what)
    }

    pub(super) fn examine(&self) -> Result<Vec<Trouble>> {
        let mut found = Vec::new();
        let mut trouble =
            |severity, reason, message: String| found.push(Trouble { severity, reason, message });
        if let Err(error) = self.devices.below() {
            trouble(Severity::Inaccessible, "PoolNeedsRepair", error.to_string());
            return Ok(found);
        }
        let status = self.status()?;
        if let Err(error) = status.health.check() {
            let severity =
                if status.health.mode == Mode::Failed { Severity::Inaccessible } else { Severity::Degraded };
            trouble(severity, "PoolNeedsRepair", error.to_string());
        }
        found.extend(status.fills().unwrap_or_default().iter().filter_map(Fill::trouble));
        Ok(found)
    }
}
