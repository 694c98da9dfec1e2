//! What goes into a new file: blocks shared with another file, or copied from it, and the identity of its own that a
//! copied filesystem needs.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{Inner, pause};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::VolumeId,
    pool::{
        Progress, identity,
        record::{Content, Source, Volume},
    },
    sys::{
        file::{self, Access, no_writers},
        loopdev::{self, Binding},
        minder::Minder,
    },
};

/// How much is copied to learn how fast this pool copies.
const SAMPLE: Bytes = Bytes::mib(16);
/// Label of the device through which a copied filesystem replays its journal.
const REPLAY: &str = "lagan:replay";

/// Bytes a second that copies inside the pool have reached; zero until one was made.
#[derive(Debug, Default)]
pub(super) struct CopyRate(AtomicU64);

impl CopyRate {
    fn learn(&self, copied: Bytes, took: Duration) {
        let nanos = took.as_nanos().max(1);
        let rate = u128::from(copied.get()) * 1_000_000_000 / nanos;
        self.0.store(u64::try_from(rate).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn time_for(&self, amount: Bytes) -> Option<Duration> {
        let rate = self.0.load(Ordering::Relaxed);
        let millis = u128::from(amount.get()) * 1000 / u128::from(rate.max(1));
        (rate > 0).then(|| Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

impl Inner {
    /// Fills `file` with what `volume` is to begin with.
    pub(super) fn fill(&self, file: &File, volume: &Volume, progress: &Progress) -> Result<()> {
        match (volume.source, volume.content) {
            (None, Content::Raw) => extend(file, volume.size),
            (None, Content::Filesystem(filesystem)) => {
                self.fill_with_filesystem(file, filesystem, volume.size)
            }
            (Some(source), content) => {
                match source {
                    Source::Snapshot(id) => {
                        let snapshot = self.store.open_file(&self.store.snapshots, id.uuid, Access::Read)?;
                        self.copy_quiet(&snapshot, file, progress)?;
                    }
                    Source::Volume(id) => self.copy_volume(id, content, file, progress)?,
                }
                extend(file, volume.size)?;
                match content {
                    Content::Raw => Ok(()),
                    Content::Filesystem(filesystem) => {
                        identity::renew(file, filesystem, volume.size, || replay(file, filesystem))
                    }
                }
            }
        }
    }

    /// Copies a volume as it is now. Shared blocks are cut at one instant, whoever writes meanwhile; a copy block
    /// by block needs the volume to stand still.
    pub(super) fn copy_volume(
        &self,
        id: VolumeId,
        content: Content,
        to: &File,
        progress: &Progress,
    ) -> Result<()> {
        let from = self.store.open_file(&self.store.volumes, id.uuid, Access::Read)?;
        if let Some(quiet) = no_writers(&from).doing(|| format!("ask whether {id} is in use"))? {
            self.copy_quiet(&from, to, progress)?;
            if quiet.lasts() {
                return Ok(());
            }
            return Err(Error::new(ErrorKind::Busy, format!("{id} was opened while it was copied")));
        }
        let devices: Vec<_> = self
            .devices
            .attached(&self.store, id)?
            .into_iter()
            .map(|attached| attached.device.number)
            .collect();
        if self.reflink {
            pause::settle(id, &devices)?;
            return share(&from, to);
        }
        let limit = self.settings.freeze_limit;
        if content == Content::Raw {
            return Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "raw volume {id} is in use, and this pool's filesystem cannot share blocks: unpublish and \
                     unstage it first, or use a pool on xfs or btrfs (lagan pool init --image makes one anywhere)"
                ),
            ));
        }
        self.expect_to_fit(&id.to_string(), &[&from], limit)?;
        let deadline = limit.mul_f32(0.9);
        pause::frozen(&self.store, self.minder()?, &[(id, devices)], limit, || {
            self.copy_within(&from, to, progress, Some(deadline))
        })
    }

    /// Who ends a freeze if we cannot.
    pub(super) fn minder(&self) -> Result<&Minder> {
        let what = "a volume is in use, and no minder runs that could end a freeze";
        self.minder.as_deref().ok_or_else(|| Error::new(ErrorKind::Unavailable, what))
    }

    /// Copies a file that nobody writes to.
    pub(super) fn copy_quiet(&self, from: &File, to: &File, progress: &Progress) -> Result<()> {
        if self.reflink { share(from, to) } else { self.copy_within(from, to, progress, None) }
    }

    pub(super) fn copy_within(
        &self,
        from: &File,
        to: &File,
        progress: &Progress,
        limit: Option<Duration>,
    ) -> Result<()> {
        let expected = file::stat(from).doing(|| "look at the source")?.allocated;
        self.expect_room(expected)?;
        progress.expect(expected);
        let begun = Instant::now();
        let mut copied = Bytes::ZERO;
        let result = file::copy_data(from, to, &mut |step| {
            copied = copied.plus(step);
            progress.advance(step);
            match limit {
                Some(limit) if begun.elapsed() > limit => Err(io::ErrorKind::TimedOut.into()),
                _ => Ok(()),
            }
        });
        if copied >= SAMPLE {
            self.copy_rate.learn(copied, begun.elapsed());
        }
        result.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Error::new(
                ErrorKind::InUse,
                format!(
                    "the copy of {expected} did not fit into the freeze limit: unstage the volume, raise \
                         freeze_limit, or use a pool on xfs or btrfs"
                ),
            ),
            _ => Error::io("copy the source", error),
        })
    }

