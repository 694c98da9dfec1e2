//! Requests as an orchestrator would send them, for every test that speaks CSI.

use lagan::proto::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest,
    CreateVolumeGroupSnapshotRequest, CreateVolumeRequest, DeleteVolumeGroupSnapshotRequest,
    DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource, VolumeGroupSnapshot,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use tonic::{Code, Response, Status};

/// Name of the one node.
pub(crate) const NODE: &str = "n1";

/// Expects the code of an answer; what an error says comes back.
#[track_caller]
pub(crate) fn check<T>(answer: Result<Response<T>, Status>, expected: Code) -> String {
    match answer {
        Ok(_) => {
            assert_eq!(expected, Code::Ok, "the call was answered");
            String::new()
        }
        Err(status) => {
            assert_eq!(status.code(), expected, "{}", status.message());
            assert!(!status.message().is_empty(), "an error says why");
            assert!(status.details().is_empty(), "details are empty");
            status.message().to_owned()
        }
    }
}

pub(crate) fn mount_with(mode: Mode, fs_type: &str, flags: &[&str]) -> VolumeCapability {
    let mount = MountVolume {
        fs_type: fs_type.into(),
        mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..MountVolume::default()
    };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

pub(crate) fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

pub(crate) fn create_with(name: &str, size: i64, capability: &VolumeCapability) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
        volume_capabilities: vec![capability.clone()],
        ..CreateVolumeRequest::default()
    }
}

pub(crate) fn from_snapshot(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })) })
}

pub(crate) fn from_volume(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.into() })) })
}

pub(crate) fn delete(id: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest { volume_id: id.into(), ..DeleteVolumeRequest::default() }
}

pub(crate) fn snapshot_of(volume: &str, name: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        name: name.into(),
        source_volume_id: volume.into(),
        ..CreateSnapshotRequest::default()
    }
}

pub(crate) fn group_of(volumes: &[&str], name: &str) -> CreateVolumeGroupSnapshotRequest {
    CreateVolumeGroupSnapshotRequest {
        name: name.into(),
        source_volume_ids: volumes.iter().map(|&id| id.to_owned()).collect(),
        ..CreateVolumeGroupSnapshotRequest::default()
    }
}

pub(crate) fn ungroup(group: &VolumeGroupSnapshot) -> DeleteVolumeGroupSnapshotRequest {
    DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        snapshot_ids: group.snapshots.iter().map(|member| member.snapshot_id.clone()).collect(),
        ..DeleteVolumeGroupSnapshotRequest::default()
    }
}

pub(crate) fn publish_with(id: &str, capability: &VolumeCapability) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: id.into(),
        node_id: NODE.into(),
        volume_capability: Some(capability.clone()),
        ..ControllerPublishVolumeRequest::default()
    }
}

pub(crate) fn unpublish_from(id: &str, node: &str) -> ControllerUnpublishVolumeRequest {
    ControllerUnpublishVolumeRequest {
        volume_id: id.into(),
        node_id: node.into(),
        ..ControllerUnpublishVolumeRequest::default()
    }
}

pub(crate) fn stage_at(id: &str, path: &str, capability: &VolumeCapability) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: id.into(),
        staging_target_path: path.into(),
        volume_capability: Some(capability.clone()),
        ..NodeStageVolumeRequest::default()
    }
}

pub(crate) fn unstage_at(id: &str, path: &str) -> NodeUnstageVolumeRequest {
    NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: path.into() }
}

pub(crate) fn show_at(
    id: &str,
    staging: &str,
    target: &str,
    capability: &VolumeCapability,
) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.into(),
        staging_target_path: staging.into(),
        target_path: target.into(),
        volume_capability: Some(capability.clone()),
        ..NodePublishVolumeRequest::default()
    }
}

pub(crate) fn hide_at(id: &str, target: &str) -> NodeUnpublishVolumeRequest {
    NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: target.into() }
}
