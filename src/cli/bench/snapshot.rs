//! Copies: snapshot, restore and clone of a volume with some data in it, at two lengths.

use std::{fs::File, os::unix::fs::FileExt};

use super::{
    Bench,
    driver::{Driver, Made, Sort},
    floors,
    report::{MACHINE, Report, Unit},
};
use crate::{
    bytes::Bytes,
    error::{Doing, Result},
    proto::{
        controller_service_capability::rpc::Type as Controls,
        volume_content_source::{SnapshotSource, Type, VolumeSource},
    },
};

const SCENARIO: &str = "snapshot";
/// What no copy can be faster than.
pub(super) const REFLINK: &str = "its reflink, flushed";
/// Copies of each kind in a round.
const COPIES: usize = 5;
/// What the source holds.
const DATA: usize = 16 << 20;
const DATA_AT: u64 = 512 << 20;
/// The short one.
pub(super) const SHORT: Bytes = Bytes::gib(1);
/// The long one, where the pool may promise three of it.
const LONG: Bytes = Bytes::gib(1024);

impl Bench<'_> {
    pub(super) async fn snapshots(&mut self) -> Result<()> {
        for turn in 0..self.drivers.len() {
            let long =
                LONG.min(self.drivers[turn].may_promise().await?.percent(30).round_down(Bytes::gib(10)));
            if turn == 0 {
                self.report.long = long;
            }
            self.snapshots_of(turn, [SHORT, long.max(SHORT)]).await?;
        }
        Ok(())
    }

    async fn snapshots_of(&mut self, turn: usize, lengths: [Bytes; 2]) -> Result<()> {
        for raw in [true, false] {
            let mut sources = Vec::new();
            for size in lengths {
                let sort = if raw { Sort::raw(size) } else { Sort::ext4(size) };
                let make = async |driver: &Driver, _: &mut Report| {
                    sources.push((sort, source(driver, sort).await?));
                    Ok(())
                };
                if !self.attempt((SCENARIO, turn), make).await? {
                    return Ok(());
                }
            }
            // The lengths take turns, so that both meet the same moods of the machine.
            for _ in 0..self.args.rounds * COPIES {
                for (sort, made) in &sources {
                    let copy = async |driver: &Driver, report: &mut Report| {
                        copies(driver, *sort, made, report).await
                    };
                    if !self.attempt((SCENARIO, turn), copy).await? {
                        return Ok(());
                    }
                    if turn == 0 {
                        self.reflink(*sort, made)?;
                    }
                }
            }
            if turn == 0 {
                self.flushes(&sources).await?;
            }
            for (_, made) in sources {
                let delete = async |driver: &Driver, _: &mut Report| driver.delete(made).await.map(drop);
                self.attempt((SCENARIO, turn), delete).await?;
            }
        }
        Ok(())
    }

    /// The reflink that is in each kind of copy, by itself.
    fn reflink(&mut self, sort: Sort, made: &Made) -> Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        if let Some(took) = place.reflink_of(&made.id)? {
            self.report.time((SCENARIO, &copy(sort, REFLINK), MACHINE), took, None);
        }
        Ok(())
    }

    /// Flushes of each kind of copy, where ours says how many it makes.
    async fn flushes(&mut self, sources: &[(Sort, Made)]) -> Result<()> {
        let (Some(place), Some(driver)) = (&self.place, self.drivers.first()) else { return Ok(()) };
        for (sort, made) in sources {
            let flushed = async || place.metric("lagan_pool_flushes_total").await;
            let mut before = flushed().await?;
            let mut note = async |what: &str| {
                let now = flushed().await?;
                #[expect(clippy::cast_precision_loss, reason = "it is one or two")]
                let count = (now - before) as f64;
                before = now;
                let what = format!("{sort}: flushes of a {what}");
                self.report.add((SCENARIO, &what, &driver.name), Unit::Count, count, None);
                Ok(())
            };
            let (cut, _) = driver.snapshot(made).await?;
            note("snapshot").await?;
            let snapshot_id = cut.id.clone();
            let from = Type::Snapshot(SnapshotSource { snapshot_id });
            let restored = driver.create(*sort, Some(from)).await?.0;
            note("restore").await?;
            let from = Type::Volume(VolumeSource { volume_id: made.id.clone() });
            let cloned = driver.create(*sort, Some(from)).await?.0;
            note("clone").await?;
            driver.delete(restored).await?;
            driver.delete(cloned).await?;
            driver.delete_snapshot(cut).await?;
        }
        Ok(())
    }
}

async fn source(driver: &Driver, sort: Sort) -> Result<Made> {
    let (made, _) = driver.create(sort, None).await?;
    driver.use_it(&made).await?;
    let target = driver.target(&made);
    let (path, at) = match sort.filesystem {
        None => (target, DATA_AT),
        Some(_) => (target.join("data"), 0),
    };
    let what = || format!("write {}", path.display());
    let create = sort.filesystem.is_some();
    let file = File::options().write(true).create(create).truncate(create).open(&path).doing(what)?;
    file.write_all_at(&vec![0x5a; DATA], at).and_then(|()| file.sync_all()).doing(what)?;
    drop(file);
    driver.leave_it(&made).await?;
    Ok(made)
}

/// Name of the time of a kind of copy.
pub(super) fn copy(sort: Sort, kind: &str) -> String {
    format!("{sort}: {kind}")
}

async fn copies(driver: &Driver, sort: Sort, made: &Made, report: &mut Report) -> Result<()> {
    let floor = Some(floors::FLUSH);
    let mut from_snapshot = None;
    if driver.controls(Controls::CreateDeleteSnapshot) {
        let (cut, took) = driver.snapshot(made).await?;
        report.time((SCENARIO, &copy(sort, "snapshot"), &driver.name), took, floor);
        let from = Type::Snapshot(SnapshotSource { snapshot_id: cut.id.clone() });
        let (restored, took) = driver.create(sort, Some(from)).await?;
        report.time((SCENARIO, &copy(sort, "restore"), &driver.name), took, floor);
        driver.delete(restored).await?;
        from_snapshot = Some(cut);
    }
    if driver.controls(Controls::CloneVolume) {
        let from = Type::Volume(VolumeSource { volume_id: made.id.clone() });
        let (cloned, took) = driver.create(sort, Some(from)).await?;
        report.time((SCENARIO, &copy(sort, "clone"), &driver.name), took, floor);
        driver.delete(cloned).await?;
    }
    if let Some(cut) = from_snapshot {
        driver.delete_snapshot(cut).await?;
    }
    Ok(())
}
