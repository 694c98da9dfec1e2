//! Records of a pool of files as text, and back onto files that have lost theirs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output};

use crate::{
    requests::publish_with,
    rig::{Ground, Kind, filesystem, random, run, text, write},
};

#[track_caller]
fn says(output: &Output, status: i32, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(status) && said.contains(word), "{word:?} in {said}");
}

#[tokio::test]
async fn records_that_are_lost_or_damaged_come_back() {
    for kind in [Kind::Image, Kind::On("ext4")] {
        let ground = Ground::new(kind);
        let (pool, backup) = (text(&ground.pool()), text(&ground.root.join("backup")));
        let restore = |more: &[&str]| ground.lagan(&[&["pool", "restore", &backup, &pool], more].concat());
        let mut daemon = ground.start().await;
        let how = filesystem("ext4");
        let id = daemon.create("db", 64, &how).await.volume_id;
        let doomed = daemon.create("doomed", 64, &how).await.volume_id;
        let shown = daemon.show(&ground, &id, "db", &how).await;
        let content = random(1 << 20);
        write(&Path::new(&shown).join("data"), &content);
        let cut = daemon.snapshot(&id, "cut").await.unwrap().snapshot_id;
        daemon.hide(&ground, &id, "db").await;
        let set = daemon.group(&[&id, &doomed], "set").await.unwrap().group_snapshot_id;

        let save = || ground.lagan(&["pool", "backup", &pool, "--file", &backup]);
        says(&save(), 0, "6 records of pool");
        says(&save(), 1, "File exists");
        assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
        says(&restore(&[]), 1, "is served by another");
        daemon.delete(&doomed).await;
        daemon.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
        daemon.stop();
        says(&restore(&[]), 1, "say something else than the backup (volume");
        says(&restore(&["--replace"]), 1, "its file is gone");

        let snapshots = ground.volumes().with_file_name("snapshots");
        let snapshot = text(&snapshots.join(format!("{}.raw", cut.rsplit('.').next().unwrap())));
        run("setfattr", &["-x", "trusted.lagan", &text(&ground.file_of(&id))]);
        run("setfattr", &["-n", "trusted.lagan", "-v", "lagan1 00000000 {}", &snapshot]);
        let group = text(&snapshots.join(format!("{}.group", set.rsplit('.').next().unwrap())));
        run("setfattr", &["-n", "trusted.lagan", "-v", "lagan1 00000000 {}", &group]);
        fs::remove_file(ground.pool().join("lagan-pool.json")).unwrap();
        says(&ground.lagan(&["doctor", "--check"]), 1, "");
        says(&restore(&[]), 1, "3 records of pool");
        says(&restore(&[]), 1, "0 records of pool");

        let mut daemon = ground.start().await;
        ground.account();
        let restored = daemon.copy("restored", crate::requests::from_snapshot(&cut), &how).await.volume_id;
        for (id, name) in [(&id, "db"), (&restored, "restored")] {
            let shown = daemon.show(&ground, id, name, &how).await;
            assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content, "{name} on {kind:?}");
            daemon.hide(&ground, id, name).await;
        }
        daemon.stop();

        // One that cannot be read is named, the others are saved.
        run("setfattr", &["-n", "trusted.lagan", "-v", "nonsense", &snapshot]);
        let output = ground.lagan(&["pool", "backup", &pool]);
        says(&output, 1, "cannot be read: snapshots/");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 7, "five records, head and end");
    }
}

#[test]
fn a_backup_of_another_pool_or_none_at_all_changes_nothing() {
    let ground = Ground::new(Kind::Image);
    let (pool, other) = (text(&ground.pool()), text(&ground.root.join("other")));
    let backup = ground.root.join("backup");
    assert!(ground.lagan(&["pool", "init", &other, "--image", "400MiB"]).status.success());
    let saved = ground.lagan(&["pool", "backup", &other]);
    fs::write(&backup, &saved.stdout).unwrap();
    says(&ground.lagan(&["pool", "restore", &text(&backup), &pool]), 1, "and the backup is of pool");
    fs::write(&backup, &saved.stdout[..saved.stdout.len() / 2]).unwrap();
    says(&ground.lagan(&["pool", "restore", &text(&backup), &other]), 1, "not whole");
    let nowhere = ground.path("nowhere");
    fs::create_dir(&nowhere).unwrap();
    fs::write(&backup, &saved.stdout).unwrap();
    says(&ground.lagan(&["pool", "restore", &text(&backup), &nowhere]), 1, "holds no volumes");
    assert_eq!(fs::read_dir(&nowhere).unwrap().count(), 0);
    assert!(ground.lagan(&["pool", "close", &other]).status.success());
}
