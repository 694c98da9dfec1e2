//! A pool on a disk of its own: how the disk is taken, seen as taken, moved, extended and repaired.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use lagan::proto::{GetCapacityRequest, ListVolumesRequest};
use tonic::Code;

use crate::{
    disks::{Disk, plug},
    requests::{check, create_with},
    rig::{Daemon, Ground, Kind, MIB, filesystem, random, run, text, try_run, write},
};

/// Runs a command of the tool; what it said.
#[track_caller]
fn lagan(ground: &Ground, arguments: &[&str], well: bool) -> String {
    let done = ground.lagan(arguments);
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert_eq!(done.status.success(), well, "{arguments:?}: {said}");
    said
}

/// A driver that serves the disk, with a volume that is shown and holds a file.
async fn with_data(ground: &Ground) -> (Daemon, String, Vec<u8>) {
    let how = filesystem("ext4");
    let mut daemon = ground.start().await;
    let id = daemon.create("data", 256, &how).await.volume_id;
    let shown = daemon.show(ground, &id, "data", &how).await;
    let content = random(20 << 20);
    write(&Path::new(&shown).join("file"), &content);
    (daemon, id, content)
}

#[tokio::test]
async fn only_a_blank_disk_is_taken_and_then_it_is_seen_as_taken() {
    let disk = Disk::new(2048);
    let ground = disk.ground();
    let init = ["pool", "init", "--device", disk.node];
    // A byte of no known kind, far inside.
    let file = File::options().write(true).open(&disk.file).unwrap();
    file.write_all_at(b"x", (2048 << 20) - 100).unwrap();
    assert!(lagan(&ground, &init, false).contains("not blank (data"));
    file.write_all_at(b"\0", (2048 << 20) - 100).unwrap();
    // Some data of no known kind, wherever it is.
    file.write_all_at(&[7; 1 << 20], 777_777_777).unwrap();
    assert!(lagan(&ground, &init, false).contains("not blank (data"));
    file.write_all_at(&[0; 1 << 20], 777_777_777).unwrap();

    run("mkfs.ext4", &["-q", "-U", "5c5e0c1e-6f0e-4c8f-8a4c-0d1f5d9a2b11", disk.node]);
    assert!(lagan(&ground, &init, false).contains("ext4"));
    let other = [&init[..], &["--destroy", "5c5e0c1e-6f0e-4c8f-8a4c-000000000000"]].concat();
    assert!(lagan(&ground, &other, false).contains("not the name"));
    let point = ground.path("point");
    std::fs::create_dir(&point).unwrap();
    run("mount", &[disk.node, &point]);
    let this = [&init[..], &["--destroy", "5c5e0c1e-6f0e-4c8f-8a4c-0d1f5d9a2b11"]].concat();
    lagan(&ground, &this, false);
    run("umount", &[&point]);
    run("e2fsck", &["-fn", disk.node]);
    lagan(&ground, &this, true);

    let seen = run("blkid", &["-p", "-o", "export", disk.node]);
    assert!(seen.contains("PTTYPE=gpt"), "{seen}");
    assert!(run("wipefs", &["-n", disk.node]).contains("gpt"));
    for stranger in
        [&["pvcreate", disk.node][..], &["mkfs.ext4", "-q", disk.node], &["mount", disk.node, &point]]
    {
        let (well, said) = try_run(stranger[0], &stranger[1..]);
        assert!(!well, "{stranger:?}: {said}");
    }
    assert!(lagan(&ground, &this, false).contains("busy"), "a second pool over the first");
    lagan(&ground, &["pool", "stop", "--device", disk.node], true);
    // Nothing runs from it, and it is still seen as taken.
    assert!(!try_run("pvcreate", &[disk.node]).0);
    assert!(lagan(&ground, &init, false).contains("gpt"));
    disk.unplug();
}

#[tokio::test]
async fn a_disk_that_moves_and_grows() {
    let disk = Disk::new(2048);
    let mut ground = disk.ground();
    let before = run("dmsetup", &["ls"]);
    lagan(&ground, &["pool", "init", "--device", disk.node], true);
    let how = filesystem("ext4");
    let (mut daemon, id, content) = with_data(&ground).await;
    assert!(lagan(&ground, &["pool", "stop", "--device", disk.node], false).contains("served"));
    daemon.hide(&ground, &id, "data").await;
    daemon.kill();
    lagan(&ground, &["pool", "stop", "--device", disk.node], true);
    assert_eq!(run("dmsetup", &["ls"]), before, "nothing runs from it");

    // The disk comes back under another name, and longer.
    let filler = disk.file.with_file_name("filler");
    File::create(&filler).unwrap().set_len(4096).unwrap();
    disk.unplug();
    let filler = plug(&filler);
    File::options().write(true).open(&disk.file).unwrap().set_len(3072 << 20).unwrap();
    let node = plug(&disk.file);
    ground.kind = Kind::Block(node);
    let mut daemon = ground.start().await;
    let shown = daemon.show(&ground, &id, "data", &how).await;
    assert!(std::fs::read(Path::new(&shown).join("file")).unwrap() == content);
    let free =
        |answer: tonic::Response<lagan::proto::GetCapacityResponse>| answer.into_inner().available_capacity;
    let before = free(daemon.controller.get_capacity(GetCapacityRequest::default()).await.unwrap());
    assert!(lagan(&ground, &["pool", "extend", "--device", node], true).contains("extended"));
    let after = free(daemon.controller.get_capacity(GetCapacityRequest::default()).await.unwrap());
    assert!(after - before > 900 * MIB, "{before} {after}");
    assert!(lagan(&ground, &["pool", "extend", "--device", node], true).contains("nothing"));
    write(&Path::new(&shown).join("more"), &content);
    daemon.hide(&ground, &id, "data").await;
    daemon.delete(&id).await;
    ground.account();
    daemon.kill();
    lagan(&ground, &["pool", "stop", "--device", node], true);
    run("losetup", &["-d", node]);
    run("losetup", &["-d", filler]);
}

