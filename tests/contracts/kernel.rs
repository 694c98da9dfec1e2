//! What every kernel does when it is asked for mounts.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use lagan::{
    filesystem::Filesystem,
    pool::{Attach, Detached, Held},
    sys::{
        kernel::{Attributes, FilesystemMount, Kernel, STAGING, Seen},
        target::Target,
    },
};

use crate::rig::{EXT4, MODEL, Rig, kinds as pools};

/// The devices of a model are files.
fn kinds() -> impl Iterator<Item = &'static str> {
    pools().into_iter().filter(|kind| *kind != MODEL)
}

impl Rig {
    fn at(&self, name: &str) -> Target {
        self.kernel.locate(&format!("{}/{name}", self.targets)).unwrap()
    }

    fn sees(&self, name: &str) -> Seen {
        self.kernel.look(&self.at(name)).unwrap()
    }

    /// A volume's device, attached as for a mount.
    async fn device(&self, label: &str) -> Held {
        let volume = self.create("a", EXT4).await;
        let how = Attach { read_only: false, transient: true, label: label.into() };
        self.pool.attach(volume.id, &how).await.unwrap()
    }
}

fn ext4(read_only: bool) -> FilesystemMount {
    FilesystemMount {
        filesystem: Filesystem::Ext4,
        read_only,
        options: Vec::new(),
        attributes: STAGING.and(Attributes::NOSUID),
    }
}

#[tokio::test]
async fn paths() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let kernel: &dyn Kernel = &*rig.kernel;
        assert!(kernel.locate("/elsewhere/x").is_err() && kernel.locate("x").is_err(), "{kind}");
        assert_eq!(rig.sees("d"), Seen::Missing, "{kind}");
        for _ in 0..2 {
            kernel.ensure_directory(&rig.at("d")).unwrap();
            kernel.ensure_file(&rig.at("d/f")).unwrap();
        }
        assert_eq!((rig.sees("d"), rig.sees("d/f")), (Seen::Directory, Seen::File), "{kind}");
        assert_eq!(
            kernel.ensure_directory(&rig.at("no/d")).unwrap_err().kind(),
            ErrorKind::NotFound,
            "{kind}"
        );
        assert_eq!(kernel.remove(&rig.at("d")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty, "{kind}");
        for name in ["d/f", "d/f", "d", "d", "no/d"] {
            kernel.remove(&rig.at(name)).unwrap();
        }
        assert_eq!(rig.sees("d"), Seen::Missing, "{kind}");
    }
}

#[tokio::test]
async fn mounts_and_binds() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let kernel: &dyn Kernel = &*rig.kernel;
        let held = rig.device("fs:x").await;
        let device = held.attached.device.clone();
        for name in ["stage", "shown"] {
            kernel.ensure_directory(&rig.at(name)).unwrap();
        }
        let wrong = FilesystemMount { filesystem: Filesystem::Btrfs, ..ext4(false) };
        assert!(kernel.mount(&device, &wrong, &rig.at("stage")).is_err(), "{kind}: it holds no btrfs");
        assert!(kernel.mount(&device, &ext4(false), &rig.at("missing")).is_err(), "{kind}");
        kernel.mount(&device, &ext4(false), &rig.at("stage")).unwrap();
        drop(held);
        let Seen::Mount(staged) = rig.sees("stage") else { panic!("{kind}: not mounted") };
        assert_eq!((staged.device, staged.block), (device.number, false), "{kind}");
        assert_eq!(staged.attributes, STAGING.and(Attributes::NOSUID), "{kind}");
        let attributes = Attributes::READ_ONLY.and(Attributes::NODEV).and(Attributes::NOATIME);
        kernel.bind(&rig.at("stage"), device.number, &rig.at("shown"), attributes).unwrap();
        let Seen::Mount(shown) = rig.sees("shown") else { panic!("{kind}: not bound") };
        assert_eq!((shown.device, shown.attributes), (device.number, attributes), "{kind}");
        let mut found = kernel.mounts_of(&[device.number]).unwrap();
        found.sort_by_key(|mount| mount.staging);
        let found: Vec<_> = found.into_iter().map(|mount| (mount.at, mount.staging, mount.block)).collect();
        assert_eq!(found, [(rig.at("shown"), false, false), (rig.at("stage"), true, false)], "{kind}");
        assert!(kernel.remove(&rig.at("shown")).is_err(), "{kind}: a mount point stays");
        let usage = kernel.usage(&rig.at("shown")).unwrap();
        assert!(usage.bytes.total > 0 && usage.inodes.total > 0, "{kind}");
        assert!(kernel.grow(Filesystem::Ext4, &device, &rig.at("stage")).unwrap() <= device.size, "{kind}");
        for name in ["shown", "stage"] {
            kernel.unmount(&rig.at(name)).unwrap();
            kernel.unmount(&rig.at(name)).unwrap();
        }
        assert_eq!((rig.sees("stage"), rig.sees("shown")), (Seen::Directory, Seen::Directory), "{kind}");
        // A moment after it: a worker of the kernel takes it away.
        let begun = Instant::now();
        while !rig.pool.devices().await.unwrap().is_empty() {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{kind}: the device stays after its last mount"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_read_only_filesystem_shows_so_everywhere() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let kernel: &dyn Kernel = &*rig.kernel;
        let held = rig.device("fs:x").await;
        let device = held.attached.device.clone();
        for name in ["stage", "shown", "second"] {
            kernel.ensure_directory(&rig.at(name)).unwrap();
        }
        kernel.mount(&device, &ext4(true), &rig.at("stage")).unwrap();
        kernel.bind(&rig.at("stage"), device.number, &rig.at("shown"), Attributes::NONE).unwrap();
        let Seen::Mount(shown) = rig.sees("shown") else { panic!("{kind}: not bound") };
        assert!(shown.attributes.contains(Attributes::READ_ONLY), "{kind}");
        let both = kernel.mount(&device, &ext4(false), &rig.at("second"));
        assert!(both.is_err(), "{kind}: read-only and writable at once");
        kernel.mount(&device, &ext4(true), &rig.at("second")).unwrap();
        for name in ["second", "shown", "stage"] {
            kernel.unmount(&rig.at(name)).unwrap();
        }
        drop(held);
    }
}

