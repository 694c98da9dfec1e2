//! The calls of an orchestrator, sent and read.

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerPublishVolumeRequest,
    CreateVolumeRequest, DeleteSnapshotRequest, GetCapacityRequest, GetSnapshotRequest,
    GetVolumeGroupSnapshotRequest, ListSnapshotsRequest, ListVolumesRequest, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, TopologyRequirement, VolumeCapability,
    controller_client::ControllerClient, group_controller_client::GroupControllerClient,
    node_client::NodeClient, volume_capability::access_mode::Mode,
};
use tonic::Status;

use crate::{
    requests::{
        block, create_with, delete, from_snapshot, from_volume, group_of, hide_at, mount_with, publish_with,
        show_at, snapshot_of, stage_at, ungroup, unpublish_from, unstage_at,
    },
    shared::Way,
};

/// What a new volume begins as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Nothing,
    Snapshot(String),
    Volume(String),
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create { name: String, size: i64, raw: bool, from: From, place: TopologyRequirement },
    Delete { id: String },
    Get { id: String },
    Grow { id: String, size: i64 },
    Grant { id: String, node: String, raw: bool, reads: bool },
    Revoke { id: String, node: String },
    Stage { id: String, path: String, raw: bool },
    Unstage { id: String, path: String },
    Show { id: String, staging: String, target: String, raw: bool, reads: bool },
    Hide { id: String, target: String },
    Stats { id: String, target: String },
    GrowAt { id: String, target: String },
    Cut { name: String, volume: String },
    DeleteSnapshot { id: String },
    GetSnapshot { id: String },
    CutGroup { name: String, volumes: Vec<String> },
    DeleteGroup { id: String, members: Vec<String> },
    GetGroup { id: String, members: Vec<String> },
}

/// What an answer says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) id: Option<String>,
    pub(crate) size: Option<i64>,
    pub(crate) granted: Option<bool>,
    /// Of a group, with their volumes.
    pub(crate) members: Vec<(String, String)>,
}

pub(crate) fn capability(raw: bool) -> VolumeCapability {
    let mode = Mode::SingleNodeWriter;
    if raw { block(mode) } else { mount_with(mode, "", &[]) }
}

fn range(size: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes: size, limit_bytes: 0 })
}

impl Call {
    /// Makes the call.
    pub(crate) async fn send(self, way: Way) -> Result<Said, Status> {
        match self {
            Self::CutGroup { .. } | Self::DeleteGroup { .. } | Self::GetGroup { .. } => {
                self.of_groups(way).await
            }
            Self::Stage { .. }
            | Self::Unstage { .. }
            | Self::Show { .. }
            | Self::Hide { .. }
            | Self::Stats { .. }
            | Self::GrowAt { .. } => self.of_node(way).await,
            Self::Cut { .. } | Self::DeleteSnapshot { .. } | Self::GetSnapshot { .. } => {
                self.of_snapshots(way).await
            }
            _ => self.of_volumes(way).await,
        }
    }

    async fn of_volumes(self, way: Way) -> Result<Said, Status> {
        let mut client = ControllerClient::new(way);
        match self {
            Self::Create { name, size, raw, from, place } => {
                let request = CreateVolumeRequest {
                    volume_content_source: match from {
                        From::Nothing => None,
                        From::Snapshot(id) => from_snapshot(&id),
                        From::Volume(id) => from_volume(&id),
                    },
                    accessibility_requirements: Some(place),
                    ..create_with(&name, size, &capability(raw))
                };
                let volume = client.create_volume(request).await?.into_inner().volume.unwrap();
                Ok(Said { id: Some(volume.volume_id), size: Some(volume.capacity_bytes), ..Said::default() })
            }
            Self::Delete { id } => client.delete_volume(delete(&id)).await.map(|_| Said::default()),
            Self::Get { id } => {
                let request = ControllerGetVolumeRequest { volume_id: id };
                let found = client.controller_get_volume(request).await?.into_inner();
                let (volume, status) = (found.volume.unwrap(), found.status.unwrap());
                Ok(Said {
                    id: Some(volume.volume_id),
                    size: Some(volume.capacity_bytes),
                    granted: Some(!status.published_node_ids.is_empty()),
                    ..Said::default()
                })
            }
            Self::Grow { id, size } => {
                let request = ControllerExpandVolumeRequest {
                    volume_id: id,
                    capacity_range: range(size),
                    ..ControllerExpandVolumeRequest::default()
                };
                let grown = client.controller_expand_volume(request).await?.into_inner();
                Ok(Said { size: Some(grown.capacity_bytes), ..Said::default() })
            }
            Self::Grant { id, node, raw, reads } => {
                let request = ControllerPublishVolumeRequest {
                    node_id: node,
                    readonly: reads,
                    ..publish_with(&id, &capability(raw))
                };
                client.controller_publish_volume(request).await.map(|_| Said::default())
            }
            Self::Revoke { id, node } => {
                client.controller_unpublish_volume(unpublish_from(&id, &node)).await.map(|_| Said::default())
            }
            other => unreachable!("{other:?}"),
        }
    }

