//! Which templates a pool keeps: filesystems that were made before, to be copied instead of made anew. One is kept per
//! filesystem, length and way of making; the least recently used goes when there are too many. One is made when a length
//! is asked for the second time: a thousand lengths asked for once leave none.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{bytes::Bytes, digest::Digest, filesystem::Filesystem, sys::superblock::mkfs_arguments};

/// Lengths remembered as asked for once.
const MEMORY: usize = 256;

/// Which templates there are, and which lengths were asked for lately.
#[derive(Debug)]
pub(super) struct Templates {
    pub(super) limit: usize,
    recent: Mutex<VecDeque<String>>,
    /// In order of use, the latest last. Rebuilt by listing after a restart.
    pub(super) known: Mutex<Option<Vec<String>>>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// File name of a template. How it was made is part of it: another version of the tool or of its arguments makes
/// another one.
pub(super) fn name_of(filesystem: Filesystem, size: Bytes, tool: &str) -> String {
    let how = std::iter::once(&tool).chain(mkfs_arguments(filesystem)).map(|part| part.as_bytes());
    format!("{filesystem}-{}-{}", size.get(), Digest::of(how).short())
}

impl Templates {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, recent: Mutex::default(), known: Mutex::default() }
    }

    /// Whether this length was asked for before; it is from now on.
    pub(super) fn asked_before(&self, name: &str) -> bool {
        let mut recent = locked(&self.recent);
        if recent.iter().any(|known| known == name) {
            return true;
        }
        recent.push_back(name.to_owned());
        if recent.len() > MEMORY {
            recent.pop_front();
        }
        false
    }

    /// Notes that a template is used; `false` where there is none of the name.
    pub(super) fn touch(&self, name: &str) -> bool {
        let mut known = locked(&self.known);
        let Some(known) = known.as_mut() else { return false };
        let Some(place) = known.iter().position(|template| template == name) else { return false };
        let name = known.remove(place);
        known.push(name);
        true
    }

    pub(super) fn forget(&self, name: &str) {
        if let Some(known) = locked(&self.known).as_mut() {
            known.retain(|template| template != name);
        }
    }

    /// Adds a template; those that are now too many come back, to be removed.
    pub(super) fn add(&self, name: &str) -> Vec<String> {
        let mut known = locked(&self.known);
        let Some(known) = known.as_mut() else { return Vec::new() };
        known.push(name.to_owned());
        let surplus = known.len().saturating_sub(self.limit);
        known.drain(..surplus).collect()
    }
}

/// Whether a template's name is one that we would give today.
pub(super) fn is_current(name: &str, filesystem: Filesystem, tool: &str) -> bool {
    let size = name.strip_prefix(filesystem.name()).and_then(|rest| rest.strip_prefix('-'));
    let size = size.and_then(|rest| rest.split('-').next()).and_then(|digits| digits.parse().ok());
    size.is_some_and(|size| name_of(filesystem, Bytes::new(size), tool) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes() {
        let templates = Templates::new(2);
        *locked(&templates.known) = Some(Vec::new());
        assert!(templates.add("a").is_empty());
        assert!(templates.add("b").is_empty());
        assert!(templates.touch("a"));
        assert_eq!(templates.add("c"), ["b"]);
        assert!(!templates.touch("b"));
    }

    #[test]
    fn a_length_counts_from_its_second_time() {
        let templates = Templates::new(2);
        assert!(!templates.asked_before("a"));
        assert!(templates.asked_before("a"));
        for n in 0..MEMORY {
            templates.asked_before(&n.to_string());
        }
        assert!(!templates.asked_before("a"), "the memory is bounded");
    }

    #[test]
    fn a_name_says_how_it_was_made() {
        let name = name_of(Filesystem::Ext4, Bytes::gib(1), "1.47.0");
        assert!(is_current(&name, Filesystem::Ext4, "1.47.0"));
        assert!(!is_current(&name, Filesystem::Ext4, "1.47.1"));
        assert!(!is_current(&name, Filesystem::Xfs, "1.47.0"));
        assert!(!is_current("ext4-1073741824-0123456789abcdef", Filesystem::Ext4, "1.47.0"));
        assert!(!is_current("../x", Filesystem::Ext4, "1.47.0"));
    }
}
