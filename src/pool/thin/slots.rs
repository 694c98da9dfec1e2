//! The records of a thin pool: on a small device of their own, so that a full, stopped or broken pool keeps nobody from
//! deleting or listing. Each object has two blocks, written in turn; the one with the higher number counts. So a write
//! that is torn leaves the record as it was, and a change costs one flush, which callers share.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    flush::Flush,
    header::{HEADERS, Header},
};
pub(super) use crate::pool::record::Stage;
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    pool::record::{self, Group, Snapshot, Volume},
    sys::dm::Store,
};

/// What is written at a time: disks write as much as a whole or not at all.
pub(super) const BLOCK: usize = 4096;
/// How much is read at a time to look through all of them.
const CHUNK: usize = 1 << 20;
/// A block that was never written.
const BLANK: [u8; BLOCK] = [0; BLOCK];

/// What a place holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Object {
    /// A volume.
    Volume(Volume),
    /// A snapshot.
    Snapshot(Snapshot),
    /// A filesystem to be copied.
    Template(Template),
    /// Snapshots at one instant; no thin device of its own.
    Group(Group),
}

/// A filesystem to be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Template {
    pub(super) uuid: Uuid,
    /// How it was made.
    pub(super) name: String,
}

impl Object {
    pub(super) fn uuid(&self) -> Uuid {
        match self {
            Self::Volume(volume) => volume.id.uuid,
            Self::Snapshot(snapshot) => snapshot.id.uuid,
            Self::Template(template) => template.uuid,
            Self::Group(group) => group.id.uuid,
        }
    }
}

/// A record with what the pool itself needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Higher than that of the block beside it.
    number: u64,
    /// Number of the thin device.
    pub(super) thin: u32,
    /// How far it is.
    pub(super) stage: Stage,
    /// What it is.
    pub(super) object: Object,
}

/// Both blocks of one object.
#[derive(Clone, Debug)]
struct Place {
    index: u64,
    /// Which of the two counts, and what it says; `None` where neither does.
    entry: Option<(u8, Entry)>,
}

/// What is known of the device, rebuilt by reading it.
#[derive(Debug, Default)]
struct Known {
    places: HashMap<Uuid, Place>,
    free: Vec<Place>,
    damaged: Vec<String>,
}

/// The device with the records.
#[derive(Debug)]
pub(super) struct Slots {
    device: Box<dyn Store>,
    /// Nobody else changes them: what is known is all there is.
    alone: bool,
    places: u64,
    known: Mutex<Known>,
    flush: Flush,
}

/// What one block holds.
enum Block {
    Blank,
    Entry(Box<Entry>),
    Damaged(record::BadRecord),
}

fn parse(block: &[u8]) -> Block {
    if block == BLANK {
        return Block::Blank;
    }
    match record::decode::<Entry>(block) {
        Ok(entry) => Block::Entry(Box::new(entry)),
        Err(bad) => Block::Damaged(bad),
    }
}

impl Slots {
    /// Writes the header of a new pool. What lay on the device is gone.
    pub(super) fn format(device: &File, header: &Header) -> Result<()> {
        let what = || "prepare the device of records";
        let length = length_of(device).doing(what)?;
        let zeros = vec![0; CHUNK];
        let mut offset = 0;
        while offset < length {
            let amount = usize::try_from(length - offset).unwrap_or(CHUNK).min(CHUNK);
            device.write_all_at(&zeros[..amount], offset).doing(what)?;
            offset += amount as u64;
        }
        header.write(device)
    }

