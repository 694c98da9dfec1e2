//! Records of a thin pool as text, and back onto a device of records that was overwritten, or removed.

use std::{fs, fs::File, path::Path, process::Output};

use lagan::proto::volume_capability::access_mode::Mode;

use crate::{
    doctor::dmsetup,
    group::{self, POOL, VG, lvm},
    requests::{block, from_snapshot},
    rig::{Daemon, Ground, Kind, filesystem, random, run, text, write},
};

const PLACE: &str = "lagantest/thin";

#[track_caller]
fn says(output: &Output, status: i32, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(status) && said.contains(word), "{word:?} in {said}");
}

/// What an unlucky administrator leaves of the records.
fn overwrite(with: &str) {
    let records = format!("of=/dev/mapper/{VG}-{POOL}_lagan");
    run("dd", &[&format!("if={with}"), &records, "bs=1M", "count=64", "oflag=direct", "status=none"]);
}

async fn show_all(daemon: &mut Daemon, ground: &Ground, ids: &[&str], content: &[u8]) {
    let how = filesystem("ext4");
    for id in ids {
        let shown = daemon.show(ground, id, "shown", &how).await;
        assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content, "{id}");
        daemon.hide(ground, id, "shown").await;
    }
}

#[tokio::test]
async fn records_that_are_lost_come_back() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let backup = text(&ground.root.join("backup"));
    let restore =
        |more: &[&str]| ground.lagan(&[&["pool", "restore", &backup, "--lvm", PLACE], more].concat());
    let mut daemon = ground.start().await;
    let (how, raw) = (filesystem("ext4"), block(Mode::SingleNodeWriter));
    let id = daemon.create("precious", 64, &how).await.volume_id;
    let doomed = daemon.create("doomed", 64, &raw).await.volume_id;
    let shown = daemon.show(&ground, &id, "precious", &how).await;
    let content = random(3 << 20);
    write(&Path::new(&shown).join("data"), &content);
    let cut = daemon.snapshot(&id, "cut").await.unwrap().snapshot_id;
    let copy = daemon.copy("copy", from_snapshot(&cut), &how).await.volume_id;
    daemon.hide(&ground, &id, "precious").await;
    let saved = ground.lagan(&["pool", "backup", "--lvm", PLACE, "--file", &backup]);
    assert!(saved.status.success(), "{saved:?}");
    says(&restore(&[]), 1, "is served by another");

    // The number of one that is deleted goes to nobody else soon: its record does not come back.
    daemon.delete(&doomed).await;
    let next = daemon.copy("next", from_snapshot(&cut), &how).await.volume_id;
    daemon.kill();
    says(&restore(&[]), 1, "is gone");
    overwrite("/dev/zero");
    let failed = ground.lagan(&["doctor"]);
    assert!(String::from_utf8_lossy(&failed.stdout).contains("lagan pool restore"), "{failed:?}");
    says(&restore(&[]), 1, "is gone");
    let mut daemon = ground.start().await;
    show_all(&mut daemon, &ground, &[&id, &copy], &content).await;
    // It was made after the backup: nothing is lost of it, and it is not given away.
    let lost = String::from_utf8(ground.lagan(&["doctor", "--check"]).stdout).unwrap();
    let number = lost.split("thin device ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let number = number.unwrap_or_else(|| panic!("{next} in {lost}")).to_owned();
    let found = ground.lagan(&["volume", "import", "found", "--thin-id", &number]);
    let found = String::from_utf8(found.stdout).unwrap();
    let found = found.split_whitespace().find(|word| word.starts_with("v.")).unwrap().to_owned();
    show_all(&mut daemon, &ground, &[&found], &content).await;
    daemon.delete(&found).await;
    daemon.kill();
    dmsetup(&["message", &format!("{VG}-{POOL}-tpool"), "0", &format!("delete {number}")]);

    // Overwritten by something else, then gone altogether.
    fs::remove_file(&backup).unwrap();
    says(&ground.lagan(&["pool", "backup", "--lvm", PLACE, "--file", &backup]), 0, "records of pool");
    overwrite("/dev/urandom");
    // What is noise now could have been records of later volumes: their loss has to be said.
    says(&restore(&[]), 1, "records cannot be read");
    says(&restore(&["--replace"]), 0, "put back, 0 were there");
    says(&restore(&[]), 0, "0 records of pool");
    // While the keeper is there, LVM refuses to remove them.
    assert!(ground.lagan(&["pool", "stop", "--lvm", PLACE]).status.success());
    lvm(&["lvremove", "-fy", &format!("{VG}/{POOL}_lagan")]);
    says(&restore(&[]), 0, "put back, 0 were there");
    let mut daemon = ground.start().await;
    let again = daemon.copy("again", from_snapshot(&cut), &how).await.volume_id;
    show_all(&mut daemon, &ground, &[&id, &copy, &again], &content).await;
    ground.account();

    // A later record is not overwritten unless that is said.
    daemon.controller.controller_publish_volume(crate::requests::publish_with(&id, &how)).await.unwrap();
    daemon.kill();
    says(&restore(&[]), 1, "say something else than the backup (volume");
    says(&restore(&["--replace"]), 0, "1 records of pool");
    let mut daemon = ground.start().await;
    for id in [&id, &copy, &again] {
        daemon.delete(id).await;
    }
    let request = lagan::proto::DeleteSnapshotRequest { snapshot_id: cut, ..Default::default() };
    daemon.controller.delete_snapshot(request).await.unwrap();
    ground.account();
    assert!(File::open(&backup).is_ok());
}
