//! Values as messages.

use std::collections::BTreeMap;

use super::Topology;
use crate::{
    engine::groups::WholeGroup,
    node::{Amounts, StorageIllness, VolumeUsage},
    pool::{
        Severity, Trouble,
        record::{Snapshot, Source, Timestamp, Volume},
    },
    proto::{self, volume_content_source, volume_usage::Unit},
};

pub(super) fn volume(volume: &Volume, topology: &Topology) -> proto::Volume {
    let source = volume.source.map(|source| match source {
        Source::Snapshot(id) => {
            let snapshot_id = id.to_string();
            volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource { snapshot_id })
        }
        Source::Volume(id) => {
            let volume_id = id.to_string();
            volume_content_source::Type::Volume(volume_content_source::VolumeSource { volume_id })
        }
    });
    proto::Volume {
        capacity_bytes: volume.size.signed(),
        volume_id: volume.id.to_string(),
        // For people: orchestrators show it beside the id.
        volume_context: BTreeMap::from([("name".to_owned(), volume.name.clone())]),
        content_source: source.map(|source| proto::VolumeContentSource { r#type: Some(source) }),
        accessible_topology: vec![topology.accessible()],
    }
}

/// Nodes that a volume is published to.
pub(super) fn published(volume: &Volume) -> Vec<String> {
    volume.grants.iter().map(|grant| grant.node.to_string()).collect()
}

pub(super) fn snapshot(snapshot: &Snapshot, topology: &Topology) -> proto::Snapshot {
    proto::Snapshot {
        size_bytes: snapshot.size.signed(),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.volume.to_string(),
        creation_time: Some(timestamp(snapshot.created)),
        // It is listed when it is cut, and can be cloned from then on.
        ready_to_use: true,
        group_snapshot_id: snapshot.group.map(|group| group.to_string()).unwrap_or_default(),
        accessible_topology: vec![topology.accessible()],
    }
}

pub(super) fn group(whole: &WholeGroup, topology: &Topology) -> proto::VolumeGroupSnapshot {
    proto::VolumeGroupSnapshot {
        group_snapshot_id: whole.group.id.to_string(),
        snapshots: whole.snapshots.iter().map(|member| snapshot(member, topology)).collect(),
        creation_time: Some(timestamp(whole.group.created)),
        ready_to_use: true,
    }
}

const fn timestamp(moment: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: moment.secs, nanos: moment.nanos }
}

pub(super) fn health(volume_id: String, troubles: &[Trouble]) -> proto::VolumeHealth {
    let mut health_statuses = Vec::new();
    let mut seen = Vec::new();
    for trouble in troubles {
        let status = match trouble.severity {
            Severity::Degraded => proto::VolumeHealthErrorType::Degraded,
            Severity::Inaccessible => proto::VolumeHealthErrorType::Inaccessible,
            Severity::DataLoss => proto::VolumeHealthErrorType::DataLoss,
        };
        // A pair of status and reason stands once in an answer.
        if seen.contains(&(status, trouble.reason)) {
            continue;
        }
        seen.push((status, trouble.reason));
        health_statuses.push(proto::volume_health::VolumeHealthEntry {
            status: status.into(),
            reason: trouble.reason.to_owned(),
            message: trouble.message.clone(),
        });
    }
    proto::VolumeHealth { volume_id, health_statuses }
}

pub(super) fn storage_health(
    illnesses: Vec<StorageIllness>,
) -> Vec<proto::node_get_storage_health_response::StorageBackendHealth> {
    let mut entries: Vec<proto::node_get_storage_health_response::StorageBackendHealth> = Vec::new();
    for illness in illnesses {
        let status = match illness.severity {
            Severity::Degraded => proto::StorageHealthErrorType::StorageDegraded,
            Severity::Inaccessible | Severity::DataLoss => proto::StorageHealthErrorType::StorageUnreachable,
        };
        // Several pools with one trouble are one entry: a pair of status and reason stands once.
        let same = entries.iter_mut().find(|e| e.status == i32::from(status) && e.reason == illness.reason);
        if let Some(entry) = same {
            entry.message = format!("{}; {}", entry.message, illness.message);
            continue;
        }
        entries.push(proto::node_get_storage_health_response::StorageBackendHealth {
            status: status.into(),
            reason: illness.reason.to_owned(),
            message: illness.message,
            volume_capability: None,
        });
    }
    entries
}

pub(super) fn usage(usage: &VolumeUsage) -> Vec<proto::VolumeUsage> {
    let amounts = |amounts: Amounts, unit: Unit| proto::VolumeUsage {
        available: signed(amounts.available),
        total: signed(amounts.total),
        used: signed(amounts.used),
        unit: unit.into(),
    };
    match usage {
        VolumeUsage::Filesystem(usage) => {
            vec![amounts(usage.bytes, Unit::Bytes), amounts(usage.inodes, Unit::Inodes)]
        }
        VolumeUsage::Block(size) => {
            vec![amounts(Amounts { total: size.get(), ..Amounts::default() }, Unit::Bytes)]
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
