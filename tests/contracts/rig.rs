//! Pools and kernels, real and modelled, in one shape.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use lagan::{
    bytes::Bytes,
    filesystem::Filesystem,
    id::{PoolId, VolumeId},
    pool::{
        Attach, Detached, Pool, Progress, Role,
        fake::{FakeDisk, FakePool},
        file::{self, FilePool, Settings},
        record::{Content, Volume},
        thin::{self, ThinPool},
    },
    sys::{cmd::Commands, dm::fake::FakeMapper, fake::FakeKernel, kernel::Kernel, mount::Linux},
};

use crate::{
    disk::{Disk, text, try_run},
    group, records,
};

/// Loop devices are one for the whole machine: one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());
/// The one thin pool of the virtual machine.
static GROUP: OnceLock<PoolId> = OnceLock::new();
/// The one pool on a disk of its own there.
static DISK: OnceLock<PoolId> = OnceLock::new();

/// How the blocks of a volume are reached beside the pool.
enum Blocks {
    Fake(FakeDisk),
    Files(PathBuf),
    Devices,
}

pub(crate) struct Rig {
    pub(crate) name: &'static str,
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) kernel: Arc<dyn Kernel>,
    /// A directory below which targets may lie.
    pub(crate) targets: String,
    blocks: Blocks,
    /// The kernel where it is only modelled.
    modelled: Option<FakeKernel>,
    reopen: Box<dyn Fn() -> Arc<dyn Pool> + Send + Sync>,
    root: PathBuf,
    disk: Option<Disk>,
    _machine: MutexGuard<'static, ()>,
}

/// The one whose devices are files.
pub(crate) const MODEL: &str = "thin on a model";

/// Every kind that this machine can have, one after the other: device-mapper is only in the virtual machine, which has a
/// disk for it.
pub(crate) fn kinds() -> Vec<&'static str> {
    if group::disk().is_some() {
        return vec!["thin on lvm", "thin on a disk"];
    }
    vec!["fake", MODEL, "file on xfs", "file on ext4", "file on btrfs"]
}

impl Rig {
    pub(crate) fn new(name: &'static str) -> Self {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = tempfile::Builder::new().prefix("lagan-test-").tempdir_in("/var/tmp").unwrap().keep();
        let targets = text(&root.join("targets"));
        fs::create_dir(&targets).unwrap();
        if name == "fake" {
            let (disk, kernel) = (FakeDisk::new(Bytes::gib(100)), FakeKernel::new(&[&targets]));
            let open = {
                let (disk, kernel) = (disk.clone(), kernel.clone());
                move || Arc::new(FakePool::new(disk.clone(), kernel.clone())) as Arc<dyn Pool>
            };
            let (pool, blocks, modelled) = (open(), Blocks::Fake(disk), Some(kernel.clone()));
            let (reopen, kernel, disk) = (Box::new(open), Arc::new(kernel), None);
            return Self {
                name,
                pool,
                kernel,
                targets,
                blocks,
                modelled,
                reopen,
                root,
                disk,
                _machine: machine,
            };
        }
        let commands = Arc::new(Commands::find());
        if name.starts_with("thin") {
            return Self::thin(name, root, targets, commands, machine);
        }
        let (disk, path, files, image) = match name.rsplit(' ').next().unwrap() {
            "xfs" => (None, root.join("pool"), root.join("pool/fs/volumes"), Some(Bytes::gib(4))),
            other => {
                let disk = Disk::new(&root, other, 4096);
                let path = disk.point.join("pool");
                (Some(disk), path.clone(), path.join("volumes"), None)
            }
        };
        file::init(&path, "machine", image, &commands).unwrap();
        let settings = Settings {
            path,
            machine: "machine".into(),
            reserve_percent: 5,
            overcommit_percent: 1000,
            freeze_limit: Duration::from_secs(5),
            templates: 4,
        };
        let open = {
            let commands = Arc::clone(&commands);
            move || {
                let opened = FilePool::open(settings.clone(), Role::Both, None, Arc::clone(&commands), None);
                Arc::new(opened.unwrap()) as Arc<dyn Pool>
            }
        };
        let kernel = Arc::new(Linux::new(&[PathBuf::from(&targets)], commands));
        let (pool, blocks, reopen) = (open(), Blocks::Files(files), Box::new(open));
        let modelled = None;
        Self { name, pool, kernel, targets, blocks, modelled, reopen, root, disk, _machine: machine }
    }

    fn thin(
        name: &'static str,
        root: PathBuf,
        targets: String,
        commands: Arc<Commands>,
        machine: MutexGuard<'static, ()>,
    ) -> Self {
        let init = |place: &thin::Place, destroy| thin::init(place, "machine", destroy, &commands).unwrap();
        let place = match name {
            "thin on lvm" => {
                let (vg, thin_pool) = (group::VG.into(), group::POOL.into());
                let place = thin::Place::Lvm(thin::VolumeGroup { vg, thin_pool });
                GROUP.get_or_init(|| {
                    group::ensure(2048);
                    init(&place, None)
                });
                place
            }
            "thin on a disk" => {
                let place = thin::Place::Disk(std::env::var("LAGAN_SPARE_DISK").unwrap().into());
                DISK.get_or_init(|| {
                    // An earlier test may have left a pool there.
                    drop(thin::stop(&place, &commands));
                    init(&place, Some("lagan-spare"))
                });
                place
            }
            _ => {
                let mapper = FakeMapper::new(&root, Bytes::gib(4)).unwrap();
                thin::Place::Model(thin::Model::new(mapper, "machine").unwrap())
            }
        };
        let settings = thin::Settings {
            freeze_limit: Duration::from_secs(20),
            templates: 4,
            ..crate::modelled::thin_settings(place)
        };
        let open = {
            let commands = Arc::clone(&commands);
            move || {
                let opened = ThinPool::open(settings.clone(), Role::Both, None, Arc::clone(&commands), None);
                Arc::new(opened.unwrap()) as Arc<dyn Pool>
            }
        };
        let kernel = Arc::new(Linux::new(&[PathBuf::from(&targets)], commands));
        let (pool, blocks, reopen) = (open(), Blocks::Devices, Box::new(open));
        let (modelled, disk) = (None, None);
        Self { name, pool, kernel, targets, blocks, modelled, reopen, root, disk, _machine: machine }
    }

