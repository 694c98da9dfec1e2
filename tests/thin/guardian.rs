//! A pool that fills up: extended by policy while it is written to, refused before its metadata could ever fill.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tonic::Code;

use crate::{
    group::{self, lvm},
    requests::{block, check, create_with},
    rig::{Ground, HTTP, Kind, MIB, filesystem, random},
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
    let raw = block(lagan::proto::volume_capability::access_mode::Mode::SingleNodeWriter);
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
