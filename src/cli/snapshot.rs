//! `lagan snapshot`: snapshots, through the daemon.

use std::{process::ExitCode, str::FromStr};

use clap::Subcommand;
use serde_json::Value;

use super::{
    Common, Output, block_on,
    client::{Daemon, refused, with_progress},
    out,
};
use crate::{
    config::{Config, Mode},
    error::{Error, ErrorKind, Result},
    id::{BadId, GroupId, SnapshotId, VolumeId},
    proto::{
        self, CreateSnapshotRequest, CreateVolumeGroupSnapshotRequest, DeleteSnapshotRequest,
        DeleteVolumeGroupSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest,
    },
};

/// A snapshot, or a group of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    One(SnapshotId),
    Group(GroupId),
}

impl FromStr for Subject {
    type Err = BadId;

    fn from_str(text: &str) -> std::result::Result<Self, BadId> {
        text.parse().map(Self::Group).or_else(|_not_one| text.parse().map(Self::One))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// List snapshots.
    List {
        /// Only those of this volume.
        #[arg(long, value_name = "ID")]
        volume: Option<VolumeId>,
    },
    /// Show one snapshot, or those of a group.
    Show {
        /// Its id.
        id: Subject,
    },
    /// Cut a snapshot of a volume, or a group of snapshots of several at one instant.
    Create {
        /// Its name; the same name and volumes again give the same snapshots.
        name: String,
        /// The volume; several make a group.
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<VolumeId>,
    },
    /// Delete a snapshot, or a group with all of its; volumes made from them stay.
    Delete {
        /// Its id.
        id: Subject,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

const COLUMNS: &[&str] = &["id", "volume", "size", "created", "group"];

pub(super) fn run(common: &Common, command: SnapshotCommand) -> Result<ExitCode> {
    let config = common.load(Mode::All)?;
    let output = common.output;
    match command {
        SnapshotCommand::List { volume } => block_on(listed(&config, volume, output))?.print(output)?,
        SnapshotCommand::Show { id } => block_on(show(&config, id, output))?,
        SnapshotCommand::Create { name, volumes } => match *volumes {
            [volume] => block_on(create(&config, name, volume, output))?,
            _ => block_on(create_group(&config, name, &volumes, output))?,
        },
        SnapshotCommand::Delete { id, yes } => {
            let what = match id {
                Subject::One(id) => format!("snapshot {id} will be deleted"),
                Subject::Group(id) => format!("group {id} will be deleted with all its snapshots"),
            };
            if !out::confirmed(&what, yes) {
                return Ok(ExitCode::FAILURE);
            }
            block_on(delete(&config, id))?;
            out::talk("deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(snapshot: &proto::Snapshot, output: Output) -> [Value; 5] {
    let created = snapshot.creation_time.and_then(|time| {
        let seconds = std::time::Duration::from_secs(u64::try_from(time.seconds).ok()?);
        Some(humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + seconds).to_string())
    });
    [
        snapshot.snapshot_id.as_str().into(),
        snapshot.source_volume_id.as_str().into(),
        out::size(snapshot.size_bytes, output),
        created.into(),
        snapshot.group_snapshot_id.as_str().into(),
    ]
}

fn rows(snapshots: &[proto::Snapshot], output: Output) -> out::Rows {
    let mut rows = out::Rows::new(COLUMNS);
    for snapshot in snapshots {
        rows.add(row(snapshot, output));
    }
    rows
}

pub(super) async fn listed(config: &Config, volume: Option<VolumeId>, output: Output) -> Result<out::Rows> {
    Ok(rows(&all(&Daemon::connect(config).await?, volume).await?, output))
}

async fn all(daemon: &Daemon, volume: Option<VolumeId>) -> Result<Vec<proto::Snapshot>> {
    let mut controller = daemon.controller();
    let mut all = Vec::new();
    let mut starting_token = String::new();
    loop {
        let request = ListSnapshotsRequest {
            max_entries: 1000,
            starting_token,
            source_volume_id: volume.map(|volume| volume.to_string()).unwrap_or_default(),
            ..ListSnapshotsRequest::default()
        };
        let page = controller.list_snapshots(request).await.map_err(refused)?.into_inner();
        all.extend(page.entries.into_iter().filter_map(|entry| entry.snapshot));
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Ok(all);
        }
    }
}

/// The snapshots of a group: CSI asks for them together with it, so they are looked for first.
async fn members(daemon: &Daemon, id: GroupId) -> Result<Vec<proto::Snapshot>> {
    let group = id.to_string();
    let members: Vec<_> =
        all(daemon, None).await?.into_iter().filter(|it| it.group_snapshot_id == group).collect();
    if members.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("group {id} does not exist")));
    }
    Ok(members)
}

async fn show(config: &Config, id: Subject, output: Output) -> Result<()> {
    let daemon = Daemon::connect(config).await?;
    match id {
        Subject::Group(id) => rows(&members(&daemon, id).await?, output).print(output),
        Subject::One(id) => {
            let request = GetSnapshotRequest { snapshot_id: id.to_string(), ..GetSnapshotRequest::default() };
            let answer = daemon.controller().get_snapshot(request).await.map_err(refused)?;
            rows(&answer.into_inner().snapshot.into_iter().collect::<Vec<_>>(), output).print(output)
        }
    }
}

async fn delete(config: &Config, id: Subject) -> Result<()> {
    let daemon = Daemon::connect(config).await?;
    match id {
        Subject::One(id) => {
            let request =
                DeleteSnapshotRequest { snapshot_id: id.to_string(), ..DeleteSnapshotRequest::default() };
            daemon.controller().delete_snapshot(request).await.map(drop).map_err(refused)
        }
        Subject::Group(id) => {
            let snapshot_ids = members(&daemon, id).await?.into_iter().map(|it| it.snapshot_id).collect();
            let request = DeleteVolumeGroupSnapshotRequest {
                group_snapshot_id: id.to_string(),
                snapshot_ids,
                ..DeleteVolumeGroupSnapshotRequest::default()
            };
            daemon.groups().delete_volume_group_snapshot(request).await.map(drop).map_err(refused)
        }
    }
}

async fn create(config: &Config, name: String, volume: VolumeId, output: Output) -> Result<()> {
    let mut controller = Daemon::connect(config).await?.controller();
    let request = CreateSnapshotRequest {
        name: name.clone(),
        source_volume_id: volume.to_string(),
        ..CreateSnapshotRequest::default()
    };
    let call = controller.create_snapshot(request);
    let answer = with_progress(config, &name, call).await.map_err(refused)?.into_inner();
    rows(&answer.snapshot.into_iter().collect::<Vec<_>>(), output).print(output)
}

async fn create_group(config: &Config, name: String, volumes: &[VolumeId], output: Output) -> Result<()> {
    let mut groups = Daemon::connect(config).await?.groups();
    let request = CreateVolumeGroupSnapshotRequest {
        name: name.clone(),
        source_volume_ids: volumes.iter().map(VolumeId::to_string).collect(),
        ..CreateVolumeGroupSnapshotRequest::default()
    };
    let call = groups.create_volume_group_snapshot(request);
    let answer = with_progress(config, &name, call).await.map_err(refused)?.into_inner();
    rows(&answer.group_snapshot.map(|group| group.snapshots).unwrap_or_default(), output).print(output)
}
