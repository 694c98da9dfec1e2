//! `lagan bench`: what a CSI driver costs, beside the floors of this machine and beside another driver, in one run. It speaks CSI
//! to any socket; without one it measures this program on a throw-away pool. All that it made is removed, whatever happens.

use std::{
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{Common, Output, block_on, client::Daemon, out};
use crate::{
    bytes::Bytes,
    error::{Chain, Doing, Error, ErrorKind, Result},
    sys::host,
};

mod churn;
mod clean;
mod data;
mod driver;
mod fill;
mod floors;
mod goals;
mod hand;
mod life;
mod mounts;
mod place;
mod report;
mod rpc;
mod snapshot;

use driver::Driver;
use floors::Floors;
use place::Place;
use report::Report;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Empty calls.
    Rpc,
    /// One volume from CreateVolume to NodePublishVolume and back, call by call, raw and ext4, beside the same by commands.
    Life,
    /// Many created, staged and published at once.
    Storm,
    /// Volumes created and deleted, many at a time.
    Churn,
    /// What calls, a start and memory cost with many volumes.
    Fill,
    /// Snapshot, restore and clone, short and long volumes.
    Snapshot,
    /// Stage, publish and statistics beside thousands of other mounts.
    Mount,
    /// The same fio on a published volume and on a bare file.
    Data,
}

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Socket of the driver to measure [default: this program, on a throw-away pool].
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    socket: Option<PathBuf>,
    /// Another driver, which takes turns with it.
    #[arg(long, value_name = "NAME=SOCKET", value_parser = peer)]
    peer: Vec<(String, PathBuf)>,
    /// What to measure [default: everything].
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    scenario: Vec<Scenario>,
    /// With how many volumes beside.
    #[arg(long, value_delimiter = ',', value_name = "COUNTS", default_values_t = [1, 100, 10_000])]
    volumes: Vec<usize>,
    /// How many calls at a time.
    #[arg(long, value_delimiter = ',', value_name = "COUNTS", default_values_t = [1, 16, 64])]
    concurrency: Vec<usize>,
    /// How often the drivers take turns.
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    rounds: usize,
    /// How many mounts of others `mount` is measured beside.
    #[arg(long, value_name = "COUNT", default_value_t = 3000)]
    mounts: usize,
    /// Where floors are measured and volumes mounted: the driver must allow it. A throw-away pool is made there as well.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Make the throw-away pool an xfs in one file of this length [default: on the filesystem of the directory itself, where
    /// that can share blocks, or else 4GiB].
    #[arg(long, value_name = "SIZE")]
    image: Option<Bytes>,
    /// Another server of empty calls, beside which Probe is measured.
    #[arg(long, value_name = "NAME=SOCKET", value_parser = peer)]
    null: Vec<(String, PathBuf)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the goals as well, and whether they are met; what they ask for must be measured.
    #[arg(long)]
    goals: bool,
    #[arg(long, hide = true, value_name = "SOCKET")]
    null_server: Option<PathBuf>,
}

fn socket(text: &str) -> std::result::Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").map_or(text, |rest| rest.strip_prefix("//").unwrap_or(rest));
    if path.starts_with('/') { Ok(path.into()) } else { Err("expected unix:///path or /path".to_owned()) }
}

fn peer(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=SOCKET")?;
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if name.is_empty() || !plain(name) || [OURS, report::MACHINE, report::HAND].contains(&name) {
        return Err("expected a name of letters, digits and dashes that is not one of ours".to_owned());
    }
    Ok((name.to_owned(), socket(path)?))
}

/// Name of the driver that is measured.
const OURS: &str = "lagan";

/// Length of the pool where the filesystem cannot share blocks.
const IMAGE: Bytes = Bytes::gib(4);

/// Whether files in a directory can share blocks: tried.
fn shares_blocks(directory: &Path) -> bool {
    let file = || tempfile::tempfile_in(directory);
    matches!((file(), file()), (Ok(from), Ok(to)) if crate::sys::file::reflink(&from, &to).is_ok())
}

/// Everything that a run works with.
struct Bench<'a> {
    args: &'a BenchArgs,
    /// The one that is measured, then the others.
    drivers: Vec<Driver>,
    /// Where ours runs, if it was started here.
    place: Option<Place>,
    /// Made by us: mount points of ours, the targets of each driver.
    root: PathBuf,
    /// A directory on the filesystem that the volumes are on.
    bare: PathBuf,
    report: Report,
}

pub(super) fn run(common: &Common, args: &BenchArgs) -> Result<ExitCode> {
    if let Some(socket) = &args.null_server {
        return block_on(rpc::serve_nothing(socket)).map(|()| ExitCode::SUCCESS);
    }
    if !host::may_mount() {
        return Err(Error::new(ErrorKind::Unavailable, "the benchmark mounts filesystems: run it as root"));
    }
    block_on(measure(args, args.json || common.output == Output::Json))
}

