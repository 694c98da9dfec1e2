//! A throw-away place: a directory with a pool in one file, and the configuration of a driver for it. For what is shown
//! and what is measured.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::client::Daemon;
use crate::{
    bytes::Bytes,
    config::{self, Config, Mode, Overrides},
    error::{Doing, Error, ErrorKind, Result},
    pool::file,
    sys::cmd::Commands,
};

/// Name of the one node.
pub(super) const NODE: &str = "scratch";

/// The place, and all that is in it by name.
pub(super) struct Scratch {
    pub(super) root: PathBuf,
    http: String,
    promise_percent: u32,
}

impl Scratch {
    /// Makes the directory in `parent`. The driver's health and metrics come at `http`, or "off".
    pub(super) fn new(parent: &Path, purpose: &str, http: String, promise_percent: u32) -> Result<Self> {
        let root = parent.join(format!("lagan-{purpose}-{}", std::process::id()));
        for directory in ["", "targets", "state"] {
            fs::create_dir_all(root.join(directory)).doing(|| format!("make {}", root.display()))?;
        }
        Ok(Self { root, http, promise_percent })
    }

    pub(super) fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// Makes the pool: an XFS with reflink in one file of this length, or as part of the filesystem that is there.
    pub(super) fn make_pool(&self, image: Option<Bytes>) -> Result<()> {
        file::init(&self.pool(), &self.config()?.machine_id, image, &Commands::find()).map(drop)
    }

    /// The configuration as a file has it.
    pub(super) fn text(&self) -> String {
        let (root, Self { http, promise_percent, .. }) = (self.root.display(), self);
        format!(
            "node_id = {NODE:?}\nstate_dir = \"{root}/state\"\nendpoint = \"{root}/csi.sock\"\nhttp = {http:?}\n\
             target_roots = [\"{root}/targets\"]\n[[pool]]\nname = \"scratch\"\nkind = \"file\"\npath = \"{root}/pool\"\n\
             overcommit_percent = {promise_percent}\n"
        )
    }

    pub(super) fn config(&self) -> Result<Config> {
        config::parse(&self.text(), Mode::All, &Overrides::default())
            .map_err(|problems| Error::new(ErrorKind::Broken, problems.to_string()))
    }

    /// Removes what was made, name by name, with these names besides: nothing is removed through a mount that was left.
    pub(super) fn remove(&self, files: &[&str], directories: &[&str]) -> Result<()> {
        if self.pool().exists() {
            file::delete(&self.pool())?;
        }
        for name in files.iter().chain(&["csi.sock", "state/pools.json"]) {
            gone(&self.root.join(name), fs::remove_file)?;
        }
        for name in directories.iter().chain(&["targets", "state", "pool", ""]) {
            gone(&self.root.join(name), fs::remove_dir)?;
        }
        Ok(())
    }
}

/// Removes something that may be gone already.
pub(super) fn gone(path: &Path, remove: impl FnOnce(PathBuf) -> io::Result<()>) -> Result<()> {
    match remove(path.to_owned()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Waits for the driver that was just started.
pub(super) async fn connect(socket: &Path) -> Result<Daemon> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Daemon::connect_to(socket).await {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            connected => return connected,
        }
    }
}