#[tokio::test]
async fn what_a_program_uses_stays_mounted_and_keeps_its_device() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let kernel: &dyn Kernel = &*rig.kernel;
        let volume = rig.create("a", EXT4).await;
        let how = Attach { read_only: false, transient: true, label: "fs:x".into() };
        let held = rig.pool.attach(volume.id, &how).await.unwrap();
        let device = held.attached.device.clone();
        for name in ["stage", "shown"] {
            kernel.ensure_directory(&rig.at(name)).unwrap();
        }
        kernel.mount(&device, &ext4(false), &rig.at("stage")).unwrap();
        kernel.bind(&rig.at("stage"), device.number, &rig.at("shown"), Attributes::NONE).unwrap();
        drop(held);
        let refused = rig.while_used("shown", || {
            // Another view of the same filesystem may go.
            kernel.unmount(&rig.at("stage")).unwrap();
            kernel.unmount(&rig.at("shown")).unwrap_err()
        });
        assert_eq!(refused.kind(), ErrorKind::ResourceBusy, "{kind}");
        assert!(matches!(rig.sees("shown"), Seen::Mount(_)), "{kind}: it is as it was");
        assert_eq!(rig.pool.detach(volume.id, None).await.unwrap(), Detached::StillUsed, "{kind}");
        // Whoever has the device open keeps it, mounted or not.
        let held = rig.pool.hold(volume.id, device.number).await.unwrap();
        kernel.unmount(&rig.at("shown")).unwrap();
        assert_eq!(
            rig.pool.attached(volume.id).await.unwrap(),
            std::slice::from_ref(&held.attached),
            "{kind}"
        );
        assert_eq!(rig.pool.detach(volume.id, None).await.unwrap(), Detached::StillUsed, "{kind}");
        drop(held);
        rig.until_detached(volume.id).await;
    }
}

#[tokio::test]
async fn device_nodes_are_bound_to_files() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let kernel: &dyn Kernel = &*rig.kernel;
        let held = rig.device("block").await;
        let device = held.attached.device.clone();
        kernel.ensure_directory(&rig.at("d")).unwrap();
        assert!(kernel.bind_device(&device, &rig.at("d")).is_err(), "{kind}: a device is no directory");
        kernel.ensure_file(&rig.at("f")).unwrap();
        kernel.bind_device(&device, &rig.at("f")).unwrap();
        let Seen::Mount(shown) = rig.sees("f") else { panic!("{kind}: not bound") };
        assert_eq!((shown.device, shown.block), (device.number, true), "{kind}");
        let found = kernel.mounts_of(&[device.number]).unwrap();
        assert_eq!(found.len(), 1, "{kind}");
        assert!(found[0].block && !found[0].staging, "{kind}");
        kernel.unmount(&rig.at("f")).unwrap();
        assert_eq!(rig.sees("f"), Seen::File, "{kind}");
        drop(held);
        assert!(kernel.bind_device(&device, &rig.at("f")).is_err() || kind != "fake", "{kind}");
        drop(kernel.unmount(&rig.at("f")));
    }
}
