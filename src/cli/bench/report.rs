//! What was measured, and how it is shown: as lines for people, as JSON for programs.

use std::fs;

use serde_json::{Value, json};

use super::super::out;
use crate::{bytes::Bytes, error::Result, sys::host};

/// From so much CPU pressure on a run counts as noisy: someone waited for a processor a fifth of the time.
const NOISY_PERCENT: f64 = 20.0;

/// What figures of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    PerSecond,
    MibPerSecond,
    KiB,
    Count,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::PerSecond => "/s",
            Self::MibPerSecond => "MiB/s",
            Self::KiB => "KiB",
            Self::Count => "",
        }
    }

    /// More is better.
    const fn is_rate(self) -> bool {
        matches!(self, Self::PerSecond | Self::MibPerSecond)
    }
}

/// All figures of one kind.
#[derive(Clone, Debug)]
pub(super) struct Row {
    scenario: &'static str,
    what: String,
    who: String,
    unit: Unit,
    samples: Vec<f64>,
    floor: Option<&'static str>,
}

impl Row {
    /// The value that this many per cent of the samples do not exceed.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The best one: the least time, or the highest rate.
    fn best(&self) -> f64 {
        self.percentile(if self.unit.is_rate() { 100 } else { 0 })
    }
}

/// Whoever measured is no driver: the machine itself.
pub(super) const MACHINE: &str = "machine";
/// Commands, as other drivers run them.
pub(super) const HAND: &str = "by-hand";
/// Scenario of the floors.
pub(super) const FLOOR: &str = "floor";

/// Everything that one run has measured.
#[derive(Debug)]
pub(super) struct Report {
    rows: Vec<Row>,
    /// What could not be measured, and why.
    pub(super) notes: Vec<String>,
    /// Length of the long volumes that were copied.
    pub(super) long: Bytes,
    /// The driver that is measured, beside which the others are.
    ours: String,
    directory: String,
    pressure: f64,
}

impl Report {
    pub(super) fn new(ours: &str, directory: &std::path::Path) -> Self {
        let (ours, directory) = (ours.to_owned(), describe(directory));
        let long = Bytes::ZERO;
        Self { rows: Vec::new(), notes: Vec::new(), long, ours, directory, pressure: 0.0 }
    }

