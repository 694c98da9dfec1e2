//! Who holds a device or a mount, by name: only ever for messages that tell a person what to stop. Looks at links and
//! tables under /proc alone and never touches a filesystem, so it cannot hang on one.

use std::{collections::HashSet, fs, path::PathBuf};

use super::{device::DeviceNumber, mountinfo};

/// As many as a message can show.
const LIMIT: usize = 5;

/// Processes that hold one of `devices` open or have a filesystem on one in their mount namespace, as
/// `name (process id)`. Our own process is left out. Incomplete where /proc cannot be read.
pub(super) fn find(devices: &[DeviceNumber]) -> Vec<String> {
    let nodes: Vec<PathBuf> = devices.iter().filter_map(|device| node_of(*device)).collect();
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
        if has_open(&directory, &nodes) || (new_namespace && has_mounted(&directory, devices, &nodes)) {
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

fn has_open(process: &std::path::Path, nodes: &[PathBuf]) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| nodes.contains(&target)))
}

fn has_mounted(process: &std::path::Path, devices: &[DeviceNumber], nodes: &[PathBuf]) -> bool {
    let Ok(entries) = mountinfo::read_of(process) else { return false };
    entries.iter().any(|entry| {
        devices.contains(&entry.device)
            || nodes.iter().any(|node| *node == *std::path::Path::new(&entry.source))
    })
}
