//! What a node does with volumes: stages, publishes, grows and measures them. What is staged or published is never
//! remembered here, always asked of the kernel. It never makes a filesystem: it mounts what the record promises.
//!
//! Calls for one volume must not overlap; the edge holds the lock.

use std::{io, sync::Arc};

use crate::{
    blocking::blocking,
    capability::{Access, Capability},
    error::{Chain, Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::{NodeId, VolumeId},
    pool::{
        Attached, Detached, Pool, Sharing, Turn,
        record::{Grant, Volume},
        set::Pools,
    },
    sys::{
        device::DeviceNumber,
        kernel::{Attributes, Kernel, MountedAt, Seen},
        superblock::Contents,
        target::Target,
    },
};

mod health;
mod options;
mod publish;
mod stage;
mod stats;

pub use health::{Illness, StorageIllness};
pub use publish::Publish;
pub use stats::{Amounts, VolumeUsage};

/// How a node is to behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name.
    pub id: NodeId,
    /// Set-user-id programs on volumes work; the administrator's choice, off unless made.
    pub allow_suid: bool,
    /// Most volumes that it takes; 0 leaves it to the orchestrator.
    pub max_volumes: u32,
}

/// The node role. Clones share it.
#[derive(Clone)]
pub struct Node {
    pools: Arc<Pools>,
    kernel: Arc<dyn Kernel>,
    settings: Arc<Settings>,
}

/// A volume as a request of a node finds it.
struct Found {
    volume: Volume,
    pool: Arc<dyn Pool>,
    attached: Vec<Attached>,
}

impl Found {
    fn numbers(&self) -> Vec<DeviceNumber> {
        numbers(&self.attached)
    }

    /// The device that is written through, if the volume has one now.
    fn writable(&self) -> Option<&Attached> {
        self.attached.iter().find(|attached| !attached.device.read_only)
    }
}

fn numbers(attached: &[Attached]) -> Vec<DeviceNumber> {
    attached.iter().map(|attached| attached.device.number).collect()
}

/// Labels that a device of ours carries: what it is attached for.
mod label {
    /// A raw block volume.
    pub(super) const BLOCK: &str = "block";
    /// The read-only face of a raw block volume.
    pub(super) const READ_ONLY: &str = "ro";
    /// A filesystem, followed by a fingerprint of its mount options.
    pub(super) const FILESYSTEM: &str = "fs:";
}

impl Node {
    /// A node over these pools and this kernel.
    #[must_use]
    pub fn new(pools: Arc<Pools>, kernel: Arc<dyn Kernel>, settings: Settings) -> Self {
        Self { pools, kernel, settings: Arc::new(settings) }
    }

    /// How it is set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens the pools that can be opened. Those that cannot are tried again when they are asked for.
    ///
    /// # Errors
    /// `Busy` where another process is the node of one.
    pub async fn check_pools(&self) -> Result<()> {
        for (name, pool) in self.pools.all().await {
            match pool {
                Err(error) if error.kind() == ErrorKind::Busy => return Err(error),
                Err(error) => tracing::error!(pool = %name, error = %Chain(&error), "a pool cannot be used"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Takes a volume for one piece of work, against the controller process.
    async fn take_turn(&self, id: VolumeId) -> Result<Turn> {
        self.pools.get(id.pool).await?.take_turn(id, Sharing::Alone).await
    }

    /// The volume's record and devices.
    async fn find(&self, id: VolumeId) -> Result<Found> {
        let pool = self.pools.get(id.pool).await?;
        let volume = pool.find_volume(id).await?;
        let volume =
            volume.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("volume {id} does not exist")))?;
        let attached = pool.attached(id).await?;
        Ok(Found { volume, pool, attached })
    }

    /// The right of this node to use the volume.
    fn grant<'v>(&self, volume: &'v Volume) -> Result<&'v Grant> {
        volume.grants.iter().find(|grant| grant.node == self.settings.id).ok_or_else(|| {
            let what = format!("volume {} is not published to node {}", volume.id, self.settings.id);
            Error::new(ErrorKind::InUse, what)
        })
    }

