//! Stage and unstage: a volume's device and, for a filesystem, its one mount on this node.

use std::sync::Arc;

use super::{Found, Node, check_access, label, not_made, options, options::MountOptions};
use crate::{
    capability::{Access, Capability},
    error::{Doing, Error, ErrorKind, Result, kind_of},
    filesystem::Filesystem,
    id::VolumeId,
    pool::{Attach, Held, Pool, Sharing},
    sys::{
        device::{Device, DeviceNumber},
        kernel::{Attributes, FilesystemMount, Kernel, Mount, MountError, STAGING, Seen},
        target::Target,
    },
};

impl Node {
    /// Makes the volume's device, and mounts its filesystem at `path`.
    ///
    /// # Errors
    /// `NotFound` for an unknown volume; `Invalid` for a path or flag that is not allowed; `InUse` where it is not
    /// published to this node, or staged in another way; `Mismatch` where it is staged in another way at `path`.
    pub async fn stage(&self, id: VolumeId, path: &str, capability: &Capability) -> Result<()> {
        let at = self.locate(path)?;
        let _turn = self.take_turn(id).await?;
        let found = self.find(id).await?;
        let read_only = self.grant(&found.volume)?.reads_only() || capability.mode.read_only();
        check_access(&found.volume, capability)?;
        match &capability.access {
            Access::Block => self.stage_block(&found, &at).await,
            Access::Mount { filesystem, flags } => {
                self.stage_filesystem(found, &at, *filesystem, flags, read_only).await
            }
        }
    }

    async fn stage_block(&self, found: &Found, at: &Target) -> Result<()> {
        if let Seen::Mount(mount) = self.look(at).await? {
            let ours = found.numbers().contains(&mount.device);
            return Err(if ours { staged_differently(found, at) } else { occupied(found, at, mount) });
        }
        match found.writable() {
            Some(attached) if attached.label == label::BLOCK => Ok(()),
            Some(_) => Err(staged_otherwise(found)),
            None => {
                let how = Attach { read_only: false, transient: false, label: label::BLOCK.into() };
                found.pool.attach(found.volume.id, &how).await.map(drop)
            }
        }
    }

    async fn stage_filesystem(
        &self,
        found: Found,
        at: &Target,
        wanted: Option<Filesystem>,
        flags: &[String],
        read_only: bool,
    ) -> Result<()> {
        let filesystem = self.filesystem_of(&found, wanted).await?;
        let mut options = options::parse(filesystem, flags)?;
        // A copy whose identity could not be renewed has that of its source, which may be mounted beside it.
        if filesystem == Filesystem::Xfs && !options.options.iter().any(|(key, _)| key == "nouuid") {
            options.options.push(("nouuid".into(), None));
        }
        let read_only = read_only || options.read_only;
        let wanted_label = format!("{}{}", label::FILESYSTEM, options.fingerprint(read_only));
        if let Seen::Mount(mount) = self.look(at).await? {
            return self.check_staged(&found, at, mount, &wanted_label, &options).await;
        }
        let damaged =
            filesystem == Filesystem::Ext4 && found.attached.is_empty() && self.has_errors(&found).await?;
        let held = self.attach_for_mount(&found, &wanted_label).await?;
        let mount = FilesystemMount {
            filesystem,
            read_only,
            attributes: self.base_attributes().and(options.attributes).and(STAGING),
            options: options.options,
        };
        let (at, device) = (at.clone(), held.attached.device.clone());
        self.ask(move |kernel| {
            if damaged {
                kernel.repair_ext4(&device)?;
            }
            mount_staged(kernel, &device, &mount, &at, held)
        })
        .await
    }

    /// The answer for a path at which something is mounted already.
    async fn check_staged(
        &self,
        found: &Found,
        at: &Target,
        mount: Mount,
        wanted_label: &str,
        options: &MountOptions,
    ) -> Result<()> {
        let Some(attached) = found.attached.iter().find(|attached| attached.device.number == mount.device)
        else {
            return Err(occupied(found, at, mount));
        };
        let wanted = self.base_attributes().and(options.attributes).and(STAGING);
        let same_attributes =
            mount.attributes.without(Attributes::READ_ONLY) == wanted.without(Attributes::READ_ONLY);
        if attached.label == wanted_label && same_attributes && !mount.block {
            if mount.attributes.contains(Attributes::READ_ONLY) {
                return Ok(());
            }
            // An earlier call may have ended between mounting and growing.
            let (device, filesystem, at) =
                (attached.device.clone(), self.filesystem_of(found, None).await?, at.clone());
            return self.ask(move |kernel| grow(kernel, filesystem, &device, &at)).await;
        }
        Err(staged_differently(found, at))
    }

