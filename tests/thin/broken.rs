//! A pool of LVM whose disks fail: one whose metadata could not be written, and one that has lost a mirror.

use std::path::Path;

use lagan::proto::{ListVolumesRequest, NodeGetStorageHealthRequest, volume_capability::access_mode::Mode};
use tonic::Code;

use crate::{
    disks::Disk,
    doctor::dmsetup,
    group::{POOL, Small, VG, lvm},
    guardian::{pool, remove},
    requests::{block, check, create_with},
    rig::{Daemon, Ground, Kind, MIB, filesystem, random, run, try_run, write},
};

/// A volume with a file that was flushed.
async fn with_data(daemon: &mut Daemon, ground: &Ground) -> (String, Vec<u8>) {
    let how = filesystem("ext4");
    let id = daemon.create("data", 64, &how).await.volume_id;
    let shown = daemon.show(ground, &id, "data", &how).await;
    let content = random(8 << 20);
    write(&Path::new(&shown).join("file"), &content);
    (id, content)
}

async fn holds(daemon: &mut Daemon, ground: &Ground, id: &str, content: &[u8]) {
    let shown = daemon.show(ground, id, "data", &filesystem("ext4")).await;
    assert!(std::fs::read(Path::new(&shown).join("file")).unwrap() == content);
    daemon.hide(ground, id, "data").await;
}

/// What docs/operations.md says is to be done with a pool like this one.
fn follow_page(ground: &Ground, pool: &str) {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let block = page.split("```bash\n").find(|block| block.contains("lvconvert --repair")).unwrap();
    for line in block.split("```").next().unwrap().lines() {
        let line = line.replace("VG/POOL", pool);
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "lagan" => assert!(ground.lagan(&words[1..]).status.success(), "{line}"),
            _ => drop(lvm(&[&words[..1], &["-y"], &words[1..]].concat())),
        }
    }
}

/// Gives a device that is in use another table.
fn replace(device: &str, table: &str) {
    dmsetup(&["suspend", "--noflush", "--nolockfs", device]);
    dmsetup(&["reload", device, "--table", table]);
    dmsetup(&["resume", device]);
}

#[tokio::test]
async fn metadata_that_could_not_be_written() {
    let ground = pool("sick", "256m", "8m");
    let full = format!("{VG}/sick");
    let mut daemon = ground.start().await;
    let raw = block(Mode::SingleNodeWriter);
    let (id, content) = with_data(&mut daemon, &ground).await;
    daemon.hide(&ground, &id, "data").await;

    // Its disk fails for a while.
    let metadata = format!("{VG}-sick_tmeta");
    let table = dmsetup(&["table", &metadata]).trim().to_owned();
    let length = table.split(' ').nth(1).unwrap();
    replace(&metadata, &format!("0 {length} error"));
    let refused = daemon.controller.create_volume(create_with("new", 64 * MIB, &raw)).await;
    assert!(refused.is_err(), "it was made, of nothing");
    replace(&metadata, &table);

    // Nothing more is asked of it; what there is can be seen, before and after a restart.
    for _ in 0..2 {
        let refused = daemon.controller.create_volume(create_with("new", 64 * MIB, &raw)).await;
        let said = check(refused, Code::Unavailable);
        assert!(said.contains("lvconvert --repair"), "{said}");
        let listed = daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
        assert_eq!(listed.into_inner().entries.len(), 1);
        let said = String::from_utf8(ground.lagan(&["doctor"]).stdout).unwrap();
        assert!(said.contains("lvconvert --repair"), "{said}");
        daemon.kill();
        daemon = ground.start().await;
    }

    daemon.kill();
    follow_page(&ground, &full);
    let mut daemon = ground.start().await;
    let new = daemon.create("new", 64, &raw).await.volume_id;
    holds(&mut daemon, &ground, &id, &content).await;
    for id in [&id, &new] {
        daemon.delete(id).await;
    }
    ground.account();
    daemon.kill();
    // Where the damaged metadata was kept.
    lvm(&["lvremove", "-fy", &format!("{full}_meta0")]);
    remove(&ground, "sick");
}

