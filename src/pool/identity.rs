//! An identity of its own for a copied filesystem, so that source and copies can be mounted side by side.

use std::{fs::File, io};

use uuid::Uuid;

use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    sys::{
        device::Device,
        kernel::{Attributes, FilesystemMount},
        mount,
        superblock::{self, Identity},
    },
};

/// Gives a copied filesystem an identity of its own. One with a journal to replay is mounted once, unseen, by `replay`:
/// the kernel's own replay would bring the old identity back.
///
/// What cannot be renewed is left as it is: the copy still is what was asked for, and staging will say what is wrong
/// with it.
pub(super) fn renew(
    image: &File,
    filesystem: Filesystem,
    size: Bytes,
    replay: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let identity = Identity { uuid: Uuid::new_v4(), hash_seed: None };
    let mut renewed = superblock::renew(image, size, &identity);
    if renewed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
        match replay() {
            Ok(()) => renewed = superblock::renew(image, size, &identity),
            Err(error) => tracing::warn!(%error, "journal of the copy not replayed"),
        }
    }
    match renewed.map_err(|error| (error.kind(), error)) {
        Ok(()) => Ok(()),
        Err((
            io::ErrorKind::ResourceBusy | io::ErrorKind::Unsupported | io::ErrorKind::InvalidData,
            error,
        )) => {
            tracing::warn!(%error, %filesystem, "the copy keeps the identity of its source");
            Ok(())
        }
        Err((_, error)) => {
            Err(error).doing(|| format!("give the copied {filesystem} an identity of its own"))
        }
    }
}

/// Mounts the filesystem on a device where nobody sees it, which replays its journal, and lets go of it. The kernel does
/// so in its own time.
pub(super) fn replay(device: &Device, filesystem: Filesystem) -> Result<()> {
    let wanted = FilesystemMount {
        filesystem,
        read_only: false,
        // Its source may be mounted, and has the same uuid.
        options: if filesystem == Filesystem::Xfs { vec![("nouuid".into(), None)] } else { Vec::new() },
        attributes: Attributes::NOSUID
            .and(Attributes::NODEV)
            .and(Attributes::NOEXEC)
            .and(Attributes::NOSYMFOLLOW),
    };
    let what = || format!("replay the journal of the copied {filesystem}");
    let mounted = mount::mount_detached(device, &wanted)
        .map_err(|error| Error::new(ErrorKind::Broken, what()).because(error))?;
    drop(mounted);
    Ok(())
}
