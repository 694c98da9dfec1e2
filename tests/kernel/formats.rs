//! New filesystems: made once, copied from then on, each with an identity of its own.

use std::{collections::HashSet, fs::File, os::unix::fs::FileExt};

use crate::{
    requests::create_with,
    rig::{Daemon, Ground, HTTP, Kind, MIB, filesystem, least, run},
};

/// Programs that the daemon has started so far.
fn programs(daemon: &Daemon) -> u64 {
    daemon.metric("lagan_programs_started_total")
}

/// Uuid, hash seed and journal uuid of an ext4 image.
fn identities(ground: &Ground, id: &str) -> [Vec<u8>; 3] {
    let file = File::open(ground.file_of(id)).unwrap();
    let read = |offset: u64| {
        let mut bytes = vec![0; 16];
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    // struct ext4_super_block: s_uuid, s_hash_seed. The journal begins with the magic of struct journal_superblock_s.
    let mut block = vec![0; 4096];
    let mut journal = 0;
    while !block.starts_with(&[0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 4]) {
        journal = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(journal + 4096)).unwrap();
        file.read_exact_at(&mut block, journal).unwrap();
    }
    [read(1024 + 0x68), read(1024 + 0xEC), read(journal + 0x30)]
}

#[tokio::test]
async fn once_a_template_exists_no_program_is_started() {
    for kind in [Kind::Image, Kind::On("ext4"), Kind::On("btrfs")] {
        let mut ground = Ground::new(kind);
        ground.http = HTTP;
        let mut daemon = ground.start().await;
        for name in ["ext4", "xfs", "btrfs"] {
            let how = filesystem(name);
            for n in 0..2 {
                daemon.create(&format!("{name}-warm{n}"), least(name), &how).await;
            }
            let before = programs(&daemon);
            assert!(before > 0);
            let id = daemon.create(&format!("{name}-a"), least(name), &how).await.volume_id;
            let target = daemon.show(&ground, &id, name, &how).await;
            let snapshot = daemon.snapshot(&id, name).await.unwrap().snapshot_id;
            let source = crate::requests::from_snapshot(&snapshot);
            let clone = daemon.copy(&format!("{name}-c"), source, &how).await.volume_id;
            daemon.show(&ground, &clone, &format!("{name}-c"), &how).await;
            daemon.hide(&ground, &clone, &format!("{name}-c")).await;
            daemon.hide(&ground, &id, name).await;
            daemon.delete(&id).await;
            assert_eq!(programs(&daemon), before, "{name} on {kind:?} ({target})");
        }
        ground.account();
    }
}

#[tokio::test]
async fn filesystems_from_a_template_are_sound_and_unlike() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let mut seen: [HashSet<Vec<u8>>; 3] = std::array::from_fn(|_| HashSet::new());
    for n in 0..20 {
        let id = daemon.create(&n.to_string(), 32, &how).await.volume_id;
        for (seen, identity) in seen.iter_mut().zip(identities(&ground, &id)) {
            seen.insert(identity);
        }
        run("e2fsck", &["-f", "-n", &ground.file_of(&id).display().to_string()]);
    }
    assert_eq!(seen.map(|seen| seen.len()), [20; 3], "uuid, hash seed and journal uuid are each one's own");
    for name in ["xfs", "btrfs"] {
        let mut uuids = HashSet::new();
        for n in 0..5 {
            let id = daemon.create(&format!("{name}{n}"), least(name), &filesystem(name)).await.volume_id;
            let file = ground.file_of(&id).display().to_string();
            uuids.insert(run("blkid", &["-p", "-o", "value", "-s", "UUID", &file]));
        }
        assert_eq!(uuids.len(), 5);
    }
}

#[tokio::test]
async fn a_hundred_gibibytes_take_next_to_nothing() {
    use std::os::unix::fs::MetadataExt;

    for kind in [Kind::Image, Kind::On("ext4")] {
        let ground = Ground::new(kind);
        let mut daemon = ground.start().await;
        for n in 0..3 {
            let id = daemon.create(&n.to_string(), 100 << 10, &filesystem("ext4")).await.volume_id;
            let used = std::fs::metadata(ground.file_of(&id)).unwrap().blocks() * 512;
            assert!(used <= 16 << 20, "{used} bytes on {kind:?}");
        }
    }
}

#[tokio::test]
async fn a_thousand_sizes() {
    let mut ground = Ground::sized(Kind::Image, 16384);
    ground.http = HTTP;
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let mut seen: [HashSet<Vec<u8>>; 3] = std::array::from_fn(|_| HashSet::new());
    for n in 0..1000 {
        let request = create_with(&n.to_string(), (16 + n) * MIB, &how);
        let volume = daemon.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
        for (seen, identity) in seen.iter_mut().zip(identities(&ground, &volume.volume_id)) {
            seen.insert(identity);
        }
    }
    assert_eq!(seen.map(|seen| seen.len()), [1000; 3], "uuid, hash seed and journal uuid are each one's own");
    let programs = programs(&daemon);
    let space = run("du", &["-sm", &ground.volumes().display().to_string()]);
    let templates = ground.pool().join("fs/templates");
    let kept = std::fs::read_dir(templates).map_or(0, Iterator::count);
    println!("1,000 volumes of 1,000 sizes: {programs} programs, {kept} templates, {} MiB", space.trim());
    assert!(programs <= 1000 && kept <= 32, "{programs} programs, {kept} templates");
}
