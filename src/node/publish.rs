//! Publish and unpublish: a staged volume shown at the path of one workload.

use std::sync::Arc;

use super::{Found, Node, check_access, label, not_made, options};
use crate::{
    capability::{Access, AccessMode, Capability},
    error::{Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::VolumeId,
    pool::{Attach, Attached, Held, Pool, Sharing},
    sys::{
        kernel::{Attributes, Mount, Seen},
        target::Target,
    },
};

/// Where and how a volume is to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where it is staged.
    pub staging_path: String,
    /// Where it is to be shown.
    pub target_path: String,
    /// As what.
    pub capability: Capability,
    /// Without writes.
    pub read_only: bool,
}

impl Node {
    /// Shows a staged volume at a path.
    ///
    /// # Errors
    /// `NotFound` for an unknown volume; `Invalid` for a path or flag that is not allowed; `InUse` where it is not
    /// staged, or where the access mode allows no further publish; `Mismatch` where it is published at the path in
    /// another way.
    pub async fn publish(&self, id: VolumeId, wanted: &Publish) -> Result<()> {
        let staging = self.locate(&wanted.staging_path)?;
        let target = self.locate(&wanted.target_path)?;
        let _turn = self.take_turn(id).await?;
        let found = self.find(id).await?;
        let grant = self.grant(&found.volume)?;
        let read_only = wanted.read_only || grant.reads_only() || wanted.capability.mode.read_only();
        check_access(&found.volume, &wanted.capability)?;
        let single = AccessMode::SingleNodeSingleWriter;
        if grant.mode == single || wanted.capability.mode == single {
            self.check_other_publishes(&found, &target).await?;
        }
        match &wanted.capability.access {
            Access::Block => self.publish_block(&found, &target, read_only).await,
            Access::Mount { filesystem, flags } => {
                let filesystem = self.filesystem_of(&found, *filesystem).await?;
                self.publish_filesystem(&found, &staging, &target, filesystem, flags, read_only).await
            }
        }
    }

    /// A volume for a single writer is shown once. One for a single *node*'s writers may be shown many times.
    async fn check_other_publishes(&self, found: &Found, target: &Target) -> Result<()> {
        let mounts = self.mounts_of(found.numbers()).await?;
        match mounts.iter().find(|mount| !mount.staging && mount.at != *target) {
            None => Ok(()),
            Some(other) => {
                let what = format!(
                    "volume {} is for a single writer and published at {}",
                    found.volume.id, other.at
                );
                Err(Error::new(ErrorKind::InUse, what))
            }
        }
    }

    async fn publish_filesystem(
        &self,
        found: &Found,
        staging: &Target,
        target: &Target,
        filesystem: Filesystem,
        flags: &[String],
        read_only: bool,
    ) -> Result<()> {
        let device = match self.look(staging).await? {
            Seen::Mount(mount) if !mount.block && found.numbers().contains(&mount.device) => mount.device,
            _ => return Err(not_staged(found, staging)),
        };
        let flags = options::parse(filesystem, flags)?;
        let read_only = if read_only { Attributes::READ_ONLY } else { Attributes::NONE };
        let attributes = self.base_attributes().and(flags.attributes).and(read_only);
        match self.look(target).await? {
            Seen::Mount(mount) if mount.device == device && !mount.block => {
                // A filesystem that is staged read-only shows so at every publish.
                let ignored = if attributes.contains(Attributes::READ_ONLY) {
                    Attributes::NONE
                } else {
                    self.staged_read_only(staging).await?
                };
                return same(found, target, mount.attributes.without(ignored) == attributes);
            }
            Seen::Mount(mount) => return Err(occupied(found, target, mount)),
            Seen::File => return Err(not_a(target, "directory")),
            Seen::Missing | Seen::Directory => {}
        }
        let (staging, target) = (staging.clone(), target.clone());
        self.ask(move |kernel| {
            kernel
                .ensure_directory(&target)
                .map_err(|error| not_made(format!("make the target directory {target}"), error))?;
            kernel.bind(&staging, device, &target, attributes).doing(|| format!("publish at {target}"))
        })
        .await
    }

    async fn staged_read_only(&self, staging: &Target) -> Result<Attributes> {
        Ok(match self.look(staging).await? {
            Seen::Mount(mount) if mount.attributes.contains(Attributes::READ_ONLY) => Attributes::READ_ONLY,
            _ => Attributes::NONE,
        })
    }

    async fn publish_block(&self, found: &Found, target: &Target, read_only: bool) -> Result<()> {
        let staged = found.writable().filter(|attached| attached.label == label::BLOCK);
        if staged.is_none() {
            let what = format!("volume {} is not staged as a raw device on this node", found.volume.id);
            return Err(Error::new(ErrorKind::InUse, what));
        }
        match self.look(target).await? {
            Seen::Mount(mount) => {
                let device = found.attached.iter().find(|attached| attached.device.number == mount.device);
                let Some(device) = device.filter(|_| mount.block) else {
                    return Err(occupied(found, target, mount));
                };
                return same(found, target, device.device.read_only == read_only);
            }
            Seen::Directory => return Err(not_a(target, "file")),
            Seen::Missing | Seen::File => {}
        }
        let held = match staged.filter(|_| !read_only) {
            Some(attached) => found.pool.hold(found.volume.id, attached.device.number).await?,
            None => self.read_only_face(found).await?,
        };
        let target = target.clone();
        self.ask(move |kernel| {
            kernel
                .ensure_file(&target)
                .map_err(|error| not_made(format!("make the target file {target}"), error))?;
            kernel.bind_device(&held.attached.device, &target).doing(|| format!("publish at {target}"))
        })
        .await
        // A face that was made stays; the next try uses it, and an unpublish takes it away.
        .map_err(|error| if read_only { error.half_done() } else { error })
    }

