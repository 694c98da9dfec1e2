//! A kernel that is only modelled: devices, mounts and paths in memory, with the semantics that the node relies on and
//! a hook to make any call fail. For tests and for running without root; `tests/contracts` holds it to the
//! real one.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    device::{Device, DeviceNumber},
    fate::{Fate, Well},
    kernel::{
        Amounts, Attributes, FilesystemMount, Kernel, Mount, MountError, MountedAt, STAGING, Seen, Usage,
    },
    target::{BadTarget, Target, locate},
};
use crate::{bytes::Bytes, error::Result, filesystem::Filesystem};
use rustix::io::Errno;

mod devices;

pub use devices::{FakeDevice, Hold};

use devices::Held;

#[derive(Debug)]
struct Place {
    directory: bool,
    mounts: Vec<Mount>,
    /// A program has a file open in the uppermost mount.
    used: bool,
}

#[derive(Debug, Default)]
struct World {
    places: BTreeMap<PathBuf, Place>,
    devices: BTreeMap<DeviceNumber, Held>,
    failures: VecDeque<(&'static str, io::ErrorKind)>,
    mounted: Vec<FilesystemMount>,
    /// The next filesystem that is unmounted is still being written back.
    lingers: bool,
}

/// The model. Clones share it.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    roots: Arc<Vec<PathBuf>>,
    world: Arc<Mutex<World>>,
    /// Growing a mounted ext4 is allowed.
    may_grow_ext4: bool,
    fate: Arc<dyn Fate>,
}

impl World {
    fn mounts_of(&self, number: DeviceNumber) -> usize {
        self.places.values().flat_map(|place| &place.mounts).filter(|mount| mount.device == number).count()
    }

    /// Lets a transient device go that nobody uses.
    fn sweep(&mut self, number: DeviceNumber) {
        let unused = self.mounts_of(number) == 0;
        if let Some(held) = self.devices.get_mut(&number) {
            if unused {
                held.mounted_read_only = None;
            }
            if unused && held.holds == 0 && !held.lingers && held.device.transient {
                self.devices.remove(&number);
            }
        }
    }

    fn take_failure(&mut self, call: &str) -> io::Result<()> {
        if self.failures.front().is_some_and(|(name, _)| *name == call)
            && let Some((_, kind)) = self.failures.pop_front()
        {
            return Err(kind.into());
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, mount: Mount) -> io::Result<()> {
        let place = self.places.get_mut(path).ok_or(Errno::NOENT)?;
        if place.directory == mount.block {
            return Err(Errno::NOTDIR.into());
        }
        place.mounts.push(mount);
        Ok(())
    }
}

impl FakeKernel {
    /// A kernel with these target roots and nothing else.
    #[must_use]
    pub fn new(roots: &[&str]) -> Self {
        let kernel = Self {
            roots: Arc::new(roots.iter().map(PathBuf::from).collect()),
            world: Arc::default(),
            may_grow_ext4: true,
            fate: Arc::new(Well),
        };
        for root in roots {
            kernel.make_directory(root);
        }
        kernel
    }

    /// The same for a process that lacks the right to grow a mounted ext4.
    #[must_use]
    pub fn without_ext4_growth(mut self) -> Self {
        self.may_grow_ext4 = false;
        self
    }

    /// The same for a process that has a fate.
    #[must_use]
    pub fn under(&self, fate: Arc<dyn Fate>) -> Self {
        Self { fate, ..self.clone() }
    }

