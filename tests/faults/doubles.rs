//! Two faults in one operation, sampled: the second one meets what is done about the first. A seed makes the same sample again:
//! SEED=n, and COUNT=n for how many.

use std::collections::HashMap;

use nix::libc::{EACCES, EIO, EMFILE, ENOMEM, ENOSPC};

use crate::{
    life::{self, Of, Operation},
    rig::Kind,
    sites::everything,
    stage::Stage,
    table,
    tracer::{Act, Call, Place, Shot},
};

/// Numbers that look like chance, the same for the same seed (xorshift64*).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One below a limit.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % limit
    }

    /// One of some.
    pub(crate) fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }
}

/// A number from the environment.
pub(crate) fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn shots(chance: &mut Chance, calls: &[Call]) -> Vec<Shot> {
    let (first, act) = loop {
        let call = &calls[chance.below(calls.len())];
        let acts = table::acts(call, true).unwrap();
        if !acts.is_empty() {
            break (call, chance.of(&acts));
        }
    };
    let later = u32::try_from(1 + chance.below(10)).unwrap();
    let second = chance.of(&[
        Act::Fail(EIO),
        Act::Fail(ENOSPC),
        Act::Fail(ENOMEM),
        Act::Fail(EMFILE),
        Act::Fail(EACCES),
        Act::KillBefore,
    ]);
    vec![
        Shot { place: Place::Nth(first.kind.clone(), first.nth), act },
        Shot { place: Place::Later(later), act: second },
    ]
}

#[tokio::test]
async fn two_faults_in_one_operation() {
    let (seed, count) = (number("SEED", 1), number("COUNT", if everything() { 3000 } else { 60 }));
    let mut chance = Chance::new(seed);
    let operations: Vec<Operation> =
        [Of::Volumes, Of::Snapshots, Of::Node].into_iter().flat_map(life::all).collect();
    let mut stage = Stage::new(Kind::Image).await;
    let (mut recorded, mut both, mut wrong) = (HashMap::<String, Vec<Call>>::new(), 0, Vec::new());
    for _ in 0..count {
        let operation = chance.of(&operations);
        let calls = match recorded.get(&format!("{operation:?}")) {
            Some(calls) => calls.clone(),
            None => stage.record(operation).await.calls,
        };
        if calls.is_empty() {
            continue;
        }
        let shots = shots(&mut chance, &calls);
        recorded.insert(format!("{operation:?}"), calls);
        let trial = stage.trial(operation, &shots).await;
        both += u32::from(trial.fired == 2);
        if !trial.wrong.is_empty() {
            let what = format!("{operation:?} with {shots:?}");
            println!("WRONG {what}: {}", trial.wrong.join("; "));
            wrong.push(what);
            stage.abandon();
            stage = Stage::new(Kind::Image).await;
        }
    }
    println!("{count} samples of two faults, seed {seed}: both came to pass {both} times");
    stage.end().await;
    assert!(wrong.is_empty(), "SEED={seed}: {}", wrong.join("\n"));
}
