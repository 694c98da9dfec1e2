//! Programs that fail, die, lie or talk without end: a double stands in the place of each, in a namespace of the driver's own.
//! What is slow beyond its limit is a test of `sys::cmd`; LVM is killed and doubled in tests/thin.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use tonic::Code::{self, Internal, ResourceExhausted, Unavailable};

use crate::{
    memory::{Memory, alone},
    requests::create_with,
    rig::{Daemon, Ground, Kind, MIB, filesystem, run, text},
    world::World,
};

/// What a double does in the place of `real "$@"`, and what may be answered then; nothing where it must go well all the same.
const MAKER: [(&str, &[Code]); 12] = [
    (r#"real "$@""#, &[]),
    ("exit 1", &[Internal]),
    ("kill -9 $$", &[Internal]),
    (r#"real "$@"; kill -9 $$"#, &[Internal]),
    ("exit 0", &[Internal, Unavailable]),
    (
        r#"real "$@"; for last; do :; done; dd if=/dev/zero of="$last" bs=4096 count=1 conv=notrunc"#,
        &[Internal, Unavailable],
    ),
    (r#"real "$@" >/dev/null 2>&1"#, &[]),
    (r#"head -c 100000 /dev/urandom; real "$@""#, &[]),
    (r#"head -c 8388608 /dev/zero | tr '\0' x; real "$@""#, &[]),
    (r"head -c 8388608 /dev/zero | tr '\0' x; exit 1", &[Internal]),
    ("echo No space left on device; exit 1", &[ResourceExhausted]),
    // It leaves somebody behind who has its output open.
    (r#"sleep 30 & real "$@""#, &[]),
];

/// The same for a checker: what it says, or does not, decides whether a template is kept, and not whether there is a volume.
const CHECKER: [&str; 7] = [
    r#"real "$@""#,
    "exit 1",
    "exit 0",
    "kill -9 $$",
    r#"real "$@"; kill -9 $$"#,
    r"head -c 8388608 /dev/zero | tr '\0' x; exit 4",
    "head -c 100000 /dev/urandom; exit 8",
];

/// A driver with doubles of some programs.
struct Doubled {
    ground: Ground,
    daemon: Daemon,
    size: i64,
    _memory: Memory,
}

/// Where a program really is.
fn place_of(tool: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin"].map(|directory| PathBuf::from(directory).join(tool));
    let place =
        places.into_iter().find(|place| place.exists()).unwrap_or_else(|| panic!("{tool} is not installed"));
    place.canonicalize().unwrap()
}

impl Doubled {
    async fn start(tools: &[&str]) -> Self {
        let memory = Memory::new();
        let ground = Ground::within(memory.path(), Kind::Image, 4096);
        let mut prelude = Vec::new();
        for tool in tools {
            let (real, place) = (ground.root.join(format!("real-{tool}")), place_of(tool));
            fs::copy(&place, &real).unwrap();
            let (double, does) =
                (ground.root.join(format!("double-{tool}")), ground.root.join(format!("does-{tool}")));
            let script = format!("#!/bin/sh\nreal() {{ {}; }}\n. {}\n", text(&real) + " \"$@\"", text(&does));
            fs::write(&double, script).unwrap();
            fs::set_permissions(&double, Permissions::from_mode(0o755)).unwrap();
            fs::write(&does, "real \"$@\"").unwrap();
            prelude.push(format!("mount --bind {} {}", text(&double), text(&place)));
        }
        let daemon = ground.connect(ground.spawn_in(&prelude.join(" && "), &[])).await;
        Self { ground, daemon, size: 20 * MIB, _memory: memory }
    }

    fn does(&self, tool: &str, what: &str) {
        fs::write(self.ground.root.join(format!("does-{tool}")), what).unwrap();
    }

    /// Asks for a volume of the length that is at hand, within the time that any of it may take.
    async fn create(&mut self, name: &str) -> Result<String, tonic::Status> {
        let begun = Instant::now();
        let answer =
            self.daemon.controller.create_volume(create_with("made", self.size, &filesystem(name))).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "it waited for {:?}", begun.elapsed());
        Ok(answer?.into_inner().volume.unwrap().volume_id)
    }

    /// Whether the filesystem in a volume is whole.
    fn check(&self, id: &str, name: &str) {
        let file = text(&self.ground.file_of(id));
        match name {
            "ext4" => run("e2fsck", &["-f", "-n", &file]),
            _ => run("xfs_repair", &["-n", "-f", &file]),
        };
    }
}

#[tokio::test]
async fn makers() {
    let _alone = alone();
    for (name, tool, least) in [("ext4", "mke2fs", 20), ("xfs", "mkfs.xfs", 300)] {
        let mut doubled = Doubled::start(&[tool]).await;
        doubled.size = least * MIB;
        for (what, expected) in MAKER {
            // A length that was never asked for, so that no template of it is at hand.
            doubled.size += 4096;
            doubled.does(tool, what);
            let before = World::seen(&doubled.ground, &doubled.daemon);
            let id = match doubled.create(name).await {
                Ok(id) => {
                    assert!(expected.is_empty(), "{tool} does {what}, and a volume was made");
                    id
                }
                Err(status) => {
                    let said = status.message();
                    assert!(
                        expected.contains(&status.code()),
                        "{tool} does {what}: {:?} {:.200}",
                        status.code(),
                        said
                    );
                    assert!(said.len() < 4096, "{tool} does {what}: the answer has {} bytes", said.len());
                    let left = before.differences(&World::seen(&doubled.ground, &doubled.daemon));
                    assert!(left.is_empty(), "{tool} does {what}: {left:?}");
                    doubled.does(tool, "real \"$@\"");
                    doubled.create(name).await.unwrap()
                }
            };
            doubled.check(&id, name);
            doubled.daemon.delete(&id).await;
        }
        doubled.ground.account();
    }
}

#[tokio::test]
async fn checkers() {
    let _alone = alone();
    let mut doubled = Doubled::start(&["e2fsck", "xfs_repair"]).await;
    for (name, tool, least) in [("ext4", "e2fsck", 20), ("xfs", "xfs_repair", 300)] {
        doubled.size = least * MIB;
        for what in CHECKER {
            doubled.size += 4096;
            doubled.does(tool, what);
            // Asked for the second time it is checked, asked for the third time copied from what was kept.
            for _time in 0..3 {
                let id = doubled.create(name).await.unwrap();
                doubled.check(&id, name);
                doubled.daemon.delete(&id).await;
            }
        }
    }
    doubled.ground.account();
}
