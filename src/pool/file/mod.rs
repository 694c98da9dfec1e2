//! The file pool: a volume is a sparse file on a loop device. A snapshot shares its blocks on xfs and btrfs, and is a
//! sparse copy elsewhere. This file says what the pool promises; the others how: `marker` its identity and locks,
//! `admin` what a person does to a pool, `store` files and records, `content` what a new file holds, `import` what comes
//! from elsewhere, `groups` snapshots at one instant, `templates` new filesystems, `pause` sources in use, `attach`
//! devices, `image` a pool in one file, `restore` records as text and back.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Attach, Attached, Capacity, Detached, Held, Listing, Pool, Progress, Role, Severity, Trouble, Turn,
    fill::{Fill, Part},
    import::{self as imports, Import},
    record::{Group, Snapshot, Volume},
};
use crate::{
    blocking::blocking,
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    filesystem::{BLOCK, Filesystem},
    id::{GroupId, PoolId, SnapshotId, VolumeId},
    sys::{
        cmd::Commands,
        device::DeviceNumber,
        file::{self, Access, Directory, sole_use},
        lock::{ByteLock, Sharing},
        minder::Minder,
        superblock::{self, Contents},
    },
};

mod admin;
mod attach;
mod content;
mod groups;
mod image;
mod import;
mod marker;
mod pause;
mod restore;
mod store;
mod templates;

pub use admin::{adopt, close, delete, identify, init};
pub use restore::{backup, restore};

use super::templates::Templates;
use admin::{check_filesystem, open_directory, read_marker};
use attach::Devices;
use content::CopyRate;
use image::Mounting;
use store::{Store, Survey, file_name};

/// For how long the count of foreign space is believed.
const FOREIGN_BELIEVED: Duration = Duration::from_secs(60);
/// Longest file of ext4 with 4096-byte blocks (16 TiB less one block); xfs and btrfs hold 8 EiB.
const EXT4_LONGEST: Bytes = Bytes::new((1 << 44) - 4096);

/// How a file pool is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of the pool.
    pub path: PathBuf,
    /// The machine that we are.
    pub machine: String,
    /// Per cent of the space that new volumes and snapshots must leave free.
    pub reserve_percent: u32,
    /// Per cent of the space that may be promised to volumes.
    pub overcommit_percent: u32,
    /// How long a filesystem in use may be frozen for a copy.
    pub freeze_limit: Duration,
    /// Most filesystem templates kept.
    pub templates: usize,
}

/// A pool of sparse files. Clones share it.
#[derive(Clone, Debug)]
pub struct FilePool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where the marker is: beside an image, not in it.
    directory: Directory,
    store: Store,
    settings: Settings,
    filesystem: Filesystem,
    reflink: bool,
    commands: Arc<Commands>,
    minder: Option<Arc<Minder>>,
    templates: Templates,
    devices: Devices,
    copy_rate: CopyRate,
    foreign: Mutex<Option<(Instant, Bytes)>>,
    _locks: Vec<ByteLock>,
}

