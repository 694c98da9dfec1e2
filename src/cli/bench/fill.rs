//! How costs grow with the number of volumes: of calls, of a start, of memory.

use super::{
    Bench, at_once,
    driver::{Driver, Sort},
    floors,
    report::{Report, Unit},
};
use crate::{bytes::Bytes, error::Result};

const SCENARIO: &str = "fill";
/// Calls of each kind beside each number of volumes.
const CALLS: usize = 60;
/// So many are made at a time.
const AT_ONCE: usize = 16;
/// Starts that are measured beside each number of volumes.
const STARTS: usize = 5;
/// How long nobody asks anything.
const IDLE_SECS: u64 = 3;
/// Other drivers may really take the space; what is measured is raw, for these are cheapest.
const SIZE: Bytes = Bytes::mib(4);

/// Name of a figure.
pub(super) fn beside(what: &str, volumes: usize) -> String {
    format!("{what}, {volumes} volumes")
}

impl Bench<'_> {
    /// Up from few to many and down again, so that what the machine does meanwhile falls on all of them.
    pub(super) async fn fill(&mut self) -> Result<()> {
        let mut counts = self.args.volumes.clone();
        counts.sort_unstable();
        for turn in 0..self.drivers.len() {
            let mut there: Vec<_> = Vec::new();
            for &count in counts.iter().chain(counts.iter().rev().skip(1)) {
                let rounds = self.args.rounds;
                let step = async |driver: &Driver, report: &mut Report| {
                    resize(driver, &mut there, count).await?;
                    for _ in 0..rounds {
                        costs(driver, count, report).await?;
                    }
                    Ok(())
                };
                self.attempt((SCENARIO, turn), step).await?;
                if turn == 0 {
                    self.starts(count).await?;
                }
            }
            if turn == 0
                && let Some(place) = &self.place
            {
                let woken = place.wakeups(IDLE_SECS).await?;
                let what = format!("wake-ups in {IDLE_SECS} s without a call");
                self.report.add((SCENARIO, &what, &self.drivers[0].name), Unit::Count, woken, None);
            }
            let empty = async |driver: &Driver, _: &mut Report| resize(driver, &mut there, 0).await;
            self.attempt((SCENARIO, turn), empty).await?;
        }
        Ok(())
    }

    /// Starts of ours, and its memory after one.
    async fn starts(&mut self, volumes: usize) -> Result<()> {
        let Some(place) = &mut self.place else { return Ok(()) };
        let (driver, report) = (&mut self.drivers[0], &mut self.report);
        for _ in 0..STARTS {
            let (daemon, took) = place.start().await?;
            driver.reconnect(daemon);
            let memory = place.memory()?;
            let mut note = |what: &str, unit, figure| {
                report.add((SCENARIO, &beside(what, volumes), &driver.name), unit, figure, None);
            };
            note("start to first answer", Unit::Millis, took);
            note("memory with the minder", Unit::KiB, memory);
        }
        Ok(())
    }
}

/// Makes or removes volumes until there are so many.
async fn resize(driver: &Driver, there: &mut Vec<super::driver::Made>, count: usize) -> Result<()> {
    let surplus = there.split_off(count.min(there.len()));
    let all = std::sync::Mutex::new(surplus);
    let taken = || all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let surplus = taken().len();
    at_once(AT_ONCE, surplus, |_| async {
        let made = taken().pop();
        match made {
            Some(made) => driver.delete(made).await.map(drop),
            None => Ok(()),
        }
    })
    .await?;
    at_once(AT_ONCE, count.saturating_sub(there.len()), |_| async {
        let (made, _) = driver.create(Sort::raw(SIZE), None).await?;
        taken().push(made);
        Ok(())
    })
    .await?;
    there.append(&mut taken());
    Ok(())
}

async fn costs(driver: &Driver, volumes: usize, report: &mut Report) -> Result<()> {
    let mut note = |what: &str, took: f64, floor| {
        report.time((SCENARIO, &beside(what, volumes), &driver.name), took, Some(floor));
    };
    for _ in 0..CALLS {
        let (made, took) = driver.create(Sort::raw(SIZE), None).await?;
        note("create", took, floors::FLUSH);
        let ((), took) = driver.get(&made).await?;
        note("get", took, floors::RPC);
        let ((), took) = driver.list().await?;
        note("list of 100", took, floors::RPC);
        let ((), took) = driver.delete(made).await?;
        note("delete", took, floors::FLUSH);
    }
    Ok(())
}
