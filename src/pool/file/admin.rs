//! What a person does to a pool: makes it, moves it to another machine, lets go of it, deletes it. And the checks that
//! come before a pool is opened.

use std::path::Path;

use super::{
    image::{self, Mounting},
    marker::{self, Marker},
    store::Store,
    templates,
};
use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::{BLOCK, Filesystem},
    id::PoolId,
    pool::Role,
    sys::{cmd::Commands, file::Directory},
};

/// Makes a new pool in `path`: an empty directory, or one that is not there yet. With `image` the pool is an
/// XFS in one preallocated file of that length.
///
/// # Errors
/// `Mismatch` where there is a pool already; `InUse` where the directory holds something else; `Invalid` where its
/// filesystem does not do.
pub fn init(path: &Path, machine: &str, image: Option<Bytes>, commands: &Commands) -> Result<PoolId> {
    let what = || format!("make a pool in {}", path.display());
    std::fs::create_dir_all(path).doing(what)?;
    let outer = Directory::open(path).doing(what)?;
    let strangers: Vec<_> =
        outer.names().doing(what)?.into_iter().filter(|name| name != "lost+found").collect();
    if strangers.iter().any(|name| name == marker::MARKER || name == image::IMAGE) {
        return Err(Error::new(ErrorKind::Mismatch, format!("{}: there is one already", what())));
    }
    if let Some(stranger) = strangers.first() {
        let what = format!("{}: it is not empty (it holds {stranger})", what());
        return Err(Error::new(ErrorKind::InUse, what));
    }
    if let Some(size) = image {
        image::make(&outer, size, commands)?;
    }
    let root = image::resolve(&outer, Mounting::AsNeeded)?;
    let filesystem = check_filesystem(&root)?;
    if filesystem == Filesystem::Btrfs {
        // Overwritten in place, a volume on btrfs is three to five times faster, and stays so after a snapshot;
        // files made in the directories inherit it.
        root.disable_copy_on_write().doing(what)?;
    }
    let marker = Marker::new(machine);
    Store::open(root.try_clone().doing(what)?, marker.id, true)?;
    marker.write(&root)?;
    if image.is_some() {
        marker.write(&outer)?;
    }
    Ok(marker.id)
}

/// Makes this machine the one that serves the pool. No process may be serving it.
///
/// # Errors
/// `Busy` where it is served; `Unavailable` where there is no pool.
pub fn adopt(path: &Path, machine: &str) -> Result<PoolId> {
    let directory = open_directory(path)?;
    // An image that was moved alone has its marker inside.
    if Marker::read(&directory)?.is_none() {
        read_marker(&image::resolve(&directory, Mounting::AsNeeded)?)?.write(&directory)?;
    }
    let marker = read_marker(&directory)?;
    let _locks = marker::lock(&directory, Role::Both)?;
    let marker = marker.adopted_by(machine);
    marker.write(&directory)?;
    Ok(marker.id)
}

/// Lets go of a pool that nobody serves: unmounts its image, if it is one.
///
/// # Errors
/// `InUse` while volumes of it are attached.
pub fn close(path: &Path) -> Result<()> {
    image::unmount(&Directory::open(path).doing(|| format!("open pool {}", path.display()))?)
}

/// Removes an empty pool that nobody serves. Nothing is removed recursively: what a pool does not know keeps it.
///
/// # Errors
/// `InUse` where it holds a volume, a snapshot or something of somebody else; `Busy` where it is served.
pub fn delete(path: &Path) -> Result<()> {
    let what = || format!("delete pool {}", path.display());
    let directory = open_directory(path)?;
    let marker = read_marker(&directory)?;
    let locks = marker::lock(&directory, Role::Both)?;
    let root = image::resolve(&directory, Mounting::AsNeeded)?;
    let store = Store::open(root.try_clone().doing(what)?, marker.id, true)?;
    let listing = store.list()?;
    let kept = listing.volumes.len()
        + listing.snapshots.len()
        + listing.groups.len()
        + listing.damaged.len()
        + listing.strangers.len();
    if kept > 0 {
        return Err(Error::new(ErrorKind::InUse, format!("{}: it holds {kept} objects", what())));
    }
    templates::remove_all(&root).doing(what)?;
    for name in ["volumes", "snapshots", "pauses"] {
        root.remove_directory(name).doing(what)?;
    }
    root.remove_file(marker::MARKER).doing(what)?;
    drop((store, root));
    image::remove(&directory)?;
    // What is left says which pool this was until all of it is gone.
    directory.remove_file(marker::MARKER).doing(what)?;
    drop(locks);
    Ok(())
}

/// The identity of the pool at `path`, and the machine that it belongs to; nothing is changed or mounted.
///
/// # Errors
/// `Unavailable` where there is none.
pub fn identify(path: &Path) -> Result<(PoolId, String)> {
    let marker = read_marker(&open_directory(path)?)?;
    Ok((marker.id, marker.machine))
}

pub(super) fn open_directory(path: &Path) -> Result<Directory> {
    let gone =
        |error| Error::io(format!("open pool {}", path.display()), error).as_kind(ErrorKind::Unavailable);
    Directory::open(path).map_err(gone)
}

pub(super) fn read_marker(root: &Directory) -> Result<Marker> {
    Marker::read(root)?.ok_or_else(|| {
        let what = format!(
            "{} is no pool: its disk is not mounted, or `lagan pool init` was never run on it",
            root.path().display()
        );
        Error::new(ErrorKind::Unavailable, what)
    })
}

/// The pool must lie where records fit beside files and where loop devices can do direct I/O.
pub(super) fn check_filesystem(root: &Directory) -> Result<Filesystem> {
    let what = || format!("look at the filesystem of {}", root.path().display());
    let Some(filesystem) = root.filesystem().doing(what)? else {
        let what = format!("{} lies on a filesystem that is not ext4, xfs or btrfs", root.path().display());
        return Err(Error::new(ErrorKind::Invalid, what));
    };
    let block = root.block_size().doing(what)?;
    if block < BLOCK {
        let what = format!(
            "{} lies on {filesystem} with blocks of {block}: records and volumes need {BLOCK}",
            root.path().display()
        );
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    Ok(filesystem)
}