impl FilePool {
    /// Opens a pool in a role. `expected` is the pool that was here last time: another one in its place is refused.
    ///
    /// # Errors
    /// `Unavailable` where the pool is missing, foreign, another machine's or read-only; `Busy` where another
    /// process serves it in this role.
    pub fn open(
        settings: Settings,
        role: Role,
        expected: Option<PoolId>,
        commands: Arc<Commands>,
        minder: Option<Arc<Minder>>,
    ) -> Result<Self> {
        let mounting = if role == Role::Observer { Mounting::Never } else { Mounting::AsNeeded };
        let directory = open_directory(&settings.path)?;
        let marker = read_marker(&directory)?;
        let path = settings.path.display();
        let refuse =
            |reason: String| Err(Error::new(ErrorKind::Unavailable, format!("pool {path}: {reason}")));
        if let Some(expected) = expected.filter(|expected| *expected != marker.id) {
            return refuse(format!("pool {} is here, where pool {expected} was", marker.id));
        }
        if marker.machine != settings.machine {
            return refuse(format!(
                "it belongs to machine {}: if that one no longer serves it, run `lagan pool adopt`",
                marker.machine
            ));
        }
        let locks = marker::lock(&directory, role)?;
        let root = image::resolve(&directory, mounting)?;
        let inside = read_marker(&root)?;
        if inside.id != marker.id {
            return refuse(format!(
                "its image is that of pool {}, but {} is beside it",
                inside.id, marker.id
            ));
        }
        let filesystem = check_filesystem(&root).map_err(|error| error.as_kind(ErrorKind::Unavailable))?;
        let store = Store::open(root, marker.id, role.changes())?;
        store.check_writable()?;
        let reflink = role.changes() && store.can_reflink()?;
        let templates = Templates::new(settings.templates);
        let inner = Inner {
            directory,
            store,
            settings,
            filesystem,
            reflink,
            commands,
            minder,
            templates,
            devices: Devices::new(role),
            copy_rate: CopyRate::default(),
            foreign: Mutex::new(None),
            _locks: locks,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether snapshots and clones share blocks here, so that they cost the same whatever their size.
    #[must_use]
    pub fn reflinks(&self) -> bool {
        self.inner.reflink
    }

    /// Runs a blocking step on a thread for such steps.
    async fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        blocking(move || step(&inner)).await
    }
}

impl Inner {
    fn create_volume(&self, volume: &Volume, progress: &Progress) -> Result<()> {
        self.store.check_writable()?;
        let file = self.store.volumes.create_unnamed().doing(|| format!("create {}", volume.id))?;
        self.fill(&file, volume, progress)?;
        self.store.publish(&self.store.volumes, volume.id.uuid, &file, volume)
    }

    fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.store.check_writable()?;
        // What has no record is not ours, whatever it is called.
        if self.store.volume(id)?.is_none() {
            return Ok(());
        }
        let file = self.store.open_file(&self.store.volumes, id.uuid, Access::Write)?;
        // A reader that looks for a moment, such as a listing of the other process, is not a user.
        for pause in [0, 10, 40] {
            std::thread::sleep(Duration::from_millis(pause));
            if let Some(_sole) = sole_use(&file).doing(|| format!("ask whether {id} is in use"))? {
                return self.store.remove(&self.store.volumes, id.uuid);
            }
        }
        Err(Error::new(ErrorKind::InUse, format!("volume {id} is open on this host")))
    }

    fn update_volume(&self, volume: &Volume) -> Result<()> {
        self.store.check_writable()?;
        let file = self.store.open_file(&self.store.volumes, volume.id.uuid, Access::Read)?;
        self.store.rewrite(&file, volume)
    }

    fn grow_volume(&self, volume: &Volume) -> Result<()> {
        self.store.check_writable()?;
        let what = || format!("grow {}", volume.id);
        let file = self.store.open_file(&self.store.volumes, volume.id.uuid, Access::Write)?;
        let length = file::stat(&file).doing(what)?.length;
        if length < volume.size {
            rustix::fs::ftruncate(&file, volume.size.get()).doing(what)?;
        }
        if let Err(error) = self.store.rewrite(&file, volume) {
            // Nobody was told of it while it is not in the record. The error alone does not say so.
            let old = matches!(self.store.volume(volume.id), Ok(Some(stored)) if stored.size < volume.size);
            if !old || self.store.is_broken() {
                return Err(error.half_done());
            }
            if length < volume.size {
                rustix::fs::ftruncate(&file, length.get()).doing(what).map_err(Error::half_done)?;
            }
            return Err(error);
        }
        self.devices.refresh(&self.store, volume.id).map_err(Error::half_done)
    }

    fn create_snapshot(&self, snapshot: &Snapshot, progress: &Progress) -> Result<Snapshot> {
        self.store.check_writable()?;
        let what = || format!("cut {}", snapshot.id);
        let file = self.store.snapshots.create_unnamed().doing(what)?;
        self.copy_volume(snapshot.volume, snapshot.content, &file, progress)?;
        let cut = file::stat(&file).doing(what)?;
        let snapshot = Snapshot { size: cut.length, used: cut.allocated, ..snapshot.clone() };
        self.store.publish(&self.store.snapshots, snapshot.id.uuid, &file, &snapshot)?;
        Ok(snapshot)
    }

    fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.store.check_writable()?;
        if self.store.ready_snapshot(id)?.is_none() {
            return Ok(());
        }
        self.store.remove(&self.store.snapshots, id.uuid)
    }

    fn capacity(&self) -> Result<Capacity> {
        let room = self.store.root.room().doing(|| "look at the pool's filesystem")?;
        let used = room.total.minus(room.free);
        let mut cached = self.foreign.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let foreign = match *cached {
            // Never more than there is now: what others have given back since is room again.
            Some((when, foreign)) if when.elapsed() < FOREIGN_BELIEVED => foreign.min(used),
            _ => used.minus(self.store.allocated()?),
        };
        if cached.is_none_or(|(when, _)| when.elapsed() >= FOREIGN_BELIEVED) {
            *cached = Some((Instant::now(), foreign));
        }
        Ok(Capacity {
            total: room.total,
            free: room.free,
            foreign,
            reserve: room.total.percent(self.settings.reserve_percent),
            overcommit_percent: self.settings.overcommit_percent,
            maximum: if self.filesystem == Filesystem::Ext4 {
                EXT4_LONGEST
            } else {
                Bytes::MAX.round_down(BLOCK)
            },
        })
    }

    /// Reads everything once, and once more only where something was to be finished or undone.
    fn begin(&self) -> Result<(Vec<String>, Listing)> {
        self.store.flush_all()?;
        let Survey { listing, grown } = self.store.survey()?;
        let mut done = self.finish_growing(grown)?;
        done.extend(self.devices.finish_growing(&self.store)?);
        done.extend(self.recover_groups()?);
        done.extend(pause::recover(&self.store, |uuid| {
            let id = VolumeId { pool: self.store.pool, uuid };
            Ok(self
                .devices
                .attached(&self.store, id)?
                .into_iter()
                .map(|attached| attached.device.number)
                .collect())
        })?);
        let listing = if done.is_empty() { listing } else { self.store.list()? };
        Ok((done, listing))
    }

    /// Ends what a grow has begun: a file that is longer than its record says.
    fn finish_growing(&self, grown: Vec<Volume>) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for volume in grown {
            self.grow_volume(&volume)?;
            done.push(format!("grew volume {} to {}", volume.id, volume.size));
        }
        Ok(done)
    }

    fn examine(&self, volume: &Volume) -> Result<Vec<Trouble>> {
        let mut found = Vec::new();
        let stat =
            self.store.volumes.stat(&file_name(volume.id.uuid)).doing(|| format!("look at {}", volume.id))?;
        match stat {
            None => found.push(Trouble {
                severity: Severity::DataLoss,
                reason: "BackingFileMissing",
                message: "the file of the volume is gone".into(),
            }),
            Some(stat) if stat.length < volume.size => found.push(Trouble {
                severity: Severity::DataLoss,
                reason: "BackingFileTooShort",
                message: format!("the file holds {} of {}", stat.length, volume.size),
            }),
            Some(_) => {}
        }
        if let Err(error) = self.store.check_writable() {
            found.push(Trouble {
                severity: Severity::Inaccessible,
                reason: "PoolNotWritable",
                message: error.to_string(),
            });
        }
        let Capacity { total, free, .. } = self.capacity()?;
        found.extend(Fill { part: Part::Data, used: total.minus(free), total }.trouble());
        Ok(found)
    }
}

#[async_trait]
impl Pool for FilePool {
    fn id(&self) -> PoolId {
        self.inner.store.pool
    }

    fn flushes(&self) -> u64 {
        self.inner.store.flushes()
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.run(Inner::capacity).await
    }

    async fn list(&self) -> Result<Listing> {
        self.run(|inner| inner.store.list()).await
    }

    async fn take_turn(&self, id: VolumeId, sharing: Sharing) -> Result<Turn> {
        self.run(move |inner| Ok(Box::new(marker::take_turn(&inner.directory, id, sharing)?) as Turn)).await
    }