#[tokio::test]
async fn damaged_metadata_is_seen_before_it_is_used_and_repaired() {
    let (disk, ground) = Disk::with_pool(2048);
    let how = filesystem("ext4");
    let (mut daemon, id, content) = with_data(&ground).await;
    daemon.hide(&ground, &id, "data").await;
    daemon.kill();
    assert!(lagan(&ground, &["pool", "repair", "--device", disk.node], false).contains("it runs"));
    lagan(&ground, &["pool", "stop", "--device", disk.node], true);
    assert!(lagan(&ground, &["pool", "repair", "--device", disk.node], false).contains("nothing is wrong"));

    // The metadata begins at 65 MiB. Its first block says where the map of free data is (`data_space_map_root`, whose third
    // field is `bitmap_root`, in drivers/md/dm-thin-metadata.c).
    let file = File::options().read(true).write(true).open(&disk.file).unwrap();
    let mut root = [0; 8];
    file.read_exact_at(&mut root, (65 << 20) + 80).unwrap();
    file.write_all_at(&random(4096), (65 << 20) + 4096 * u64::from_le_bytes(root)).unwrap();
    let mut daemon = ground.start().await;
    let listed = daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 1, "what is recorded can be seen");
    let refused = daemon.controller.create_volume(create_with("new", 64 * MIB, &how)).await;
    assert!(check(refused, Code::Unavailable).contains("pool repair"));
    daemon.kill();
    lagan(&ground, &["pool", "repair", "--device", disk.node], true);

    let mut daemon = ground.start().await;
    let shown = daemon.show(&ground, &id, "data", &how).await;
    assert!(std::fs::read(Path::new(&shown).join("file")).unwrap() == content);
    daemon.hide(&ground, &id, "data").await;
    daemon.delete(&id).await;
    ground.account();
    daemon.kill();
    disk.retire(&ground);
}

#[tokio::test]
async fn records_that_are_lost_come_back_and_another_host_takes_it_over() {
    let (disk, mut ground) = Disk::with_pool(2048);
    let (mut daemon, id, content) = with_data(&ground).await;
    daemon.hide(&ground, &id, "data").await;
    let backup = text(&ground.root.join("backup"));
    lagan(&ground, &["pool", "backup", "--device", disk.node, "--file", &backup], true);
    daemon.kill();
    lagan(&ground, &["pool", "stop", "--device", disk.node], true);

    // Header and all; they are the first 64 MiB behind the table of partitions.
    let device = File::options().write(true).open(disk.node).unwrap();
    device.write_all_at(&vec![0; 64 << 20], 1 << 20).unwrap();
    device.sync_all().unwrap();
    drop(device);
    assert!(lagan(&ground, &["doctor"], false).contains("it holds no pool"));
    lagan(&ground, &["pool", "restore", &backup, "--device", disk.node], true);
    holds(&ground, &id, &content).await;
    lagan(&ground, &["pool", "stop", "--device", disk.node], true);

    let adopt = ["pool", "adopt", "--yes", "--device", disk.node];
    ground.settings.push_str("machine_id = \"another\"\n");
    let mut daemon = ground.start().await;
    let refused = daemon.controller.create_volume(create_with("new", 64 * MIB, &filesystem("ext4"))).await;
    assert!(check(refused, Code::Unavailable).contains("pool adopt"));
    daemon.kill();
    lagan(&ground, &adopt, true);
    holds(&ground, &id, &content).await;
    let mut daemon = ground.start().await;
    daemon.delete(&id).await;
    ground.account();
    daemon.kill();
    disk.retire(&ground);
}

/// A driver that serves the disk finds the file of [`with_data`].
async fn holds(ground: &Ground, id: &str, content: &[u8]) {
    let mut daemon = ground.start().await;
    let shown = daemon.show(ground, id, "data", &filesystem("ext4")).await;
    assert!(std::fs::read(Path::new(&shown).join("file")).unwrap() == content);
    daemon.hide(ground, id, "data").await;
    ground.account();
    daemon.kill();
}
