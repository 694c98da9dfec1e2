//! What is not ours, made into a volume: a thin volume of LVM or a thin device that no record knows, as a snapshot of one
//! instant that leaves it as it is; any other device or file as a copy.

use super::{
    Inner, Place,
    below::{FIRST, LAST},
    metadata,
    objects::Origin,
    report,
    slots::{Object, Stage},
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::BLOCK,
    pool::{
        Progress, identity,
        import::{self, Import},
        record::{Content, Volume},
    },
    sys::{
        dm::Info,
        foreign::Foreign,
        superblock::{self, Contents},
    },
};

/// After how much the pool is asked whether there is room for more.
const STRETCH: Bytes = Bytes::mib(64);

impl Inner {
    pub(super) fn importable(&self, from: &Import) -> Result<Bytes> {
        match from {
            Import::Device(_) => Ok(import::open(from)?.length()),
            Import::Lv(name) => Ok(self.thin_volume(name)?.1),
            Import::Thin(thin) => self.length_of_unknown(*thin),
        }
    }

    fn thin_volume(&self, name: &str) -> Result<(u32, Bytes)> {
        match &self.settings.place {
            Place::Lvm(group) => report::thin_volume(group, &self.commands, name),
            Place::Disk(_) | Place::Model(_) => {
                let what = format!("import {name}: no volume of LVM is in this pool: import it as a device");
                Err(Error::new(ErrorKind::Invalid, what))
            }
        }
    }

    pub(super) fn import_volume(
        &self,
        volume: &Volume,
        from: &Import,
        progress: &Progress,
    ) -> Result<Volume> {
        let (source, origin) = match from {
            Import::Device(_) => (Some(import::open(from)?), Origin::Blank),
            Import::Lv(name) => (None, Origin::Foreign(self.thin_volume(name)?.0)),
            Import::Thin(thin) => (None, Origin::Foreign(*thin)),
        };
        let object = Object::Volume(volume.clone());
        let thin = self.make(&object, origin)?;
        let taken = self.take_in(volume, thin, source.as_ref(), progress).and_then(|volume| {
            self.slots.put(thin, Stage::Ready, Object::Volume(volume.clone()))?;
            Ok(volume)
        });
        taken.map_err(|error| self.unmake(thin, &object, error).within(format!("import {from}")))
    }

    /// Copies what has to be copied, and finds out what came in. It gets an identity of its own, since what it was made
    /// of goes on being used.
    fn take_in(
        &self,
        volume: &Volume,
        thin: u32,
        source: Option<&Foreign>,
        progress: &Progress,
    ) -> Result<Volume> {
        let work = self.devices.work_on(volume.id.uuid, thin, volume.size)?;
        if let Some(source) = source {
            self.copy_in(source, work.file()?, progress)?;
        }
        let content = import::content_of(work.file()?, volume.size)?;
        if let Content::Filesystem(filesystem) = content {
            identity::renew(work.file()?, filesystem, volume.size, || {
                identity::replay(&work.device(volume.size)?, filesystem)?;
                work.wait_until_free()
            })?;
        }
        work.file()?.sync_all().doing(|| "flush what was imported")?;
        Ok(Volume { content, ..volume.clone() })
    }

    fn copy_in(&self, source: &Foreign, to: &std::fs::File, progress: &Progress) -> Result<()> {
        progress.expect(source.length());
        let (mut since, mut full) = (STRETCH, None);
        let copied = source.copy_to(to, &mut |step| {
            progress.advance(step);
            since = since.plus(step);
            if since >= STRETCH {
                since = Bytes::ZERO;
                // What was written so far is counted once it is below.
                to.sync_data()?;
                full = self.expect_room(STRETCH).err();
            }
            full.as_ref().map_or(Ok(()), |_full| Err(std::io::ErrorKind::StorageFull.into()))
        });
        if let Some(full) = full {
            return Err(full);
        }
        copied.map_err(|error| match error.kind() {
            std::io::ErrorKind::ResourceBusy => Error::new(ErrorKind::InUse, "somebody writes to it"),
            _ => Error::io("copy it", error),
        })
    }