async fn measure(args: &BenchArgs, json: bool) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).doing(|| "listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).doing(|| "listen for signals")?;
    let mut bench = Bench::new(args)?;
    let measured = tokio::select! {
        measured = bench.all() => measured,
        _ = interrupt.recv() => Err(Error::new(ErrorKind::Unsettled, "interrupted")),
        _ = terminate.recv() => Err(Error::new(ErrorKind::Unsettled, "interrupted")),
    };
    let cleaned = bench.clean().await;
    let report = match cleaned {
        Ok(report) => report,
        Err(error) => {
            out::talk("not everything that was made could be removed");
            if let Err(first) = measured {
                out::talk(&format!("before that: {}", Chain(&first)));
            }
            return Err(error);
        }
    };
    measured?;
    let goals = if args.goals { goals::judge(&report, args) } else { Vec::new() };
    if json {
        let mut shown = report.json();
        shown["goals"] = goals.iter().map(goals::Goal::json).collect();
        out::line(&format!("{shown:#}"))?;
    } else {
        report.print()?;
        goals::print(&goals)?;
    }
    let failed = report.notes.iter().any(|note| note.contains(&format!("{OURS}:")));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl<'a> Bench<'a> {
    fn new(args: &'a BenchArgs) -> Result<Self> {
        let image = args.image.or_else(|| (!shares_blocks(&args.directory)).then_some(IMAGE));
        let place = if args.socket.is_none() { Some(Place::new(&args.directory, image)?) } else { None };
        let (root, bare) = match &place {
            Some(place) => (place.targets(), place.bare()),
            None => {
                let root = args.directory.join(format!("lagan-bench-{}", std::process::id()));
                std::fs::create_dir(&root).doing(|| format!("make {}", root.display()))?;
                (root.clone(), root)
            }
        };
        let report = Report::new(OURS, &bare);
        Ok(Self { args, drivers: Vec::new(), place, root, bare, report })
    }

    /// Ours, the others, and ours again: what the machine does meanwhile falls on all of them.
    fn turns(&self) -> Vec<usize> {
        let all = 0..self.drivers.len();
        if all.len() > 1 { all.chain([0]).collect() } else { all.collect() }
    }

    async fn all(&mut self) -> Result<()> {
        let daemon = match (&mut self.place, &self.args.socket) {
            (Some(place), _) => place.start().await?.0,
            (None, socket) => Daemon::connect_to(socket.as_deref().unwrap_or(Path::new("/"))).await?,
        };
        self.drivers.push(Driver::new(OURS, daemon, self.root.join(OURS)).await?);
        for (name, socket) in &self.args.peer {
            let daemon = Daemon::connect_to(socket).await?;
            self.drivers.push(Driver::new(name, daemon, self.root.join(name)).await?);
        }
        let floors = Floors::new(&self.bare, &self.root)?;
        for scenario in Scenario::value_variants() {
            if !self.args.scenario.is_empty() && !self.args.scenario.contains(scenario) {
                continue;
            }
            self.report.watch();
            floors.measure(&mut self.report)?;
            match scenario {
                Scenario::Rpc => self.empty_calls().await?,
                Scenario::Life => self.life(&floors).await?,
                Scenario::Storm => self.storm().await?,
                Scenario::Churn => self.churn().await?,
                Scenario::Fill => self.fill().await?,
                Scenario::Snapshot => self.snapshots().await?,
                Scenario::Mount => self.mounts().await?,
                Scenario::Data => self.data().await?,
            }
        }
        Ok(())
    }

    /// One driver's part of a scenario: whether it went well. What it refuses is noted, and what it had made removed: the others
    /// go on.
    async fn attempt(
        &mut self,
        (scenario, turn): (&'static str, usize),
        part: impl AsyncFnOnce(&Driver, &mut Report) -> Result<()>,
    ) -> Result<bool> {
        let driver = &self.drivers[turn];
        self.report.watch();
        let Err(error) = part(driver, &mut self.report).await else { return Ok(true) };
        let note = format!("{scenario}, {}: {}", driver.name, Chain(&error));
        if !self.report.notes.contains(&note) {
            out::talk(&note);
            self.report.notes.push(note);
        }
        driver.clean().await?;
        Ok(false)
    }

    /// Removes everything that was made.
    async fn clean(mut self) -> Result<Report> {
        if let Some(place) = &mut self.place
            && !place.runs()
        {
            let (daemon, _) = place.start().await?;
            if let Some(ours) = self.drivers.first_mut() {
                ours.reconnect(daemon);
            }
        }
        mounts::remove(&self.root)?;
        for driver in &self.drivers {
            driver.clean().await?;
            super::scratch::gone(&driver.root, std::fs::remove_dir)?;
        }
        match self.place {
            Some(place) => place.remove(&[])?,
            None => super::scratch::gone(&self.root, std::fs::remove_dir)?,
        }
        Ok(self.report)
    }
}

/// Runs this many at a time of so many, until all are done or one has failed.
async fn at_once<F: Future<Output = Result<()>>>(
    concurrency: usize,
    count: usize,
    one: impl Fn(usize) -> F,
) -> Result<()> {
    use futures_util::{StreamExt, TryStreamExt, stream};

    stream::iter((0..count).map(one)).buffer_unordered(concurrency).try_collect::<()>().await
}