    /// The device for a filesystem: the one there is, if it was attached for the same way of mounting, or a new one,
    /// which the kernel takes away by itself if we die before a mount holds it.
    async fn attach_for_mount(&self, found: &Found, wanted_label: &str) -> Result<Held> {
        match found.attached.first() {
            Some(attached) if attached.label == wanted_label => {
                found.pool.hold(found.volume.id, attached.device.number).await
            }
            Some(_) => Err(staged_otherwise(found)),
            None => {
                let how = Attach { read_only: false, transient: true, label: wanted_label.to_owned() };
                found.pool.attach(found.volume.id, &how).await
            }
        }
    }

    /// Takes the stage at `path` away: the mount, and with the last one the device.
    ///
    /// # Errors
    /// `InUse` while the volume is published or open on this node: nothing was changed then, or only the mount is
    /// gone and the same call goes on from there.
    pub async fn unstage(&self, id: VolumeId, path: &str) -> Result<()> {
        let at = self.locate(path)?;
        let Some(pool) = self.pools.find(id.pool).await? else { return self.expect_no_mount(&at).await };
        let _turn = pool.take_turn(id, Sharing::Alone).await?;
        let attached = pool.attached(id).await?;
        if attached.is_empty() {
            return Ok(());
        }
        let numbers = super::numbers(&attached);
        let mounts = self.mounts_of(numbers.clone()).await?;
        if let Some(published) = mounts.iter().find(|mount| !mount.staging) {
            return Err(still_published(id, &published.at));
        }
        self.unmount_staged(id, &at, &numbers).await?;
        // Staged at a second path as well (Nomad does it): the device stays for that one.
        self.detach_unless_mounted(&pool, id, numbers).await.map(drop).map_err(Error::half_done)
    }

    /// Takes the devices of a volume away, unless it is still staged: whether they went. It is looked at the table of mounts
    /// again: whoever it left out, or who has come since, would be left with a device that is nobody's, or soon another one's.
    async fn detach_unless_mounted(
        &self,
        pool: &Arc<dyn Pool>,
        id: VolumeId,
        numbers: Vec<DeviceNumber>,
    ) -> Result<bool> {
        let left = self.mounts_of(numbers).await?;
        if let Some(published) = left.iter().find(|mount| !mount.staging) {
            return Err(still_published(id, &published.at));
        }
        if left.is_empty() {
            self.detach(pool, id, None).await?;
        }
        Ok(left.is_empty())
    }

    /// A forgotten pool cannot say which devices were its own: what is mounted is left to the operator.
    pub(super) async fn expect_no_mount(&self, at: &Target) -> Result<()> {
        let Seen::Mount(mount) = self.look_even_if_dead(at).await? else { return Ok(()) };
        let what = format!(
            "the pool was forgotten, but device {} is still mounted at {at}: unmount it by hand, or restart the host",
            mount.device
        );
        Err(Error::new(ErrorKind::InUse, what))
    }