#[tokio::test]
async fn metadata_on_a_disk_that_could_not_be_written() {
    let (disk, ground) = Disk::with_pool(1024);
    let mut daemon = ground.start().await;
    let raw = block(Mode::SingleNodeWriter);
    let (id, content) = with_data(&mut daemon, &ground).await;
    daemon.hide(&ground, &id, "data").await;
    let names = dmsetup(&["ls"]);
    let metadata = names.split_whitespace().find(|word| word.starts_with("lagan-metadata-")).unwrap();
    let table = dmsetup(&["table", metadata]).trim().to_owned();
    replace(metadata, &format!("0 {} error", table.split(' ').nth(1).unwrap()));
    let refused = daemon.controller.create_volume(create_with("new", 64 * MIB, &raw)).await;
    assert!(refused.is_err(), "it was made, of nothing");
    replace(metadata, &table);
    let refused = daemon.controller.create_volume(create_with("new", 64 * MIB, &raw)).await;
    assert!(check(refused, Code::Unavailable).contains("start the driver"));
    let health = daemon.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
    assert!(health.into_inner().backend_health[0].message.contains("has failed"));
    daemon.kill();

    // What was written last is sound: it is checked, and used.
    assert!(ground.lagan(&["pool", "stop", "--device", disk.node]).status.success());
    let mut daemon = ground.start().await;
    holds(&mut daemon, &ground, &id, &content).await;
    let new = daemon.create("new", 64, &raw).await.volume_id;
    for id in [&id, &new] {
        daemon.delete(id).await;
    }
    ground.account();
    daemon.kill();
    disk.retire(&ground);
}

#[tokio::test]
async fn a_mirror_that_is_lost() {
    let spare = std::env::var("LAGAN_SPARE_DISK").expect("LAGAN_SPARE_DISK must name a disk");
    let disks = [Small::disk(), spare];
    let vg = "laganmirror";
    disks.iter().for_each(|disk| drop(run("wipefs", &["-aq", disk])));
    lvm(&["vgcreate", "-y", vg, &disks[0], &disks[1]]);
    for (name, size) in [("thin", "256m"), ("meta", "8m")] {
        lvm(&["lvcreate", "-y", "--type", "raid1", "-m", "1", "-L", size, "-n", name, vg]);
    }
    let pool = format!("{vg}/{POOL}");
    lvm(&["lvconvert", "-y", "-Zy", "--type", "thin-pool", "--poolmetadata", &format!("{vg}/meta"), &pool]);
    let ground = Ground::new(Kind::Lvm(vg, POOL));
    let kind = lvm(&["lvs", "--noheadings", "-o", "segtype", &format!("{pool}_lagan")]);
    assert_eq!(kind.trim(), "raid1", "the records are no safer than one disk");

    let mut daemon = ground.start().await;
    let (id, content) = with_data(&mut daemon, &ground).await;
    // One half of each mirror is gone while they are in use.
    for volume in ["thin_tdata", "thin_tmeta", "thin_lagan"] {
        let half = format!("{vg}-{volume}_rimage_1");
        let table = dmsetup(&["table", &half]);
        replace(&half, &format!("0 {} error", table.split(' ').nth(1).unwrap()));
    }
    let cut = daemon.snapshot(&id, "cut").await.unwrap();
    let new = daemon.copy("new", crate::requests::from_snapshot(&cut.snapshot_id), &filesystem("ext4")).await;
    daemon.hide(&ground, &id, "data").await;
    daemon.kill();
    let mut daemon = ground.start().await;
    for id in [&id, &new.volume_id] {
        holds(&mut daemon, &ground, id, &content).await;
        daemon.delete(id).await;
    }
    let request = lagan::proto::DeleteSnapshotRequest { snapshot_id: cut.snapshot_id, ..Default::default() };
    daemon.controller.delete_snapshot(request).await.unwrap();
    ground.account();
    daemon.kill();
    assert!(ground.lagan(&["pool", "stop", "--lvm", &pool]).status.success());
    lvm(&["vgremove", "-ffy", vg]);
    disks.iter().for_each(|disk| drop(try_run("wipefs", &["-aq", disk])));
    run("rm", &["-rf", &format!("/dev/{vg}")]);
}
