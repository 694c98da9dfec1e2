//! One volume, call by call.

use std::time::Instant;

use super::{
    Bench,
    driver::{Driver, Sort},
    floors::{self, Floors},
    hand::ByHand,
    report::{HAND, Report, Unit},
};
use crate::{
    bytes::Bytes,
    error::{Chain, Result},
    filesystem::Filesystem,
};

/// Lives of each sort in a round.
const LIVES: usize = 5;
/// Lengths of an ext4.
pub(super) const LENGTHS: [Bytes; 2] = [Bytes::gib(1), Bytes::gib(100)];
const SCENARIO: &str = "life";

impl Bench<'_> {
    pub(super) async fn life(&mut self, floors: &Floors) -> Result<()> {
        let mut sorts = vec![Sort::raw(LENGTHS[0])];
        sorts.extend(LENGTHS.map(Sort::ext4));
        // Some drivers keep what they made for the first of a sort.
        for turn in 0..self.drivers.len() {
            for sort in &sorts {
                for _ in 0..2 {
                    self.attempt((SCENARIO, turn), async |driver, _| {
                        let (made, _) = driver.create(*sort, None).await?;
                        driver.delete(made).await.map(drop)
                    })
                    .await?;
                }
            }
        }
        self.space().await?;
        let mut hand = ByHand::new(&self.bare, &self.root)?;
        for _ in 0..self.args.rounds {
            floors.measure(&mut self.report)?;
            for sort in &sorts {
                for turn in self.turns() {
                    let lives = async |driver: &Driver, report: &mut Report| {
                        for _ in 0..LIVES {
                            live(driver, *sort, report).await?;
                        }
                        Ok(())
                    };
                    self.attempt((SCENARIO, turn), lives).await?;
                }
                if sort.filesystem.is_some() {
                    for _ in 0..LIVES {
                        self.report.time((SCENARIO, &there(*sort), HAND), hand.up(sort.size)?, None);
                        self.report.time((SCENARIO, &back(*sort), HAND), hand.down()?, None);
                        // ^C is heard between two of them.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Bench<'_> {
    /// What new filesystems take, where that can be seen.
    async fn space(&mut self) -> Result<()> {
        let (Some(place), Some(ours)) = (&self.place, self.drivers.first()) else { return Ok(()) };
        for filesystem in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs] {
            let sort = Sort { filesystem: Some(filesystem), size: LENGTHS[1] };
            let made = match ours.create(sort, None).await {
                Ok((made, _)) => made,
                // The tool that makes it may not be installed.
                Err(error) => {
                    self.report.notes.push(format!("{SCENARIO}, {sort}: {}", Chain(&error)));
                    continue;
                }
            };
            let space = place.space_of(&made.id)?;
            self.report.add((SCENARIO, &format!("{sort}: space"), &ours.name), Unit::KiB, space, None);
            ours.delete(made).await?;
        }
        Ok(())
    }
}

/// The way to a volume that can be used, but for the grant, which the commands do not know.
pub(super) fn there(sort: Sort) -> String {
    format!("{sort}: create + stage + publish")
}

fn back(sort: Sort) -> String {
    format!("{sort}: unpublish + unstage")
}

pub(super) fn rate(count: usize, begun: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of calls are small")]
    let count = count as f64;
    count / begun.elapsed().as_secs_f64()
}

async fn live(driver: &Driver, sort: Sort, report: &mut Report) -> Result<()> {
    let name = driver.name.clone();
    let mut note = |step: &str, took: f64, floor| {
        // A step that a driver does not offer takes no time.
        if took > 0.0 {
            report.time((SCENARIO, &format!("{sort}: {step}"), &name), took, floor);
        }
    };
    let (made, create) = driver.create(sort, None).await?;
    note("create", create, Some(floors::FLUSH));
    let (context, grant) = driver.grant(&made).await?;
    note("grant", grant, Some(floors::FLUSH));
    let ((), stage) = driver.stage(&made, &context).await?;
    note("stage", stage, sort.filesystem.map(|_| floors::MOUNT));
    let ((), publish) = driver.publish(&made, &context).await?;
    note("publish", publish, Some(floors::RPC));
    let ((), took) = driver.stats(&made).await?;
    note("stats", took, Some(floors::RPC));
    let ((), unpublish) = driver.unpublish(&made).await?;
    note("unpublish", unpublish, Some(floors::RPC));
    let ((), unstage) = driver.unstage(&made).await?;
    note("unstage", unstage, None);
    let ((), took) = driver.ungrant(&made).await?;
    note("take back", took, Some(floors::FLUSH));
    let ((), took) = driver.delete(made).await?;
    note("delete", took, Some(floors::FLUSH));
    report.time((SCENARIO, &there(sort), &name), create + stage + publish, None);
    report.time((SCENARIO, &back(sort), &name), unpublish + unstage, None);
    Ok(())
}