    /// Refuses to fill the pool: that would fail the writes of every other volume too.
    fn expect_room(&self, amount: Bytes) -> Result<()> {
        let status = self.check()?;
        let data = status.data;
        let free = data.total.minus(data.used).minus(data.total.percent(self.settings.reserve_percent));
        if amount <= free {
            return Ok(());
        }
        let what = format!("it does not fit: {free} are free beside the reserve");
        Err(Error::new(ErrorKind::NoSpace, what))
    }

    /// The length of a thin device that no record knows: as far as its blocks reach, or the filesystem in it.
    fn length_of_unknown(&self, thin: u32) -> Result<Bytes> {
        let invalid = |what: String| Error::new(ErrorKind::Invalid, format!("import thin:{thin}: {what}"));
        if !(FIRST + 1..LAST).contains(&thin) {
            return Err(invalid("it is none of ours: import a volume of LVM by its name".into()));
        }
        if let Some(known) = self.slots.all()?.0.iter().find(|entry| entry.thin == thin) {
            let owner = known.object.uuid().simple();
            return Err(invalid(format!("it belongs to {owner}: nothing is lost of it")));
        }
        let (mapper, (pool, _)) = (&self.devices.mapper, self.devices.below()?);
        let reach = metadata::read(mapper, pool, |metadata| metadata.reach(thin))?;
        let gone = || Error::new(ErrorKind::NotFound, format!("the pool has no thin device {thin}"));
        let reach = reach.ok_or_else(gone)?;
        if reach == Bytes::ZERO {
            return Err(invalid("nothing was ever written to it".into()));
        }
        let reach = reach.round_up(BLOCK).unwrap_or(reach);
        let work = self.devices.work_on(uuid::Uuid::new_v4(), thin, reach)?;
        let contents = superblock::probe(work.file()?, reach).doing(|| format!("look at thin device {thin}"));
        match contents? {
            Contents::Filesystem(found) => Ok(found.size.max(reach)),
            _ => Ok(reach),
        }
    }

    /// Devices that stand for a thin device of the pool now, whoever made them.
    fn users_of(&self, thin: u32) -> Result<Vec<Info>> {
        let what = || format!("look for users of thin device {thin}");
        let (mapper, below) = (&self.devices.mapper, self.devices.below()?.1.to_string());
        let number = thin.to_string();
        let mut found = Vec::new();
        for (name, _) in mapper.list().doing(what)? {
            // One that went meanwhile is no user.
            let Ok(table) = mapper.table(&name) else { continue };
            for line in table.iter().filter(|line| line.target == "thin") {
                // `pool number [origin outside the pool]`
                let fields: Vec<_> = line.text.split(' ').filter(|field| !field.is_empty()).collect();
                if fields.first() != Some(&below.as_str()) || fields.get(1) != Some(&number.as_str()) {
                    continue;
                }
                if fields.len() > 2 {
                    let what =
                        format!("part of thin device {thin} is outside the pool: import {name} as a device");
                    return Err(Error::new(ErrorKind::Invalid, what));
                }
                found.extend(mapper.info(&name).doing(what)?);
            }
        }
        Ok(found)
    }

    /// Does `work` while nobody writes to a thin device that is not ours, and that may be in use. What stands still is
    /// noted where it is, in the kernel: if we and the minder die, the next start lets it go on.
    pub(super) fn foreign_paused<T>(&self, thin: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let busy = |what: String| Error::new(ErrorKind::Busy, what);
        let users = self.users_of(thin)?;
        if let Some(still) = users.iter().find(|user| user.suspended) {
            return Err(busy(format!("device {} stands still: somebody is at work on it", still.name)));
        }
        let names: Vec<String> = users.iter().map(|user| user.name.clone()).collect();
        for user in &users {
            self.devices.note_pause(user.number)?;
        }
        let result = self.paused_devices(&names, work);
        for user in &users {
            self.devices.forget_pause(user.number, &user.name)?;
        }
        let result = result?;
        let after = self.users_of(thin)?;
        if after.iter().map(|user| user.number).ne(users.iter().map(|user| user.number)) {
            return Err(busy(format!("thin device {thin} was activated meanwhile")));
        }
        Ok(result)
    }
}
