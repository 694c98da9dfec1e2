//! Snapshots, restores and clones: byte for byte, of volumes in use, side by side.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use lagan::proto::{DeleteSnapshotRequest, volume_capability::access_mode::Mode};
use tonic::Code;

use crate::{
    requests::{block, check, delete, from_snapshot, from_volume, mount_with, snapshot_of},
    rig::{Daemon, Ground, Kind, filesystem, least, random, run, try_run, write},
};

/// What the host's own tool takes for the uuid of a volume's filesystem.
fn uuid(ground: &Ground, id: &str) -> String {
    run("blkid", &["-p", "-o", "value", "-s", "UUID", &ground.file_of(id).display().to_string()])
        .trim()
        .to_owned()
}

async fn forget(daemon: &mut Daemon, snapshot: &str) {
    let request = DeleteSnapshotRequest { snapshot_id: snapshot.into(), ..DeleteSnapshotRequest::default() };
    daemon.controller.delete_snapshot(request).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_of_a_volume_in_use_restores_byte_for_byte() {
    for kind in [Kind::Image, Kind::On("ext4"), Kind::On("btrfs")] {
        let ground = Ground::new(kind);
        let mut daemon = ground.start().await;
        for name in ["ext4", "xfs", "btrfs"] {
            let how = filesystem(name);
            let id = daemon.create(name, least(name), &how).await.volume_id;
            let target = daemon.show(&ground, &id, name, &how).await;
            let content = random(3 << 20);
            write(&Path::new(&target).join("flushed"), &content);
            // Written but not flushed by its writer: what was there before the call is in the snapshot too.
            fs::write(Path::new(&target).join("written"), &content[..4096]).unwrap();
            let snapshot = daemon.snapshot(&id, &format!("{name}-s")).await.unwrap().snapshot_id;
            write(&Path::new(&target).join("flushed"), b"overwritten");
            daemon.hide(&ground, &id, name).await;
            daemon.delete(&id).await;
            let restored = daemon.copy(&format!("{name}-r"), from_snapshot(&snapshot), &how).await.volume_id;
            let target = daemon.show(&ground, &restored, "restored", &how).await;
            let read = |file: &str| fs::read(Path::new(&target).join(file)).unwrap();
            assert!(read("flushed") == content, "{name} on {kind:?}");
            assert!(read("written") == content[..4096], "{name} on {kind:?}");
            daemon.hide(&ground, &restored, "restored").await;
            daemon.delete(&restored).await;
            forget(&mut daemon, &snapshot).await;
        }
        ground.account();
    }
}

#[tokio::test]
async fn a_source_and_ten_clones_side_by_side() {
    for name in ["ext4", "xfs", "btrfs"] {
        let ground = Ground::sized(Kind::Image, 8192);
        let mut daemon = ground.start().await;
        let how = filesystem(name);
        let source = daemon.create("source", least(name), &how).await.volume_id;
        let target = daemon.show(&ground, &source, "source", &how).await;
        let content = random(1 << 20);
        write(&Path::new(&target).join("data"), &content);
        let mut uuids = HashSet::from([uuid(&ground, &source)]);
        let mut clones = Vec::new();
        for n in 0..10 {
            // The source stays mounted and dirty all the while.
            fs::write(Path::new(&target).join(format!("dirt{n}")), &content[..100_000]).unwrap();
            let clone = daemon.copy(&format!("c{n}"), from_volume(&source), &how).await.volume_id;
            let mode = if n % 3 == 2 { Mode::SingleNodeReaderOnly } else { Mode::SingleNodeMultiWriter };
            let shown = daemon.show(&ground, &clone, &format!("c{n}"), &mount_with(mode, name, &[])).await;
            assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content, "{name} clone {n}");
            uuids.insert(uuid(&ground, &clone));
            clones.push(clone);
        }
        assert_eq!(uuids.len(), 11, "{name}: every filesystem has an identity of its own: {uuids:?}");
        ground.account();
        for (n, clone) in clones.iter().enumerate() {
            daemon.hide(&ground, clone, &format!("c{n}")).await;
        }
        daemon.hide(&ground, &source, "source").await;
        // Each is sound by its own checker.
        let (checker, options): (_, &[&str]) = match name {
            "ext4" => ("e2fsck", &["-f", "-n"]),
            "xfs" => ("xfs_repair", &["-n"]),
            _ => ("btrfs", &["check", "--readonly"]),
        };
        for clone in &clones {
            let file = ground.file_of(clone).display().to_string();
            let (well, said) = try_run(checker, &[options, &[&file]].concat());
            assert!(well, "{name}: {said}");
            daemon.delete(clone).await;
        }
    }
}

