//! The guardian: looks at how full each pool is, as often as the rate at which it fills asks for, says so in the log, and has
//! the pool do what the configuration wants done about it. Nothing is decided here that a request would have to wait for.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Engine;
use crate::{
    error::{Chain, Result},
    id::PoolName,
    pool::{
        Pool,
        fill::{Fill, LEVELS, Part},
    },
};

/// How long a pool is left alone: at most where nothing happens, and at least.
const LONGEST: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(1);

/// What was seen of a pool before.
#[derive(Debug, Default)]
struct Watch {
    seen: HashMap<Part, (Instant, Fill)>,
    /// The last failure, so that each is told once.
    failure: Option<String>,
}

impl Watch {
    /// Takes in how full a pool is now: the levels that have changed, and when to look again.
    fn take_in(&mut self, now: Instant, fills: &[Fill]) -> (Vec<Fill>, Duration) {
        let (mut changed, mut next) = (Vec::new(), LONGEST);
        for fill in fills {
            let before = self.seen.insert(fill.part, (now, *fill));
            if before.map_or(0, |(_, before)| before.level()) != fill.level() {
                changed.push(*fill);
            }
            if let Some((at, before)) = before {
                next = next.min(until_next_level(fill, before, now.duration_since(at)) / 2);
            }
        }
        (changed, next.max(SHORTEST))
    }
}

/// How long it takes to the next level, or to the end, if it goes on as since the last look.
fn until_next_level(fill: &Fill, before: Fill, passed: Duration) -> Duration {
    let grown = fill.used.minus(before.used).get();
    let levels = LEVELS.into_iter().chain([100]).map(|level| fill.total.percent(level));
    let Some(left) = levels.map(|level| level.minus(fill.used).get()).find(|left| *left > 0) else {
        return SHORTEST;
    };
    if grown == 0 {
        return LONGEST * 2;
    }
    let millis = u128::from(left) * passed.as_millis() / u128::from(grown);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).min(LONGEST * 2)
}

fn tell(pool: &PoolName, fill: &Fill) {
    let (part, used, total) = (fill.part.name(), fill.used, fill.total);
    match fill.level() {
        0 => tracing::info!(%pool, part, %used, %total, "the pool has room again"),
        80 => tracing::warn!(%pool, part, %used, %total, "the pool is filling up: over 80 %"),
        level => tracing::error!(%pool, part, %used, %total, level, "the pool is nearly full: extend it"),
    }
}

impl Engine {
    /// Guards every pool until the process ends.
    pub fn guard(&self) {
        for name in self.inner.pools.names() {
            let (engine, name) = (self.clone(), name.clone());
            drop(tokio::spawn(async move { engine.guard_pool(&name).await }));
        }
    }

    async fn guard_pool(&self, name: &PoolName) {
        let mut watch = Watch::default();
        loop {
            let Some(pool) = self.inner.pools.current(name) else {
                tokio::time::sleep(LONGEST).await;
                continue;
            };
            let next = match look(&pool, name, &mut watch).await {
                Ok(next) => next,
                Err(error) => {
                    let failure = Chain(&error).to_string();
                    if watch.failure.as_ref() != Some(&failure) {
                        tracing::error!(pool = %name, error = failure, "the pool cannot be looked after");
                    }
                    watch.failure = Some(failure);
                    LONGEST
                }
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                // Events may come in crowds.
                () = pool.changed() => tokio::time::sleep(SHORTEST / 4).await,
            }
        }
    }
}

async fn look(pool: &Arc<dyn Pool>, name: &PoolName, watch: &mut Watch) -> Result<Duration> {
    let (changed, next) = watch.take_in(Instant::now(), &pool.fills().await?);
    changed.iter().for_each(|fill| tell(name, fill));
    pool.tend().await?;
    watch.failure = None;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;

    fn fill(used: u32) -> [Fill; 1] {
        [Fill { part: Part::Data, used: Bytes::mib(used), total: Bytes::mib(1000) }]
    }

    #[test]
    fn a_pool_that_fills_is_looked_at_more_often() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut look = |secs, used| watch.take_in(start + Duration::from_secs(secs), &fill(used));
        assert_eq!(look(0, 100), (vec![], LONGEST));
        assert_eq!(look(60, 100).1, LONGEST, "nothing happens");
        // 10 MiB/s: 60 s to 80 %.
        assert_eq!(look(70, 200).1, Duration::from_secs(30));
        let (changed, next) = look(130, 800);
        assert_eq!((changed.len(), next), (1, Duration::from_secs(5)), "100 MiB to the next level");
        assert_eq!(look(131, 1000).1, SHORTEST);
        assert_eq!(look(132, 100).0.len(), 1, "that there is room again is told as well");
    }
}
