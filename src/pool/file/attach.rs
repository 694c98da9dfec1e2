//! Loop devices of volumes. What is attached is asked of the kernel each time, by the inode behind each device; what is
//! remembered here only says where to ask first, so that the answer does not take longer the more devices there are.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::io::Errno;
use uuid::Uuid;

use super::store::{Store, file_name, uuid_of};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::VolumeId,
    pool::{Attach, Attached, Detached, Held, Role},
    sys::{
        device::{Device, DeviceNumber, Inode},
        file::{Access, sole_use},
        loopdev::{self, Binding, Bound, LoopDevice, Release},
    },
};

/// What the kernel keeps with a device of ours, before the use it was made for.
fn label_prefix(uuid: Uuid) -> String {
    format!("lagan:{}:", uuid.simple())
}

/// The devices of a pool's volumes.
#[derive(Debug)]
pub(super) struct Devices {
    /// Numbers of all devices that a volume had last. Only a process that makes them can know all: one that does not
    /// asks the kernel each time.
    hints: Mutex<HashMap<Uuid, Vec<u32>>>,
    makes_them: bool,
}

impl Devices {
    pub(super) fn new(role: Role) -> Self {
        Self { hints: Mutex::default(), makes_them: role.attaches() }
    }

    fn hints(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<u32>>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a device for a volume.
    pub(super) fn attach(&self, store: &Store, id: VolumeId, how: &Attach) -> Result<Held> {
        let what = || format!("attach {id}");
        let access = if how.read_only { Access::Read } else { Access::Write };
        let file = open_patiently(store, id, access)?;
        let label = label_prefix(id.uuid) + &how.label;
        let binding = Binding { read_only: how.read_only, autoclear: how.transient, label: &label };
        // A file that nobody has open is behind no device: the one that is made now is all of them.
        let first = matches!(sole_use(&file), Ok(Some(_)));
        let device = loopdev::bind(&file, &binding).map_err(|error| match error.kind() {
            std::io::ErrorKind::Unsupported => Error::io(what(), error).as_kind(ErrorKind::Unavailable),
            _ => Error::io(what(), error),
        })?;
        let mut hints = self.hints();
        if first && self.makes_them {
            hints.insert(id.uuid, vec![device.number()]);
        } else if let Some(known) = hints.get_mut(&id.uuid) {
            // Without a complete list to add it to, the next question looks for all.
            known.push(device.number());
        }
        drop(hints);
        let attached = Attached {
            // It is made: the next try uses it, and unstaging takes it away.
            device: device.device().doing(what).map_err(Error::half_done)?,
            transient: how.transient,
            label: how.label.clone(),
        };
        Ok(Held { attached, guard: Box::new(device) })
    }

    /// The devices bound to the file of a volume. Where the file is gone, those that we once bound to it.
    fn bound(&self, store: &Store, id: VolumeId) -> Result<Vec<(Bound, Device)>> {
        let what = || format!("look for devices of {id}");
        let name = file_name(id.uuid);
        let backing = store.volumes.stat(&name).doing(what)?.map(|stat| stat.inode);
        if let Some(backing) = backing {
            if let Some(known) = self.known(id.uuid, backing)? {
                return Ok(known);
            }
            // A file that nobody has open is behind no device.
            let file = store.open_file(&store.volumes, id.uuid, Access::Read);
            if file.is_ok_and(|file| matches!(sole_use(&file), Ok(Some(_)))) {
                return Ok(Vec::new());
            }
        }
        let ours = |bound: &Bound| match backing {
            Some(backing) => bound.backing == backing,
            None => bound.label.starts_with(&label_prefix(id.uuid)),
        };
        let mut found = Vec::new();
        for (_, bound) in loopdev::list(|candidate| candidate == name).doing(what)? {
            found.extend(look(bound.number)?.filter(|(bound, _)| ours(bound)));
        }
        let numbers = found.iter().map(|(bound, _)| bound.number).collect();
        if self.makes_them {
            // Not over a list that has grown meanwhile.
            self.hints().entry(id.uuid).or_insert(numbers);
        }
        Ok(found)
    }

    /// The devices that the volume had last, if all of them still stand for it.
    fn known(&self, uuid: Uuid, backing: Inode) -> Result<Option<Vec<(Bound, Device)>>> {
        let numbers = self.hints().get(&uuid).cloned().unwrap_or_default();
        let mut found = Vec::new();
        for number in &numbers {
            found.extend(look(*number)?.filter(|(bound, _)| bound.backing == backing));
        }
        let complete = !numbers.is_empty() && found.len() == numbers.len();
        if !complete {
            self.hints().remove(&uuid);
        }
        Ok(complete.then_some(found))
    }

    /// The devices that stand for a volume.
    pub(super) fn attached(&self, store: &Store, id: VolumeId) -> Result<Vec<Attached>> {
        let bound = self.bound(store, id)?.into_iter();
        Ok(bound.map(|(bound, device)| describe(&bound, device, id.uuid)).collect())
    }

    /// Takes devices of a volume away.
    pub(super) fn detach(
        &self,
        store: &Store,
        id: VolumeId,
        which: Option<DeviceNumber>,
    ) -> Result<Detached> {
        let what = || format!("detach {id}");
        let mut all = Detached::Done;
        for (bound, device) in self.bound(store, id)? {
            let released = || LoopDevice::open(bound.number)?.release(bound.backing);
            if which.is_none_or(|which| which == device.number)
                && released().doing(what)? == Release::StillUsed
            {
                all = Detached::StillUsed;
            }
        }
        self.hints().remove(&id.uuid);
        Ok(all)
    }

    /// Makes devices longer that a grow has left shorter than their volume.
    pub(super) fn finish_growing(&self, store: &Store) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for (uuid, attached) in all(store)? {
            let id = VolumeId { pool: store.pool, uuid };
            // One without a record, or with one that is damaged, is named by the listing.
            let Ok(Some(volume)) = store.volume(id) else { continue };
            if attached.device.size < volume.size {
                self.refresh(store, id)?;
                done.push(format!("made the device of volume {id} as long as it is"));
            }
        }
        Ok(done)
    }

