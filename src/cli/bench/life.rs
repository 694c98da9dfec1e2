//! One volume, call by call; and empty calls, which are what the transport costs.

use std::time::Instant;

use super::{
    Bench,
    driver::{Driver, Sort},
    floors::{self, Floors},
    hand::ByHand,
    report::{HAND, MACHINE, Report, Unit},
};
use crate::{bytes::Bytes, error::Result};

/// Lives of each sort in a round.
const LIVES: usize = 5;
/// Empty calls of each kind in a round.
const CALLS: usize = 400;
/// So many empty calls at a time, where it is more than one.
const AT_ONCE: usize = 16;
/// Lengths of an ext4.
pub(super) const LENGTHS: [Bytes; 2] = [Bytes::gib(1), Bytes::gib(100)];
const SCENARIO: &str = "life";

impl Bench<'_> {
    /// Empty calls, one at a time and many.
    pub(super) async fn probes(&mut self, floors: &Floors) -> Result<()> {
        for _ in 0..self.args.rounds {
            for turn in self.turns() {
                let one = async |driver: &Driver, report: &mut Report| {
                    for _ in 0..CALLS {
                        let ((), took) = driver.probe().await?;
                        report.time(("rpc", "Probe", &driver.name), took, Some(floors::RPC));
                    }
                    let begun = Instant::now();
                    super::at_once(AT_ONCE, CALLS, |_| async { driver.probe().await.map(drop) }).await?;
                    let rate = rate(CALLS, begun);
                    report.add(("rpc", PROBES, &driver.name), Unit::PerSecond, rate, None);
                    Ok(())
                };
                self.attempt(("rpc", turn), one).await?;
            }
            let begun = Instant::now();
            super::at_once(AT_ONCE, CALLS, |_| async { floors.ask_null().await }).await?;
            self.report.add(("rpc", PROBES, MACHINE), Unit::PerSecond, rate(CALLS, begun), None);
        }
        Ok(())
    }

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
        let mut hand = ByHand::new(&self.bare, &self.root)?;
        for _ in 0..self.args.rounds {
            floors.measure(&mut self.report).await?;
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
                    self.report.time((SCENARIO, &there(*sort), HAND), hand.up(sort.size)?, None);
                    self.report.time((SCENARIO, &back(*sort), HAND), hand.down()?, None);
                }
            }
        }
        Ok(())
    }
}

/// Empty calls at once.
pub(super) const PROBES: &str = "Probe, 16 at a time";

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
