//! The part of docs/recovery.md about LVM, followed to the letter.

use std::{fs, path::Path, process::Command};

use crate::{
    group,
    rig::{Ground, Kind, filesystem, random, run, write},
};

/// Where no udev runs, dmsetup has to make its nodes itself.
const WITHOUT_UDEV: &str = "dmsetup() { command dmsetup --noudevsync --noudevrules --verifyudev \"$@\"; }\n";

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
async fn without_lagan() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(group::VG, group::POOL));
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("precious", 64, &how).await.volume_id;
    let shown = daemon.show(&ground, &id, "precious", &how).await;
    let content = random(3 << 20);
    write(&Path::new(&shown).join("data"), &content);
    daemon.hide(&ground, &id, "precious").await;
    daemon.kill();

    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md")).unwrap();
    let blocks = page.split("```bash\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let commands = WITHOUT_UDEV.to_owned() + &blocks.collect::<String>();
    assert!(commands.contains("dmsetup create"), "the page has changed: {commands}");
    let out = ground.path("recovered");
    let done = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &commands])
        .envs([("VG", group::VG), ("POOL", group::POOL), ("NAME", "precious"), ("OUT", &out)])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(fs::read(Path::new(&out).join("data")).unwrap() == content);
    run("umount", &[&out]);

    let mut daemon = ground.start().await;
    daemon.delete(&id).await;
    ground.account();
}
