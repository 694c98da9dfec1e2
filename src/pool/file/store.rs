//! The files of a pool: a volume or snapshot is a file named by its uuid, with its record as an extended attribute.
//! A file gets its name when it is complete, so there is nothing half-made to find.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::groups::is_group;
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    id::{PoolId, SnapshotId, VolumeId},
    pool::{
        Listing,
        record::{self, RECORD_LIMIT, Snapshot, Volume},
    },
    sys::file::{self, Access, Directory},
};

/// The attribute that holds the record. Those of the `trusted` kind may use the blocks that XFS keeps back for a full
/// disk, so that a grant can be taken back even then; and only root can change them.
pub(super) const ATTRIBUTE: &str = "trusted.lagan";
/// What follows the uuid in a file's name.
const SUFFIX: &str = ".raw";

/// The directories of a pool and what is in them.
#[derive(Debug)]
pub(super) struct Store {
    /// The pool's own directory.
    pub(super) root: Directory,
    /// One file a volume.
    pub(super) volumes: Directory,
    /// One file a snapshot.
    pub(super) snapshots: Directory,
    /// The identity of the pool.
    pub(super) pool: PoolId,
    flushes: AtomicU64,
    /// A flush failed: what is on disk is not known, and believing a later flush would hide it (the kernel reports
    /// such an error once). Only a new process may look again.
    broken: AtomicBool,
}

/// What a start finds in a pool.
#[derive(Debug)]
pub(super) struct Survey {
    /// All of it.
    pub(super) listing: Listing,
    /// Volumes whose file is longer than their record says, with the record as it should be.
    pub(super) grown: Vec<Volume>,
}

/// Name of the file of an object.
pub(super) fn file_name(uuid: Uuid) -> String {
    format!("{}{SUFFIX}", uuid.simple())
}

/// The object whose file has this name.
pub(super) fn uuid_of(name: &str) -> Option<Uuid> {
    let digits = name.strip_suffix(SUFFIX)?;
    Uuid::try_parse(digits).ok().filter(|uuid| uuid.simple().to_string() == digits)
}