    /// Reads all records.
    pub(super) fn open(device: Box<dyn Store>, alone: bool) -> Result<Self> {
        let length = device.length().doing(|| "look at the device of records")?;
        let places = (length / BLOCK as u64).saturating_sub(HEADERS) / 2;
        let slots = Self { device, alone, places, known: Mutex::default(), flush: Flush::default() };
        slots.reread()?;
        Ok(slots)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads every place again: the other process may have changed them.
    pub(super) fn reread(&self) -> Result<()> {
        let mut fresh = Known::default();
        let mut chunk = vec![0; CHUNK];
        let per_chunk = (CHUNK / (2 * BLOCK)) as u64;
        let mut index = 0;
        while index < self.places {
            let count = per_chunk.min(self.places - index);
            let amount = usize::try_from(count).unwrap_or_default() * 2 * BLOCK;
            self.device
                .read(&mut chunk[..amount], offset_of(index, 0))
                .doing(|| "read the records of the pool")?;
            for (index, pair) in (index..).zip(chunk[..amount].chunks_exact(2 * BLOCK)) {
                fresh.take_in(index, pair);
            }
            index += count;
        }
        // The lowest place is taken first.
        fresh.free.reverse();
        *self.known() = fresh;
        Ok(())
    }

    /// Everything that is there, and the places that cannot be read.
    pub(super) fn all(&self) -> Result<(Vec<Entry>, Vec<String>)> {
        if !self.alone {
            self.reread()?;
        }
        let known = self.known();
        let entries = known.places.values().filter_map(|place| place.entry.as_ref()).map(|(_, entry)| entry);
        Ok((entries.cloned().collect(), known.damaged.clone()))
    }

    /// Something of each object that is known.
    pub(super) fn map<T>(&self, of: impl Fn(&Entry) -> T) -> Vec<T> {
        let known = self.known();
        known.places.values().filter_map(|place| place.entry.as_ref()).map(|(_, entry)| of(entry)).collect()
    }

    /// What is recorded of an object, read afresh.
    pub(super) fn find(&self, uuid: Uuid) -> Result<Option<Entry>> {
        let place = self.known().places.get(&uuid).map(|place| place.index);
        if let Some(index) = place
            && let Some(entry) = self.read(index)?.filter(|entry| entry.object.uuid() == uuid)
        {
            return Ok(Some(entry).filter(|entry| entry.stage != Stage::Removed));
        }
        // Where it is not known, another process may have made it; and it may be one that cannot be read.
        if !self.alone {
            self.reread()?;
        }
        let known = self.known();
        let entry =
            known.places.get(&uuid).and_then(|place| place.entry.as_ref()).map(|(_, entry)| entry.clone());
        match (entry, known.damaged.first()) {
            (None, Some(damaged)) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("whether {} exists cannot be said: {damaged}", uuid.simple()),
            )),
            (entry, _) => Ok(entry),
        }
    }

    fn read(&self, index: u64) -> Result<Option<Entry>> {
        let mut pair = vec![0; 2 * BLOCK];
        self.device.read(&mut pair, offset_of(index, 0)).doing(|| "read a record")?;
        let found =
            later(&pair).map_err(|bad| Error::new(ErrorKind::Unavailable, "read a record").because(bad))?;
        Ok(found.map(|(_, entry)| entry))
    }

    /// Records an object that is new, or a change of one, durably.
    pub(super) fn put(&self, thin: u32, stage: Stage, object: Object) -> Result<()> {
        self.write(thin, stage, object)?;
        self.flush.wait_for(&*self.device)
    }

    /// Records several likewise. A crash may leave any of them unrecorded.
    pub(super) fn put_all(&self, stage: Stage, objects: Vec<(u32, Object)>) -> Result<()> {
        objects.into_iter().try_for_each(|(thin, object)| self.write(thin, stage, object))?;
        self.flush.wait_for(&*self.device)
    }

    /// Records the same, not yet durably: [`Slots::flush`] makes it so.
    pub(super) fn note(&self, thin: u32, stage: Stage, object: Object) -> Result<()> {
        self.write(thin, stage, object)
    }

    /// Makes durable what was noted.
    pub(super) fn flush(&self) -> Result<()> {
        self.flush.wait_for(&*self.device)
    }

    /// The highest number of a thin device that any record names, those of what was removed included.
    pub(super) fn highest(&self) -> u32 {
        let known = self.known();
        let places = known.places.values().chain(&known.free);
        places.filter_map(|place| Some(place.entry.as_ref()?.1.thin)).max().unwrap_or_default()
    }

    /// Notes that nothing is left of an object. Not flushed: if it is lost, the removing is done again.
    pub(super) fn forget(&self, thin: u32, object: Object) -> Result<()> {
        self.write(thin, Stage::Removed, object)
    }

    fn write(&self, thin: u32, stage: Stage, object: Object) -> Result<()> {
        self.check()?;
        let uuid = object.uuid();
        let mut known = self.known();
        let mut place = match known.places.remove(&uuid) {
            Some(place) => place,
            None if stage == Stage::Removed => return Ok(()),
            None => known.free.pop().ok_or_else(|| {
                Error::new(ErrorKind::NoSpace, "the pool has no room for another record: delete something")
            })?,
        };
        let (side, number) = match &place.entry {
            Some((side, entry)) => (1 - side, entry.number + 1),
            None => (0, 1),
        };
        let entry = Entry { number, thin, stage, object };
        let written = record::encode_to(&entry, BLOCK).and_then(|block| {
            self.device.write(&block, offset_of(place.index, side)).doing(|| "write a record")
        });
        if let Err(error) = written {
            if place.entry.as_ref().is_some_and(|(_, entry)| entry.stage != Stage::Removed) {
                known.places.insert(uuid, place);
            } else {
                known.free.push(place);
            }
            return Err(error);
        }
        place.entry = Some((side, entry));
        if stage == Stage::Removed {
            known.free.push(place);
        } else {
            known.places.insert(uuid, place);
        }
        Ok(())
    }

    /// Refuses changes after a flush that failed.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_broken() {
            let what = "a flush to the device of records failed; restart the driver once the disk is well";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Ok(())
    }

    pub(super) fn is_broken(&self) -> bool {
        self.flush.broken.load(Ordering::Acquire)
    }

    /// Flushes so far.
    pub(super) fn flushes(&self) -> u64 {
        self.flush.count.load(Ordering::Relaxed)
    }
}

