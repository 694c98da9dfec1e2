//! Templates: filesystems that were made before, kept to be copied. A copy shares the template's blocks (or copies its
//! few MiB) and gets an identity of its own, which is several times faster than making one, and starts no program.
//!
//! A template is kept per filesystem, length and way of making; the least recently used goes when there are too
//! many. One is made when a length is asked for the second time: a thousand lengths asked for once leave none.

use std::{fs::File, time::Duration};

use uuid::Uuid;

use super::Inner;
use crate::{
    bytes::Bytes,
    error::{Doing, Result},
    filesystem::Filesystem,
    pool::{
        format,
        templates::{is_current, locked, name_of},
    },
    sys::{
        file::{self, Access, Directory},
        superblock::{self, Identity},
    },
};

/// Where they are, in the pool.
const DIRECTORY: &str = "templates";
/// How long the making or checking of a filesystem may take.
const PATIENCE: Duration = Duration::from_secs(300);

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
        format::make(file, size, filesystem, &self.commands, PATIENCE)?;
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
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // Another call was faster with the same one; or it was to be removed once, and could not be.
                if self.templates.touch(name) {
                    return Ok(());
                }
            }
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
