//! Templates: filesystems that were made before, kept to be copied. A copy shares the template's blocks (or copies its
//! few MiB) and gets an identity of its own, which is several times faster than making one, and starts no program.
//!
//! A template is kept per filesystem, length and way of making; the least recently used goes when there are too
//! many. One is made when a length is asked for the second time: a thousand lengths asked for once leave none.

use std::{
    collections::VecDeque,
    fs::File,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use super::Inner;
use crate::{
    bytes::Bytes,
    digest::Digest,
    error::{Doing, Result},
    filesystem::Filesystem,
    pool::format,
    sys::{
        file::{self, Access, Directory},
        superblock::{self, Identity, mkfs_arguments},
    },
};

/// Where they are, in the pool.
const DIRECTORY: &str = "templates";
/// Lengths remembered as asked for once.
const MEMORY: usize = 256;
/// How long the making or checking of a filesystem may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which templates there are, and which lengths were asked for lately.
#[derive(Debug)]
pub(super) struct Templates {
    limit: usize,
    recent: Mutex<VecDeque<String>>,
    /// In order of use, the latest last. Rebuilt by listing after a restart.
    known: Mutex<Option<Vec<String>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// File name of a template. How it was made is part of it: another version of the tool or of its arguments makes
/// another one.
fn name_of(filesystem: Filesystem, size: Bytes, tool: &str) -> String {
    let how = std::iter::once(&tool).chain(mkfs_arguments(filesystem)).map(|part| part.as_bytes());
    format!("{filesystem}-{}-{}", size.get(), Digest::of(how).short())
}

impl Templates {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, recent: Mutex::default(), known: Mutex::default() }
    }

    /// Whether this length was asked for before; it is from now on.
    fn asked_before(&self, name: &str) -> bool {
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
    fn touch(&self, name: &str) -> bool {
        let mut known = locked(&self.known);
        let Some(known) = known.as_mut() else { return false };
        let Some(place) = known.iter().position(|template| template == name) else { return false };
        let name = known.remove(place);
        known.push(name);
        true
    }

    fn forget(&self, name: &str) {
        if let Some(known) = locked(&self.known).as_mut() {
            known.retain(|template| template != name);
        }
    }

    /// Adds a template; those that are now too many come back, to be removed.
    fn add(&self, name: &str) -> Vec<String> {
        let mut known = locked(&self.known);
        let Some(known) = known.as_mut() else { return Vec::new() };
        known.push(name.to_owned());
        let surplus = known.len().saturating_sub(self.limit);
        known.drain(..surplus).collect()
    }
}

impl Inner {
    /// Makes `file` a fresh filesystem of this length.
    pub(super) fn fill_with_filesystem(
        &self,
        file: &File,
        filesystem: Filesystem,
        size: Bytes,
    ) -> Result<()> {
        let name = name_of(filesystem, size, self.version(filesystem));
        let directory = self.template_directory()?;
        if self.templates.touch(&name) {
            match self.fill_from_template(file, &directory, &name, size) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // The file may hold part of the template by now.
                    tracing::warn!(%error, template = name, "template not usable, making a filesystem instead");
                    rustix::fs::ftruncate(file, 0).doing(|| "empty the new file")?;
                    self.discard_template(&directory, &name)?;
                }
            }
        }
        rustix::fs::ftruncate(file, size.get()).doing(|| "set the length of the new file")?;
        format::make(file, filesystem, &self.commands, PATIENCE)?;
        file::drop_preallocation(file).doing(|| "give back what the new filesystem does not hold")?;
        if self.templates.limit > 0
            && self.templates.asked_before(&name)
            && let Err(error) = self.keep_template(file, &directory, &name, filesystem)
        {
            tracing::warn!(%error, template = name, "template not kept");
        }
        Ok(())
    }

    fn fill_from_template(&self, file: &File, directory: &Directory, name: &str, size: Bytes) -> Result<()> {
        let template = directory.open_file(name, Access::Read).doing(|| format!("open template {name}"))?;
        self.copy_template(&template, file)?;
        let identity = Identity { uuid: Uuid::new_v4(), hash_seed: Some(Uuid::new_v4()) };
        superblock::renew_copy(&template, file, size, &identity)
            .doing(|| format!("renew a copy of template {name}"))
    }

    fn copy_template(&self, from: &File, to: &File) -> Result<()> {
        let copied =
            if self.reflink { file::reflink(from, to) } else { file::copy_data(from, to, &mut |_| Ok(())) };
        copied.doing(|| "copy a template")
    }

    /// Keeps a copy of a filesystem that was just made, once a checker finds nothing against it.
    fn keep_template(
        &self,
        made: &File,
        directory: &Directory,
        name: &str,
        filesystem: Filesystem,
    ) -> Result<()> {
        let what = || format!("keep template {name}");
        format::check(made, filesystem, &self.commands, PATIENCE)?;
        let template = directory.create_unnamed().doing(what)?;
        self.copy_template(made, &template)?;
        // On disk before it has a name: a template that lost its blocks in a power cut would be copied for ever.
        template.sync_all().doing(what)?;
        match directory.link(&template, name) {
            // Another call was faster with the same one.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            other => other.doing(what)?,
        }
        for surplus in self.templates.add(name) {
            directory.remove_file(&surplus).doing(|| format!("remove template {surplus}"))?;
        }
        Ok(())
    }

    fn discard_template(&self, directory: &Directory, name: &str) -> Result<()> {
        self.templates.forget(name);
        directory.remove_file(name).doing(|| format!("remove template {name}")).map(drop)
    }

    /// Which version of a filesystem's tool is installed; nothing where none is.
    fn version(&self, filesystem: Filesystem) -> &str {
        self.commands.mark(format::maker(filesystem)).unwrap_or_default()
    }

    /// The directory of templates; at its first use what is in it is listed, the oldest first.
    fn template_directory(&self) -> Result<Directory> {
        let what = || "list templates";
        let directory = self.store.root.ensure_directory(DIRECTORY).doing(what)?;
        let mut known = locked(&self.templates.known);
        if known.is_none() {
            let mut found = Vec::new();
            for name in directory.names().doing(what)? {
                // Made in another way: of no use any more.
                if !Filesystem::ALL.into_iter().any(|it| is_current(&name, it, self.version(it))) {
                    directory.remove_file(&name).doing(what)?;
                    continue;
                }
                let modified = directory.modified(&name).doing(what)?;
                found.push((modified, name));
            }
            found.sort_unstable();
            *known = Some(found.into_iter().map(|(_, name)| name).collect());
        }
        drop(known);
        Ok(directory)
    }
}

/// Removes every template, and their directory.
pub(super) fn remove_all(root: &Directory) -> std::io::Result<()> {
    match root.open_directory(DIRECTORY) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(directory) => {
            for name in directory.names()? {
                directory.remove_file(&name)?;
            }
        }
    }
    root.remove_directory(DIRECTORY)
}

/// Whether a template's name is one that we would give today.
fn is_current(name: &str, filesystem: Filesystem, tool: &str) -> bool {
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
