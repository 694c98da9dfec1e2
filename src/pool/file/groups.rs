//! Snapshots of several volumes at one instant. Several files have no common link, so a group has a record of its own, in
//! an empty file beside the snapshots: written before the first of them has a name, and made to say that all are there
//! when they are. What it does not say so of is hidden, and the next start removes it.

use std::{
    collections::HashSet,
    fs::File,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Inner,
    content::share,
    pause,
    store::{Store, own},
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::{GroupId, SnapshotId, VolumeId},
    pool::{
        Listing, Progress,
        record::{self, Content, Group, RECORD_LIMIT, Snapshot, Stage},
    },
    sys::file::{self, Access, no_writers},
};

/// What follows the uuid in the name of a group's file.
const SUFFIX: &str = ".group";

/// A group, and how far its making or removing is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    stage: Stage,
    group: Group,
}

impl Entry {
    /// As it is stored: always in one length, so that it is replaced in one transaction.
    fn encode(&self) -> Result<Vec<u8>> {
        record::encode_to(self, RECORD_LIMIT)
    }
}

pub(super) fn file_name(uuid: Uuid) -> String {
    format!("{}{SUFFIX}", uuid.simple())
}

/// A group that is complete, as it is stored.
pub(super) fn stored(group: Group) -> Result<Vec<u8>> {
    Entry { stage: Stage::Ready, group }.encode()
}

/// Whether a file is that of a group, by its name.
pub(super) fn is_group(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

fn uuid_of(name: &str) -> Option<Uuid> {
    let digits = name.strip_suffix(SUFFIX)?;
    Uuid::try_parse(digits).ok().filter(|uuid| uuid.simple().to_string() == digits)
}

impl Store {
    fn group(&self, id: GroupId) -> Result<Option<Entry>> {
        let entry: Option<Entry> = self.record(&self.snapshots, &file_name(id.uuid))?;
        own(entry, |entry| entry.group.id == id, &id)
    }

    /// The record of a group that is complete.
    pub(super) fn ready_group(&self, id: GroupId) -> Result<Option<Group>> {
        Ok(self.group(id)?.filter(|entry| entry.stage == Stage::Ready).map(|entry| entry.group))
    }

    /// The record of a snapshot, unless its group is not complete.
    pub(super) fn ready_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        let snapshot = self.snapshot(id)?;
        if let Some(group) = snapshot.as_ref().and_then(|snapshot| snapshot.group)
            && self.group(group)?.is_some_and(|entry| entry.stage != Stage::Ready)
        {
            return Ok(None);
        }
        Ok(snapshot)
    }

    /// Adds the groups in these files to a listing, and takes what is not complete out of it.
    pub(super) fn list_groups(&self, names: &[String], listing: &mut Listing) -> Result<()> {
        let mut hidden = HashSet::new();
        for name in names {
            let entry: Option<Entry> = self.read_entry(&self.snapshots, name, uuid_of(name), listing)?;
            let Some(Entry { stage, group }) = entry else { continue };
            if uuid_of(name).is_none_or(|uuid| group.id != GroupId { pool: self.pool, uuid }) {
                listing.strangers.push(format!("snapshots/{name}: its record is that of {}", group.id));
            } else if stage == Stage::Ready {
                listing.groups.push(group);
            } else {
                hidden.insert(group.id);
            }
        }
        listing.snapshots.retain(|snapshot| snapshot.group.is_none_or(|group| !hidden.contains(&group)));
        Ok(())
    }

    /// Removes what there is of a group's snapshots, then the group.
    fn remove_group(&self, group: &Group) -> Result<()> {
        for id in group.snapshots() {
            // A file that says nothing of the group is not what was begun with it.
            if self.snapshot(id)?.is_some_and(|snapshot| snapshot.group == Some(group.id)) {
                self.remove(&self.snapshots, id.uuid)?;
            }
        }
        self.remove_name(&self.snapshots, &file_name(group.id.uuid))
    }

    fn open_group(&self, id: GroupId) -> Result<File> {
        let what = || format!("open the record of {id}");
        self.snapshots.open_file(&file_name(id.uuid), Access::Read).doing(what)
    }
}

/// A snapshot that is being cut: its source, and the file that is to hold it.
struct Part<'m> {
    member: &'m Snapshot,
    from: File,
    to: File,
}

impl Inner {
    pub(super) fn create_group(
        &self,
        group: &Group,
        members: &[Snapshot],
        progress: &Progress,
    ) -> Result<Vec<Snapshot>> {
        self.store.check_writable()?;
        let mut parts = Vec::new();
        for member in members {
            let from = self.store.open_file(&self.store.volumes, member.volume.uuid, Access::Read)?;
            let to = self.store.snapshots.create_unnamed().doing(|| format!("cut {}", member.id))?;
            parts.push(Part { member, from, to });
        }
        self.cut(&parts, progress)?;
        let mut cut = Vec::new();
        for part in &parts {
            let stat = file::stat(&part.to).doing(|| format!("look at {}", part.member.id))?;
            cut.push(Snapshot { size: stat.length, used: stat.allocated, ..part.member.clone() });
        }
        let Err(why) = self.name_all(group, &parts, &cut) else { return Ok(cut) };
        if self.store.is_broken() {
            // Whether all of it is on disk is not known. It is whole as it stands: the next start keeps or removes it by what
            // its record says then.
            return Err(why.half_done());
        }
        let Err(error) = self.undo_group(group) else { return Err(why) };
        tracing::warn!(%error, group = %group.id, "not undone; the next start does it");
        Err(why.as_kind(ErrorKind::Unsettled))
    }

