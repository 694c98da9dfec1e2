//! Records of volumes and snapshots that are to be made.

use lagan::{
    bytes::Bytes,
    digest::Digest,
    id::{PoolId, SnapshotId, VolumeId},
    pool::record::{Asked, Content, Snapshot, Source, Timestamp, Volume},
};

pub(crate) fn volume(
    pool: PoolId,
    name: &str,
    size: Bytes,
    content: Content,
    source: Option<Source>,
) -> Volume {
    Volume {
        id: VolumeId::random(pool),
        name: name.into(),
        size,
        content,
        block: content == Content::Raw,
        source,
        asked: Asked { required: Bytes::ZERO, limit: Bytes::ZERO, digest: Digest::of([]) },
        created: Timestamp::now(),
        grants: Vec::new(),
    }
}

pub(crate) fn snapshot_of(volume: &Volume, name: &str) -> Snapshot {
    Snapshot {
        id: SnapshotId::random(volume.id.pool),
        name: name.into(),
        volume: volume.id,
        size: volume.size,
        content: volume.content,
        block: volume.block,
        used: Bytes::ZERO,
        created: Timestamp::now(),
        group: None,
    }
}