#[tokio::test]
async fn a_raw_volume_in_use_where_blocks_cannot_be_shared() {
    let ground = Ground::new(Kind::On("ext4"));
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeMultiWriter);
    let id = daemon.create("raw", 8, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "raw", &how).await;
    let said =
        check(daemon.controller.create_snapshot(snapshot_of(&id, "s")).await, Code::FailedPrecondition);
    assert!(said.contains("unstage") && said.contains("xfs or btrfs"), "the remedy is named: {said}");
    let content = random(8192);
    let device = fs::File::options().write(true).open(&target).unwrap();
    device.write_all_at(&content, 4096).unwrap();
    device.sync_all().unwrap();
    drop(device);
    daemon.hide(&ground, &id, "raw").await;
    let snapshot = daemon.snapshot(&id, "s").await.unwrap().snapshot_id;
    let restored = daemon.copy("r", from_snapshot(&snapshot), &how).await.volume_id;
    assert!(fs::read(ground.file_of(&restored)).unwrap() == fs::read(ground.file_of(&id)).unwrap());
    ground.account();
}

/// A writer numbers its blocks in order, each durable before the next: a snapshot must hold a prefix of them.
#[tokio::test]
async fn a_reflink_of_a_raw_volume_in_use_is_one_instant() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeMultiWriter);
    let id = daemon.create("raw", 64, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "raw", &how).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = std::thread::spawn({
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        let device = fs::File::options().write(true).open(&target).unwrap();
        move || {
            let blocks = (64 << 20) / 4096;
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let block: Vec<u8> = number.to_le_bytes().repeat(512);
                device.write_all_at(&block, number % blocks * 4096).unwrap();
                device.sync_data().unwrap();
                written.store(number, Ordering::SeqCst);
            }
        }
    });
    for n in 0..10 {
        while written.load(Ordering::SeqCst) < (n + 1) * 20 {
            std::thread::yield_now();
        }
        let before = written.load(Ordering::SeqCst);
        let snapshot = daemon.snapshot(&id, &format!("s{n}")).await.unwrap().snapshot_id;
        let restored = daemon.copy(&format!("r{n}"), from_snapshot(&snapshot), &how).await.volume_id;
        let content = fs::read(ground.file_of(&restored)).unwrap();
        let numbers: Vec<u64> = content.chunks(4096).map(block_number).collect();
        let last = numbers.iter().copied().max().unwrap();
        assert!(last >= before, "acknowledged before the call: {before}, found: {last}");
        let expected = (1..=last).rev().take(numbers.len() - 1).collect::<HashSet<_>>();
        let found: HashSet<u64> = numbers.into_iter().filter(|number| *number > 0).collect();
        assert!(expected.is_subset(&found), "snapshot {n} is no prefix of what was written");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    daemon.hide(&ground, &id, "raw").await;
    ground.account();
}

/// The number that fills a block; a torn block fails.
fn block_number(block: &[u8]) -> u64 {
    let number = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(block.chunks(8).all(|part| part == &block[..8]), "a torn block");
    number
}

#[tokio::test]
async fn a_copy_may_be_larger_than_its_source() {
    let ground = Ground::sized(Kind::Image, 8192);
    let mut daemon = ground.start().await;
    for name in ["xfs", "btrfs"] {
        let how = filesystem(name);
        let id = daemon.create(name, least(name), &how).await.volume_id;
        let snapshot = daemon.snapshot(&id, name).await.unwrap().snapshot_id;
        let mut request = crate::requests::create_with(&format!("{name}-large"), 1 << 30, &how);
        request.volume_content_source = from_snapshot(&snapshot);
        let large = daemon.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
        assert_eq!(large.capacity_bytes, 1 << 30);
        let target = daemon.show(&ground, &large.volume_id, "large", &how).await;
        let size: u64 =
            run("df", &["--output=size", "-B1", &target]).lines().last().unwrap().trim().parse().unwrap();
        assert!(size > 900 << 20, "{name}: {size}");
        daemon.hide(&ground, &large.volume_id, "large").await;
        daemon.delete(&large.volume_id).await;
    }
    ground.account();
}

#[tokio::test]
async fn a_copy_that_does_not_fit_into_a_freeze_is_refused_before_it_begins() {
    let mut ground = Ground::new(Kind::On("ext4"));
    ground.pool_settings.push_str("freeze_limit = \"1ms\"\n");
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 256, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    write(&Path::new(&target).join("data"), &random(64 << 20));
    let said =
        check(daemon.controller.create_snapshot(snapshot_of(&id, "s")).await, Code::FailedPrecondition);
    assert!(said.contains("freeze_limit"), "{said}");
    check(daemon.controller.delete_volume(delete(&id)).await, Code::FailedPrecondition);
    daemon.hide(&ground, &id, "a").await;
    daemon.snapshot(&id, "s").await.unwrap();
    ground.account();
}