impl Known {
    fn take_in(&mut self, index: u64, pair: &[u8]) {
        match later(pair) {
            Ok(entry) => {
                let gone = entry.as_ref().is_none_or(|(_, entry)| entry.stage == Stage::Removed);
                let uuid = entry.as_ref().map(|(_, entry)| entry.object.uuid());
                let place = Place { index, entry };
                match uuid.filter(|_| !gone) {
                    Some(uuid) => drop(self.places.insert(uuid, place)),
                    None => self.free.push(place),
                }
            }
            Err(damaged) => self.damaged.push(format!("record {index}: {damaged}")),
        }
    }
}

/// The block of a pair that counts. One that is torn does not, as long as the other one does. But where that one says that
/// something was begun, the lost one may have said that it was finished: nothing may be undone on its word.
pub(super) fn later(pair: &[u8]) -> std::result::Result<Option<(u8, Entry)>, record::BadRecord> {
    let (first, second) = pair.split_at(BLOCK);
    match (parse(first), parse(second)) {
        (Block::Blank, Block::Blank) => Ok(None),
        // A later version knows more of it than we do.
        (Block::Damaged(bad @ record::BadRecord::Version(_)), _)
        | (_, Block::Damaged(bad @ record::BadRecord::Version(_))) => Err(bad),
        (Block::Entry(entry), Block::Damaged(bad)) | (Block::Damaged(bad), Block::Entry(entry))
            if matches!(entry.stage, Stage::Making | Stage::Removing) =>
        {
            Err(bad)
        }
        (Block::Entry(first), Block::Entry(second)) if first.number < second.number => Ok(Some((1, *second))),
        (Block::Entry(first), _) => Ok(Some((0, *first))),
        (_, Block::Entry(second)) => Ok(Some((1, *second))),
        // The first write to a new place was torn: nobody was told of it.
        (Block::Damaged(_), Block::Blank) => Ok(None),
        (_, Block::Damaged(bad)) => Err(bad),
    }
}

pub(super) fn offset_of(index: u64, side: u8) -> u64 {
    (HEADERS + 2 * index + u64::from(side)) * BLOCK as u64
}

