//! docs/recovery.md, followed to the letter: every byte is there without Lagan.

use std::{fs, path::Path, process::Command};

use crate::rig::{Ground, Kind, filesystem, least, random, run, write};

/// The commands of the page, as a person would paste them, but for the first block, which is theirs to fill in.
fn commands() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("```sh\n").skip(2).map(|rest| rest.split("```").next().unwrap());
    let commands: String = blocks.collect();
    assert!(
        commands.contains("mount -o loop") && commands.contains("getfattr"),
        "the page has changed: {commands}"
    );
    commands
}

/// Follows the page to the volume or snapshot of this name; its files are below the path that comes back.
#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn follow(ground: &Ground, name: &str) -> String {
    let out = ground.path(&format!("recovered-{name}"));
    let done = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &commands()])
        .env("POOL", ground.pool())
        .env("NAME", name)
        .env("OUT", &out)
        .output()
        .unwrap();
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    out
}

#[tokio::test]
async fn without_lagan() {
    for kind in [Kind::Image, Kind::On("ext4")] {
        let ground = Ground::new(kind);
        let mut daemon = ground.start().await;
        let mut expected = Vec::new();
        for name in ["ext4", "xfs", "btrfs"] {
            let how = filesystem(name);
            let id = daemon.create(name, least(name), &how).await.volume_id;
            let shown = daemon.show(&ground, &id, name, &how).await;
            let (cut, late) = (random(3 << 20), random(1 << 20));
            write(&Path::new(&shown).join("cut"), &cut);
            daemon.snapshot(&id, &format!("{name}-snapshot")).await.unwrap();
            write(&Path::new(&shown).join("late"), &late);
            expected.push((name, cut, late));
        }
        // No unpublish, no shutdown: the machine loses its power, and Lagan never comes back.
        daemon.kill();
        ground.power_off();
        for (name, cut, late) in expected {
            for (name, late) in [(name.to_owned(), Some(&late)), (format!("{name}-snapshot"), None)] {
                let out = follow(&ground, &name);
                let read = |file: &str| fs::read(Path::new(&out).join(file)).ok();
                assert!(read("cut").as_ref() == Some(&cut), "{name} on {kind:?}");
                assert!(read("late").as_ref() == late, "{name} on {kind:?}");
                run("umount", &[&out]);
            }
        }
    }
}
