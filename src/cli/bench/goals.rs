//! What the figures are to be, each a ratio within one run, and whether they are.

use serde_json::{Value, json};

use super::{
    super::out,
    BenchArgs,
    churn::pairs,
    data::PATTERNS,
    driver::Sort,
    fill, floors,
    life::{LENGTHS, there},
    mounts,
    report::{FLOOR, HAND, MACHINE, Report},
    rpc::PROBES,
    snapshot::{self, REFLINK, SHORT},
};
use crate::{bytes::Bytes, error::Result};

/// One of them.
pub(super) struct Goal {
    what: String,
    /// At least so much, or at most.
    bound: Bound,
    measured: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Least(f64),
    Most(f64),
}

impl Goal {
    fn met(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(match self.bound {
            Bound::Least(bound) => measured >= bound,
            Bound::Most(bound) => measured <= bound,
        })
    }

    fn wanted(&self) -> String {
        match self.bound {
            Bound::Least(bound) => format!(">= {bound}"),
            Bound::Most(bound) => format!("<= {bound}"),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "goal": self.what, "wanted": self.wanted(), "measured": self.measured, "met": self.met() })
    }
}

/// Holds a report to all of them. Of what was not measured nothing is said.
pub(super) fn judge(report: &Report, args: &BenchArgs) -> Vec<Goal> {
    let (most, others) = (args.volumes.iter().copied().max().unwrap_or_default(), args.mounts);
    let mut goals = Vec::new();
    let mut goal = |what: &str, bound, measured| goals.push(Goal { what: what.to_owned(), bound, measured });
    let ours = |scenario: &str, what: &str| report.judged(scenario, what, None);
    let ratio = |one: Option<f64>, other: Option<f64>| Some(one? / other?);
    let floor = |name: &str| report.judged(FLOOR, name, Some(MACHINE));
    let create = ours("life", &format!("{}: create", Sort::raw(LENGTHS[0])));
    goal("raw create, against fsync of a new file", Bound::Most(1.5), ratio(create, floor(floors::FLUSH)));
    let filled = |what: &str, volumes| ours("fill", &fill::beside(what, volumes));
    goal(
        &format!("raw create beside {most} volumes, against 1"),
        Bound::Most(1.1),
        ratio(filled("create", most), filled("create", 1)),
    );
    let pairs = |concurrency| ours("churn", &pairs(concurrency));
    goal("create + delete, 64 at a time, against 1", Bound::Least(5.0), ratio(pairs(64), pairs(1)));
    for length in LENGTHS {
        let what = there(Sort::ext4(length));
        let by_hand = report.judged("life", &what, Some(HAND));
        goal(
            &format!("{what}, times faster than by hand"),
            Bound::Least(15.0),
            ratio(by_hand, ours("life", &what)),
        );
        // Nobody can be faster than one flush, one bind, one mount and three calls.
        let floors = [floors::FLUSH, floors::BIND, floors::MOUNT, floors::RPC, floors::RPC, floors::RPC];
        let least = floors.into_iter().map(floor).sum::<Option<f64>>();
        goal("  what the floors alone would give", Bound::Least(15.0), ratio(by_hand, least));
    }
    copies(report, report.long, &mut goal);
    for call in ["raw: publish", "raw: stats", "ext4: publish", "ext4: stats"] {
        let of = |others| ours("mount", &mounts::beside(call, others));
        goal(
            &format!("{call} beside {others} other mounts, against none"),
            Bound::Most(1.15),
            ratio(of(others), of(0)),
        );
    }
    for (pattern, percent) in [(PATTERNS[0], 95.0), (PATTERNS[4], 98.0), (PATTERNS[5], 98.0)] {
        let (volume, file) = (ours("data", pattern.name), report.judged("data", pattern.name, Some(MACHINE)));
        let share = ratio(volume, file).map(|share| share * 100.0);
        goal(&format!("{}, per cent of a bare file", pattern.name), Bound::Least(percent), share);
    }
    let memory = |volumes| filled("memory with the minder", volumes);
    goal("memory with 1 volume and the minder, MiB", Bound::Most(8.0), memory(1).map(|kib| kib / 1024.0));
    #[expect(clippy::cast_precision_loss, reason = "it is a few thousand")]
    let each = memory(most).zip(memory(1)).map(|(many, one)| (many - one) / most as f64);
    goal("memory for each volume, KiB", Bound::Most(1.0), each);
    goal(
        &format!("start to first answer with {most} volumes, ms"),
        Bound::Most(50.0),
        filled("start to first answer", most),
    );
    let null = report.judged("rpc", PROBES, Some(MACHINE));
    goal("Probe, 16 at a time, against a null server", Bound::Least(0.8), ratio(ours("rpc", PROBES), null));
    for (peer, _) in &args.null {
        let theirs = report.judged("rpc", PROBES, Some(peer));
        goal(
            &format!("Probe, 16 at a time, against {peer}"),
            Bound::Least(1.5),
            ratio(ours("rpc", PROBES), theirs),
        );
    }
    goals.retain(|goal| goal.measured.is_some());
    goals
}

/// Those of copies. A reflink costs by the places that a file lies in, so it is told apart from what is ours.
fn copies(report: &Report, long: Bytes, goal: &mut impl FnMut(&str, Bound, Option<f64>)) {
    let floor = |name: &str| report.judged(FLOOR, name, Some(MACHINE));
    let (flush, call) = (floor(floors::FLUSH), floor(floors::RPC));
    for raw in [true, false] {
        let sort = |size| if raw { Sort::raw(size) } else { Sort::ext4(size) };
        let reflink = |size| report.judged("snapshot", &snapshot::copy(sort(size), REFLINK), Some(MACHINE));
        for kind in ["snapshot", "restore", "clone"] {
            let flushes = report.judged("snapshot", &format!("{}: flushes of a {kind}", sort(SHORT)), None);
            goal(&format!("flushes of a {kind} of {}", sort(SHORT)), Bound::Most(2.0), flushes);
            let of = |size| report.judged("snapshot", &snapshot::copy(sort(size), kind), None);
            for size in [SHORT, long] {
                let least = || Some(reflink(size)? + flush? + call?);
                let ratio = of(size).zip(least()).map(|(took, least)| took / least);
                let what = format!("{kind} of {}, against reflink, 2 flushes, a call", sort(size));
                goal(&what, Bound::Most(1.0), ratio);
            }
            let own = |size| Some(of(size)? - reflink(size)? + flush?);
            let ratio = own(long).zip(own(SHORT)).map(|(long, short)| long / short);
            let what = format!("{kind} of {}, less its reflink, against {SHORT}", sort(long));
            goal(&what, Bound::Most(1.1), ratio);
        }
    }
}

/// Prints them for people.
pub(super) fn print(goals: &[Goal]) -> Result<()> {
    if goals.is_empty() {
        return Ok(());
    }
    out::line(&format!("\n{:<64}{:>9}{:>11}", "goals", "wanted", "measured"))?;
    for goal in goals {
        let measured = goal.measured.unwrap_or(f64::NAN);
        let verdict = if goal.met() == Some(true) { "met" } else { "NOT MET" };
        out::line(&format!("  {:<62}{:>9}{measured:>11.2}   {verdict}", goal.what, goal.wanted()))?;
    }
    let met = goals.iter().filter(|goal| goal.met() == Some(true)).count();
    out::line(&format!("{met} of {} goals met", goals.len()))
}