    /// Adds a figure.
    pub(super) fn add(
        &mut self,
        (scenario, what, who): (&'static str, &str, &str),
        unit: Unit,
        sample: f64,
        floor: Option<&'static str>,
    ) {
        let same = |row: &&mut Row| row.scenario == scenario && row.what == what && row.who == who;
        match self.rows.iter_mut().find(same) {
            Some(row) => row.samples.push(sample),
            None => {
                let (what, who, samples) = (what.to_owned(), who.to_owned(), vec![sample]);
                self.rows.push(Row { scenario, what, who, unit, samples, floor });
            }
        }
    }

    /// Notes how busy the machine is.
    pub(super) fn watch(&mut self) {
        self.pressure = self.pressure.max(pressure());
    }

    /// Adds a time of a call.
    pub(super) fn time(&mut self, of: (&'static str, &str, &str), millis: f64, floor: Option<&'static str>) {
        self.add(of, Unit::Millis, millis, floor);
    }

    /// Adds a floor.
    pub(super) fn floor(&mut self, name: &'static str, millis: f64) {
        self.time((FLOOR, name, MACHINE), millis, None);
    }

    /// The middle of what was measured.
    pub(super) fn middle(&self, scenario: &str, what: &str, who: &str) -> Option<f64> {
        let same = |row: &&Row| row.scenario == scenario && row.what == what && row.who == who;
        self.rows.iter().find(same).map(|row| row.percentile(50))
    }

    /// What a goal is held against: the middle, and in a noisy run the best, which the noise spoils least.
    pub(super) fn judged(&self, scenario: &str, what: &str, who: Option<&str>) -> Option<f64> {
        let who = who.unwrap_or(&self.ours);
        let same = |row: &&Row| row.scenario == scenario && row.what == what && row.who == who;
        self.rows.iter().find(same).map(|row| if self.noisy() { row.best() } else { row.percentile(50) })
    }

    /// The middle for the driver that is measured.
    pub(super) fn ours(&self, scenario: &str, what: &str) -> Option<f64> {
        self.middle(scenario, what, &self.ours)
    }

    fn noisy(&self) -> bool {
        self.pressure > NOISY_PERCENT
    }

    fn floor_ratio(&self, row: &Row) -> Option<f64> {
        Some(row.percentile(50) / self.middle(FLOOR, row.floor?, MACHINE)?)
    }

    /// How many times better we are than this row's driver.
    fn peer_ratio(&self, row: &Row) -> Option<f64> {
        if row.who == self.ours || row.scenario == FLOOR {
            return None;
        }
        let (ours, theirs) = (self.ours(row.scenario, &row.what)?, row.percentile(50));
        Some(if row.unit.is_rate() { ours / theirs } else { theirs / ours })
    }

    fn machine(&self) -> Value {
        let count = |name: &str| {
            let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            text.lines().filter(|line| line.starts_with(name)).count()
        };
        json!({
            "name": host::host_name(),
            "kernel": host::kernel_release(),
            "cpus": count("processor"),
            "directory": self.directory,
            "lagan": env!("CARGO_PKG_VERSION"),
            "cpu_pressure_percent": self.pressure,
            "noisy": self.noisy(),
        })
    }

    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "scenario": row.scenario, "what": row.what, "who": row.who, "unit": row.unit.name(),
                "p50": row.percentile(50), "p99": row.percentile(99), "best": row.best(), "samples": row.samples.len(),
                "times_floor": self.floor_ratio(row), "floor": row.floor, "ours_better_times": self.peer_ratio(row),
            })
        });
        json!({ "machine": self.machine(), "figures": rows.collect::<Vec<_>>(), "notes": self.notes })
    }

    /// Prints it for people.
    pub(super) fn print(&self) -> Result<()> {
        let machine = self.machine();
        out::line(&format!(
            "{}, kernel {}, {} CPUs, {}\nCPU pressure up to {:.0} %{}",
            machine["name"].as_str().unwrap_or_default(),
            machine["kernel"].as_str().unwrap_or_default(),
            machine["cpus"],
            self.directory,
            self.pressure,
            if self.noisy() { ": a noisy run, believe ratios and minima only" } else { "" }
        ))?;
        let mut scenario = "";
        for row in &self.rows {
            if row.scenario != scenario {
                scenario = row.scenario;
                out::line(&format!(
                    "\n{scenario:<42}{:>10}{:>11}{:>11}{:>11}        of {:<14}",
                    "", "p50", "p99", "best", "times"
                ))?;
            }
            out::line(self.line(row).trim_end())?;
        }
        self.notes.iter().try_for_each(|note| out::line(&format!("\n{note}")))
    }

    fn line(&self, row: &Row) -> String {
        let ratio = self
            .floor_ratio(row)
            .map_or_else(String::new, |ratio| format!("{ratio:>6.2} x {}", row.floor.unwrap_or_default()));
        let peer = self
            .peer_ratio(row)
            .map_or_else(String::new, |ratio| format!("  {} is {ratio:.2} times as good", self.ours));
        let figure = |value: f64| if value < 1000.0 { format!("{value:.3}") } else { format!("{value:.0}") };
        format!(
            "  {:<40}{:>10}{:>11}{:>11}{:>11} {:<6} {ratio}{peer}",
            row.what,
            row.who,
            figure(row.percentile(50)),
            figure(row.percentile(99)),
            figure(row.best()),
            row.unit.name()
        )
    }
}

/// How long somebody waited for a processor in the last ten seconds, in per cent.
fn pressure() -> f64 {
    let text = fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let average = text.split_whitespace().find_map(|word| word.strip_prefix("avg10="));
    average.and_then(|percent| percent.parse().ok()).unwrap_or_default()
}

/// A directory with the filesystem that it lies on.
fn describe(directory: &std::path::Path) -> String {
    let kind = crate::sys::file::Directory::open(directory).and_then(|open| open.filesystem()).ok().flatten();
    let kind = kind.map_or_else(|| "another filesystem".to_owned(), |kind| kind.to_string());
    format!("{} on {kind}", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_who_is_better() {
        let mut report = Report::new("lagan", std::path::Path::new("/"));
        report.floor("flush", 2.0);
        for sample in [5.0, 3.0, 4.0] {
            report.time(("life", "create", "lagan"), sample, Some("flush"));
        }
        report.time(("life", "create", "other"), 8.0, Some("flush"));
        report.add(("churn", "pairs", "lagan"), Unit::PerSecond, 100.0, None);
        report.add(("churn", "pairs", "other"), Unit::PerSecond, 400.0, None);
        let shown = report.json();
        let row = |n: usize, field: &str| shown["figures"][n][field].as_f64();
        assert_eq!((row(1, "p50"), row(1, "best"), row(1, "p99")), (Some(4.0), Some(3.0), Some(5.0)));
        assert_eq!((row(1, "times_floor"), row(2, "times_floor")), (Some(2.0), Some(4.0)));
        assert_eq!((row(1, "ours_better_times"), row(2, "ours_better_times")), (None, Some(2.0)));
        assert_eq!(row(4, "ours_better_times"), Some(0.25), "a higher rate is better");
    }
}
