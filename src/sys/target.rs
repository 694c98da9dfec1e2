//! Paths that an orchestrator names: staging and target paths. They must lie below one of the configured roots; below
//! a root no link is ever followed. This file decides by the text alone; `mount.rs` does the looking up.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

/// Longest path that the kernel takes, in bytes.
const PATH_MAX: usize = 4096;

/// A path below one of the roots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The root as configured.
    pub root: PathBuf,
    /// The rest, at least one name long, without `.` and `..`.
    pub relative: PathBuf,
}

impl Target {
    /// The whole path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.relative)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

/// A path that no target may have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadTarget {
    /// Relative, too long, or holding `..` or a zero byte.
    #[error("path {0:?} is not absolute and plain")]
    Malformed(String),
    /// Outside every root.
    #[error("path {0:?} lies below none of target_roots")]
    Outside(String),
}

/// Finds the root, the deepest of `roots`, that `path` lies below.
///
/// # Errors
/// Where the path is not of the form, or below none.
pub fn locate<'r>(roots: impl IntoIterator<Item = &'r Path>, path: &str) -> Result<Target, BadTarget> {
    let shown = || path.chars().take(256).collect();
    let parsed = Path::new(path);
    let plain = parsed.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !parsed.is_absolute() || !plain || path.len() >= PATH_MAX || path.contains('\0') {
        return Err(BadTarget::Malformed(shown()));
    }
    roots
        .into_iter()
        .filter_map(|root| {
            let relative: PathBuf = parsed.strip_prefix(root).ok()?.components().collect();
            (!relative.as_os_str().is_empty()).then(|| Target { root: root.to_owned(), relative })
        })
        .max_by_key(|target| target.root.as_os_str().len())
        .ok_or_else(|| BadTarget::Outside(shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> Result<(String, String), BadTarget> {
        let roots = [Path::new("/var/lib/kubelet"), Path::new("/var/lib/kubelet/deep"), Path::new("/data")];
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        locate(roots, path).map(|target| (text(target.root), text(target.relative)))
    }

    #[test]
    fn the_deepest_root_wins() {
        assert_eq!(check("/data/a//b/"), Ok(("/data".into(), "a/b".into())));
        assert_eq!(check("/var/lib/kubelet/deep/x"), Ok(("/var/lib/kubelet/deep".into(), "x".into())));
        assert_eq!(check("/var/lib/kubelet/deeper"), Ok(("/var/lib/kubelet".into(), "deeper".into())));
    }

    #[test]
    fn nothing_else_is_a_target() {
        let long = format!("/data/{}", "x".repeat(5000));
        for path in [
            "",
            "some/path",
            "/data",
            "/data/",
            "/data/../etc",
            "/etc/passwd",
            "/data/a\0b",
            "/database/x",
            &long,
        ] {
            assert!(check(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn hostile_input() {
        let samples: [&[u8]; 3] = [b"/var/lib/kubelet/pods/x/y", b"/data/a//b/", b"/data/../etc/passwd"];
        crate::hostile::feed("targets", &samples, |input| {
            if let Ok((root, relative)) = check(&String::from_utf8_lossy(input)) {
                let parts: Vec<_> = Path::new(&relative).components().collect();
                let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
                assert!(plain && !parts.is_empty() && !relative.contains('\0'), "{root} {relative}");
            }
        });
    }
}
