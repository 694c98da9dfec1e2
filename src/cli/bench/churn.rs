//! Many calls at a time: volumes created and deleted, and volumes brought into use as after a reboot of a node.

use std::{sync::Mutex, time::Instant};

use super::{
    Bench, at_once,
    driver::{Driver, Made, Sort},
    life::rate,
    report::{Report, Unit},
};
use crate::{bytes::Bytes, error::Result};

/// Volumes of one storm.
const STORM: usize = 96;
/// Pairs of calls for each of those at a time.
const PAIRS: usize = 12;
/// Fewest pairs.
const LEAST_PAIRS: usize = 96;
/// Other drivers may really take the space.
const SIZE: Bytes = Bytes::mib(64);

/// Name of a rate of pairs.
pub(super) fn pairs(concurrency: usize) -> String {
    format!("create + delete, {concurrency} at a time")
}

impl Bench<'_> {
    pub(super) async fn storm(&mut self) -> Result<()> {
        let concurrencies = self.args.concurrency.clone();
        for _ in 0..self.args.rounds {
            for sort in [Sort::raw(SIZE), Sort::ext4(SIZE)] {
                for &concurrency in &concurrencies {
                    for turn in self.turns() {
                        let storm = async |driver: &Driver, report: &mut Report| {
                            storm(driver, sort, concurrency, report).await
                        };
                        self.attempt(("storm", turn), storm).await?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) async fn churn(&mut self) -> Result<()> {
        let concurrencies = self.args.concurrency.clone();
        for _ in 0..self.args.rounds {
            for &concurrency in &concurrencies {
                for turn in self.turns() {
                    let churn = async |driver: &Driver, report: &mut Report| {
                        let count = LEAST_PAIRS.max(PAIRS * concurrency);
                        let begun = Instant::now();
                        at_once(concurrency, count, |_| async {
                            let (made, _) = driver.create(Sort::raw(SIZE), None).await?;
                            driver.delete(made).await.map(drop)
                        })
                        .await?;
                        let of = ("churn", pairs(concurrency), &driver.name);
                        report.add((of.0, &of.1, of.2), Unit::PerSecond, rate(count, begun), None);
                        Ok(())
                    };
                    self.attempt(("churn", turn), churn).await?;
                }
            }
        }
        Ok(())
    }
}

async fn storm(driver: &Driver, sort: Sort, concurrency: usize, report: &mut Report) -> Result<()> {
    let all: Mutex<Vec<Made>> = Mutex::default();
    let kept = || all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let begun = Instant::now();
    at_once(concurrency, STORM, |_| async {
        let (made, _) = driver.create(sort, None).await?;
        driver.use_it(&made).await?;
        kept().push(made);
        Ok(())
    })
    .await?;
    let what = format!("{sort} into use, {concurrency} at a time");
    report.add(("storm", &what, &driver.name), Unit::PerSecond, rate(STORM, begun), None);
    let made: Vec<Made> = std::mem::take(&mut kept());
    let begun = Instant::now();
    at_once(concurrency, STORM, |n| {
        let made = made[n].clone();
        async move {
            driver.leave_it(&made).await?;
            driver.delete(made).await.map(drop)
        }
    })
    .await?;
    let what = format!("{sort} back, {concurrency} at a time");
    report.add(("storm", &what, &driver.name), Unit::PerSecond, rate(STORM, begun), None);
    Ok(())
}
