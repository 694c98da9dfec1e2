//! What keeps a thin pool from running full: admission by the worst that writers can do to its metadata, extension from
//! what the volume group has free, and word from the kernel.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Inner, Place,
    below::{Amount, METADATA_BLOCK, Mode, Status},
    lvm::{self, Longer},
    metadata,
    slots::Object,
};
use crate::{
    bytes::Bytes,
    error::{Chain, Error, ErrorKind, Result},
    pool::fill::{Fill, Part},
};

/// Mappings that a block of metadata holds at worst: 252 in a leaf, which may be half empty after insertions in a bad
/// order, and some room for the reference counts of blocks that three devices share, and for the nodes above.
const MAPPINGS: u64 = 100;
/// Blocks of data that one block of the map of free space covers (2 bits each).
const COVERED: u64 = 16_000;
/// Part of the metadata that a change in progress may take besides.
const CHANGING_PERCENT: u32 = 5;
/// What a template maps: the metadata of an empty filesystem.
const TEMPLATE: Bytes = Bytes::mib(16);

/// When a pool is extended, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extend {
    /// As soon as this much is used, in per cent.
    pub at_percent: u32,
    /// By this much of its length.
    pub by_percent: u32,
}

impl Extend {
    /// The length that is wanted, where one is that it does not have.
    fn wanted(self, fill: &Fill) -> Option<Longer> {
        let Fill { part, used, total } = *fill;
        let longer = Longer::To(part, total.plus(total.percent(self.by_percent)));
        Some(longer).filter(|_| used >= total.percent(self.at_percent))
    }
}

/// Metadata that devices of these lengths take once every block of each is its own, in a pool of so much data.
pub(super) fn worst(lengths: impl Iterator<Item = Bytes>, data: Bytes, chunk: Bytes) -> Bytes {
    let chunks = |length: Bytes| length.get().div_ceil(chunk.get().max(1));
    let devices: u64 = lengths.map(|length| chunks(length).div_ceil(MAPPINGS) + 1).sum();
    Bytes::new((devices + chunks(data).div_ceil(COVERED) + 64) * METADATA_BLOCK)
}

/// How much of an object can come to be its own.
pub(super) fn length_of(object: &Object) -> Bytes {
    match object {
        Object::Volume(volume) => volume.size,
        // What it had when it was cut; nobody writes to it.
        Object::Snapshot(snapshot) => snapshot.used,
        Object::Template(_) => TEMPLATE,
        Object::Group(_) => Bytes::ZERO,
    }
}

impl Status {
    /// How full its parts are; an error where it has failed, and does not say.
    pub(super) fn fills(&self) -> Result<Vec<Fill>> {
        if self.health.mode == Mode::Failed {
            self.health.check()?;
        }
        let parts = [(Part::Data, self.data), (Part::Metadata, self.metadata)];
        Ok(parts.map(|(part, Amount { used, total })| Fill { part, used, total }).to_vec())
    }
}

impl Inner {
    /// Records the intent to make devices of these lengths together, where [`Inner::admit`] allows it: nobody else is
    /// admitted in between.
    pub(super) fn admitted<T>(&self, more: Bytes, record: impl FnOnce() -> Result<T>) -> Result<T> {
        let _one = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        self.admit(more)?;
        record()
    }

    /// Refuses another device of this length, or so much growth of one, where writers alone could fill the metadata
    /// some day: that breaks the pool, and no request could be refused then any more.
    fn admit(&self, more: Bytes) -> Result<()> {
        let status = self.check()?;
        let shortage = |status: &Status| {
            let mut lengths = self.slots.map(|entry| length_of(&entry.object));
            lengths.extend(self.foreign().into_iter().chain([more]));
            let needed = worst(lengths.into_iter(), status.data.total, status.chunk);
            needed.minus(status.metadata.total.minus(status.metadata.total.percent(CHANGING_PERCENT)))
        };
        let mut missing = shortage(&status);
        if missing == Bytes::ZERO {
            return Ok(());
        }
        if let (Place::Lvm(group), Some(_)) = (&self.settings.place, self.settings.extend) {
            let one = self.extending.lock().unwrap_or_else(PoisonError::into_inner);
            // Somebody else may have done it meanwhile; and a little more, so that not every request does.
            let still = shortage(&self.status()?);
            if still > Bytes::ZERO {
                let longer = Longer::By(Part::Metadata, still.plus(still).plus(Bytes::mib(4)));
                lvm::extend(group, longer, &self.commands)?;
            }
            drop(one);
            // It may have got less than was asked for.
            missing = shortage(&self.status()?);
            if missing == Bytes::ZERO {
                return Ok(());
            }
        }
        let what = format!(
            "the metadata of the thin pool ({}) could fill up: {missing} more are needed for the case that every block of \
             every volume is overwritten; extend it (`lagan pool extend --metadata SIZE`), or delete something",
            status.metadata.total
        );
        Err(Error::new(ErrorKind::NoSpace, what))
    }

