//! Devices of a modelled kernel, with the life of loop devices: a number is given to the next one as soon as it is free, and
//! a transient device goes with its last user, whoever that is.

use uuid::Uuid;

use super::{FakeKernel, World};
use crate::{
    bytes::Bytes,
    filesystem::Filesystem,
    sys::device::{Device, DeviceNumber},
};

/// Major number of devices.
const MAJOR: u32 = 7;

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
pub(super) struct Held {
    pub(super) device: FakeDevice,
    pub(super) holds: usize,
    /// The mounted filesystem is read-only, where one is mounted.
    pub(super) mounted_read_only: Option<bool>,
    /// The kernel still writes back what was mounted from it.
    pub(super) lingers: bool,
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
    /// The lowest number that nothing has, not even the mount of a device that was lost.
    fn free_number(&self) -> DeviceNumber {
        let numbers = (0..).map(|minor| DeviceNumber::new(MAJOR, minor));
        let mut free =
            numbers.filter(|number| !self.devices.contains_key(number) && self.mounts_of(*number) == 0);
        free.next().unwrap_or(DeviceNumber::new(MAJOR, u32::MAX))
    }
}

impl FakeKernel {
    /// Makes a device.
    #[must_use]
    pub fn add_device(&self, device: FakeDevice) -> (Device, Hold) {
        let mut world = self.world();
        let number = world.free_number();
        let described = describe(number, &device);
        world.devices.insert(number, Held { device, holds: 1, mounted_read_only: None, lingers: false });
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
        let used = world.mounts_of(number) > 0
            || world.devices.get(&number).is_some_and(|held| held.holds > 0 || held.lingers);
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

    /// Takes a device away from under its users, as where a disk is pulled out: its mounts stay, and nothing can be done in
    /// them any more.
    pub fn lose_device(&self, number: DeviceNumber) {
        self.world().devices.remove(&number);
    }

    /// The next filesystem that is unmounted for good keeps its device for as long as it takes to write it back: until
    /// [`Self::settle`].
    pub fn linger_next(&self) {
        self.world().lingers = true;
    }

    /// Everything that was unmounted is written back.
    pub fn settle(&self) {
        let mut world = self.world();
        world.lingers = false;
        let all: Vec<_> = world.devices.keys().copied().collect();
        for number in all {
            if let Some(held) = world.devices.get_mut(&number) {
                held.lingers = false;
            }
            world.sweep(number);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn device(transient: bool) -> FakeDevice {
        FakeDevice {
            owner: Uuid::nil(),
            label: String::new(),
            transient,
            read_only: false,
            size: Bytes::gib(1),
            filesystem: None,
            filesystem_size: Bytes::gib(1),
        }
    }

    #[test]
    fn the_lowest_free_number_is_given_again() {
        let kernel = FakeKernel::new(&["/t"]);
        let ((first, going), (second, _stays)) =
            (kernel.add_device(device(true)), kernel.add_device(device(true)));
        assert_eq!((first.number.minor(), second.number.minor()), (0, 1));
        drop(going);
        assert_eq!(kernel.add_device(device(false)).0.number, first.number);
    }
}