    /// Makes the devices of a volume as long as its file.
    pub(super) fn refresh(&self, store: &Store, id: VolumeId) -> Result<()> {
        let what = || format!("resize the devices of {id}");
        for (bound, _) in self.bound(store, id)? {
            let device = LoopDevice::open(bound.number).doing(what)?;
            if device.bound().doing(what)?.is_some_and(|now| now.backing == bound.backing) {
                device.refresh_size().doing(what)?;
            }
        }
        Ok(())
    }
}

/// Opens a device that stands for a volume, so that it cannot be taken away or stand for another one.
pub(super) fn hold(store: &Store, id: VolumeId, number: DeviceNumber) -> Result<Held> {
    let what = || format!("hold device {number} of {id}");
    let device = LoopDevice::open(number.minor()).doing(what)?;
    let backing = store.volumes.stat(&file_name(id.uuid)).doing(what)?.map(|stat| stat.inode);
    match device.bound().doing(what)? {
        Some(bound) if Some(bound.backing) == backing => {
            let attached = describe(&bound, device.device().doing(what)?, id.uuid);
            Ok(Held { attached, guard: Box::new(device) })
        }
        _ => Err(Error::new(ErrorKind::Busy, format!("{}: it stands for something else by now", what()))),
    }
}

/// Opens the file of a volume to attach it. Whoever asks the kernel whether it is open holds it for a moment.
fn open_patiently(store: &Store, id: VolumeId, access: Access) -> Result<std::fs::File> {
    for _attempt in 0..5 {
        match store.open_file(&store.volumes, id.uuid, access) {
            Err(error) if error.kind() == ErrorKind::Busy => std::thread::sleep(Duration::from_millis(2)),
            other => return other,
        }
    }
    store.open_file(&store.volumes, id.uuid, access)
}

/// What a loop device is now; `None` where it is bound to nothing.
fn look(number: u32) -> Result<Option<(Bound, Device)>> {
    let looked = LoopDevice::open(number).and_then(|open| Ok((open.bound()?, open.device()?)));
    match looked {
        Ok((bound, device)) => Ok(bound.map(|bound| (bound, device))),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NXIO | Errno::NOENT)) => Ok(None),
        Err(error) => Err(Error::io(format!("look at loop device {number}"), error)),
    }
}

fn describe(bound: &Bound, device: Device, uuid: Uuid) -> Attached {
    let label = bound.label.strip_prefix(&label_prefix(uuid)).unwrap_or_default().to_owned();
    Attached { device, transient: bound.autoclear, label }
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
        if ours && let Some((bound, device)) = look(bound.number)? {
            found.push((uuid, describe(&bound, device, uuid)));
        }
    }
    Ok(found)
}

/// Whether a file lies on the pool's filesystem: of one that has no name any more no more can be said.
fn in_pool(store: &Store, backing: Inode) -> bool {
    rustix::fs::fstat(&store.volumes).is_ok_and(|stat| Inode::of(&stat).device == backing.device)
}
