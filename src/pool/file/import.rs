//! Devices and files of somebody else, copied into a volume.

use std::{fs::File, os::unix::fs::FileExt};

use super::{
    Inner,
    content::{extend, replay},
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::BLOCK,
    pool::{
        Progress, identity,
        import::{self, Import},
        record::{Content, Volume},
    },
    sys::{
        loopdev::{self, Binding},
        superblock,
    },
};

/// After how much the pool is asked whether there is room for more.
const STRETCH: Bytes = Bytes::mib(64);

/// What a trial binding is called.
const TRIAL: &str = "lagan:trial";

/// Refuses what was laid out in shorter sectors than a device on this pool can have.
fn expect_usable(file: &File, from: &Import) -> Result<()> {
    let what = || format!("import {from}");
    if superblock::sector_of(file).doing(what)? >= BLOCK {
        return Ok(());
    }
    let binding = Binding { read_only: true, autoclear: true, label: TRIAL };
    match loopdev::bind(file, &binding) {
        Ok(_gone_when_closed) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            let what = format!(
                "{}: it was laid out in sectors shorter than {BLOCK}, and nothing could use it in this pool: take a pool \
                 of LVM, or one in a directory on a disk with such sectors",
                what()
            );
            Err(Error::new(ErrorKind::Invalid, what))
        }
        Err(error) => Err(Error::io(what(), error)),
    }
}

impl Inner {
    pub(super) fn import_volume(
        &self,
        volume: &Volume,
        from: &Import,
        progress: &Progress,
    ) -> Result<Volume> {
        self.store.check_writable()?;
        let source = import::open(from)?;
        let file = self.store.volumes.create_unnamed().doing(|| format!("create {}", volume.id))?;
        extend(&file, volume.size)?;
        // Known before all of it is copied.
        let head = source.head().doing(|| format!("import {from}"))?;
        file.write_all_at(&head, 0).doing(|| format!("import {from}"))?;
        expect_usable(&file, from)?;
        progress.expect(source.length());
        let (mut since, mut full) = (STRETCH, None);
        let copied = source.copy_to(&file, &mut |step| {
            progress.advance(step);
            since = since.plus(step);
            if since >= STRETCH {
                since = Bytes::ZERO;
                full = self.expect_room(STRETCH).err();
            }
            full.as_ref().map_or(Ok(()), |_full| Err(std::io::ErrorKind::StorageFull.into()))
        });
        if let Some(full) = full {
            return Err(full);
        }
        copied.map_err(|error| match error.kind() {
            std::io::ErrorKind::ResourceBusy => {
                Error::new(ErrorKind::InUse, format!("import {from}: somebody writes to it"))
            }
            _ => Error::io(format!("import {from}"), error),
        })?;
        let content = import::content_of(&file, volume.size)?;
        if let Content::Filesystem(filesystem) = content {
            identity::renew(&file, filesystem, volume.size, || replay(&file, filesystem))?;
        }
        let volume = Volume { content, ..volume.clone() };
        self.store.publish(&self.store.volumes, volume.id.uuid, &file, &volume)?;
        Ok(volume)
    }
}
