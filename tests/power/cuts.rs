//! The power is cut at every flush.

use std::fs::File;

use crate::{
    ground::{Ground, KINDS, Logged, unplug},
    log::{self, Entry},
    story::{check, tell},
};

/// At which of so many moments the power is cut: some that are evenly spread, or all.
fn points(all: usize) -> Vec<usize> {
    let wanted = std::env::var("POINTS").unwrap_or_else(|_unset| "8".into());
    match wanted.parse::<usize>() {
        Ok(some) if some < all => (1..=some).map(|index| index * all / some - 1).collect(),
        _ => (0..all).collect(),
    }
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost() {
    for kind in KINDS {
        let ground = Ground::new(kind);
        let logged = Logged::new(&ground);
        let served = ground.serve(&logged.node);
        logged.mark("0");
        let states = tell(&*served.pool, |step| logged.mark(&step.to_string())).await;
        served.stop();
        logged.end();

        let log = File::open(ground.file("log")).unwrap();
        let entries = log::read(&log);
        let cuts: Vec<usize> =
            entries.iter().enumerate().filter(|(_, entry)| entry.is_cut()).map(|(at, _)| at).collect();
        assert!(cuts.len() > states.len(), "{kind}: {} flushes for {} steps", cuts.len(), states.len());
        let replayed = File::options().write(true).open(ground.file("replayed")).unwrap();
        let (mut done, mut step) = (0, None);
        let chosen = points(cuts.len());
        for point in &chosen {
            let cut = cuts[*point];
            for entry in &entries[done..=cut] {
                entry.replay(&log, &replayed);
                step = entry.mark.as_ref().map(|mark| mark.parse::<usize>().unwrap()).or(step);
            }
            done = cut + 1;
            // Before the first mark the pool was only opened.
            let before = step.unwrap_or_default();
            let after = (before + 1).min(states.len() - 1);
            let moment = format!("{kind}, cut {point} of {}, after step {before}", cuts.len());
            ground.copy("replayed", "disk");
            let node = ground.plug("disk");
            let served = ground.serve(&node);
            check(&*served.pool, &states[before], &states[after], &moment).await;
            served.stop();
            unplug(&node);
        }
        println!("{kind}: power cut at {} of {} flushes, nothing lost", chosen.len(), cuts.len());
        assert!(entries.iter().filter_map(|entry: &Entry| entry.mark.as_ref()).count() >= states.len());
    }
}