    /// Runs a question to the kernel where it may block.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Kernel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let kernel = Arc::clone(&self.kernel);
        blocking(move || question(&*kernel)).await
    }

    fn locate(&self, path: &str) -> Result<Target> {
        self.kernel.locate(path).map_err(|bad| Error::new(ErrorKind::Invalid, bad.to_string()))
    }

    async fn look(&self, at: &Target) -> Result<Seen> {
        match self.look_even_if_dead(at).await? {
            Seen::Mount(mount) if mount.dead => {
                let what = format!(
                    "the filesystem at {at} has shut down after an error: stop what uses it, unpublish and unstage it"
                );
                Err(Error::new(ErrorKind::Unavailable, what))
            }
            seen => Ok(seen),
        }
    }

    /// The same, for whoever only takes it away.
    async fn look_even_if_dead(&self, at: &Target) -> Result<Seen> {
        let at = at.clone();
        self.ask(move |kernel| kernel.look(&at).doing(|| format!("look at {at}"))).await
    }

    async fn mounts_of(&self, devices: Vec<DeviceNumber>) -> Result<Vec<MountedAt>> {
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(move |kernel| kernel.mounts_of(&devices).doing(|| "read the table of mounts")).await
    }

    /// The filesystem that a mount of this volume will have: the one it was made with, or the one that its user put
    /// on a raw volume.
    async fn filesystem_of(&self, found: &Found, wanted: Option<Filesystem>) -> Result<Filesystem> {
        let id = found.volume.id;
        let promised = match found.volume.content.filesystem() {
            Some(made) => Some(made),
            None => match found.pool.probe(id).await? {
                Contents::Filesystem(put_there) => Some(put_there.filesystem),
                Contents::Blank | Contents::Unknown => None,
            },
        };
        match (promised, wanted) {
            (Some(promised), Some(wanted)) if promised != wanted => Err(Error::new(
                ErrorKind::InUse,
                format!("volume {id} holds {promised}, not {wanted}, and is never formatted again"),
            )),
            (Some(promised), _) => Ok(promised),
            (None, _) => Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "volume {id} was created raw and holds no filesystem that could be mounted: create it with a \
                     mount capability, or put a filesystem on it yourself"
                ),
            )),
        }
    }

    /// Whether the volume's filesystem has recorded damage.
    async fn has_errors(&self, found: &Found) -> Result<bool> {
        let contents = found.pool.probe(found.volume.id).await?;
        Ok(matches!(contents, Contents::Filesystem(filesystem) if filesystem.errors))
    }

    /// Attributes that every filesystem mount for a workload carries.
    fn base_attributes(&self) -> Attributes {
        let suid = if self.settings.allow_suid { Attributes::NONE } else { Attributes::NOSUID };
        Attributes::NODEV.and(suid)
    }

    /// Takes devices of a volume away; an error that names who uses one where that fails.
    async fn detach(&self, pool: &Arc<dyn Pool>, id: VolumeId, which: Option<DeviceNumber>) -> Result<()> {
        if pool.detach(id, which).await? == Detached::Done {
            return Ok(());
        }
        let numbers = numbers(&pool.attached(id).await?);
        Err(self.in_use(id, numbers).await)
    }

    /// The error for a volume that somebody uses, naming whom it can.
    async fn in_use(&self, id: VolumeId, devices: Vec<DeviceNumber>) -> Error {
        let holders = self.ask(move |kernel| Ok(kernel.holders(&devices))).await.unwrap_or_default();
        let by = if holders.is_empty() { "somebody".to_owned() } else { holders.join(", ") };
        Error::new(ErrorKind::InUse, format!("volume {id} is in use on node {} by {by}", self.settings.id))
    }
}

/// The error of making a path: the directory that it is to lie in is the orchestrator's to make.
fn not_made(what: String, error: io::Error) -> Error {
    let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let failed = Error::io(what, error);
    if missing { failed.as_kind(ErrorKind::InUse) } else { failed }
}

/// Checks mount flags before there is anything to mount, where the filesystem is known already.
///
/// # Errors
/// `Invalid` where one is not on the list of the filesystem.
pub fn check_flags(filesystem: Filesystem, flags: &[String]) -> Result<()> {
    options::parse(filesystem, flags).map(drop)
}

/// Whether a way of using a volume is one that the volume was made for.
fn check_access(volume: &Volume, capability: &Capability) -> Result<()> {
    if capability.mode.writes_across_nodes() {
        let what =
            format!("volume {} is reached by one node: multi-node writers are not supported", volume.id);
        return Err(Error::new(ErrorKind::InUse, what));
    }
    match capability.access {
        Access::Block if !volume.block => Err(Error::new(
            ErrorKind::InUse,
            format!("volume {} was created as a filesystem and cannot be used as a raw device", volume.id),
        )),
        _ => Ok(()),
    }
}