    async fn of_snapshots(self, way: Way) -> Result<Said, Status> {
        let mut client = ControllerClient::new(way);
        match self {
            Self::Cut { name, volume } => {
                let cut = client.create_snapshot(snapshot_of(&volume, &name)).await?.into_inner();
                let cut = cut.snapshot.unwrap();
                Ok(Said { id: Some(cut.snapshot_id), size: Some(cut.size_bytes), ..Said::default() })
            }
            Self::DeleteSnapshot { id } => {
                let request = DeleteSnapshotRequest { snapshot_id: id, ..DeleteSnapshotRequest::default() };
                client.delete_snapshot(request).await.map(|_| Said::default())
            }
            Self::GetSnapshot { id } => {
                let request = GetSnapshotRequest { snapshot_id: id, ..GetSnapshotRequest::default() };
                let found = client.get_snapshot(request).await?.into_inner().snapshot.unwrap();
                let granted = Some(false);
                Ok(Said {
                    id: Some(found.snapshot_id),
                    size: Some(found.size_bytes),
                    granted,
                    ..Said::default()
                })
            }
            other => unreachable!("{other:?}"),
        }
    }

    async fn of_groups(self, way: Way) -> Result<Said, Status> {
        let mut client = GroupControllerClient::new(way);
        let group = match self {
            Self::CutGroup { name, volumes } => {
                let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
                let made = client.create_volume_group_snapshot(group_of(&volumes, &name)).await?;
                made.into_inner().group_snapshot.unwrap()
            }
            Self::GetGroup { id, members } => {
                let request = GetVolumeGroupSnapshotRequest {
                    group_snapshot_id: id,
                    snapshot_ids: members,
                    ..GetVolumeGroupSnapshotRequest::default()
                };
                let found = client.get_volume_group_snapshot(request).await?.into_inner();
                let group = found.group_snapshot.unwrap();
                return Ok(Said {
                    id: Some(group.group_snapshot_id),
                    granted: Some(false),
                    ..Said::default()
                });
            }
            Self::DeleteGroup { id, members } => {
                let member =
                    |id: &String| lagan::proto::Snapshot { snapshot_id: id.clone(), ..Default::default() };
                let group = lagan::proto::VolumeGroupSnapshot {
                    group_snapshot_id: id,
                    snapshots: members.iter().map(member).collect(),
                    ..Default::default()
                };
                client.delete_volume_group_snapshot(ungroup(&group)).await?;
                return Ok(Said::default());
            }
            other => unreachable!("{other:?}"),
        };
        let members = group.snapshots.into_iter().map(|it| (it.snapshot_id, it.source_volume_id)).collect();
        Ok(Said { id: Some(group.group_snapshot_id), members, ..Said::default() })
    }

    async fn of_node(self, way: Way) -> Result<Said, Status> {
        let mut client = NodeClient::new(way);
        match self {
            Self::Stage { id, path, raw } => {
                client.node_stage_volume(stage_at(&id, &path, &capability(raw))).await.map(drop)
            }
            Self::Unstage { id, path } => client.node_unstage_volume(unstage_at(&id, &path)).await.map(drop),
            Self::Show { id, staging, target, raw, reads } => {
                let request = NodePublishVolumeRequest {
                    readonly: reads,
                    ..show_at(&id, &staging, &target, &capability(raw))
                };
                client.node_publish_volume(request).await.map(drop)
            }
            Self::Hide { id, target } => client.node_unpublish_volume(hide_at(&id, &target)).await.map(drop),
            Self::Stats { id, target } => {
                let request = NodeGetVolumeStatsRequest {
                    volume_id: id,
                    volume_path: target,
                    ..NodeGetVolumeStatsRequest::default()
                };
                client.node_get_volume_stats(request).await.map(drop)
            }
            Self::GrowAt { id, target } => {
                let request = NodeExpandVolumeRequest {
                    volume_id: id,
                    volume_path: target,
                    ..NodeExpandVolumeRequest::default()
                };
                client.node_expand_volume(request).await.map(drop)
            }
            other => unreachable!("{other:?}"),
        }
        .map(|()| Said::default())
    }
}

/// Everything that a list has, page by page: id, size, whether it is granted.
pub(crate) async fn list_volumes(way: Way, page: i32) -> Result<Vec<(String, i64, bool)>, Status> {
    let mut client = ControllerClient::new(way);
    let (mut found, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries: page, starting_token };
        let answer = client.list_volumes(request).await?.into_inner();
        for entry in answer.entries {
            let (volume, status) = (entry.volume.unwrap(), entry.status.unwrap());
            found.push((volume.volume_id, volume.capacity_bytes, !status.published_node_ids.is_empty()));
        }
        starting_token = answer.next_token;
        if starting_token.is_empty() {
            return Ok(found);
        }
    }
}

/// The same of snapshots: id, and that of the volume.
pub(crate) async fn list_snapshots(way: Way, page: i32) -> Result<Vec<(String, String)>, Status> {
    let mut client = ControllerClient::new(way);
    let (mut found, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request =
            ListSnapshotsRequest { max_entries: page, starting_token, ..ListSnapshotsRequest::default() };
        let answer = client.list_snapshots(request).await?.into_inner();
        for entry in answer.entries {
            let snapshot = entry.snapshot.unwrap();
            found.push((snapshot.snapshot_id, snapshot.source_volume_id));
        }
        starting_token = answer.next_token;
        if starting_token.is_empty() {
            return Ok(found);
        }
    }
}

/// The room of a host.
pub(crate) async fn capacity(way: Way) -> Result<i64, Status> {
    let answer = ControllerClient::new(way).get_capacity(GetCapacityRequest::default()).await?;
    Ok(answer.into_inner().available_capacity)
}
