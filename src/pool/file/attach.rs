//! Loop devices of volumes. What is attached is asked of the kernel, by the inode behind each device.

use uuid::Uuid;

use super::store::{Store, file_name, uuid_of};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::VolumeId,
    pool::{Attach, Attached, Detached, Held},
    sys::{
        device::{DeviceNumber, Inode},
        file::Access,
        loopdev::{self, Binding, Bound, LoopDevice, Release},
    },
};

/// What the kernel keeps with a device of ours, before the use it was made for.
fn label_prefix(uuid: Uuid) -> String {
    format!("lagan:{}:", uuid.simple())
}

/// Makes a device for a volume.
pub(super) fn attach(store: &Store, id: VolumeId, how: &Attach) -> Result<Held> {
    let what = || format!("attach {id}");
    let access = if how.read_only { Access::Read } else { Access::Write };
    let file = store.open_file(&store.volumes, id.uuid, access)?;
    let label = label_prefix(id.uuid) + &how.label;
    let binding = Binding { read_only: how.read_only, autoclear: how.transient, label: &label };
    let device = loopdev::bind(&file, &binding).map_err(|error| match error.kind() {
        std::io::ErrorKind::Unsupported => Error::io(what(), error).as_kind(ErrorKind::Unavailable),
        _ => Error::io(what(), error),
    })?;
    let attached =
        Attached { device: device.device().doing(what)?, transient: how.transient, label: how.label.clone() };
    Ok(Held { attached, guard: Box::new(device) })
}

/// The devices bound to the file of a volume. Where the file is gone, those that we once bound to it.
fn bound(store: &Store, id: VolumeId) -> Result<Vec<Bound>> {
    let what = || format!("look for devices of {id}");
    let name = file_name(id.uuid);
    let backing = store.volumes.stat(&name).doing(what)?.map(|stat| stat.inode);
    let found = loopdev::list(|candidate| candidate == name).doing(what)?.into_iter().map(|(_, bound)| bound);
    let ours = |bound: &Bound| match backing {
        Some(backing) => bound.backing == backing,
        None => bound.label.starts_with(&label_prefix(id.uuid)),
    };
    Ok(found.filter(ours).collect())
}

/// The devices that stand for a volume.
pub(super) fn attached(store: &Store, id: VolumeId) -> Result<Vec<Attached>> {
    let bound = bound(store, id)?;
    bound.iter().filter_map(|bound| describe(bound, id.uuid).transpose()).collect()
}

/// `None` where the device was unbound meanwhile.
fn describe(bound: &Bound, uuid: Uuid) -> Result<Option<Attached>> {
    let open = LoopDevice::open(bound.number).and_then(|open| Ok((open.bound()?, open.device()?)));
    match open {
        Ok((Some(now), device)) if now.backing == bound.backing => Ok(Some(Attached {
            device,
            transient: bound.autoclear,
            label: bound.label.strip_prefix(&label_prefix(uuid)).unwrap_or_default().to_owned(),
        })),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(Error::io(format!("look at loop device {}", bound.number), error)),
    }
}

/// Takes devices of a volume away.
pub(super) fn detach(store: &Store, id: VolumeId, which: Option<DeviceNumber>) -> Result<Detached> {
    let what = || format!("detach {id}");
    let mut all = Detached::Done;
    for bound in bound(store, id)? {
        let device = LoopDevice::open(bound.number).doing(what)?;
        let number = match device.device() {
            Ok(device) => device.number,
            // Unbound since it was listed.
            Err(_gone) => continue,
        };
        if which.is_none_or(|which| which == number)
            && device.release(bound.backing).doing(what)? == Release::StillUsed
        {
            all = Detached::StillUsed;
        }
    }
    Ok(all)
}

/// Makes the devices of a volume as long as its file.
pub(super) fn refresh(store: &Store, id: VolumeId) -> Result<()> {
    let what = || format!("resize the devices of {id}");
    for bound in bound(store, id)? {
        let device = LoopDevice::open(bound.number).doing(what)?;
        if device.bound().doing(what)?.is_some_and(|now| now.backing == bound.backing) {
            device.refresh_size().doing(what)?;
        }
    }
    Ok(())
}

/// Every device bound to a file of the pool, and those of ours whose file has lost its name.
pub(super) fn all(store: &Store) -> Result<Vec<(Uuid, Attached)>> {
    let mut found = Vec::new();
    for (name, bound) in loopdev::list(|name| uuid_of(name).is_some()).doing(|| "list loop devices")? {
        let Some(uuid) = uuid_of(&name) else { continue };
        let ours = match store.volumes.stat(&name).doing(|| "look at a volume's file")? {
            Some(stat) => stat.inode == bound.backing,
            None => bound.label.starts_with(&label_prefix(uuid)) && in_pool(store, bound.backing),
        };
        if ours && let Some(attached) = describe(&bound, uuid)? {
            found.push((uuid, attached));
        }
    }
    Ok(found)
}

/// Whether a file lies on the pool's filesystem: of one that has no name any more no more can be said.
fn in_pool(store: &Store, backing: Inode) -> bool {
    rustix::fs::fstat(&store.volumes).is_ok_and(|stat| Inode::of(&stat).device == backing.device)
}
