//! What a former tenant has written is in no new volume, and in no part that a volume grows by.

use std::{fs::File, os::unix::fs::FileExt};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, VolumeCapability, volume_capability::access_mode::Mode,
};

use crate::{
    disks::Disk,
    group::{POOL, Small},
    requests::block,
    rig::{Daemon, Ground, HTTP, Kind, MIB},
};

const MARKER: &[u8; 16] = b"a tenant's bytes";
const LENGTH_MIB: i64 = 96;
/// The shortest blocks of a pool.
const BLOCK: u64 = 64 << 10;

fn length() -> u64 {
    u64::try_from(LENGTH_MIB * MIB).unwrap()
}

/// Fills a device with markers.
fn mark(path: &str) {
    fill_with(MARKER, path, length());
}

fn fill_with(pattern: &[u8], path: &str, length: u64) {
    let device = File::options().write(true).open(path).unwrap();
    let piece = pattern.repeat((1 << 20) / pattern.len());
    for offset in (0..length).step_by(piece.len()) {
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

async fn used_by_a_tenant(
    daemon: &mut Daemon,
    ground: &Ground,
    name: &str,
    how: &VolumeCapability,
) -> String {
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
    found_by_nobody(&Ground::new(Kind::Lvm(Small::VG, POOL))).await;
}

#[tokio::test]
async fn a_former_tenants_bytes_on_a_disk() {
    let (disk, mut ground) = Disk::with_pool(1024);
    ground.http = HTTP;
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeWriter);
    // Somebody has the rest, but for as much as above.
    let free = i64::try_from(daemon.metric("lagan_pool_bytes_free{pool=\"p\"}")).unwrap();
    let rest = free / MIB - 160;
    let id = daemon.create("rest", rest, &how).await.volume_id;
    let shown = daemon.show(&ground, &id, "rest", &how).await;
    fill_with(&[0x5a; 16], &shown, u64::try_from(rest * MIB).unwrap());
    daemon.kill();
    found_by_nobody(&ground).await;
    let mut daemon = ground.start().await;
    daemon.hide(&ground, &id, "rest").await;
    daemon.delete(&id).await;
    daemon.kill();
    disk.retire(&ground);
}

async fn found_by_nobody(ground: &Ground) {
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeWriter);
    let old = used_by_a_tenant(&mut daemon, ground, "old", &how).await;
    daemon.delete(&old).await;
    let new = daemon.create("new", LENGTH_MIB, &how).await.volume_id;
    let path = daemon.show(ground, &new, "new", &how).await;
    assert_eq!(found(&path), 0, "in a new volume");
    mark(&path);
    daemon.hide(ground, &new, "new").await;
    daemon.delete(&new).await;

    let small = daemon.create("small", 4, &how).await.volume_id;
    let path = daemon.show(ground, &small, "small", &how).await;
    let request = ControllerExpandVolumeRequest {
        volume_id: small.clone(),
        capacity_range: Some(CapacityRange { required_bytes: LENGTH_MIB * MIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    daemon.controller.controller_expand_volume(request).await.unwrap();
    assert_eq!(found(&path), 0, "in a grown volume");
    daemon.hide(ground, &small, "small").await;
    daemon.delete(&small).await;
    ground.account();
    daemon.kill();
}
