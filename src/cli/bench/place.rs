//! A driver of our own to measure, where none is named: this program, on a throw-away pool, as a process of its own.

use std::{
    fs::{self, File},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};

use super::super::{
    client::{Daemon, figures},
    scratch::{Scratch, connect, gone},
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    sys::file,
};

/// Files and directories of ours in the place, beside those that every such place has.
const FILES: [&str; 2] = ["lagan.toml", "log"];
/// How much may be promised: volumes are sparse, and nothing much is written.
const PROMISE_PERCENT: u32 = 10_000;

/// The place, and the driver that runs there.
pub(super) struct Place {
    scratch: Scratch,
    child: Option<Child>,
    /// The pool is in one file, with a filesystem of its own.
    image: bool,
}

/// This program again.
#[expect(clippy::disallowed_methods, reason = "it starts itself, not a program of somebody else")]
pub(super) fn ourselves() -> Command {
    let mut command = Command::new("/proc/self/exe");
    // A terminal's ^C is for us, who then use the driver to clean up.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Place {
    /// Makes it, with a pool in an image of this length or on the filesystem of `parent`; nothing runs there yet.
    pub(super) fn new(parent: &Path, image: Option<Bytes>) -> Result<Self> {
        // An address that is free now; who takes it meanwhile makes the start fail, no more.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").doing(|| "find a free port")?;
        let http = listener.local_addr().doing(|| "find a free port")?.to_string();
        drop(listener);
        let scratch = Scratch::new(parent, "bench", http, PROMISE_PERCENT)?;
        let place = Self { scratch, child: None, image: image.is_some() };
        let path = place.root().join("lagan.toml");
        fs::write(&path, place.scratch.text()).doing(|| format!("write {}", path.display()))?;
        place.scratch.make_pool(image)?;
        Ok(place)
    }

    pub(super) fn root(&self) -> &Path {
        &self.scratch.root
    }

    /// Where targets may be.
    pub(super) fn targets(&self) -> PathBuf {
        self.root().join("targets")
    }

    /// A directory on the filesystem that the volumes are on.
    pub(super) fn bare(&self) -> PathBuf {
        if self.image { self.scratch.pool().join("fs") } else { self.root().to_owned() }
    }

    /// The file of a volume.
    fn file_of(&self, id: &str) -> PathBuf {
        let pool = self.scratch.pool();
        let volumes = if self.image { pool.join("fs/volumes") } else { pool.join("volumes") };
        volumes.join(format!("{}.raw", id.rsplit('.').next().unwrap_or_default()))
    }

    /// How many milliseconds a reflink of a volume's file takes by itself, and its flush, where its filesystem can.
    pub(super) fn reflink_of(&self, id: &str) -> Result<Option<f64>> {
        let (path, copy) = (self.file_of(id), self.bare().join("reflink"));
        let what = || format!("reflink {}", path.display());
        let from = File::open(&path).doing(what)?;
        let to = File::options().write(true).create_new(true).open(&copy).doing(what)?;
        let begun = Instant::now();
        let cut = file::reflink(&from, &to).and_then(|()| to.sync_all());
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        gone(&copy, fs::remove_file)?;
        Ok(cut.is_ok().then_some(took))
    }

    /// What the file of a volume takes on disk, in KiB.
    pub(super) fn space_of(&self, id: &str) -> Result<f64> {
        let path = self.file_of(id);
        let metadata = fs::metadata(&path).doing(|| format!("look at {}", path.display()))?;
        // The kernel counts in half KiB.
        #[expect(clippy::cast_precision_loss, reason = "lengths of new volumes are small")]
        let blocks = metadata.blocks() as f64;
        Ok(blocks / 2.0)
    }

    /// How often the threads of the driver are woken in a while in which nobody asks it anything.
    pub(super) async fn wakeups(&self, secs: u64) -> Result<f64> {
        let id = self.child.as_ref().map(Child::id).unwrap_or_default();
        let count = || -> Result<u32> {
            let tasks = format!("/proc/{id}/task");
            let mut sum = 0;
            for task in fs::read_dir(&tasks).doing(|| format!("read {tasks}"))? {
                let path = task.doing(|| format!("read {tasks}"))?.path().join("status");
                // Each wait is one wake-up; a thread may have ended meanwhile.
                let status = fs::read_to_string(path).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                sum += line.and_then(|line| line.trim().parse::<u32>().ok()).unwrap_or_default();
            }
            Ok(sum)
        };
        let before = count()?;
        tokio::time::sleep(std::time::Duration::from_secs(secs)).await;
        Ok(f64::from(count()?.saturating_sub(before)))
    }

    /// Starts the driver; the connection, and how many milliseconds passed until it answered.
    pub(super) async fn start(&mut self) -> Result<(Daemon, f64)> {
        self.stop()?;
        let log = self.root().join("log");
        let what = || format!("start a driver in {}", self.root().display());
        let log = File::options().create(true).append(true).open(&log).doing(what)?;
        let mut command = ourselves();
        command.arg("--config").arg(self.root().join("lagan.toml")).arg("serve").stderr(log);
        let begun = Instant::now();
        self.child = Some(command.spawn().doing(what)?);
        let daemon = connect(&self.root().join("csi.sock")).await?;
        let asked = daemon.identity().probe(crate::proto::ProbeRequest {}).await;
        asked.map_err(super::super::client::refused)?;
        Ok((daemon, begun.elapsed().as_secs_f64() * 1000.0))
    }

    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Asks it to end, and waits.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        kill_process(Pid::from_child(&child), Signal::TERM).doing(|| "stop the driver")?;
        child.wait().doing(|| "stop the driver").map(drop)
    }

    /// Memory of the driver and of its minder in KiB, with the pages of the program, which both have, counted once.
    pub(super) fn memory(&self) -> Result<f64> {
        let id = self.child.as_ref().map(Child::id).unwrap_or_default();
        let children = format!("/proc/{id}/task/{id}/children");
        let children = fs::read_to_string(&children).doing(|| format!("read {children}"))?;
        let minders: Result<Vec<f64>> =
            children.split_whitespace().map(|child| memory_of(child, "Anonymous:")).collect();
        Ok(memory_of(&id.to_string(), "Rss:")? + minders?.into_iter().sum::<f64>())
    }

    /// One number of what it shows over HTTP.
    pub(super) async fn metric(&self, name: &str) -> Result<u64> {
        let text = figures(&self.scratch.config()?).await?;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
        value.ok_or_else(|| Error::new(ErrorKind::Broken, format!("the driver shows no {name}")))
    }

    /// Removes the place. The driver must have nothing left.
    pub(super) fn remove(mut self, directories: &[&str]) -> Result<()> {
        self.stop()?;
        self.scratch.remove(&FILES, directories)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After a failure: nobody could use it any more.
        self.stop().unwrap_or_default();
    }
}

/// So much memory of a kind a process has, in KiB.
fn memory_of(process: &str, kind: &str) -> Result<f64> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(kind));
    let value = line.and_then(|line| line.split_whitespace().next()).and_then(|value| value.parse().ok());
    value.ok_or_else(|| Error::new(ErrorKind::Broken, format!("{path} shows no {kind}")))
}