    /// Refuses a copy for which there is no room beside the reserve: running out half-way would fail the writes of
    /// every other volume too.
    pub(super) fn expect_room(&self, amount: Bytes) -> Result<()> {
        let room = self.store.root.room().doing(|| "look at the pool's filesystem")?;
        let free = room.free.minus(room.total.percent(self.settings.reserve_percent));
        if amount <= free {
            return Ok(());
        }
        let what = format!("a copy of {amount} does not fit: {free} are free beside the reserve");
        Err(Error::new(ErrorKind::NoSpace, what))
    }

    /// Refuses a freeze that would be too long, before anybody has to wait for it.
    pub(super) fn expect_to_fit(&self, name: &str, sources: &[&File], limit: Duration) -> Result<()> {
        let (mut amount, mut largest) = (Bytes::ZERO, (Bytes::ZERO, None));
        for from in sources {
            let allocated = file::stat(from).doing(|| format!("look at {name}"))?.allocated;
            amount = amount.plus(allocated);
            largest = if allocated >= largest.0 { (allocated, Some(*from)) } else { largest };
        }
        if amount < SAMPLE {
            return Ok(());
        }
        if let (None, Some(from)) = (self.copy_rate.time_for(amount), largest.1) {
            self.sample(from)?;
        }
        match self.copy_rate.time_for(amount) {
            Some(time) if time > limit => Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "{name} is in use: copying its {amount} would take about {}, and a freeze may last {}. Unstage \
                     the volume, raise freeze_limit, or use a pool on xfs or btrfs, which needs no copy",
                    humantime::format_duration(time),
                    humantime::format_duration(limit)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Copies a part of the source, for the time it takes.
    fn sample(&self, from: &File) -> Result<()> {
        let scratch = self.store.volumes.create_unnamed().doing(|| "sample the copying speed")?;
        let begun = Instant::now();
        let mut copied = Bytes::ZERO;
        let result = file::copy_data(from, &scratch, &mut |step| {
            copied = copied.plus(step);
            if copied < SAMPLE { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        });
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(Error::io("sample the copying speed", error))
            }
            _ => {
                self.copy_rate.learn(copied, begun.elapsed());
                Ok(())
            }
        }
    }
}

/// Makes `to` share the blocks of `from`.
pub(super) fn share(from: &File, to: &File) -> Result<()> {
    file::reflink(from, to).doing(|| "share the blocks of the source")
}

/// Makes a file as long as its volume. Never shorter: a source that is longer than its record has been grown by a call
/// that did not end, and a filesystem in it may reach into what would be cut off.
pub(super) fn extend(file: &File, size: Bytes) -> Result<()> {
    let what = || "set the length of the file";
    let length = file::stat(file).doing(what)?.length;
    if length > size {
        let what = format!("the source has {length}, more than its record says: grow it to that first");
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    rustix::fs::ftruncate(file, size.get()).doing(what)
}

/// Replays the journal of the filesystem in a file.
pub(super) fn replay(file: &File, filesystem: Filesystem) -> Result<()> {
    let what = || format!("replay the journal of the copied {filesystem}");
    let binding = Binding { read_only: false, autoclear: true, label: REPLAY };
    let backing = file::stat(file).doing(what)?.inode;
    let device = loopdev::bind(file, &binding).doing(what)?;
    identity::replay(&device.device().doing(what)?, filesystem)?;
    // The file is settled when its device is free.
    match device.release(backing).doing(what)? {
        loopdev::Release::Done => Ok(()),
        loopdev::Release::StillUsed => {
            Err(Error::new(ErrorKind::Unsettled, format!("{}: its device is not released", what())))
        }
    }
}