    /// Lets go of metadata that a reader holds for so long that it must have died over it: each change costs twice as
    /// much meanwhile, and no other reader can look.
    fn release_forgotten(&self) -> Result<()> {
        let (pool, _) = self.devices.below()?;
        let held = metadata::is_held(&self.devices.mapper, pool)?;
        let mut since = self.held_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if held { since.or_else(|| Some(Instant::now())) } else { None };
        if since.is_some_and(|since| since.elapsed() > READING) {
            metadata::release_left(&self.devices.mapper, pool)?;
            tracing::warn!(pool = %self.id, "let go of metadata that a reader had left held");
            *since = None;
        }
        Ok(())
    }

    /// Asks LVM for its thin volumes in the pool, where it has made or removed one since it was asked last; one that was
    /// made longer shows in no count, and is seen later.
    fn look_at_foreign(&self) -> Result<()> {
        let Place::Lvm(group) = &self.settings.place else { return Ok(()) };
        let now = Some(self.status()?.transaction);
        let known = self.foreign.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Where LVM does not answer, it is not asked at every turn.
        let good_for = if known.as_of == now { FOREIGN } else { FOREIGN_CHANGED };
        if known.asked.is_some_and(|asked| asked.elapsed() < good_for) {
            return Ok(());
        }
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner).asked = Some(Instant::now());
        let foreign = lvm::foreign(group, &self.commands)?;
        *self.foreign.lock().unwrap_or_else(PoisonError::into_inner) = foreign;
        Ok(())
    }

    /// Does what has to be done by somebody, and extends the pool where the configuration wants it.
    pub(super) fn tend(&self) -> Result<()> {
        let health = self.status()?.health;
        if health.needs_check {
            return health.check();
        }
        self.release_forgotten()?;
        // What writers may be waiting for comes first.
        self.extend_by_policy()?;
        if let Err(error) = self.look_at_foreign() {
            tracing::warn!(pool = %self.id, error = %Chain(&error), "thin volumes of LVM are not known");
        }
        self.status()?.health.check()
    }

    fn extend_by_policy(&self) -> Result<()> {
        let (Place::Lvm(group), Some(extend)) = (&self.settings.place, self.settings.extend) else {
            return Ok(());
        };
        let _one = self.extending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: Vec<Longer> =
            self.status()?.fills()?.iter().filter_map(|fill| extend.wanted(fill)).collect();
        // Metadata first: more data needs more of it. But one that cannot be had does not keep the other from it.
        wanted.reverse();
        let extended: Vec<_> = wanted
            .into_iter()
            .map(|longer| lvm::extend(group, longer, &self.commands).map(|()| longer))
            .collect();
        for longer in extended {
            tracing::warn!(pool = %self.id, longer = ?longer?, "pool extended");
        }
        Ok(())
    }
}

/// How long somebody may read metadata.
const READING: Duration = Duration::from_secs(600);
/// How long what LVM has said of its volumes is good for: while it has made and removed none, and else.
const FOREIGN: Duration = Duration::from_secs(600);
const FOREIGN_CHANGED: Duration = Duration::from_secs(10);

/// How long a thread waits for word from the kernel; whoever waits for longer asks again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something happens to any device of device-mapper: a pool that passes its low-water mark or changes its
/// mode, but a device that comes or goes as well. For ever where the kernel does not tell.
pub(super) async fn event(place: &Place) {
    let (tell, told) = oneshot::channel();
    let mapper = place.mapper();
    let wait = move || {
        if mapper.is_ok_and(|mapper| mapper.wait_for_event(PATIENCE).unwrap_or(false)) {
            // Nobody may be waiting any more.
            tell.send(()).unwrap_or_default();
        }
    };
    let waiting = std::thread::Builder::new().name("lagan-events".into()).spawn(wait);
    if waiting.is_err() || told.await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_case_counts_every_block_of_every_device() {
        let (gib, chunk) = (Bytes::gib(1), Bytes::new(64 << 10));
        let few = worst([gib].into_iter(), gib, chunk);
        // 16,384 chunks, 100 a block, and a little.
        assert_eq!(few, Bytes::new((164 + 1 + 2 + 64) * METADATA_BLOCK));
        let many = worst([gib; 100].into_iter(), gib, chunk);
        assert_eq!(many, Bytes::new((165 * 100 + 2 + 64) * METADATA_BLOCK));
    }

    #[test]
    fn a_pool_is_extended_from_the_mark_on() {
        let extend = Extend { at_percent: 80, by_percent: 20 };
        let fill = |used| Fill { part: Part::Data, used: Bytes::mib(used), total: Bytes::mib(100) };
        assert_eq!(extend.wanted(&fill(79)), None);
        assert_eq!(extend.wanted(&fill(80)), Some(Longer::To(Part::Data, Bytes::mib(120))));
    }
}
