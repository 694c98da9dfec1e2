//! What `lagan doctor` says of a pool of LVM that is well, and of one that is not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use lagan::proto::volume_capability::access_mode::Mode;
use serde_json::Value;

use crate::{
    group::{self, POOL, VG, lvm},
    requests::{block, create_with},
    rig::{Ground, Kind, filesystem, random, run, try_run, write},
};

/// Where no udev runs, dmsetup must not wait for it.
pub(crate) fn dmsetup(arguments: &[&str]) -> String {
    run("dmsetup", &[&["--noudevsync", "--noudevrules"], arguments].concat())
}

/// What is found beside what is well: subject, verdict and text.
fn findings(ground: &Ground) -> Vec<(String, String, String)> {
    let output = ground.lagan(&["doctor", "--output", "json"]);
    let rows: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    let all = rows.as_array().unwrap().iter();
    let ours = all.filter(|row| text(row, "subject").starts_with("pool p: "));
    ours.map(|row| (text(row, "subject"), text(row, "verdict"), text(row, "finding"))).collect()
}

#[track_caller]
fn expect(ground: &Ground, part: &str, verdict: &str, word: &str) {
    expect_in(&findings(ground), part, verdict, word);
}

#[track_caller]
fn expect_in(all: &[(String, String, String)], part: &str, verdict: &str, word: &str) {
    let subject = format!("pool p: {part}");
    let fits = |(s, v, f): &&(String, String, String)| *s == subject && v == verdict && f.contains(word);
    assert!(all.iter().any(|it| fits(&it)), "{subject} {verdict} {word:?} in {all:#?}");
}

/// But for the monitor, of which nothing runs here.
#[track_caller]
fn expect_well(ground: &Ground) {
    let mut all = findings(ground);
    assert!(all.len() >= 8, "{all:#?}");
    expect_in(&all, "monitoring", "warning", "lvchange --monitor y");
    all.retain(|(subject, verdict, _)| verdict != "ok" && subject != "pool p: monitoring");
    assert!(all.is_empty(), "{all:#?}");
}

#[tokio::test]
async fn doctor_on_a_pool_and_what_ails_it() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("looked-at", 64, &how).await.volume_id;
    let shown = daemon.show(&ground, &id, "looked-at", &how).await;
    write(&Path::new(&shown).join("data"), &random(1 << 20));
    expect_well(&ground);

    let device = format!("lagan-{}", id.rsplit('.').next().unwrap());
    dmsetup(&["suspend", &device]);
    expect(&ground, "suspended", "FAILURE", &format!("dmsetup resume {device}"));
    dmsetup(&["resume", &device]);
    daemon.hide(&ground, &id, "looked-at").await;

    let name = format!("{VG}/{POOL}");
    lvm(&["lvchange", "--zero", "n", &name]);
    expect(&ground, "zeroing", "FAILURE", &format!("lvchange --zero y {name}"));
    lvm(&["lvchange", "--zero", "y", &name]);
    expect_well(&ground);
    daemon.delete(&id).await;
    ground.account();
}

#[tokio::test]
async fn metadata_too_small_for_its_promises() {
    group::ensure(3072);
    let options = ["-L", "256m", "-c", "64k", "--poolmetadatasize", "4m", "-n", "tiny", VG];
    lvm(&[&["lvcreate", "-y", "--type", "thin-pool"], &options[..]].concat());
    let ground = Ground::new(Kind::Lvm(VG, "tiny"));
    let (mut daemon, raw) = (ground.start().await, block(Mode::SingleNodeWriter));
    // Of which only LVM knows, and which takes metadata all the same.
    let tiny = format!("{VG}/tiny");
    lvm(&["lvcreate", "-y", "-n", "huge", "-V", "20g", "--thinpool", &tiny]);
    let all = findings(&ground);
    expect_in(&all, "metadata", "warning", &format!("lagan pool extend --lvm {tiny} --metadata 10MiB"));
    expect_in(&all, "promises", "warning", "writers alone can fill the pool");
    // The daemon learns of it by and by.
    let begun = Instant::now();
    let refused = loop {
        match daemon.controller.create_volume(create_with("more", 1 << 20, &raw)).await {
            Err(refused) => break refused,
            Ok(made) => daemon.delete(&made.into_inner().volume.unwrap().volume_id).await,
        }
        assert!(begun.elapsed() < Duration::from_secs(100), "more than fits is promised");
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "as the doctor said");
    daemon.kill();
    let pool = tiny_pool();
    for line in dmsetup(&["ls"]).lines().filter(|line| line.starts_with("lagan-keeper-")) {
        let name = line.split_whitespace().next().unwrap();
        if dmsetup(&["table", name]).contains(&pool) {
            dmsetup(&["remove", name]);
        }
    }
    drop(ground);
    lvm(&["lvremove", "-fy", &format!("{VG}/tiny"), &format!("{VG}/tiny_lagan")]);
}

/// Number of the second pool's device, as tables name it.
fn tiny_pool() -> String {
    let info = dmsetup(&[
        "info",
        "-c",
        "--noheadings",
        "--separator",
        ":",
        "-o",
        "major,minor",
        &format!("{VG}-tiny-tpool"),
    ]);
    info.trim().to_owned()
}

#[tokio::test]
async fn thin_devices_that_no_record_knows() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let pool = format!("{VG}-{POOL}-tpool");
    let message = |text: &str| try_run("dmsetup", &["message", &pool, "0", text]).0;
    // Every number that would be given away next, as far as nobody has it.
    let strangers: Vec<u32> =
        (1_048_577..1_048_600).filter(|number| message(&format!("create_thin {number}"))).collect();
    assert!(strangers.len() > 10, "{strangers:?}");
    let listed = || -> Vec<u32> {
        let all = findings(&ground).into_iter().filter(|(subject, ..)| subject == "pool p: thin devices");
        let number = |what: String| what.split("thin device ").nth(1)?.split(' ').next()?.parse().ok();
        all.filter_map(|(.., what)| number(what)).collect()
    };
    assert_eq!(listed(), strangers);

    let mut daemon = ground.start().await;
    let raw = block(Mode::SingleNodeWriter);
    let id = daemon.create("between", 64, &raw).await.volume_id;
    assert_eq!(listed(), strangers, "none of them was taken");
    let checked = ground.lagan(&["doctor", "--check"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(!checked.status.success() && said.contains(&format!("thin device {}", strangers[0])), "{said}");
    daemon.delete(&id).await;
    daemon.kill();

    // A reader that died: the pool holds its metadata until a controller starts.
    assert!(message("reserve_metadata_snap"));
    expect(&ground, "thin devices", "warning", "somebody else holds it");
    let daemon = ground.start().await;
    assert!(daemon.said().contains("let go of metadata"));
    assert_eq!(listed(), strangers);
    for number in strangers {
        assert!(message(&format!("delete {number}")));
    }
    ground.account();
}
