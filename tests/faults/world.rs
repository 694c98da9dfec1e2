//! Everything of ours in the kernel and on disk, as seen from outside, so that two moments can be compared.

use std::{collections::BTreeMap, fs, path::Path};

use crate::rig::{Daemon, Ground, text};

/// What there is at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct World {
    /// Files of volumes and snapshots: lengths and records.
    files: BTreeMap<String, (u64, String)>,
    mounts: Vec<String>,
    loops: Vec<String>,
    /// What the driver has open.
    open: Vec<String>,
    /// Programs that it has started and not collected.
    pub(crate) programs: usize,
}

impl World {
    pub(crate) fn seen(ground: &Ground, daemon: &Daemon) -> Self {
        let mut files = BTreeMap::new();
        for directory in ["volumes", "snapshots", "pauses"] {
            let place = ground.volumes().parent().unwrap().join(directory);
            for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
                let length = entry.metadata().map_or(0, |it| it.len());
                files.insert(text(&entry.path()), (length, record_of(&entry.path())));
            }
        }
        // A note that is left behind costs the next start a needless thaw, no more.
        files.retain(|file, _| !file.contains("/pauses/") || file.ends_with(".new"));
        let mut mounts = ground.mounts();
        mounts.sort();
        // By what is behind them: their numbers come and go.
        let mut loops: Vec<_> = bound().into_iter().map(|(_, file)| file).collect();
        loops.retain(|name| {
            files.keys().any(|file| file.ends_with(name.rsplit('/').next().unwrap_or_default()))
        });
        loops.sort();
        Self { files, mounts, loops, open: open_in(daemon), programs: children_of(daemon) }
    }

    /// Another process has other things open.
    pub(crate) fn open_as_in(&mut self, other: &Self) {
        self.open.clone_from(&other.open);
    }

    /// In what two moments differ.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (file, what) in &self.files {
            match other.files.get(file) {
                None => found.push(format!("{file} is gone")),
                Some(is) if is.0 != what.0 => found.push(format!("{file} is {} long, was {}", is.0, what.0)),
                Some(is) if is.1 != what.1 => found.push(format!("{file} has another record")),
                Some(_) => {}
            }
        }
        found.extend(
            other.files.keys().filter(|it| !self.files.contains_key(*it)).map(|it| format!("{it} has come")),
        );
        for (before, after, what) in [
            (&self.mounts, &other.mounts, "mount"),
            (&self.loops, &other.loops, "device"),
            (&self.open, &other.open, "open"),
        ] {
            found.extend(minus(before, after).into_iter().map(|it| format!("{what} {it} is gone")));
            found.extend(minus(after, before).into_iter().map(|it| format!("{what} {it} has come")));
        }
        if self.programs != other.programs {
            found.push(format!("it has {} children, had {}", other.programs, self.programs));
        }
        found
    }
}

/// What is in the first list and not in the second, each as often.
fn minus(first: &[String], second: &[String]) -> Vec<String> {
    let mut left = second.to_vec();
    let mut found = Vec::new();
    for it in first {
        match left.iter().position(|other| other == it) {
            Some(at) => drop(left.remove(at)),
            None => found.push(it.clone()),
        }
    }
    found
}

/// The record on a file, as it is stored; nothing where there is none.
pub(crate) fn record_of(file: &Path) -> String {
    let mut value = vec![0; 8192];
    let length = rustix::fs::lgetxattr(file, "trusted.lagan", &mut value[..]).unwrap_or_default();
    String::from_utf8_lossy(&value[..length]).into_owned()
}

/// Loop devices bound to a file.
pub(crate) fn loop_devices(file: &Path) -> Vec<String> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    bound().into_iter().filter(|(_, backing)| backing.ends_with(&name)).map(|(device, _)| device).collect()
}

/// Every loop device that is bound, and the path that the kernel shows of its file: enough to tell, since names of ours
/// are random.
fn bound() -> Vec<(String, String)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backing = |entry: fs::DirEntry| {
        let path = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let path = path.trim_end().trim_end_matches(" (deleted)").to_owned();
        // One that goes while it is looked at.
        if path.is_empty() {
            return None;
        }
        Some((entry.file_name().to_string_lossy().into_owned(), path))
    };
    devices.filter_map(backing).collect()
}

/// Files and devices that a process has open; not its sockets and what wakes it.
fn open_in(daemon: &Daemon) -> Vec<String> {
    let place = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    let links =
        fs::read_dir(place).into_iter().flatten().flatten().filter_map(|it| fs::read_link(it.path()).ok());
    let mut open: Vec<_> = links.map(|it| text(&it)).filter(|it| it.starts_with('/')).collect();
    open.sort();
    open
}

/// How many processes are its children: the minder, and programs that were not collected.
fn children_of(daemon: &Daemon) -> usize {
    let parent = format!("PPid:\t{}\n", daemon.pid().as_raw_nonzero());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let statuses = processes.filter_map(|it| fs::read_to_string(it.path().join("status")).ok());
    statuses.filter(|status| status.contains(&parent)).count()
}