    /// A second device on the volume that refuses writes: a read-only bind of a device node would not.
    async fn read_only_face(&self, found: &Found) -> Result<Held> {
        let id = found.volume.id;
        let existing = found.attached.iter().find(|attached| attached.label == label::READ_ONLY);
        match existing.filter(|attached| attached.device.read_only) {
            Some(attached) => found.pool.hold(id, attached.device.number).await,
            None => {
                let how = Attach { read_only: true, transient: false, label: label::READ_ONLY.into() };
                found.pool.attach(id, &how).await
            }
        }
    }

    /// Takes a publish away: the mount and the path that was made for it.
    ///
    /// # Errors
    /// `InUse` where the mount is busy, or where data was written under the path while nothing was mounted: it is
    /// never deleted.
    pub async fn unpublish(&self, id: VolumeId, path: &str) -> Result<()> {
        let pool = self.pools.find(id.pool).await?;
        let _turn = match &pool {
            Some(pool) => Some(pool.take_turn(id, Sharing::Alone).await?),
            None => None,
        };
        let attached = match &pool {
            Some(pool) => pool.attached(id).await?,
            None => Vec::new(),
        };
        let target = self.locate(path)?;
        let numbers = super::numbers(&attached);
        let (mut was_read_only, mut unmounted) = (None, false);
        let so_far = |error: Error, unmounted| if unmounted { error.half_done() } else { error };
        for _layer in 0..16 {
            let seen = self.look_even_if_dead(&target).await;
            let mount = match seen.map_err(|error| so_far(error, unmounted))? {
                Seen::Missing => break,
                Seen::Directory | Seen::File => {
                    self.remove(&target).await.map_err(|error| so_far(error, unmounted))?;
                    break;
                }
                Seen::Mount(mount) => mount,
            };
            if pool.is_none() {
                return self.expect_no_mount(&target).await;
            }
            if !numbers.contains(&mount.device) {
                // Something else is mounted there: this volume is not published at the path, and that one is not ours
                // to take away.
                break;
            }
            let at = target.clone();
            let gone = self.ask(move |kernel| kernel.unmount(&at).doing(|| format!("unmount {at}"))).await;
            if let Err(error) = gone {
                let busy = error.kind() == ErrorKind::InUse;
                let error = if busy { self.in_use(id, vec![mount.device]).await } else { error };
                return Err(so_far(error, unmounted));
            }
            unmounted = true;
            was_read_only = attached.iter().find(|attached| {
                attached.device.number == mount.device && attached.label == label::READ_ONLY
            });
        }
        // The read-only face goes with its last publish; the device itself belongs to the stage.
        if let Some(pool) = &pool
            && let Some(face) = was_read_only.or_else(|| leftover_face(&attached))
        {
            self.detach_if_unmounted(pool, id, face).await.map_err(Error::half_done)?;
        }
        Ok(())
    }

    async fn detach_if_unmounted(&self, pool: &Arc<dyn Pool>, id: VolumeId, face: &Attached) -> Result<()> {
        let device = face.device.number;
        if self.mounts_of(vec![device]).await?.is_empty() {
            self.detach(pool, id, Some(device)).await?;
        }
        Ok(())
    }

    async fn remove(&self, target: &Target) -> Result<()> {
        let target = target.clone();
        self.ask(move |kernel| {
            kernel.remove(&target).map_err(|error| {
                let holds_data = error.kind() == std::io::ErrorKind::DirectoryNotEmpty;
                let failed = Error::io(format!("remove {target}"), error);
                if holds_data { failed.as_kind(ErrorKind::InUse) } else { failed }
            })
        })
        .await
    }
}

/// A read-only face that an interrupted call has left.
fn leftover_face(attached: &[Attached]) -> Option<&Attached> {
    attached.iter().find(|attached| attached.label == label::READ_ONLY)
}

/// The answer for a path at which the volume is published already.
fn same(found: &Found, target: &Target, same: bool) -> Result<()> {
    if same {
        return Ok(());
    }
    let what = format!("volume {} is published at {target} with other flags or rights", found.volume.id);
    Err(Error::new(ErrorKind::Mismatch, what))
}

fn occupied(found: &Found, target: &Target, mount: Mount) -> Error {
    let what = format!(
        "{target}, where volume {} is to be published, has device {} mounted",
        found.volume.id, mount.device
    );
    Error::new(ErrorKind::Mismatch, what)
}

fn not_staged(found: &Found, staging: &Target) -> Error {
    Error::new(ErrorKind::InUse, format!("volume {} is not staged at {staging}", found.volume.id))
}

fn not_a(target: &Target, what: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("{target} exists and is no {what}"))
}
