//! How each call is made.

use std::path::Path;

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, GetCapacityRequest, ListSnapshotsRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
};
use tonic::{Code, Status};

use super::{
    From, Kind, Life,
    Operation::{
        self, Capacity, Create, Cut, CutUsed, Delete, Get, Grant, Group, Grow, GrowNode, GrowUsed, Hide,
        List, ListSnapshots, Show, Stage, Stats, Uncut, Ungrant, UngrantShown, Ungroup, Unstage,
        UnstageShown,
    },
    capability, length,
};
use crate::{
    requests::{
        create_with, delete, from_snapshot, from_volume, hide_at, publish_with, show_at, stage_at, ungroup,
        unpublish_from, unstage_at,
    },
    rig::{Daemon, Ground, MIB, text},
};

impl Life {
    fn creation(&self, from: From) -> CreateVolumeRequest {
        let (size, kind, source) = match from {
            From::Nothing => (4 * MIB, Kind::Raw, None),
            From::Maker | From::MakerAndChecker => (self.fresh, Kind::Ext4, None),
            From::Template(kind) => (length(kind), kind, None),
            From::Volume => (8 * MIB, Kind::Raw, from_volume(&self.quiet)),
            From::Used => (16 * MIB, Kind::Ext4, from_volume(&self.used[0])),
            From::Snapshot => (4 * MIB, Kind::Raw, from_snapshot(&self.snapshot)),
        };
        CreateVolumeRequest { volume_content_source: source, ..create_with("made", size, &capability(kind)) }
    }

    /// Makes the call.
    pub(crate) async fn attempt(
        &mut self,
        ground: &Ground,
        daemon: &mut Daemon,
        operation: Operation,
    ) -> Result<(), Status> {
        let victim = self.victim.as_ref().map_or("", |victim| victim.id.as_str());
        let (staging, target) = (Self::staging(ground), Self::target(ground));
        let how = self.victim.as_ref().map(|victim| capability(victim.kind)).unwrap_or_default();
        let (controller, node) = (&mut daemon.controller, &mut daemon.node);
        match operation {
            Create(from) => {
                let volume = controller.create_volume(self.creation(from)).await?.into_inner().volume;
                self.made = Some(volume.unwrap().volume_id);
            }
            Cut => self.made = Some(daemon.snapshot(&self.quiet, "cut").await?.snapshot_id),
            CutUsed => self.made = Some(daemon.snapshot(&self.used[0], "cut").await?.snapshot_id),
            Uncut => uncut(daemon, self.doomed.as_ref().unwrap()).await?,
            Group => {
                let used: Vec<_> = self.used.iter().map(String::as_str).collect();
                self.made_group = Some(daemon.group(&used, "group").await?);
            }
            Ungroup => {
                let request = ungroup(self.doomed_group.as_ref().unwrap());
                daemon.groups.delete_volume_group_snapshot(request).await?;
            }
            Grant => drop(controller.controller_publish_volume(publish_with(victim, &how)).await?),
            Ungrant => drop(controller.controller_unpublish_volume(unpublish_from(victim, "")).await?),
            Stage(_) => drop(node.node_stage_volume(stage_at(victim, &staging, &how)).await?),
            Unstage(_) => drop(node.node_unstage_volume(unstage_at(victim, &staging)).await?),
            Show(kind) => {
                let request = show_at(victim, &staging, &target, &how);
                let readonly = kind == Kind::Face;
                node.node_publish_volume(NodePublishVolumeRequest { readonly, ..request }).await?;
            }
            Hide(_) => drop(node.node_unpublish_volume(hide_at(victim, &target)).await?),
            Stats => drop(node.node_get_volume_stats(stats_of(victim, &target)).await?),
            Grow | GrowUsed => {
                let size = self.victim.as_ref().unwrap().size;
                controller.controller_expand_volume(grow_to(victim, size)).await?;
            }
            GrowNode(_) => drop(node.node_expand_volume(grow_at(victim, &target)).await?),
            Delete => drop(controller.delete_volume(delete(victim)).await?),
            UnstageShown(_) => {
                self.refused(node.node_unstage_volume(unstage_at(victim, &staging)).await.map(drop))?
            }
            UngrantShown(_) => {
                let answer = controller.controller_unpublish_volume(unpublish_from(victim, "")).await;
                self.refused(answer.map(drop))?;
            }
            List | ListSnapshots | Capacity | Get => self.ask(daemon, operation).await?,
        }
        Ok(())
    }

    /// The right answer to what must not be done.
    fn refused(&mut self, answer: Result<(), Status>) -> Result<(), Status> {
        self.allowed = answer.is_ok();
        match answer {
            Err(status) if status.code() != Code::FailedPrecondition => Err(status),
            _ => Ok(()),
        }
    }

    /// Calls that only ask. A wrong answer is worse than none.
    async fn ask(&self, daemon: &mut Daemon, operation: Operation) -> Result<(), Status> {
        let controller = &mut daemon.controller;
        match operation {
            List => {
                let listed =
                    controller.list_volumes(ListVolumesRequest::default()).await?.into_inner().entries;
                let ids: Vec<_> =
                    listed.into_iter().filter_map(|entry| entry.volume).map(|it| it.volume_id).collect();
                assert!(ids.contains(&self.quiet) && ids.contains(&self.used[0]), "a volume is not listed");
            }
            ListSnapshots => {
                let listed =
                    controller.list_snapshots(ListSnapshotsRequest::default()).await?.into_inner().entries;
                let found = listed.into_iter().filter_map(|entry| entry.snapshot);
                assert!(
                    found.into_iter().any(|it| it.snapshot_id == self.snapshot),
                    "a snapshot is not listed"
                );
            }
            Capacity => {
                let answer = controller.get_capacity(GetCapacityRequest::default()).await?.into_inner();
                assert!(answer.available_capacity > 0, "no capacity");
            }
            _ => {
                let request = ControllerGetVolumeRequest { volume_id: self.quiet.clone() };
                let volume = controller.controller_get_volume(request).await?.into_inner().volume.unwrap();
                assert_eq!(volume.volume_id, self.quiet);
            }
        }
        Ok(())
    }
}

pub(super) async fn uncut(daemon: &mut Daemon, id: &str) -> Result<(), Status> {
    let request = DeleteSnapshotRequest { snapshot_id: id.into(), ..DeleteSnapshotRequest::default() };
    daemon.controller.delete_snapshot(request).await.map(drop)
}

pub(super) fn grow_to(id: &str, size: i64) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    }
}

fn grow_at(id: &str, path: &str) -> NodeExpandVolumeRequest {
    NodeExpandVolumeRequest {
        volume_id: id.into(),
        volume_path: text(Path::new(path)),
        ..NodeExpandVolumeRequest::default()
    }
}

fn stats_of(id: &str, path: &str) -> NodeGetVolumeStatsRequest {
    NodeGetVolumeStatsRequest {
        volume_id: id.into(),
        volume_path: path.into(),
        ..NodeGetVolumeStatsRequest::default()
    }
}
