//! What is not ours, made into volumes of a thin pool: thin volumes of LVM in use, thin devices of nobody, devices.

use std::{fs, path::Path, time::Duration};

use lagan::proto::volume_capability::access_mode::Mode;
use serde_json::Value;

use crate::{
    doctor::dmsetup,
    group::{self, POOL, VG, lvm},
    requests::block,
    rig::{Daemon, Ground, Kind, filesystem, random, run, write},
    writer::Writer,
};

fn imported(ground: &Ground, arguments: &[&str]) -> String {
    let output = ground.lagan(&[&["volume", "import"], arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    rows[0]["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn refused(ground: &Ground, arguments: &[&str], word: &str) {
    let output = ground.lagan(&[&["volume", "import"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(word), "{word:?} in {said}");
}

/// Makes an ext4 on a device and mounts it; where.
fn mounted(ground: &Ground, name: &str, device: &str) -> String {
    let point = ground.path(&format!("{name}-original"));
    fs::create_dir(&point).unwrap();
    run("mkfs.ext4", &["-q", device]);
    run("mount", &[device, &point]);
    point
}

/// A checker finds nothing against a volume, and it holds these bytes.
async fn holds(daemon: &mut Daemon, ground: &Ground, id: &str, content: &[u8]) {
    let raw = block(Mode::SingleNodeWriter);
    let device = daemon.show(ground, id, "checked", &raw).await;
    run("e2fsck", &["-fn", &device]);
    daemon.hide(ground, id, "checked").await;
    let how = filesystem("ext4");
    let shown = daemon.show(ground, id, "read", &how).await;
    assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content);
    daemon.hide(ground, id, "read").await;
}

#[tokio::test]
async fn a_thin_volume_of_lvm_while_it_is_written_to() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let mut daemon = ground.start().await;
    let name = format!("{VG}/legacy");
    lvm(&["lvcreate", "-y", "-n", "legacy", "-V", "128m", "--thinpool", &format!("{VG}/{POOL}")]);
    let device = format!("/dev/mapper/{VG}-legacy");
    let point = mounted(&ground, "legacy", &device);
    let content = random(3 << 20);
    write(&Path::new(&point).join("data"), &content);
    let writer = Writer::on(&point);
    writer.resumes();

    let id = imported(&ground, &["legacy", "--lv", &name]);
    assert!(writer.resumes() < Duration::from_secs(10));
    assert_eq!(imported(&ground, &["legacy", "--lv", &name]), id, "the same again");
    refused(&ground, &["legacy", "--lv", "other"], "ALREADY_EXISTS");
    refused(&ground, &["other", "--lv", "nothing"], "there is no volume of this name");
    refused(&ground, &["other", "--lv", &format!("{VG}/{POOL}_lagan")], "import it as a device");
    assert!(!dmsetup(&["ls"]).contains("lagan-pause-"), "no note is left");
    lvm(&["lvcreate", "-y", "-n", "outside", "-L", "8m", VG]);
    lvm(&["lvchange", "-an", &format!("{VG}/outside")]);
    lvm(&["lvchange", "-y", "-pr", &format!("{VG}/outside")]);
    let half = ["-n", "half", "--thinpool", &format!("{VG}/{POOL}"), &format!("{VG}/outside")];
    lvm(&[&["lvcreate", "-y", "-s", "-kn"], &half[..]].concat());
    refused(&ground, &["half", "--lv", "half"], "part of it is outside the pool");
    lvm(&["lvremove", "-fy", &format!("{VG}/half"), &format!("{VG}/outside")]);
    holds(&mut daemon, &ground, &id, &content).await;
    let log = Path::new(&point).join("log");
    writer.end();
    assert!(fs::metadata(&log).unwrap().len() > 0);
    run("umount", &[&point]);
    run("e2fsck", &["-fn", &device]);
    let uuid = run("blkid", &["-p", "-o", "value", "-s", "UUID", &device]);

    // Not active: nothing has to stand still.
    lvm(&["lvchange", "-an", &name]);
    let quiet = imported(&ground, &["quiet", "--lv", "legacy", "--size", "256MiB"]);
    holds(&mut daemon, &ground, &quiet, &content).await;
    lvm(&["lvchange", "-ay", &name]);
    assert_eq!(
        run("blkid", &["-p", "-o", "value", "-s", "UUID", &device]),
        uuid,
        "the original is untouched"
    );
    run("mount", &[&device, &point]);
    assert!(fs::read(Path::new(&point).join("data")).unwrap() == content);
    run("umount", &[&point]);

    // Killed in the pause, and the minder with it: the next start lets it go on.
    let pool = id.split('.').nth(1).unwrap();
    let number = dmsetup(&["info", "-c", "--noheadings", "--separator", ":", "-o", "major,minor", &device]);
    let number = number.trim();
    daemon.kill();
    let note = format!("lagan-pause-{number}");
    dmsetup(&["create", &note, "--notable", "-u", &format!("LAGAN-{pool}-pause-{number}")]);
    dmsetup(&["suspend", &device]);
    let mut daemon = ground.start().await;
    assert!(daemon.said().contains(&format!("let device {VG}-legacy go on")));
    assert!(!dmsetup(&["ls"]).contains(&note));
    run("e2fsck", &["-fn", &device]);
    for id in [id, quiet] {
        daemon.delete(&id).await;
    }
    lvm(&["lvremove", "-fy", &name]);
    ground.account();
}

#[tokio::test]
async fn a_thin_device_of_nobody_and_a_device_of_somebody_else() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let mut daemon = ground.start().await;
    let (pool, thin) = (format!("{VG}-{POOL}-tpool"), 1_100_000);
    let message = |text: String| dmsetup(&["message", &pool, "0", &text]);
    message(format!("create_thin {thin}"));
    let table = format!("0 {} thin /dev/mapper/{pool} {thin}", (64 << 20) / 512);
    dmsetup(&["create", "nobodys", "--table", &table, "--verifyudev"]);
    let point = mounted(&ground, "nobodys", "/dev/mapper/nobodys");
    let content = random(3 << 20);
    write(&Path::new(&point).join("data"), &content);
    // In use or not.
    let number = thin.to_string();
    let used = imported(&ground, &["used", "--thin-id", &number]);
    run("umount", &[&point]);
    dmsetup(&["remove", "nobodys"]);
    let id = imported(&ground, &["found", "--thin-id", &number]);
    assert_eq!(imported(&ground, &["found", "--thin-id", &number]), id);
    for id in [&used, &id] {
        holds(&mut daemon, &ground, id, &content).await;
    }
    refused(&ground, &["other", "--thin-id", "1"], "import a volume of LVM by its name");
    refused(&ground, &["other", "--thin-id", "1048577"], "");
    refused(&ground, &["other", "--thin-id", "1100001"], "the pool has no thin device 1100001");
    let checked = ground.lagan(&["doctor", "--check"]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains(&format!("thin device {thin}")), "it is still there: {said}");
    message(format!("delete {thin}"));

    lvm(&["lvcreate", "-y", "-n", "thick", "-L", "64m", VG]);
    let device = format!("/dev/mapper/{VG}-thick");
    let point = mounted(&ground, "thick", &device);
    write(&Path::new(&point).join("data"), &content);
    refused(&ground, &["thick", "--device", &device], "mounted, or in use");
    run("umount", &[&point]);
    let copy = imported(&ground, &["thick", "--device", &device]);
    holds(&mut daemon, &ground, &copy, &content).await;
    run("e2fsck", &["-fn", &device]);
    lvm(&["lvremove", "-fy", &format!("{VG}/thick")]);
    for id in [used, id, copy] {
        daemon.delete(&id).await;
    }
    ground.account();
}
