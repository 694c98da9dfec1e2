//! `lagan snapshot`: snapshots, through the daemon.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use super::{
    Common, Output, block_on,
    client::{Daemon, refused, with_progress},
    out,
};
use crate::{
    config::{Config, Mode},
    error::Result,
    id::{SnapshotId, VolumeId},
    proto::{self, CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest},
};

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// List snapshots.
    List {
        /// Only those of this volume.
        #[arg(long, value_name = "ID")]
        volume: Option<VolumeId>,
    },
    /// Show one snapshot.
    Show {
        /// Its id.
        id: SnapshotId,
    },
    /// Cut a snapshot of a volume.
    Create {
        /// Its name; the same name and volume again give the same snapshot.
        name: String,
        /// The volume.
        volume: VolumeId,
    },
    /// Delete a snapshot; volumes made from it stay.
    Delete {
        /// Its id.
        id: SnapshotId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

const COLUMNS: &[&str] = &["id", "volume", "size", "created"];

pub(super) fn run(common: &Common, command: SnapshotCommand) -> Result<ExitCode> {
    let config = common.load(Mode::All)?;
    let output = common.output;
    match command {
        SnapshotCommand::List { volume } => block_on(list(&config, volume, output))?,
        SnapshotCommand::Show { id } => block_on(show(&config, id, output))?,
        SnapshotCommand::Create { name, volume } => block_on(create(&config, name, volume, output))?,
        SnapshotCommand::Delete { id, yes } => {
            if !out::confirmed(&format!("snapshot {id} will be deleted"), yes) {
                return Ok(ExitCode::FAILURE);
            }
            block_on(async {
                let request =
                    DeleteSnapshotRequest { snapshot_id: id.to_string(), ..DeleteSnapshotRequest::default() };
                Daemon::connect(&config).await?.controller().delete_snapshot(request).await.map_err(refused)
            })?;
            out::talk("deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(snapshot: &proto::Snapshot, output: Output) -> [Value; 4] {
    let created = snapshot.creation_time.and_then(|time| {
        let seconds = std::time::Duration::from_secs(u64::try_from(time.seconds).ok()?);
        Some(humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + seconds).to_string())
    });
    [
        snapshot.snapshot_id.as_str().into(),
        snapshot.source_volume_id.as_str().into(),
        out::size(snapshot.size_bytes, output),
        created.into(),
    ]
}

fn print(snapshots: &[proto::Snapshot], output: Output) -> Result<()> {
    let mut rows = out::Rows::new(COLUMNS);
    for snapshot in snapshots {
        rows.add(row(snapshot, output));
    }
    rows.print(output)
}

async fn list(config: &Config, volume: Option<VolumeId>, output: Output) -> Result<()> {
    let mut controller = Daemon::connect(config).await?.controller();
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
            return print(&all, output);
        }
    }
}

async fn show(config: &Config, id: SnapshotId, output: Output) -> Result<()> {
    let request = GetSnapshotRequest { snapshot_id: id.to_string(), ..GetSnapshotRequest::default() };
    let answer = Daemon::connect(config).await?.controller().get_snapshot(request).await.map_err(refused)?;
    print(&answer.into_inner().snapshot.into_iter().collect::<Vec<_>>(), output)
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
    print(&answer.snapshot.into_iter().collect::<Vec<_>>(), output)
}