    /// A call that may fail.
    fn enter(&self, call: &'static str) -> io::Result<MutexGuard<'_, World>> {
        self.fate.call(call)?;
        let mut world = self.world();
        world.take_failure(call)?;
        Ok(world)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every mounted filesystem shut down, as XFS does after an error of its disk.
    pub fn shut_down(&self) {
        let mut world = self.world();
        let mounts = world.places.values_mut().flat_map(|place| &mut place.mounts);
        mounts.filter(|mount| !mount.block).for_each(|mount| mount.dead = true);
    }

    /// Makes a directory, as an orchestrator would before a call.
    pub fn make_directory(&self, path: &str) {
        let place = Place { directory: true, mounts: Vec::new(), used: false };
        self.world().places.entry(path.into()).or_insert(place);
    }

    /// Makes the next call of this name fail; several are used up in order.
    pub fn fail_next(&self, call: &'static str, kind: io::ErrorKind) {
        self.world().failures.push_back((call, kind));
    }

    /// A program has a file open in what is mounted at a path, or has none any more.
    pub fn set_used(&self, path: &str, used: bool) {
        if let Some(place) = self.world().places.get_mut(Path::new(path)) {
            place.used = used && !place.mounts.is_empty();
        }
    }

    /// Everything that was mounted from a device so far, in order.
    #[must_use]
    pub fn mounted(&self) -> Vec<FilesystemMount> {
        self.world().mounted.clone()
    }

    /// What a reboot leaves: paths, but no device and no mount.
    pub fn reboot(&self) {
        let mut world = self.world();
        world.devices.clear();
        for place in world.places.values_mut() {
            (place.used, place.mounts) = (false, Vec::new());
        }
    }
}

fn refused(step: &str, error: io::Error) -> MountError {
    MountError { error, log: String::new(), step: step.to_owned() }
}

impl Kernel for FakeKernel {
    fn locate(&self, path: &str) -> std::result::Result<Target, BadTarget> {
        locate(self.roots.iter().map(PathBuf::as_path), path)
    }

    fn look(&self, at: &Target) -> io::Result<Seen> {
        let world = self.enter("look")?;
        Ok(match world.places.get(&at.path()) {
            None => Seen::Missing,
            Some(Place { mounts, directory, .. }) => match (mounts.last(), directory) {
                (Some(mount), _) => Seen::Mount(*mount),
                (None, true) => Seen::Directory,
                (None, false) => Seen::File,
            },
        })
    }

    fn ensure_directory(&self, at: &Target) -> io::Result<()> {
        self.ensure(at, true)
    }

    fn ensure_file(&self, at: &Target) -> io::Result<()> {
        self.ensure(at, false)
    }

    fn remove(&self, at: &Target) -> io::Result<()> {
        let mut world = self.enter("remove")?;
        let path = at.path();
        match world.places.get(&path) {
            None => Ok(()),
            Some(place) if !place.mounts.is_empty() => Err(Errno::BUSY.into()),
            Some(_) if world.places.keys().any(|other| other != &path && other.starts_with(&path)) => {
                Err(Errno::NOTEMPTY.into())
            }
            Some(_) => {
                world.places.remove(&path);
                Ok(())
            }
        }
    }

    fn mount(
        &self,
        device: &Device,
        wanted: &FilesystemMount,
        at: &Target,
    ) -> std::result::Result<(), MountError> {
        let mut world = self.enter("mount").map_err(|error| refused("mount", error))?;
        let held =
            world.devices.get_mut(&device.number).ok_or_else(|| refused("mount", Errno::NXIO.into()))?;
        if held.device.filesystem != Some(wanted.filesystem) {
            return Err(refused("mount", Errno::INVAL.into()));
        }
        if held.mounted_read_only.is_some_and(|read_only| read_only != wanted.read_only) {
            return Err(refused("mount", Errno::BUSY.into()));
        }
        held.mounted_read_only = Some(wanted.read_only);
        let read_only = if wanted.read_only { Attributes::READ_ONLY } else { Attributes::NONE };
        let attributes = wanted.attributes.and(read_only);
        let mount = Mount { device: device.number, block: false, attributes, dead: false };
        world.put(&at.path(), mount).map_err(|error| refused("attach the mount", error))?;
        world.mounted.push(wanted.clone());
        Ok(())
    }

    fn bind(
        &self,
        from: &Target,
        device: DeviceNumber,
        to: &Target,
        attributes: Attributes,
    ) -> io::Result<()> {
        let mut world = self.enter("bind")?;
        let source = world.places.get(&from.path()).and_then(|place| place.mounts.last()).copied();
        let source = source.filter(|mount| mount.device == device && !mount.block).ok_or(Errno::INVAL)?;
        let filesystem = world.devices.get(&device).and_then(|held| held.mounted_read_only);
        let read_only = if filesystem == Some(true) { Attributes::READ_ONLY } else { Attributes::NONE };
        world.put(&to.path(), Mount { attributes: attributes.and(read_only), ..source })
    }

    fn bind_device(&self, device: &Device, to: &Target) -> io::Result<()> {
        let mut world = self.enter("bind_device")?;
        if !world.devices.contains_key(&device.number) {
            return Err(Errno::NXIO.into());
        }
        let mount = Mount { device: device.number, block: true, attributes: Attributes::NONE, dead: false };
        world.put(&to.path(), mount)
    }

    fn unmount(&self, at: &Target) -> io::Result<()> {
        let mut world = self.enter("unmount")?;
        let Some(place) = world.places.get_mut(&at.path()) else { return Ok(()) };
        if place.used {
            return Err(Errno::BUSY.into());
        }
        if let Some(mount) = place.mounts.pop() {
            let last = !mount.block && world.mounts_of(mount.device) == 0;
            let lingers = last && std::mem::take(&mut world.lingers);
            if let Some(held) = world.devices.get_mut(&mount.device) {
                held.lingers |= lingers;
            }
            world.sweep(mount.device);
        }
        Ok(())
    }

    fn mounts_of(&self, devices: &[DeviceNumber]) -> io::Result<Vec<MountedAt>> {
        let world = self.enter("mounts_of")?;
        let mut found = Vec::new();
        for (path, place) in &world.places {
            let Ok(at) = self.locate(&path.to_string_lossy()) else { continue };
            for mount in place.mounts.iter().filter(|mount| devices.contains(&mount.device)) {
                let staging = mount.attributes.contains(STAGING);
                found.push(MountedAt { at: at.clone(), staging, block: mount.block });
            }
        }
        // As the kernel's table does: the older first.
        found.sort_by_key(|mount| !mount.staging);
        Ok(found)
    }

    fn usage(&self, at: &Target) -> io::Result<Usage> {
        let Seen::Mount(mount) = self.look(at)? else { return Err(Errno::INVAL.into()) };
        let world = self.world();
        let size = world.devices.get(&mount.device).ok_or(Errno::NXIO)?.device.filesystem_size.get();
        let all = Amounts { total: size, used: 0, available: size };
        Ok(Usage { bytes: all, inodes: Amounts { total: 1000, used: 1, available: 999 } })
    }

    fn grow(&self, filesystem: Filesystem, device: &Device, at: &Target) -> io::Result<Bytes> {
        let mut world = self.enter("grow")?;
        if !world
            .places
            .get(&at.path())
            .is_some_and(|place| place.mounts.iter().any(|m| m.device == device.number))
        {
            return Err(Errno::INVAL.into());
        }
        let held = world.devices.get_mut(&device.number).ok_or(Errno::NXIO)?;
        if held.device.filesystem_size < held.device.size {
            if filesystem == Filesystem::Ext4 && !self.may_grow_ext4 {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            held.device.filesystem_size = held.device.size;
        }
        Ok(held.device.filesystem_size)
    }

    fn repair_ext4(&self, _device: &Device) -> Result<()> {
        Ok(())
    }

    fn recorded_errors(&self, _filesystem: Filesystem, _device: DeviceNumber) -> u64 {
        0
    }

    fn holders(&self, _devices: &[DeviceNumber]) -> Vec<String> {
        Vec::new()
    }
}

impl FakeKernel {
    fn ensure(&self, at: &Target, directory: bool) -> io::Result<()> {
        let mut world = self.enter("ensure")?;
        let path = at.path();
        if path.parent().is_none_or(|parent| !world.places.contains_key(parent)) {
            return Err(Errno::NOENT.into());
        }
        world.places.entry(path).or_insert(Place { directory, mounts: Vec::new(), used: false });
        Ok(())
    }
}
