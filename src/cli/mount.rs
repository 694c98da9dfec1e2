//! `lagan volume mount`, `unmount` and `grow`: a volume used on this host where no orchestrator is. The calls are those
//! that an orchestrator would make.

use std::{fs, path::PathBuf};

use clap::Args;
use tonic::Code;

use super::{
    client::{Daemon, refused},
    out,
    volume::capability,
};
use crate::{
    app,
    bytes::Bytes,
    config::Config,
    error::{Doing, Error, ErrorKind, Result},
    id::VolumeId,
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
        ControllerUnpublishVolumeRequest, NodeExpandVolumeRequest, NodeGetInfoRequest,
        NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
        NodeUnstageVolumeRequest, VolumeCapability, volume_capability::AccessType,
    },
    sys::{mountinfo, target},
};

/// Below the root of a mount: where volumes are staged.
const STAGED: &str = ".staged";

#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Its id.
    id: VolumeId,
    /// Where, below one of target_roots (/srv/volumes unless you set others): a directory, with --block a file, that is
    /// made, and removed again. What it lies in is made by you.
    path: PathBuf,
    /// Without writes.
    #[arg(long)]
    read_only: bool,
    /// As a raw device.
    #[arg(long, conflicts_with = "flags")]
    block: bool,
    /// A mount flag, such as noatime; may be repeated.
    #[arg(long = "flag", value_name = "FLAG")]
    flags: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct UnmountArgs {
    /// Its id.
    id: VolumeId,
    /// Where it is mounted.
    path: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct GrowArgs {
    /// Its id.
    id: VolumeId,
    /// Its new length, such as 20GiB.
    #[arg(long)]
    size: Bytes,
}

/// Paths of one use of a volume.
struct Place {
    staging: PathBuf,
    target: PathBuf,
}

impl Place {
    fn of(config: &Config, id: VolumeId, path: &std::path::Path) -> Result<Self> {
        let path = std::path::absolute(path).doing(|| format!("find {}", path.display()))?;
        let roots = config.target_roots.iter().map(PathBuf::as_path);
        let target = target::locate(roots, &path.to_string_lossy())
            .map_err(|bad| Error::new(ErrorKind::Invalid, bad.to_string()))?;
        Ok(Self { staging: target.root.join(STAGED).join(id.to_string()), target: target.path() })
    }

    fn staging(&self) -> String {
        self.staging.display().to_string()
    }

    fn target(&self) -> String {
        self.target.display().to_string()
    }
}

/// Gives this host the right to the volume, and shows it at a path.
pub(super) async fn mount(config: &Config, args: MountArgs) -> Result<()> {
    let place = Place::of(config, args.id, &args.path)?;
    let daemon = Daemon::connect(config).await?;
    let node_id = node_id(&daemon).await?;
    if let Some(parent) = place.staging.parent() {
        fs::create_dir_all(parent).doing(|| format!("make {}", parent.display()))?;
    }
    let request = ControllerPublishVolumeRequest {
        volume_id: args.id.to_string(),
        node_id,
        volume_capability: Some(how(&args)),
        readonly: args.read_only,
        ..ControllerPublishVolumeRequest::default()
    };
    daemon.controller().controller_publish_volume(request).await.map_err(refused)?;
    let shown = show(&daemon, &args, &place).await;
    if shown.is_err() {
        // What is in use already stays: the driver refuses to take it away.
        release(&daemon, args.id, &place).await.unwrap_or_default();
    }
    shown?;
    out::talk(&format!("{} is mounted at {}", args.id, place.target()));
    Ok(())
}

fn how(args: &MountArgs) -> VolumeCapability {
    let mut how = capability(args.block, None);
    if let Some(AccessType::Mount(mount)) = &mut how.access_type {
        mount.mount_flags.clone_from(&args.flags);
    }
    how
}

async fn node_id(daemon: &Daemon) -> Result<String> {
    let info = daemon.node().node_get_info(NodeGetInfoRequest {}).await.map_err(refused)?;
    Ok(info.into_inner().node_id)
}

async fn show(daemon: &Daemon, args: &MountArgs, place: &Place) -> Result<()> {
    let request = NodeStageVolumeRequest {
        volume_id: args.id.to_string(),
        staging_target_path: place.staging(),
        volume_capability: Some(how(args)),
        ..NodeStageVolumeRequest::default()
    };
    daemon.node().node_stage_volume(request).await.map_err(refused)?;
    let request = NodePublishVolumeRequest {
        volume_id: args.id.to_string(),
        staging_target_path: place.staging(),
        target_path: place.target(),
        volume_capability: Some(how(args)),
        readonly: args.read_only,
        ..NodePublishVolumeRequest::default()
    };
    daemon.node().node_publish_volume(request).await.map_err(refused)?;
    Ok(())
}

/// Takes it away from a path, and the right to it where that was the last one.
pub(super) async fn unmount(config: &Config, args: UnmountArgs) -> Result<()> {
    let place = Place::of(config, args.id, &args.path)?;
    let table = mountinfo::read().doing(|| "read the table of mounts")?;
    if !table.iter().any(|mount| mount.mount_point == place.target) {
        return Err(Error::new(ErrorKind::NotFound, format!("nothing is mounted at {}", place.target())));
    }
    let daemon = Daemon::connect(config).await?;
    let request = NodeUnpublishVolumeRequest { volume_id: args.id.to_string(), target_path: place.target() };
    daemon.node().node_unpublish_volume(request).await.map_err(refused)?;
    if release(&daemon, args.id, &place).await? {
        out::talk(&format!("{} is mounted nowhere any more", args.id));
    } else {
        out::talk(&format!("{} is no longer mounted at {}, but elsewhere", args.id, place.target()));
    }
    Ok(())
}

/// Unstages a volume and gives the right to it back; not where it is in use.
async fn release(daemon: &Daemon, id: VolumeId, place: &Place) -> Result<bool> {
    let unstage =
        NodeUnstageVolumeRequest { volume_id: id.to_string(), staging_target_path: place.staging() };
    match daemon.node().node_unstage_volume(unstage).await {
        Err(status) if status.code() == Code::FailedPrecondition => return Ok(false),
        other => other.map_err(refused)?,
    };
    let request = ControllerUnpublishVolumeRequest {
        volume_id: id.to_string(),
        node_id: node_id(daemon).await?,
        ..ControllerUnpublishVolumeRequest::default()
    };
    match daemon.controller().controller_unpublish_volume(request).await {
        Err(status) if status.code() == Code::FailedPrecondition => return Ok(false),
        other => other.map_err(refused)?,
    };
    // Empty directories of ours; one that is not is none of ours.
    for directory in [Some(place.staging.as_path()), place.staging.parent()].into_iter().flatten() {
        fs::remove_dir(directory).unwrap_or_default();
    }
    Ok(true)
}

/// Makes a volume longer, and the filesystem on it where it is mounted here; elsewhere the next mount does.
pub(super) async fn grow(config: &Config, args: GrowArgs) -> Result<()> {
    let daemon = Daemon::connect(config).await?;
    let capacity_range = Some(CapacityRange { required_bytes: args.size.signed(), limit_bytes: 0 });
    let request = ControllerExpandVolumeRequest {
        volume_id: args.id.to_string(),
        capacity_range,
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = daemon.controller().controller_expand_volume(request).await.map_err(refused)?.into_inner();
    let size = Bytes::try_from(grown.capacity_bytes).unwrap_or_default();
    if let Some(path) =
        app::mounts_of(config, args.id).await?.first().filter(|_| grown.node_expansion_required)
    {
        let request = NodeExpandVolumeRequest {
            volume_id: args.id.to_string(),
            volume_path: path.display().to_string(),
            capacity_range,
            ..NodeExpandVolumeRequest::default()
        };
        daemon.node().node_expand_volume(request).await.map_err(refused)?;
    }
    out::talk(&format!("{} is {size} long", args.id));
    Ok(())
}
