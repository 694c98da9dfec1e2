//! Snapshots of several volumes at one instant: all are paused together, and one message each is sent between the
//! beginning and the end of that pause. The record of the group decides: until it says that all is there nothing of it
//! is shown, and the next start removes it.

use std::collections::HashSet;

use super::{
    Inner,
    below::{self, Made},
    slots::{Entry, Object, Stage},
};
use crate::{
    bytes::Bytes,
    error::{Error, ErrorKind, Result},
    id::GroupId,
    pool::record::{Group, Snapshot},
};

/// What stands in the place of a thin device's number in the record of a group, which has none: LVM's begin at 1.
const NO_THIN: u32 = 0;

/// A snapshot that is being made.
struct Member {
    snapshot: Snapshot,
    thin: u32,
    origin: u32,
    /// The kernel was asked for it: only then is there anything of ours to be removed.
    sent: bool,
}

impl Member {
    fn recorded(&self) -> (u32, Object) {
        (self.thin, Object::Snapshot(self.snapshot.clone()))
    }
}

/// Groups whose making or removing is not done.
pub(super) fn unfinished(entries: &[Entry]) -> HashSet<GroupId> {
    let group = |entry: &Entry| match &entry.object {
        Object::Group(group) if entry.stage != Stage::Ready => Some(group.id),
        _ => None,
    };
    entries.iter().filter_map(group).collect()
}

impl Inner {
    /// What is recorded of a group.
    pub(super) fn group(&self, id: GroupId) -> Result<Option<(Stage, Group)>> {
        Ok(self.slots.find(id.uuid)?.and_then(|entry| match entry.object {
            Object::Group(group) if group.id == id => Some((entry.stage, group)),
            _ => None,
        }))
    }

    /// Whether a group is there of which not all is. One that is not there at all hides nothing.
    pub(super) fn is_unfinished(&self, id: GroupId) -> Result<bool> {
        Ok(self.group(id)?.is_some_and(|(stage, _)| stage != Stage::Ready))
    }

    pub(super) fn create_group(&self, group: &Group, members: &[Snapshot]) -> Result<Vec<Snapshot>> {
        // What waits in memory counts too.
        self.settle(&members.iter().map(|member| member.volume.uuid).collect::<Vec<_>>())?;
        let mut parts = Vec::new();
        for member in members {
            let (entry, volume) = self.ready_volume(member.volume)?;
            let used = self.devices.mapped(volume.id.uuid, entry.thin, volume.size)?;
            let snapshot = Snapshot { size: volume.size, used, ..member.clone() };
            parts.push(Member { snapshot, thin: NO_THIN, origin: entry.thin, sent: false });
        }
        self.take_numbers(&mut parts)?;
        match self.make_group(group, &mut parts) {
            Ok(()) => Ok(parts.into_iter().map(|part| part.snapshot).collect()),
            Err(why) => Err(self.unmake_group(group, &parts, why)),
        }
    }

    fn take_numbers(&self, parts: &mut [Member]) -> Result<()> {
        for index in 0..parts.len() {
            match self.take_free_number() {
                Ok(thin) => parts[index].thin = thin,
                Err(error) => {
                    parts[..index].iter().for_each(|part| self.free_number(part.thin));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Each step durable before the next: what is to be made, what is made, that all of it is.
    fn make_group(&self, group: &Group, parts: &mut [Member]) -> Result<()> {
        let whole = Object::Group(group.clone());
        let recorded = |parts: &[Member]| parts.iter().map(Member::recorded).collect::<Vec<_>>();
        let mut begun = recorded(parts);
        begun.push((NO_THIN, whole.clone()));
        let length = parts.iter().fold(Bytes::ZERO, |sum, part| sum.plus(part.snapshot.used));
        self.admitted(length, || self.slots.put_all(Stage::Making, begun))?;
        let owners: Vec<_> = parts.iter().map(|part| part.snapshot.volume.uuid).collect();
        self.settle(&owners)?;
        self.paused(&owners, || parts.iter_mut().try_for_each(|part| self.cut(part)))?;
        below::committed(&self.devices.mapper, self.devices.below()?.0)?;
        self.slots.put_all(Stage::Ready, recorded(parts))?;
        self.slots.put(NO_THIN, Stage::Ready, whole)
    }

    fn cut(&self, part: &mut Member) -> Result<()> {
        let (mapper, (pool, _)) = (&self.devices.mapper, self.devices.below()?);
        part.sent = true;
        match below::snapshot(mapper, pool, part.thin, part.origin)? {
            Made::Yes => Ok(()),
            Made::Taken => {
                part.sent = false;
                // Somebody made it since it was looked for: not ours to remove.
                let taken = std::mem::replace(&mut part.thin, NO_THIN);
                Err(Error::new(ErrorKind::Busy, format!("thin device {taken} is somebody else's")))
            }
        }
    }

    /// Takes back what was begun. What cannot be, the next start does.
    fn unmake_group(&self, group: &Group, parts: &[Member], why: Error) -> Error {
        let mut sent = parts.iter().filter(|part| part.sent);
        // If a flush has failed nobody knows what the records say by now: only the next start may decide.
        let removed = self.slots.check().and_then(|()| sent.try_for_each(|part| self.remove_thin(part.thin)));
        let undone = removed.and_then(|()| {
            let mut all: Vec<_> = parts.iter().map(Member::recorded).collect();
            all.push((NO_THIN, Object::Group(group.clone())));
            self.slots.put_all(Stage::Removed, all)
        });
        match undone {
            Ok(()) => {
                let taken = parts.iter().filter(|part| part.thin != NO_THIN);
                taken.for_each(|part| self.free_number(part.thin));
                why
            }
            Err(error) => {
                tracing::warn!(%error, group = %group.id, "not undone; the next start does it");
                why.as_kind(ErrorKind::Unsettled)
            }
        }
    }

    pub(super) fn delete_group(&self, id: GroupId) -> Result<()> {
        let Some((_, group)) = self.group(id)? else { return Ok(()) };
        self.check()?;
        self.slots.put(NO_THIN, Stage::Removing, Object::Group(group.clone()))?;
        self.remove_group(group, &self.slots.all()?.0)
    }

    /// Removes what there is of a group's snapshots among all that is recorded, then the group.
    fn remove_group(&self, group: Group, all: &[Entry]) -> Result<()> {
        for entry in all {
            if matches!(&entry.object, Object::Snapshot(snapshot) if snapshot.group == Some(group.id)) {
                self.delete(entry.clone())?;
            }
        }
        self.slots.forget(NO_THIN, Object::Group(group))
    }

    /// Removes groups that were begun to be made, and those that were begun to be removed.
    pub(super) fn recover_groups(&self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        let (all, _) = self.slots.all()?;
        for entry in all.iter().filter(|entry| entry.stage != Stage::Ready) {
            let Object::Group(group) = entry.object.clone() else { continue };
            let verb =
                if entry.stage == Stage::Making { "undid the making" } else { "finished the removing" };
            done.push(format!("{verb} of group {}", group.id));
            self.remove_group(group, &all)?;
        }
        Ok(done)
    }
}
