//! Templates of a thin pool: filesystems that were made before, each a thin device with a record of its own. A copy shares
//! its blocks and gets an identity of its own.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    Inner,
    objects::{Origin, PATIENCE},
    slots::{Object, Slots, Stage, Template},
};
use crate::{
    bytes::Bytes,
    error::{Doing, Result},
    filesystem::Filesystem,
    pool::{
        format,
        templates::{Templates, is_current, locked, name_of},
    },
    sys::{
        cmd::Commands,
        superblock::{self, Identity},
    },
};

/// The thin devices of templates, by their names.
pub(super) type Thins = HashMap<String, (Uuid, u32)>;

fn version(commands: &Commands, filesystem: Filesystem) -> &str {
    commands.mark(format::maker(filesystem)).unwrap_or_default()
}

/// What of the records is a template that can still be used.
pub(super) fn known(slots: &Slots, commands: &Commands, limit: usize) -> Result<(Templates, Thins)> {
    let mut thins = Thins::new();
    for entry in slots.all()?.0.into_iter().filter(|entry| entry.stage == Stage::Ready) {
        if let Object::Template(template) = entry.object
            && Filesystem::ALL.into_iter().any(|it| is_current(&template.name, it, version(commands, it)))
        {
            thins.insert(template.name, (template.uuid, entry.thin));
        }
    }
    let templates = Templates::new(limit);
    *locked(&templates.known) = Some(thins.keys().cloned().collect());
    Ok((templates, thins))
}

impl Inner {
    /// The thin device of the template for such a filesystem, if there is one.
    pub(super) fn template_of(&self, filesystem: Filesystem, size: Bytes) -> Option<u32> {
        let name = name_of(filesystem, size, version(&self.commands, filesystem));
        let thin = locked(&self.template_thins).get(&name).map(|(_, thin)| *thin);
        thin.filter(|_| self.templates.touch(&name))
    }

    /// Gives the copy of a template on a device an identity of its own.
    pub(super) fn make_own(&self, image: &std::fs::File, size: Bytes) -> Result<()> {
        let identity = Identity { uuid: Uuid::new_v4(), hash_seed: Some(Uuid::new_v4()) };
        superblock::renew(image, size, &identity).doing(|| "renew a copy of a template")
    }

    /// Keeps a copy of a filesystem that was just made on a thin device, once a checker finds nothing against it, if its
    /// length is asked for again and again.
    pub(super) fn keep_template(&self, filesystem: Filesystem, size: Bytes, made: u32) {
        let name = name_of(filesystem, size, version(&self.commands, filesystem));
        if self.templates.limit == 0 || !self.templates.asked_before(&name) {
            return;
        }
        if let Err(error) = self.try_to_keep(&name, filesystem, size, made) {
            tracing::warn!(%error, template = name, "template not kept");
        }
    }

    fn try_to_keep(&self, name: &str, filesystem: Filesystem, size: Bytes, made: u32) -> Result<()> {
        let template = Template { uuid: Uuid::new_v4(), name: name.to_owned() };
        let object = Object::Template(template.clone());
        let thin = self.make(&object, Origin::Quiet(made))?;
        let checked = self
            .devices
            .work_on(template.uuid, thin, size)
            .and_then(|work| format::check(work.file()?, filesystem, &self.commands, PATIENCE))
            .and_then(|()| self.slots.put(thin, Stage::Ready, object.clone()));
        if let Err(error) = checked {
            return Err(self.unmake(thin, &object, error));
        }
        let replaced = locked(&self.template_thins).insert(name.to_owned(), (template.uuid, thin));
        let surplus = if replaced.is_some() { Vec::new() } else { self.templates.add(name) };
        let surplus = surplus.iter().filter_map(|name| locked(&self.template_thins).remove(name));
        for (uuid, _) in replaced.into_iter().chain(surplus.collect::<Vec<_>>()) {
            if let Some(entry) = self.slots.find(uuid)? {
                self.delete(entry)?;
            }
        }
        Ok(())
    }
}