    async fn unmount_staged(&self, id: VolumeId, at: &Target, numbers: &[DeviceNumber]) -> Result<()> {
        // Mounts may lie upon one another at one path; more than a few are somebody's mistake.
        for layer in 0..16 {
            let so_far = |error: Error| if layer > 0 { error.half_done() } else { error };
            match self.look_even_if_dead(at).await.map_err(so_far)? {
                Seen::Mount(mount) if numbers.contains(&mount.device) => {
                    let at = at.clone();
                    let unmount =
                        move |kernel: &dyn Kernel| kernel.unmount(&at).doing(|| format!("unmount {at}"));
                    if let Err(error) = self.ask(unmount).await {
                        let busy = error.kind() == ErrorKind::InUse;
                        let error = if busy { self.in_use(id, numbers.to_vec()).await } else { error };
                        return Err(so_far(error));
                    }
                }
                Seen::Missing | Seen::Directory | Seen::File | Seen::Mount(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes away every stage of a volume that nobody uses, for orchestrators that never unstage; fine where there
    /// is none.
    ///
    /// # Errors
    /// `InUse` where the volume is published or open on this node, naming where or by whom.
    pub async fn release(&self, id: VolumeId) -> Result<()> {
        let Some(pool) = self.pools.find(id.pool).await? else { return Ok(()) };
        let attached = pool.attached(id).await?;
        if attached.is_empty() {
            return Ok(());
        }
        let numbers = super::numbers(&attached);
        let mounts = self.mounts_of(numbers.clone()).await?;
        if let Some(published) = mounts.iter().find(|mount| !mount.staging) {
            return Err(still_published(id, &published.at));
        }
        for stage in mounts {
            self.unmount_staged(id, &stage.at, &numbers).await.map_err(Error::half_done)?;
        }
        if self.detach_unless_mounted(&pool, id, numbers.clone()).await.map_err(Error::half_done)? {
            return Ok(());
        }
        Err(self.in_use(id, numbers).await)
    }

    /// The devices of a volume are as long as the volume is now, and its filesystem fills its device.
    ///
    /// # Errors
    /// `NotFound` where the volume is unknown or not at `path`; `InUse` where the kernel does not let this process grow
    /// the filesystem while it is mounted.
    pub async fn expand(&self, id: VolumeId, path: &str) -> Result<crate::bytes::Bytes> {
        let not_here = || {
            Error::new(ErrorKind::NotFound, format!("volume {id} is neither staged nor published at {path}"))
        };
        let _turn = self.take_turn(id).await?;
        let found = self.find(id).await?;
        let at = self.kernel.locate(path).map_err(|bad| not_here().because(bad))?;
        let mount = match self.look(&at).await? {
            Seen::Mount(mount) if found.numbers().contains(&mount.device) => Some(mount),
            // A raw volume is staged without a mount.
            Seen::Directory if found.writable().is_some_and(|attached| attached.label == label::BLOCK) => {
                None
            }
            _ => return Err(not_here()),
        };
        found.pool.refresh(id).await?;
        let Some(mount) = mount.filter(|mount| !mount.block) else { return Ok(found.volume.size) };
        let attached = found.pool.attached(id).await?;
        let device = attached.into_iter().find(|attached| attached.device.number == mount.device);
        let device = device.ok_or_else(not_here)?.device;
        // The kernel grows a filesystem only through a mount that may write. Where there is none, the next one that
        // may write grows it when it is staged.
        let writable = if mount.attributes.contains(Attributes::READ_ONLY) {
            self.stages(&found)
                .await?
                .into_iter()
                .find(|(_, stage)| !stage.attributes.contains(Attributes::READ_ONLY))
        } else {
            Some((at, mount))
        };
        if let Some((at, _)) = writable {
            let filesystem = self.filesystem_of(&found, None).await?;
            self.ask(move |kernel| grow(kernel, filesystem, &device, &at)).await?;
        }
        Ok(found.volume.size)
    }
}

impl Node {
    /// Where a volume's filesystem is staged, and how.
    pub(super) async fn stages(&self, found: &Found) -> Result<Vec<(Target, Mount)>> {
        let mut stages = Vec::new();
        for place in self.mounts_of(found.numbers()).await?.into_iter().filter(|place| place.staging) {
            if let Seen::Mount(mount) = self.look_even_if_dead(&place.at).await? {
                stages.push((place.at, mount));
            }
        }
        Ok(stages)
    }
}

/// Mounts the filesystem and makes it fill its device. `held` keeps the device until the mount does.
fn mount_staged(
    kernel: &dyn Kernel,
    device: &Device,
    mount: &FilesystemMount,
    at: &Target,
    held: Held,
) -> Result<()> {
    kernel
        .ensure_directory(at)
        .map_err(|error| not_made(format!("make the staging directory {at}"), error))?;
    kernel.mount(device, mount, at).map_err(|error| mount_failed(error, at))?;
    drop(held);
    if mount.read_only {
        return Ok(());
    }
    // A clone or restore may be larger than its source. A first try may have mounted it and failed here: the next
    // one finds it mounted, so the mount is taken back.
    grow(kernel, mount.filesystem, device, at).inspect_err(|_| {
        if let Err(error) = kernel.unmount(at) {
            tracing::warn!(%error, "mount not taken back after its filesystem could not be grown");
        }
    })
}

fn grow(kernel: &dyn Kernel, filesystem: Filesystem, device: &Device, at: &Target) -> Result<()> {
    kernel.grow(filesystem, device, at).map(drop).map_err(|error| {
        // Said by `sys::grow` itself; what the system denies it denies for another reason.
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied && error.raw_os_error().is_none();
        let failed = Error::io(format!("grow the {filesystem} mounted at {at}"), error);
        if denied { failed.as_kind(ErrorKind::InUse) } else { failed }
    })
}

/// What a failed mount means to the caller: a flag that this kernel does not take is the request's fault.
fn mount_failed(error: MountError, at: &Target) -> Error {
    let not_taken = error.error.kind() == std::io::ErrorKind::InvalidInput;
    let kind = if error.step.starts_with("set mount option") && not_taken {
        ErrorKind::Invalid
    } else if error.error.kind() == std::io::ErrorKind::NotFound {
        ErrorKind::Unavailable
    } else {
        kind_of(&error.error)
    };
    Error::new(kind, format!("stage at {at}")).because(error)
}

fn still_published(id: VolumeId, at: &Target) -> Error {
    Error::new(ErrorKind::InUse, format!("volume {id} is still published at {at}"))
}

fn occupied(found: &Found, at: &Target, mount: Mount) -> Error {
    let what = format!(
        "{at}, where volume {} is to be staged, has device {} mounted",
        found.volume.id, mount.device
    );
    Error::new(ErrorKind::InUse, what)
}

fn staged_differently(found: &Found, at: &Target) -> Error {
    let what = format!("volume {} is staged at {at} with another capability or other flags", found.volume.id);
    Error::new(ErrorKind::Mismatch, what)
}

fn staged_otherwise(found: &Found) -> Error {
    let what =
        format!("volume {} is in use on this node in another way or with other mount flags", found.volume.id);
    Error::new(ErrorKind::InUse, what)
}