pub(super) fn length_of(device: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(device, rustix::fs::SeekFrom::End(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        digest::Digest,
        id::{PoolId, VolumeId},
        pool::record::{Asked, Content, Timestamp},
    };

    fn volume(name: &str) -> Object {
        Object::Volume(Volume {
            id: VolumeId::random(PoolId::random()),
            name: name.into(),
            size: Bytes::gib(1),
            content: Content::Raw,
            block: true,
            source: None,
            asked: Asked { required: Bytes::ZERO, limit: Bytes::ZERO, digest: Digest::of([]) },
            created: Timestamp::now(),
            grants: Vec::new(),
        })
    }

    fn device(places: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len((HEADERS + 2 * places) * BLOCK as u64).unwrap();
        Slots::format(&file, &Header::new("m", None)).unwrap();
        file
    }

    fn again(device: &File) -> Slots {
        Slots::open(Box::new(device.try_clone().unwrap()), false).unwrap()
    }

    #[test]
    fn what_was_put_is_found_by_another_process() {
        let device = device(8);
        let (slots, other) = (again(&device), again(&device));
        let object = volume("a");
        slots.put(1 << 20, Stage::Making, object.clone()).unwrap();
        slots.put(1 << 20, Stage::Ready, object.clone()).unwrap();
        for slots in [&slots, &other, &again(&device)] {
            let found = slots.find(object.uuid()).unwrap().unwrap();
            assert_eq!((found.thin, found.stage, &found.object), (1 << 20, Stage::Ready, &object));
        }
        slots.forget(1 << 20, object.clone()).unwrap();
        assert_eq!(other.find(object.uuid()).unwrap(), None);
        assert!(again(&device).all().unwrap().0.is_empty());
        assert_eq!(slots.flushes(), 2);
    }

    #[test]
    fn a_torn_write_leaves_the_record_as_it_was() {
        let device = device(2);
        let slots = again(&device);
        let object = volume("a");
        slots.put(7, Stage::Making, object.clone()).unwrap();
        slots.put(7, Stage::Ready, object.clone()).unwrap();
        let mut block = vec![0; BLOCK];
        device.read_exact_at(&mut block, offset_of(0, 1)).unwrap();
        device.write_all_at(&block[..100], offset_of(0, 0)).unwrap();
        assert_eq!(again(&device).find(object.uuid()).unwrap().unwrap().stage, Stage::Ready);
        // The very first write of a place: nobody was told.
        device.write_all_at(&block[..100], offset_of(1, 0)).unwrap();
        assert_eq!(again(&device).all().unwrap().0.len(), 1);
        // Both of them is no accident, and no place to write to.
        device.write_all_at(b"garbage", offset_of(0, 1)).unwrap();
        let slots = again(&device);
        assert!(slots.find(object.uuid()).is_err(), "unreadable is not gone");
        assert_eq!(slots.all().unwrap().1.len(), 1);
    }

    #[test]
    fn places_are_used_again_and_run_out() {
        let device = device(2);
        let slots = again(&device);
        for round in 0..5 {
            let (a, b) = (volume("a"), volume("b"));
            slots.put(round, Stage::Ready, a.clone()).unwrap();
            slots.put(round, Stage::Ready, b.clone()).unwrap();
            assert_eq!(slots.put(round, Stage::Ready, volume("c")).unwrap_err().kind(), ErrorKind::NoSpace);
            assert_eq!(again(&device).all().unwrap().0.len(), 2);
            slots.forget(round, a).unwrap();
            slots.forget(round, b).unwrap();
        }
        assert!(again(&device).all().unwrap().0.is_empty());
    }

    #[test]
    fn flushes_are_shared() {
        let device = device(64);
        let slots = again(&device);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| slots.put(1, Stage::Ready, volume("x")).unwrap());
            }
        });
        assert_eq!(again(&device).all().unwrap().0.len(), 16);
        assert!(slots.flushes() <= 16);
    }

    #[test]
    fn hostile_input() {
        let entry = Entry { number: 3, thin: 7, stage: Stage::Making, object: volume("a") };
        let block = record::encode_to(&entry, BLOCK).unwrap();
        crate::hostile::feed("slots", &[block.trim_ascii_end()], |input| {
            let mut pair = block.clone();
            for stored in [input.to_vec(), record::sealed(input)] {
                pair.truncate(BLOCK);
                pair.extend(stored);
                pair.resize(2 * BLOCK, b' ');
                let mut known = Known::default();
                known.take_in(0, &pair);
                assert_eq!(known.places.len() + known.free.len() + known.damaged.len(), 1);
            }
        });
    }
}
