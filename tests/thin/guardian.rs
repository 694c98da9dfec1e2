//! A pool that fills up: told at each level, extended by policy while it is written to, refused before its metadata could
//! ever fill.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use lagan::proto::{
    ControllerGetVolumeHealthRequest, NodeGetStorageHealthRequest, volume_capability::access_mode::Mode,
};
use tonic::Code;

use crate::{
    disks::Disk,
    group::{self, lvm},
    requests::{block, check, create_with},
    rig::{Daemon, Ground, HTTP, Kind, MIB, filesystem, random},
};

/// A second thin pool in the group, of which nothing is left afterwards.
pub(crate) fn pool(name: &'static str, data: &str, metadata: &str) -> Ground {
    group::ensure(3072);
    let made = [
        "lvcreate",
        "-y",
        "--type",
        "thin-pool",
        "-L",
        data,
        "--poolmetadatasize",
        metadata,
        "-n",
        name,
        group::VG,
    ];
    lvm(&made);
    let mut ground = Ground::new(Kind::Lvm(group::VG, name));
    ground.http = HTTP;
    ground
}

pub(crate) fn remove(ground: &Ground, name: &str) {
    let pool = format!("{}/{name}", group::VG);
    assert!(ground.lagan(&["pool", "stop", "--lvm", &pool]).status.success());
    lvm(&["lvremove", "-fy", &pool, &format!("{pool}_lagan")]);
}

#[tokio::test]
async fn it_is_extended_while_it_is_written_to() {
    let mut ground = pool("small", "256m", "4m");
    ground.pool_settings += "extend_at_percent = 60\nextend_by_percent = 50\n";
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("data", 512, &how).await.volume_id;
    let shown = daemon.show(&ground, &id, "data", &how).await;
    let total = daemon.metric("lagan_pool_bytes_total{pool=\"p\"}");
    let content = random(200 << 20);
    fs::write(Path::new(&shown).join("file"), &content).unwrap();
    let begun = Instant::now();
    while daemon.metric("lagan_pool_bytes_total{pool=\"p\"}") <= total {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", daemon.said());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    fs::write(Path::new(&shown).join("more"), &content).unwrap();
    assert!(fs::read(Path::new(&shown).join("file")).unwrap() == content);
    daemon.hide(&ground, &id, "data").await;
    daemon.delete(&id).await;
    ground.account();
    daemon.kill();
    remove(&ground, "small");
}

#[tokio::test]
async fn what_writers_could_do_to_the_metadata_is_refused_beforehand() {
    let ground = pool("narrow", "1g", "2m");
    let mut daemon = ground.start().await;
    // 2 MiB are 512 blocks, of which each GiB in chunks of 64 KiB may take 165.
    let raw = block(Mode::SingleNodeWriter);
    let mut made = Vec::new();
    let refused = loop {
        let request = create_with(&format!("v{}", made.len()), 512 * MIB, &raw);
        match daemon.controller.create_volume(request).await {
            Ok(answer) => made.push(answer.into_inner().volume.unwrap().volume_id),
            refused => break refused,
        }
        assert!(made.len() < 20);
    };
    assert!(check(refused, Code::ResourceExhausted).contains("metadata"));
    assert!(made.len() >= 2, "{}", made.len());
    let pool = format!("{}/narrow", group::VG);
    let extended = ground.lagan(&["pool", "extend", "--lvm", &pool, "--metadata", "4MiB"]);
    assert!(extended.status.success(), "{extended:?}");
    made.push(daemon.create("one more", 512, &raw).await.volume_id);
    for id in &made {
        daemon.delete(id).await;
    }
    ground.account();
    daemon.kill();
    remove(&ground, "narrow");
}

/// The level that is shown, and what is said of the volume and of the node's storage.
async fn level(daemon: &mut Daemon, id: &str) -> (u64, Vec<String>) {
    let request = ControllerGetVolumeHealthRequest {
        volume_id: id.to_owned(),
        ..ControllerGetVolumeHealthRequest::default()
    };
    let volume = daemon.controller.controller_get_volume_health(request).await.unwrap().into_inner();
    let of_volume = volume.volume_health.unwrap().health_statuses.into_iter().map(|entry| entry.message);
    let storage = daemon.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
    let of_storage = storage.into_inner().backend_health.into_iter().map(|entry| entry.message);
    let level = daemon.metric("lagan_pool_fill_level{pool=\"p\",part=\"data\"}");
    (level, of_volume.chain(of_storage).collect())
}

#[tokio::test]
async fn each_level_is_told() {
    // 100 MiB, of which each per cent is one.
    let ground = pool("levels", "100m", "4m");
    let mut daemon = ground.start().await;
    let raw = block(Mode::SingleNodeWriter);
    let id = daemon.create("data", 128, &raw).await.volume_id;
    let shown = daemon.show(&ground, &id, "data", &raw).await;
    let device = File::options().write(true).open(shown).unwrap();
    let mut written = 0;
    for (upto, expected) in [(70, 0), (85, 80), (93, 90), (97, 95)] {
        for mib in written..upto {
            device.write_all_at(&[0x5a; 1 << 20], mib << 20).unwrap();
        }
        device.sync_all().unwrap();
        written = upto;
        let (level, said) = level(&mut daemon, &id).await;
        assert_eq!((level, said.len()), (expected, if expected == 0 { 0 } else { 2 }), "{upto} %: {said:?}");
        assert!(said.iter().all(|message| message.contains(&format!("{expected} %"))), "{upto} %: {said:?}");
    }
    drop(device);
    daemon.hide(&ground, &id, "data").await;
    daemon.delete(&id).await;
    ground.account();
    daemon.kill();
    remove(&ground, "levels");
}

/// The timer would have looked a minute later.
#[tokio::test]
async fn the_kernel_tells_at_once() {
    // 830 MiB of it are for data.
    let (disk, ground) = Disk::with_pool(1024);
    let mut daemon = ground.start().await;
    let raw = block(Mode::SingleNodeWriter);
    let id = daemon.create("data", 800, &raw).await.volume_id;
    let shown = daemon.show(&ground, &id, "data", &raw).await;
    // Devices that come are news too.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let device = File::options().write(true).open(shown).unwrap();
    let begun = Instant::now();
    for mib in 0..772 {
        device.write_all_at(&[0x5a; 1 << 20], mib << 20).unwrap();
    }
    device.sync_all().unwrap();
    while !daemon.said().contains("the pool is nearly full") {
        assert!(begun.elapsed() < Duration::from_secs(50), "nobody has noticed in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(device);
    daemon.hide(&ground, &id, "data").await;
    daemon.delete(&id).await;
    ground.account();
    daemon.kill();
    disk.retire(&ground);
}
