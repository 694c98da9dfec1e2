//! `lagan volume`: volumes, through the daemon.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Common, Output, block_on,
    client::{Daemon, refused, with_progress},
    import::{ImportArgs, import},
    mount::{self, GrowArgs, MountArgs, UnmountArgs},
    out,
};
use crate::{
    app,
    bytes::Bytes,
    config::{Config, Mode},
    error::{Doing, Error, ErrorKind, Result},
    filesystem::Filesystem,
    id::{NodeId, PoolName, SnapshotId, VolumeId},
    proto::{
        self, CapacityRange, ControllerGetVolumeHealthRequest, ControllerGetVolumeRequest,
        ControllerGetVolumeResponse, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
        DeleteVolumeRequest, ListVolumesRequest, VolumeCapability, VolumeContentSource, volume_capability,
        volume_content_source,
    },
    sys::grow,
};

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// List all volumes.
    List,
    /// Show one volume, and what ails it.
    Show {
        /// Its id.
        id: VolumeId,
    },
    /// Create a volume.
    Create(CreateArgs),
    /// Make a volume of what is not Lagan's: a thin volume of LVM, a thin device, any device or file. It stays as it is.
    Import(ImportArgs),
    /// Delete a volume and all that is in it.
    Delete {
        /// Its id.
        id: VolumeId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Use a volume on this host, where no orchestrator does it.
    Mount(MountArgs),
    /// The way back.
    Unmount(UnmountArgs),
    /// Make a volume longer, in use or not.
    Grow(GrowArgs),
    /// Take back the right of a node to use a volume, where the orchestrator that gave it is no more. What is in use
    /// stays.
    Unpublish {
        /// Its id.
        id: VolumeId,
        /// Which node [default: every one].
        #[arg(long)]
        node: Option<NodeId>,
    },
    /// Give the free space of a mounted volume's filesystem back to its pool.
    Trim {
        /// Its id.
        id: VolumeId,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Its name; the same name and arguments again give the same volume.
    name: String,
    /// Its length, such as 10GiB [default: 1GiB, or that of its source].
    #[arg(long)]
    size: Option<Bytes>,
    /// Its filesystem [default: ext4, or that of its source].
    #[arg(long, conflicts_with = "block")]
    fstype: Option<Filesystem>,
    /// Make it a raw block device.
    #[arg(long)]
    block: bool,
    /// Pool to cut it from [default: the first one].
    #[arg(long)]
    pool: Option<PoolName>,
    /// Begin as a copy of this snapshot.
    #[arg(long, value_name = "ID", conflicts_with = "from_volume")]
    from_snapshot: Option<SnapshotId>,
    /// Begin as a copy of this volume.
    #[arg(long, value_name = "ID")]
    from_volume: Option<VolumeId>,
}

const COLUMNS: &[&str] = &["id", "name", "size", "nodes", "source"];

pub(super) fn run(common: &Common, command: VolumeCommand) -> Result<ExitCode> {
    let config = common.load(Mode::All)?;
    let output = common.output;
    match command {
        VolumeCommand::List => block_on(listed(&config, output))?.print(output)?,
        VolumeCommand::Show { id } => block_on(show(&config, id, output))?,
        VolumeCommand::Create(args) => block_on(create(&config, args, output))?,
        VolumeCommand::Import(args) => {
            let volume = block_on(import(&config, args))?;
            let mut rows = out::Rows::new(COLUMNS);
            rows.add(row(&volume, Vec::new(), output));
            rows.print(output)?;
        }
        VolumeCommand::Delete { id, yes } => return delete(&config, id, yes),
        VolumeCommand::Mount(args) => block_on(mount::mount(&config, args))?,
        VolumeCommand::Unmount(args) => block_on(mount::unmount(&config, args))?,
        VolumeCommand::Grow(args) => block_on(mount::grow(&config, args))?,
        VolumeCommand::Unpublish { id, node } => block_on(unpublish(&config, id, node))?,
        VolumeCommand::Trim { id } => trim(&config, id)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn delete(config: &Config, id: VolumeId, yes: bool) -> Result<ExitCode> {
    // A driver says yes to deleting what does not exist; a person has mistyped it.
    let volume =
        block_on(async { get(&Daemon::connect(config).await?, id).await })?.volume.unwrap_or_default();
    let name = volume.volume_context.get("name").map(String::as_str).unwrap_or_default();
    let size = Bytes::try_from(volume.capacity_bytes).unwrap_or_default();
    if !out::confirmed(&format!("volume {name:?} ({id}, {size}) and all that is in it will be deleted"), yes)
    {
        return Ok(ExitCode::FAILURE);
    }
    block_on(async {
        let request = DeleteVolumeRequest { volume_id: id.to_string(), ..DeleteVolumeRequest::default() };
        Daemon::connect(config).await?.controller().delete_volume(request).await.map_err(refused)
    })?;
    out::talk("deleted");
    Ok(ExitCode::SUCCESS)
}

async fn unpublish(config: &Config, id: VolumeId, node: Option<NodeId>) -> Result<()> {
    let daemon = Daemon::connect(config).await?;
    let nodes = get(&daemon, id).await?.status.unwrap_or_default().published_node_ids;
    let request = ControllerUnpublishVolumeRequest {
        volume_id: id.to_string(),
        node_id: node.map(|node| node.to_string()).unwrap_or_default(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    daemon.controller().controller_unpublish_volume(request).await.map_err(refused)?;
    out::talk(&format!("it was published to: {}", nodes.join(", ")));
    Ok(())
}

async fn get(daemon: &Daemon, id: VolumeId) -> Result<ControllerGetVolumeResponse> {
    let request = ControllerGetVolumeRequest { volume_id: id.to_string() };
    Ok(daemon.controller().controller_get_volume(request).await.map_err(refused)?.into_inner())
}

pub(super) async fn listed(config: &Config, output: Output) -> Result<out::Rows> {
    let mut controller = Daemon::connect(config).await?.controller();
    let mut rows = out::Rows::new(COLUMNS);
    let mut starting_token = String::new();
    loop {
        let request = ListVolumesRequest { max_entries: 1000, starting_token };
        let page = controller.list_volumes(request).await.map_err(refused)?.into_inner();
        for entry in page.entries {
            let nodes = entry.status.map(|status| status.published_node_ids).unwrap_or_default();
            rows.add(row(&entry.volume.unwrap_or_default(), nodes, output));
        }
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Ok(rows);
        }
    }
}

fn row(volume: &proto::Volume, nodes: Vec<String>, output: Output) -> [Value; 5] {
    let source = volume.content_source.as_ref().and_then(|source| source.r#type.as_ref());
    let source = source.map(|source| match source {
        volume_content_source::Type::Snapshot(source) => source.snapshot_id.clone(),
        volume_content_source::Type::Volume(source) => source.volume_id.clone(),
    });
    [
        volume.volume_id.as_str().into(),
        volume.volume_context.get("name").map_or(Value::Null, |name| name.as_str().into()),
        out::size(volume.capacity_bytes, output),
        nodes.into(),
        source.into(),
    ]
}

async fn show(config: &Config, id: VolumeId, output: Output) -> Result<()> {
    let daemon = Daemon::connect(config).await?;
    let answer = get(&daemon, id).await?;
    let request = ControllerGetVolumeHealthRequest {
        volume_id: id.to_string(),
        ..ControllerGetVolumeHealthRequest::default()
    };
    let health =
        daemon.controller().controller_get_volume_health(request).await.map_err(refused)?.into_inner();
    let nodes = answer.status.map(|status| status.published_node_ids).unwrap_or_default();
    let [id, name, size, nodes, source] = row(&answer.volume.unwrap_or_default(), nodes, output);
    let troubles = health.volume_health.unwrap_or_default().health_statuses;
    let health: Vec<Value> =
        troubles.iter().map(|trouble| json!(format!("{}: {}", trouble.reason, trouble.message))).collect();
    let mut rows = out::Rows::new(&["id", "name", "size", "nodes", "source", "health"]);
    let health = if health.is_empty() { json!("well") } else { health.into() };
    rows.add([id, name, size, nodes, source, health]);
    rows.print(output)
}

/// The request that the arguments mean.
pub(super) fn request(args: &CreateArgs) -> CreateVolumeRequest {
    let source = match (args.from_snapshot, args.from_volume) {
        (Some(id), _) => {
            let snapshot_id = id.to_string();
            Some(volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource { snapshot_id }))
        }
        (None, Some(id)) => {
            let volume_id = id.to_string();
            Some(volume_content_source::Type::Volume(volume_content_source::VolumeSource { volume_id }))
        }
        (None, None) => None,
    };
    let range = |size: Bytes| CapacityRange { required_bytes: size.signed(), limit_bytes: 0 };
    CreateVolumeRequest {
        name: args.name.clone(),
        capacity_range: args.size.map(range),
        volume_capabilities: vec![capability(args.block, args.fstype)],
        parameters: args.pool.iter().map(|pool| ("pool".to_owned(), pool.to_string())).collect(),
        volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
        ..CreateVolumeRequest::default()
    }
}

/// One node's use of a volume, raw or as a filesystem.
pub(super) fn capability(block: bool, fstype: Option<Filesystem>) -> VolumeCapability {
    let access_type = if block {
        volume_capability::AccessType::Block(volume_capability::BlockVolume {})
    } else {
        volume_capability::AccessType::Mount(volume_capability::MountVolume {
            fs_type: fstype.map(|fstype| fstype.to_string()).unwrap_or_default(),
            ..volume_capability::MountVolume::default()
        })
    };
    let mode = volume_capability::access_mode::Mode::SingleNodeMultiWriter.into();
    VolumeCapability {
        access_mode: Some(volume_capability::AccessMode { mode }),
        access_type: Some(access_type),
    }
}

async fn create(config: &Config, args: CreateArgs, output: Output) -> Result<()> {
    let mut controller = Daemon::connect(config).await?.controller();
    let call = controller.create_volume(request(&args));
    let answer = with_progress(config, &args.name, call).await.map_err(refused)?.into_inner();
    let mut rows = out::Rows::new(COLUMNS);
    rows.add(row(&answer.volume.unwrap_or_default(), Vec::new(), output));
    rows.print(output)
}

/// Trims the filesystem where it is mounted on this host; the kernel passes the discards down to the pool.
fn trim(config: &Config, id: VolumeId) -> Result<()> {
    let mounts = block_on(app::mounts_of(config, id))?;
    let Some(mount) = mounts.first() else {
        let what =
            format!("volume {id} is not mounted on this host: nothing knows which of its blocks are free");
        return Err(Error::new(ErrorKind::InUse, what));
    };
    let what = || format!("trim {}", mount.display());
    let directory = std::fs::File::open(mount).doing(what)?;
    let freed = grow::trim(&directory).doing(what)?;
    out::talk(&format!("{freed} of free space in {} discarded", mount.display()));
    Ok(())
}
