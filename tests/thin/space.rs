//! Space of a thin pool: given back where a filesystem is trimmed, added by hand; and a pool that would hand out what others
//! have written is refused.

use std::{fs, path::Path};

use crate::{
    group::{self, VG, lvm},
    guardian::{pool, remove},
    rig::{Daemon, Ground, Kind, MIB, filesystem, random, run, write},
};

fn free(daemon: &Daemon) -> u64 {
    daemon.metric("lagan_pool_bytes_free{pool=\"p\"}")
}

#[tokio::test]
async fn it_comes_back_and_more_is_added() {
    let ground = pool("roomy", "512m", "8m");
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 256, &how).await.volume_id;
    let shown = daemon.show(&ground, &id, "a", &how).await;
    let before = free(&daemon);
    let data = Path::new(&shown).join("data");
    write(&data, &random(64 << 20));
    let full = free(&daemon);
    assert!(full + (60 << 20) < before, "{full} of {before} are free");
    fs::remove_file(&data).unwrap();
    run("sync", &["-f", &shown]);
    let trimmed = ground.lagan(&["volume", "trim", &id]);
    assert!(trimmed.status.success(), "{trimmed:?}");
    assert!(free(&daemon) > full + (60 << 20), "{} of {before} are free", free(&daemon));

    let total = || daemon.metric("lagan_pool_bytes_total{pool=\"p\"}");
    let before = total();
    let added = ground.lagan(&["pool", "extend", "--lvm", &format!("{VG}/roomy"), "--by", "256MiB"]);
    assert!(added.status.success(), "{added:?}");
    assert_eq!(total(), before + 256 * u64::try_from(MIB).unwrap());
    daemon.hide(&ground, &id, "a").await;
    daemon.delete(&id).await;
    daemon.kill();
    remove(&ground, "roomy");
}

#[tokio::test]
async fn a_pool_that_does_not_zero_is_refused() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, group::POOL));
    let options = ["-Zn", "-L", "128m", "--poolmetadatasize", "4m", "-n", "unsafe", VG];
    lvm(&[&["lvcreate", "-y", "--type", "thin-pool"], &options[..]].concat());
    let place = format!("{VG}/unsafe");
    let refused = ground.lagan(&["pool", "init", "--lvm", &place]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("does not zero new blocks"), "{said}");
    assert!(!lvm(&["lvs", "-a", VG]).contains("unsafe_lagan"), "nothing is left of it");
    lvm(&["lvremove", "-fy", &place]);
}