    async fn find_volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        self.run(move |inner| inner.store.volume(id)).await
    }

    async fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.run(move |inner| inner.store.ready_snapshot(id)).await
    }

    async fn find_group(&self, id: GroupId) -> Result<Option<Group>> {
        self.run(move |inner| inner.store.ready_group(id)).await
    }

    async fn occupied(&self, id: VolumeId) -> Result<Bytes> {
        self.run(move |inner| {
            let what = || format!("look at {id}");
            let stat = inner.store.volumes.stat(&file_name(id.uuid)).doing(what)?;
            stat.map(|stat| stat.allocated).ok_or_else(|| Error::new(ErrorKind::NotFound, what()))
        })
        .await
    }

    fn is_broken(&self) -> bool {
        self.inner.store.is_broken()
    }

    async fn probe(&self, id: VolumeId) -> Result<Contents> {
        self.run(move |inner| {
            let file = inner.store.open_file(&inner.store.volumes, id.uuid, Access::Read)?;
            let length = file::stat(&file).doing(|| format!("look at {id}"))?.length;
            superblock::probe(&file, length).doing(|| format!("read the first blocks of {id}"))
        })
        .await
    }

    async fn recover(&self) -> Result<Vec<String>> {
        Ok(self.begin().await?.0)
    }

    async fn begin(&self) -> Result<(Vec<String>, Listing)> {
        self.run(Inner::begin).await
    }

    async fn create_volume(&self, volume: &Volume, progress: &Arc<Progress>) -> Result<()> {
        let (volume, progress) = (volume.clone(), Arc::clone(progress));
        self.run(move |inner| inner.create_volume(&volume, &progress)).await
    }

    async fn importable(&self, from: &Import) -> Result<Bytes> {
        let from = from.clone();
        self.run(move |_| Ok(imports::open(&from)?.length())).await
    }

    async fn import_volume(
        &self,
        volume: &Volume,
        from: &Import,
        progress: &Arc<Progress>,
    ) -> Result<Volume> {
        let (volume, from, progress) = (volume.clone(), from.clone(), Arc::clone(progress));
        self.run(move |inner| inner.import_volume(&volume, &from, &progress)).await
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.run(move |inner| inner.delete_volume(id)).await
    }

    async fn update_volume(&self, volume: &Volume) -> Result<()> {
        let volume = volume.clone();
        self.run(move |inner| inner.update_volume(&volume)).await
    }

    async fn grow_volume(&self, volume: &Volume) -> Result<()> {
        let volume = volume.clone();
        self.run(move |inner| inner.grow_volume(&volume)).await
    }

    async fn create_snapshot(&self, snapshot: &Snapshot, progress: &Arc<Progress>) -> Result<Snapshot> {
        let (snapshot, progress) = (snapshot.clone(), Arc::clone(progress));
        self.run(move |inner| inner.create_snapshot(&snapshot, &progress)).await
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.run(move |inner| inner.delete_snapshot(id)).await
    }

    async fn create_group(
        &self,
        group: &Group,
        members: &[Snapshot],
        progress: &Arc<Progress>,
    ) -> Result<Vec<Snapshot>> {
        let (group, members, progress) = (group.clone(), members.to_vec(), Arc::clone(progress));
        self.run(move |inner| inner.create_group(&group, &members, &progress)).await
    }

    async fn delete_group(&self, id: GroupId) -> Result<()> {
        self.run(move |inner| inner.delete_group(id)).await
    }

    async fn attach(&self, id: VolumeId, how: &Attach) -> Result<Held> {
        let how = how.clone();
        self.run(move |inner| inner.devices.attach(&inner.store, id, &how)).await
    }

    async fn attached(&self, id: VolumeId) -> Result<Vec<Attached>> {
        self.run(move |inner| inner.devices.attached(&inner.store, id)).await
    }

    async fn hold(&self, id: VolumeId, device: DeviceNumber) -> Result<Held> {
        self.run(move |inner| attach::hold(&inner.store, id, device)).await
    }

    async fn detach(&self, id: VolumeId, which: Option<DeviceNumber>) -> Result<Detached> {
        self.run(move |inner| inner.devices.detach(&inner.store, id, which)).await
    }

    async fn refresh(&self, id: VolumeId) -> Result<()> {
        self.run(move |inner| inner.devices.refresh(&inner.store, id)).await
    }

    async fn examine(&self, volume: &Volume) -> Result<Vec<Trouble>> {
        let volume = volume.clone();
        self.run(move |inner| inner.examine(&volume)).await
    }

    async fn devices(&self) -> Result<Vec<(Uuid, Attached)>> {
        self.run(|inner| attach::all(&inner.store)).await
    }
}