    /// Removes what was made of a group. One that says that it is ready stops saying so first, or half of it would be left
    /// under its name.
    fn undo_group(&self, group: &Group) -> Result<()> {
        if let Some(entry) = self.store.group(group.id)?.filter(|entry| entry.stage == Stage::Ready) {
            let entry = Entry { stage: Stage::Removing, ..entry };
            self.store.rewrite_as(&self.store.open_group(group.id)?, &entry.encode()?)?;
        }
        self.store.remove_group(group)
    }

    /// Gives everything its record and its name. The last step is the one that counts.
    fn name_all(&self, group: &Group, parts: &[Part<'_>], cut: &[Snapshot]) -> Result<()> {
        let (store, snapshots) = (&self.store, &self.store.snapshots);
        let file = snapshots.create_unnamed().doing(|| format!("record {}", group.id))?;
        let mut entry = Entry { stage: Stage::Making, group: group.clone() };
        store.publish_as(snapshots, &file_name(group.id.uuid), &file, &entry.encode()?)?;
        for (part, snapshot) in parts.iter().zip(cut) {
            store.publish(snapshots, snapshot.id.uuid, &part.to, snapshot)?;
        }
        entry.stage = Stage::Ready;
        store.rewrite_as(&file, &entry.encode()?)
    }

    /// Fills the files at one instant. Sources that nobody writes to stay as they are while a lease says so; those of
    /// mounted filesystems are copied under one freeze of all.
    fn cut(&self, parts: &[Part<'_>], progress: &Progress) -> Result<()> {
        let (mut quiet, mut used) = (Vec::new(), Vec::new());
        for part in parts {
            let volume = part.member.volume;
            match no_writers(&part.from).doing(|| format!("ask whether {volume} is in use"))? {
                Some(lease) => quiet.push((part, lease)),
                None if part.member.content == Content::Raw => return Err(cannot_freeze(volume)),
                None => used.push(part),
            }
        }
        for (part, _lease) in &quiet {
            self.copy_quiet(&part.from, &part.to, progress)?;
        }
        if !used.is_empty() {
            self.cut_frozen(&used, progress)?;
        }
        match quiet.iter().find(|(_, lease)| !lease.lasts()) {
            None => Ok(()),
            Some((part, _)) => {
                let what = format!("{} was opened while it was copied", part.member.volume);
                Err(Error::new(ErrorKind::Busy, what))
            }
        }
    }

    fn cut_frozen(&self, used: &[&Part<'_>], progress: &Progress) -> Result<()> {
        let mut volumes = Vec::new();
        for part in used {
            let attached = self.devices.attached(&self.store, part.member.volume)?.into_iter();
            volumes.push((part.member.volume, attached.map(|it| it.device.number).collect()));
        }
        let limit = self.settings.freeze_limit;
        if !self.reflink {
            let sources: Vec<&File> = used.iter().map(|part| &part.from).collect();
            self.expect_to_fit(&format!("a set of {}", used.len()), &sources, limit)?;
        }
        pause::frozen(&self.store, self.minder()?, &volumes, limit, || {
            let until = Instant::now() + limit.mul_f32(0.9);
            let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            used.iter().try_for_each(|part| match self.reflink {
                true => share(&part.from, &part.to),
                false => self.copy_within(&part.from, &part.to, progress, Some(left())),
            })
        })
    }

    pub(super) fn delete_group(&self, id: GroupId) -> Result<()> {
        self.store.check_writable()?;
        let Some(entry) = self.store.group(id)? else { return Ok(()) };
        let entry = Entry { stage: Stage::Removing, ..entry };
        self.store.rewrite_as(&self.store.open_group(id)?, &entry.encode()?)?;
        // From here on it is hidden, and its end only a matter of time.
        self.store.remove_group(&entry.group).map_err(Error::half_done)
    }

    /// Removes groups that were begun to be made, and those that were begun to be removed.
    pub(super) fn recover_groups(&self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        let names = self.store.snapshots.names().doing(|| "list groups")?;
        for uuid in names.iter().filter_map(|name| uuid_of(name)) {
            let id = GroupId { pool: self.store.pool, uuid };
            let entry = match self.store.group(id) {
                // It is left alone, and the listing names it.
                Err(error) if error.kind() == ErrorKind::Unavailable => continue,
                other => other?,
            };
            let Some(entry) = entry.filter(|entry| entry.stage != Stage::Ready) else { continue };
            self.store.remove_group(&entry.group)?;
            let verb =
                if entry.stage == Stage::Making { "undid the making" } else { "finished the removing" };
            done.push(format!("{verb} of group {id}"));
        }
        Ok(done)
    }
}

fn cannot_freeze(volume: VolumeId) -> Error {
    let what = format!(
        "raw volume {volume} is in use, and a file pool cannot cut it at the same instant as others: unpublish and unstage \
         it first, or use a pool of kind lvm or block"
    );
    Error::new(ErrorKind::InUse, what)
}
