//! Who this machine is and what it can do: names, kernel version, capabilities.

use std::{io, path::Path};

use rustix::{system::uname, thread::CapabilitySet};

/// Where systemd and D-Bus keep the machine's id; in a container the host's file is mounted there.
pub const MACHINE_ID: &str = "/etc/machine-id";

/// The machine's id.
///
/// # Errors
/// Those of reading the file; `InvalidData` where it is empty.
pub fn machine_id() -> io::Result<String> {
    let id = std::fs::read_to_string(Path::new(MACHINE_ID))?;
    let id = id.trim();
    if id.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{MACHINE_ID} is empty")));
    }
    Ok(id.to_owned())
}

/// Keeps memory as small with many threads as with few, where the C library has a heap for each.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    super::raw::share_heap();
}

/// The machine's name.
#[must_use]
pub fn host_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// The kernel's version as it prints it, such as `6.1.0-37-amd64`.
#[must_use]
pub fn kernel_release() -> String {
    uname().release().to_string_lossy().into_owned()
}

/// Whether the kernel is at least `major.minor`; a version that cannot be read counts as old.
#[must_use]
pub fn kernel_at_least(major: u32, minor: u32) -> bool {
    at_least(&kernel_release(), (major, minor))
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return false };
    (major, minor) >= wanted
}

/// Whether this process may do what a capability allows.
#[must_use]
pub fn has_capability(wanted: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

/// Whether this process may mount filesystems (`CAP_SYS_ADMIN`).
#[must_use]
pub fn may_mount() -> bool {
    has_capability(CapabilitySet::SYS_ADMIN)
}

/// Whether this process may grow a mounted ext4 (`CAP_SYS_RESOURCE`).
#[must_use]
pub fn may_grow_ext4() -> bool {
    has_capability(CapabilitySet::SYS_RESOURCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("6.1.0-37-amd64", (5, 14)));
        assert!(at_least("5.14", (5, 14)));
        assert!(!at_least("5.9.16", (5, 14)));
        assert!(!at_least("unknown", (5, 14)));
    }
}
