//! What a former tenant has written is in no new volume, and in no part that a volume grows by.

use std::{fs::File, os::unix::fs::FileExt};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, VolumeCapability, volume_capability::access_mode::Mode,
};

use crate::{
    group::{POOL, Small},
    requests::block,
    rig::{Daemon, Ground, Kind, MIB},
};

const MARKER: &[u8; 16] = b"a tenant's bytes";
const LENGTH_MIB: i64 = 96;
/// Blocks of the pool.
const BLOCK: u64 = 64 << 10;

fn length() -> u64 {
    u64::try_from(LENGTH_MIB * MIB).unwrap()
}

/// Fills a device with markers.
fn mark(path: &str) {
    let device = File::options().write(true).open(path).unwrap();
    let piece = MARKER.repeat((1 << 20) / MARKER.len());
    for offset in (0..length()).step_by(piece.len()) {
        device.write_all_at(&piece, offset).unwrap();
    }
    device.sync_all().unwrap();
}

/// Writes a little into each block of the pool, so that all of them are given out; markers that come with them.
fn found(path: &str) -> usize {
    let device = File::options().read(true).write(true).open(path).unwrap();
    for offset in (0..length()).step_by(usize::try_from(BLOCK).unwrap()) {
        device.write_all_at(&[0xaa; 4096], offset + 8192).unwrap();
    }
    device.sync_all().unwrap();
    let mut piece = vec![0; 1 << 20];
    let mut count = 0;
    for offset in (0..length()).step_by(piece.len()) {
        device.read_exact_at(&mut piece, offset).unwrap();
        count += piece.chunks(MARKER.len()).filter(|part| part == MARKER).count();
    }
    count
}

async fn fill(daemon: &mut Daemon, ground: &Ground, name: &str, how: &VolumeCapability) -> String {
    let id = daemon.create(name, LENGTH_MIB, how).await.volume_id;
    let path = daemon.show(ground, &id, name, how).await;
    mark(&path);
    assert_eq!(found(&path), markers_left(), "markers are found where they are");
    daemon.hide(ground, &id, name).await;
    id
}

/// How many of them a look leaves.
fn markers_left() -> usize {
    let bytes = usize::try_from(length() - length() / BLOCK * 4096).unwrap();
    bytes / MARKER.len()
}

#[tokio::test]
async fn a_former_tenants_bytes() {
    // So small that what is new lies where the old was.
    let _group = Small::new(160, 4);
    let ground = Ground::new(Kind::Lvm(Small::VG, POOL));
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeWriter);
    let old = fill(&mut daemon, &ground, "old", &how).await;
    daemon.delete(&old).await;
    let new = daemon.create("new", LENGTH_MIB, &how).await.volume_id;
    let path = daemon.show(&ground, &new, "new", &how).await;
    assert_eq!(found(&path), 0, "in a new volume");
    mark(&path);
    daemon.hide(&ground, &new, "new").await;
    daemon.delete(&new).await;

    let small = daemon.create("small", 4, &how).await.volume_id;
    let path = daemon.show(&ground, &small, "small", &how).await;
    let request = ControllerExpandVolumeRequest {
        volume_id: small.clone(),
        capacity_range: Some(CapacityRange { required_bytes: LENGTH_MIB * MIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    daemon.controller.controller_expand_volume(request).await.unwrap();
    assert_eq!(found(&path), 0, "in a grown volume");
    daemon.hide(&ground, &small, "small").await;
    daemon.delete(&small).await;
    ground.account();
    daemon.kill();
}