impl Store {
    /// Opens the directories; `create` makes those that are missing.
    pub(super) fn open(root: Directory, pool: PoolId, create: bool) -> Result<Self> {
        let open = |name: &str| {
            let opened = if create { root.ensure_directory(name) } else { root.open_directory(name) };
            opened.doing(|| format!("open {name} of pool {}", root.path().display()))
        };
        let (volumes, snapshots) = (open("volumes")?, open("snapshots")?);
        let (flushes, broken) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { volumes, snapshots, root, pool, flushes, broken })
    }

    /// A flush has failed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Refuses changes after a flush that failed, and where the disk has become read-only.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.is_broken() {
            return Err(
                self.unavailable("a flush to its disk failed; restart the driver once the disk is well")
            );
        }
        if self.root.room().doing(|| "look at the pool's filesystem")?.read_only {
            return Err(self.unavailable("its filesystem is read-only"));
        }
        Ok(())
    }

    /// Whether the pool's filesystem lets two files share blocks: tried, not guessed from its name.
    pub(super) fn can_reflink(&self) -> Result<bool> {
        let what = || "try to share blocks";
        let (from, to) =
            (self.volumes.create_unnamed().doing(what)?, self.snapshots.create_unnamed().doing(what)?);
        Ok(file::reflink(&from, &to).is_ok())
    }

    fn unavailable(&self, reason: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("pool {}: {reason}", self.root.path().display()))
    }

    /// Flushes so far: one for each change.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Makes a change durable; after a failure nothing here is believed any more.
    fn flush(&self, flush: impl FnOnce() -> io::Result<()>) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        flush().map_err(|error| {
            self.broken.store(true, Ordering::Release);
            Error::io("flush the pool's disk", error).as_kind(ErrorKind::Unavailable)
        })
    }

    /// Makes durable whatever an earlier process has changed and did not live to flush: whoever finds it there takes it for done.
    pub(super) fn flush_all(&self) -> Result<()> {
        self.flush(|| self.root.flush_all())
    }

    /// Gives a complete file its record and its name, durably.
    pub(super) fn publish(
        &self,
        directory: &Directory,
        uuid: Uuid,
        file: &File,
        record: &impl Serialize,
    ) -> Result<()> {
        self.publish_as(directory, &file_name(uuid), file, &record::encode(record)?)
    }

    /// The same with a name and a record as they are stored. One flush: ext4, xfs and btrfs commit the name of a new file
    /// when the file is flushed.
    pub(super) fn publish_as(
        &self,
        directory: &Directory,
        name: &str,
        file: &File,
        record: &[u8],
    ) -> Result<()> {
        let what = || format!("store {name}");
        file::set_attribute(file, ATTRIBUTE, record).doing(what)?;
        file::write_out(file).doing(what)?;
        directory.link(file, name).doing(what)?;
        self.flush(|| file.sync_all())
    }

    /// Replaces the record of a file that has one, durably.
    pub(super) fn rewrite(&self, file: &File, record: &impl Serialize) -> Result<()> {
        self.rewrite_as(file, &record::encode(record)?)
    }

    /// The same with a record as it is stored.
    pub(super) fn rewrite_as(&self, file: &File, record: &[u8]) -> Result<()> {
        file::set_attribute(file, ATTRIBUTE, record).doing(|| "store a record")?;
        self.flush(|| file.sync_all())
    }

    /// Puts a record, as it is stored, onto a file that may have none, durably.
    pub(super) fn put_back(&self, file: &File, stored: &[u8]) -> Result<()> {
        file::set_attribute(file, ATTRIBUTE, stored).doing(|| "put a record back")?;
        self.flush(|| file.sync_all())
    }

    /// Removes the file of an object, durably; fine where there is none.
    pub(super) fn remove(&self, directory: &Directory, uuid: Uuid) -> Result<()> {
        self.remove_name(directory, &file_name(uuid))
    }

    /// The same by the file's name.
    pub(super) fn remove_name(&self, directory: &Directory, name: &str) -> Result<()> {
        if directory.remove_file(name).doing(|| format!("remove {name}"))? {
            self.flush(|| directory.flush())?;
        }
        Ok(())
    }

    /// Opens the file of an object that must be there. `Busy` while it is being deleted.
    pub(super) fn open_file(&self, directory: &Directory, uuid: Uuid, access: Access) -> Result<File> {
        directory.open_file(&file_name(uuid), access).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => Some(ErrorKind::NotFound),
                _ => None,
            };
            let failed = Error::io(format!("open the file of {}", uuid.simple()), error);
            kind.map_or(failed.clone(), |kind| failed.as_kind(kind))
        })
    }

    /// The record of a volume, read afresh; `None` where there is none, `Unavailable` where it cannot be believed.
    pub(super) fn volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        let volume: Option<Volume> = self.record(&self.volumes, &file_name(id.uuid))?;
        own(volume, |volume| volume.id == id, &id)
    }

    /// The record of a snapshot likewise, whether its group is ready or not.
    pub(super) fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        let snapshot: Option<Snapshot> = self.record(&self.snapshots, &file_name(id.uuid))?;
        own(snapshot, |snapshot| snapshot.id == id, &id)
    }

    pub(super) fn record<T: DeserializeOwned>(&self, directory: &Directory, name: &str) -> Result<Option<T>> {
        let what = || format!("read the record of {name}");
        match directory.attribute(name, ATTRIBUTE, RECORD_LIMIT).doing(what)? {
            None => Ok(None),
            Some(stored) => record::decode(&stored)
                .map(Some)
                .map_err(|bad| Error::new(ErrorKind::Unavailable, what()).because(bad)),
        }
    }

    /// Everything that is there. Files that are not ours, or whose record is damaged, are named and left alone.
    pub(super) fn list(&self) -> Result<Listing> {
        Ok(self.survey()?.listing)
    }

    /// The same, and what a crash may have left of it.
    pub(super) fn survey(&self) -> Result<Survey> {
        let (mut listing, mut grown) = (Listing::default(), Vec::new());
        let names = self.volumes.names().doing(|| "list volumes")?;
        for (uuid, volume, length) in self.read_all::<Volume>(&self.volumes, &names, &mut listing)? {
            if volume.id != (VolumeId { pool: self.pool, uuid }) {
                let of = volume.id;
                listing.strangers.push(format!("volumes/{}: its record is that of {of}", file_name(uuid)));
                continue;
            }
            if length > volume.size {
                grown.push(Volume { size: length, ..volume.clone() });
            }
            listing.volumes.push(volume);
        }
        let (groups, names): (Vec<_>, Vec<_>) =
            self.snapshots.names().doing(|| "list snapshots")?.into_iter().partition(|name| is_group(name));
        for (uuid, snapshot, _) in self.read_all::<Snapshot>(&self.snapshots, &names, &mut listing)? {
            if snapshot.id == (SnapshotId { pool: self.pool, uuid }) {
                listing.snapshots.push(snapshot);
            } else {
                let of = snapshot.id;
                listing.strangers.push(format!("snapshots/{}: its record is that of {of}", file_name(uuid)));
            }
        }
        self.list_groups(&groups, &mut listing)?;
        Ok(Survey { listing, grown })
    }

    /// The records of the files with these names, and how long each file is. A name without one is noted in the listing.
    fn read_all<T: DeserializeOwned + Send>(
        &self,
        directory: &Directory,
        names: &[String],
        listing: &mut Listing,
    ) -> Result<Vec<(Uuid, T, Bytes)>> {
        let place = directory.path().file_name().unwrap_or_default().display();
        let seen = directory.survey(names, RECORD_LIMIT, |inside, name| {
            let Some(uuid) = uuid_of(name) else { return Ok(Err(None)) };
            let Some(stored) = inside.attribute(name, ATTRIBUTE)? else { return Ok(Err(None)) };
            let decoded = match record::decode(stored) {
                Ok(decoded) => decoded,
                Err(bad) => return Ok(Err(Some(bad))),
            };
            let length = inside.stat(name)?.map(|stat| stat.length);
            Ok(Ok((uuid, decoded, length.unwrap_or_default())))
        });
        let mut read = Vec::with_capacity(names.len());
        for (name, seen) in names.iter().zip(seen) {
            let seen: io::Result<_> = seen;
            match seen.doing(|| format!("read the record of {place}/{name}"))? {
                Ok(found) => read.push(found),
                Err(None) => listing.strangers.push(format!("{place}/{name}")),
                Err(Some(bad)) => listing.damaged.push(format!("{place}/{name}: {bad}")),
            }
        }
        Ok(read)
    }

    /// The record of a group, by the name of its file.
    pub(super) fn read_entry<T: DeserializeOwned>(
        &self,
        directory: &Directory,
        name: &str,
        uuid: Option<Uuid>,
        listing: &mut Listing,
    ) -> Result<Option<T>> {
        let place = directory.path().file_name().unwrap_or_default().display();
        if uuid.is_none() {
            listing.strangers.push(format!("{place}/{name}"));
            return Ok(None);
        }
        let stored = directory.attribute(name, ATTRIBUTE, RECORD_LIMIT);
        match stored.doing(|| format!("read the record of {place}/{name}"))? {
            None => listing.strangers.push(format!("{place}/{name}")),
            Some(stored) => match record::decode(&stored) {
                Ok(record) => return Ok(Some(record)),
                Err(bad) => listing.damaged.push(format!("{place}/{name}: {bad}")),
            },
        }
        Ok(None)
    }

    /// What all files of ours occupy; blocks that two files share count in both.
    pub(super) fn allocated(&self) -> Result<Bytes> {
        let mut sum = Bytes::ZERO;
        for directory in [&self.volumes, &self.snapshots] {
            for name in directory.names().doing(|| "list the pool's files")? {
                let stat = directory.stat(&name).doing(|| "look at the pool's files")?;
                sum = sum.plus(stat.map(|stat| stat.allocated).unwrap_or_default());
            }
        }
        Ok(sum)
    }
}

/// A record that names another object than the file it is on was put there by somebody else.
pub(super) fn own<T>(
    record: Option<T>,
    fits: impl Fn(&T) -> bool,
    id: &impl std::fmt::Display,
) -> Result<Option<T>> {
    if record.as_ref().is_some_and(|record| !fits(record)) {
        let what = format!("the file of {id} carries the record of another object");
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    Ok(record)
}
