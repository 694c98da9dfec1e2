//! A kernel that is only modelled: devices, mounts and paths in memory, with the semantics that the node relies on and
//! a hook to make any call fail. For tests and for running without root; `tests/contracts` holds it to the
//! real one.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;
use uuid::Uuid;

use super::{
    device::{Device, DeviceNumber},
    kernel::{
        Amounts, Attributes, FilesystemMount, Kernel, Mount, MountError, MountedAt, STAGING, Seen, Usage,
    },
    target::{BadTarget, Target, locate},
};
use crate::{bytes::Bytes, error::Result, filesystem::Filesystem};

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeDevice {
    /// The object that it stands for.
    pub owner: Uuid,
    /// What was said when it was made.
    pub label: String,
    /// It goes with its last user.
    pub transient: bool,
    /// It refuses writes.
    pub read_only: bool,
    /// Its length.
    pub size: Bytes,
    /// What is on it.
    pub filesystem: Option<Filesystem>,
    /// What the filesystem spans.
    pub filesystem_size: Bytes,
}

#[derive(Debug)]
struct Held {
    device: FakeDevice,
    holds: usize,
    /// The mounted filesystem is read-only, where one is mounted.
    mounted_read_only: Option<bool>,
}

#[derive(Debug)]
struct Place {
    directory: bool,
    mounts: Vec<Mount>,
}

#[derive(Debug, Default)]
struct World {
    places: BTreeMap<PathBuf, Place>,
    devices: BTreeMap<DeviceNumber, Held>,
    next_minor: u32,
    failures: VecDeque<(&'static str, io::ErrorKind)>,
    mounted: Vec<FilesystemMount>,
}

/// The model. Clones share it.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    roots: Arc<Vec<PathBuf>>,
    world: Arc<Mutex<World>>,
    /// Growing a mounted ext4 is allowed.
    may_grow_ext4: bool,
}

/// Keeps a device from going.
#[derive(Debug)]
pub struct Hold {
    kernel: FakeKernel,
    number: DeviceNumber,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut world = self.kernel.world();
        if let Some(held) = world.devices.get_mut(&self.number) {
            held.holds -= 1;
        }
        world.sweep(self.number);
    }
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
            if unused && held.holds == 0 && held.device.transient {
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

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a directory, as an orchestrator would before a call.
    pub fn make_directory(&self, path: &str) {
        let place = Place { directory: true, mounts: Vec::new() };
        self.world().places.entry(path.into()).or_insert(place);
    }

    /// Makes the next call of this name fail; several are used up in order.
    pub fn fail_next(&self, call: &'static str, kind: io::ErrorKind) {
        self.world().failures.push_back((call, kind));
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
        world.places.values_mut().for_each(|place| place.mounts.clear());
    }

    /// Makes a device.
    #[must_use]
    pub fn add_device(&self, device: FakeDevice) -> (Device, Hold) {
        let mut world = self.world();
        let number = DeviceNumber::new(7, world.next_minor);
        world.next_minor += 1;
        let described = describe(number, &device);
        world.devices.insert(number, Held { device, holds: 1, mounted_read_only: None });
        (described, Hold { kernel: self.clone(), number })
    }

    /// Keeps a device of an object from going; `None` where it has none of the number.
    #[must_use]
    pub fn hold_device(&self, owner: Uuid, number: DeviceNumber) -> Option<Hold> {
        let mut world = self.world();
        let held = world.devices.get_mut(&number).filter(|held| held.device.owner == owner)?;
        held.holds += 1;
        Some(Hold { kernel: self.clone(), number })
    }

    /// The devices that stand for an object, or all.
    #[must_use]
    pub fn devices(&self, owner: Option<Uuid>) -> Vec<(Device, FakeDevice)> {
        let world = self.world();
        let wanted =
            world.devices.iter().filter(|(_, held)| owner.is_none_or(|owner| held.device.owner == owner));
        wanted.map(|(number, held)| (describe(*number, &held.device), held.device.clone())).collect()
    }

    /// Takes a device away; `false` where it is in use.
    #[must_use]
    pub fn remove_device(&self, number: DeviceNumber) -> bool {
        let mut world = self.world();
        let used =
            world.mounts_of(number) > 0 || world.devices.get(&number).is_some_and(|held| held.holds > 0);
        if !used {
            world.devices.remove(&number);
        }
        !used
    }

    /// Makes the devices of an object longer.
    pub fn resize_devices(&self, owner: Uuid, size: Bytes) {
        for held in self.world().devices.values_mut().filter(|held| held.device.owner == owner) {
            held.device.size = size;
        }
    }
}

fn describe(number: DeviceNumber, device: &FakeDevice) -> Device {
    Device {
        path: format!("/dev/fake{number}").into(),
        number,
        read_only: device.read_only,
        size: device.size,
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
        let mut world = self.world();
        world.take_failure("look")?;
        Ok(match world.places.get(&at.path()) {
            None => Seen::Missing,
            Some(Place { mounts, directory }) => match (mounts.last(), directory) {
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
        let mut world = self.world();
        world.take_failure("remove")?;
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
        let mut world = self.world();
        world.take_failure("mount").map_err(|error| refused("mount", error))?;
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
        let mount = Mount { device: device.number, block: false, attributes };
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
        let mut world = self.world();
        world.take_failure("bind")?;
        let source = world.places.get(&from.path()).and_then(|place| place.mounts.last()).copied();
        let source = source.filter(|mount| mount.device == device && !mount.block).ok_or(Errno::INVAL)?;
        let filesystem = world.devices.get(&device).and_then(|held| held.mounted_read_only);
        let read_only = if filesystem == Some(true) { Attributes::READ_ONLY } else { Attributes::NONE };
        world.put(&to.path(), Mount { attributes: attributes.and(read_only), ..source })
    }

    fn bind_device(&self, device: &Device, to: &Target) -> io::Result<()> {
        let mut world = self.world();
        world.take_failure("bind_device")?;
        if !world.devices.contains_key(&device.number) {
            return Err(Errno::NXIO.into());
        }
        world.put(&to.path(), Mount { device: device.number, block: true, attributes: Attributes::NONE })
    }

    fn unmount(&self, at: &Target) -> io::Result<()> {
        let mut world = self.world();
        world.take_failure("unmount")?;
        if let Some(mount) = world.places.get_mut(&at.path()).and_then(|place| place.mounts.pop()) {
            world.sweep(mount.device);
        }
        Ok(())
    }

    fn mounts_of(&self, devices: &[DeviceNumber]) -> io::Result<Vec<MountedAt>> {
        let mut world = self.world();
        world.take_failure("mounts_of")?;
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
        let mut world = self.world();
        world.take_failure("grow")?;
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
        let mut world = self.world();
        world.take_failure("ensure")?;
        let path = at.path();
        if path.parent().is_none_or(|parent| !world.places.contains_key(parent)) {
            return Err(Errno::NOENT.into());
        }
        world.places.entry(path).or_insert(Place { directory, mounts: Vec::new() });
        Ok(())
    }
}
