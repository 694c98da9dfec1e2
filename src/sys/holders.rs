//! Who holds a device or a mount, by name: only ever for messages that tell a person what to stop. Looks at links and
//! tables under /proc alone and never touches a filesystem, so it cannot hang on one.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use super::{device::DeviceNumber, mount::device_of_entry, mountinfo};

/// As many as a message can show.
const LIMIT: usize = 5;

/// Processes that hold one of `devices` open or have a filesystem on one in their mount namespace, as
/// `name (process id)`. Our own process is left out. Incomplete where /proc cannot be read.
pub(super) fn find(devices: &[DeviceNumber]) -> Vec<String> {
    let nodes: Vec<PathBuf> = devices.iter().filter_map(|device| node_of(*device)).collect();
    let mut places = nodes.clone();
    places.extend(mount_points(devices));
    let own = std::process::id().to_string();
    let mut namespaces: HashSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let mut found = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let id = process.file_name().to_string_lossy().into_owned();
        if id == own || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let directory = process.path();
        let new_namespace = fs::read_link(directory.join("ns/mnt")).is_ok_and(|ns| namespaces.insert(ns));
        if has_open(&directory, &places) || (new_namespace && has_mounted(&directory, devices, &nodes)) {
            let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
            found.push(format!("{} ({id})", name.trim()));
        }
        if found.len() == LIMIT {
            break;
        }
    }
    found
}

fn node_of(device: DeviceNumber) -> Option<PathBuf> {
    let link = fs::read_link(format!("/sys/dev/block/{device}")).ok()?;
    Some(PathBuf::from("/dev").join(link.file_name()?))
}

/// Where the devices, or filesystems on them, are mounted in our namespace.
fn mount_points(devices: &[DeviceNumber]) -> Vec<PathBuf> {
    let entries = mountinfo::read().unwrap_or_default();
    let concerned = entries
        .into_iter()
        .filter(|entry| matches!(device_of_entry(entry), Ok(Some((device, _))) if devices.contains(&device)));
    concerned.map(|entry| entry.mount_point).collect()
}

/// Whether a process has one of the places, or something below one, open or as its directory.
fn has_open(process: &Path, places: &[PathBuf]) -> bool {
    let inside = |link: PathBuf| {
        fs::read_link(link).is_ok_and(|target| places.iter().any(|place| target.starts_with(place)))
    };
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
    descriptors.chain([process.join("cwd"), process.join("root")]).any(inside)
}

fn has_mounted(process: &Path, devices: &[DeviceNumber], nodes: &[PathBuf]) -> bool {
    let Ok(entries) = mountinfo::read_of(process) else { return false };
    entries.iter().any(|entry| {
        devices.contains(&entry.device) || nodes.iter().any(|node| *node == *Path::new(&entry.source))
    })
}