    /// Deletes all that is in the pool: it serves the next test too.
    fn empty(&self) {
        let pool = Arc::clone(&self.pool);
        let emptied = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let listing = pool.list().await.unwrap();
                for group in listing.groups {
                    pool.delete_group(group.id).await.unwrap();
                }
                for snapshot in listing.snapshots {
                    pool.delete_snapshot(snapshot.id).await.unwrap();
                }
                for volume in listing.volumes {
                    assert_eq!(pool.detach(volume.id, None).await.unwrap(), Detached::Done);
                    pool.delete_volume(volume.id).await.unwrap();
                }
                assert!(pool.devices().await.unwrap().is_empty());
            });
        });
        assert!(emptied.join().is_ok() || std::thread::panicking());
    }

    /// A volume's blocks, through a device that goes with the file.
    fn blocks_of(&self, id: VolumeId) -> fs::File {
        let pool = Arc::clone(&self.pool);
        let how = Attach { read_only: false, transient: true, label: "test".into() };
        let attached = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let held = runtime.block_on(pool.attach(id, &how)).unwrap();
            fs::File::options().read(true).write(true).open(&held.attached.device.path).unwrap()
        });
        attached.join().unwrap()
    }

    /// The same pool under a new process: nothing that was remembered is left.
    pub(crate) fn reopen(&mut self) {
        // The locks of the old one go with it.
        self.pool = Arc::new(FakePool::new(FakeDisk::new(Bytes::ZERO), FakeKernel::new(&[])));
        self.pool = (self.reopen)();
    }

    /// Has a file open in what is mounted at a path, while the work goes on.
    pub(crate) fn while_used<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let path = format!("{}/{name}", self.targets);
        match &self.modelled {
            None => {
                let _open = fs::File::open(path).unwrap();
                work()
            }
            Some(kernel) => {
                kernel.set_used(&path, true);
                let result = work();
                kernel.set_used(&path, false);
                result
            }
        }
    }

    /// Writes to a volume that nobody uses.
    pub(crate) fn write(&self, id: VolumeId, content: &[u8]) {
        match &self.blocks {
            Blocks::Fake(disk) => disk.write(id, content),
            Blocks::Files(files) => {
                let path = files.join(format!("{}.raw", id.uuid.simple()));
                let file = fs::File::options().write(true).open(path).unwrap();
                // Behind anything that a filesystem keeps at its beginning.
                file.write_all_at(content, 8 << 20).unwrap();
                file.sync_all().unwrap();
            }
            Blocks::Devices => {
                let device = self.blocks_of(id);
                device.write_all_at(content, 8 << 20).unwrap();
                device.sync_all().unwrap();
            }
        }
    }

    /// Reads as much of a volume that nobody uses.
    pub(crate) fn read(&self, id: VolumeId, length: usize) -> Vec<u8> {
        match &self.blocks {
            Blocks::Fake(disk) => disk.read(id).unwrap(),
            Blocks::Files(files) => {
                let path = files.join(format!("{}.raw", id.uuid.simple()));
                let mut content = vec![0; length];
                fs::File::open(path).unwrap().read_exact_at(&mut content, 8 << 20).unwrap();
                content
            }
            Blocks::Devices => {
                let mut content = vec![0; length];
                self.blocks_of(id).read_exact_at(&mut content, 8 << 20).unwrap();
                content
            }
        }
    }

    /// A volume that is to be made.
    pub(crate) fn volume(&self, name: &str, content: Content) -> Volume {
        records::volume(self.pool.id(), name, Bytes::mib(320), content, None)
    }

    /// Waits until devices that go with their last user are gone: the kernel removes them in its own time.
    pub(crate) async fn until_detached(&self, id: VolumeId) {
        let begun = std::time::Instant::now();
        while !self.pool.attached(id).await.unwrap().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "volume {id} is still attached");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Makes a volume.
    pub(crate) async fn create(&self, name: &str, content: Content) -> Volume {
        let volume = self.volume(name, content);
        self.pool.create_volume(&volume, &progress()).await.unwrap();
        volume
    }
}

pub(crate) fn progress() -> Arc<Progress> {
    Arc::default()
}

pub(crate) fn nowhere() -> VolumeId {
    VolumeId::random(PoolId::random())
}

pub(crate) const EXT4: Content = Content::Filesystem(Filesystem::Ext4);

impl Drop for Rig {
    fn drop(&mut self) {
        if let Blocks::Devices = self.blocks {
            self.empty();
        }
        self.pool = Arc::new(FakePool::new(FakeDisk::new(Bytes::ZERO), FakeKernel::new(&[])));
        let image = text(&self.root.join("pool/fs"));
        if self.name == "file on xfs" {
            drop(try_run("umount", &[&image]));
        }
        match &self.disk {
            Some(disk) if std::thread::panicking() => drop(try_run("umount", &[&text(&disk.point)])),
            Some(disk) => disk.unmount(),
            None => {}
        }
        let (removed, said) = try_run("rm", &["-rf", "--one-file-system", &text(&self.root)]);
        assert!(removed || std::thread::panicking(), "{}: {said}", self.name);
    }
}
