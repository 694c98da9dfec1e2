//! Pools that are full, gone, somebody else's; processes that are one too many.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use lagan::proto::{
    ControllerGetVolumeHealthRequest, CreateVolumeRequest, ListVolumesRequest, NodeGetStorageHealthRequest,
    ProbeRequest, volume_capability::access_mode::Mode,
};
use tonic::Code;

use crate::{
    kill::interfere,
    requests::{
        block, check, create_with, delete, from_snapshot, hide_at, publish_with, snapshot_of, stage_at,
        unpublish_from, unstage_at,
    },
    rig::{Ground, Kind, MIB, filesystem, least, random, run, text, write},
};

#[tokio::test]
async fn a_full_pool_loses_nothing_and_can_be_emptied() {
    for kind in [Kind::Image, Kind::On("ext4"), Kind::On("btrfs")] {
        let ground = Ground::sized(kind, 512);
        let mut daemon = ground.start().await;
        let how = filesystem("ext4");
        let id = daemon.create("a", 1024, &how).await.volume_id;
        let other = daemon.create("b", 16, &how).await.volume_id;
        let target = daemon.show(&ground, &id, "a", &how).await;
        let content = random(1 << 20);
        write(&Path::new(&target).join("precious"), &content);
        let snapshot = daemon.snapshot(&id, "s").await.unwrap().snapshot_id;
        fill(&Path::new(&target).join("filler"));
        check(
            daemon.controller.create_volume(create_with("c", 16 * MIB, &how)).await,
            Code::ResourceExhausted,
        );
        check(daemon.controller.create_snapshot(snapshot_of(&id, "t")).await, Code::ResourceExhausted);
        let health = ControllerGetVolumeHealthRequest {
            volume_id: id.clone(),
            ..ControllerGetVolumeHealthRequest::default()
        };
        let sick = daemon.controller.controller_get_volume_health(health).await.unwrap().into_inner();
        assert_eq!(sick.volume_health.unwrap().health_statuses[0].reason, "PoolNearlyFull");
        let storage =
            daemon.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
        assert_eq!(storage.into_inner().backend_health[0].reason, "PoolNearlyFull");
        // Rights can be given and taken back, and volumes deleted.
        daemon.controller.controller_publish_volume(publish_with(&other, &how)).await.unwrap();
        daemon.controller.controller_unpublish_volume(unpublish_from(&other, "n1")).await.unwrap();
        daemon.kill();
        // A filesystem whose writes failed may want to be mounted afresh; nothing that was flushed is lost.
        let mut daemon = ground.start().await;
        daemon.delete(&other).await;
        daemon.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
        daemon.hide(&ground, &id, "a").await;
        daemon.delete(&id).await;
        // The filesystem gives the space of what was deleted back a little later.
        let request = CreateVolumeRequest {
            volume_content_source: from_snapshot(&snapshot),
            ..create_with("r", 0, &how)
        };
        let begun = Instant::now();
        let restored = loop {
            match daemon.controller.create_volume(request.clone()).await {
                Ok(answer) => break answer.into_inner().volume.unwrap().volume_id,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the space does not come back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let shown = daemon.show(&ground, &restored, "r", &how).await;
        assert!(fs::read(Path::new(&shown).join("precious")).unwrap() == content, "{kind:?}");
        daemon.hide(&ground, &restored, "r").await;
        ground.account();
    }
}

/// Writes until nothing goes any more.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let chunk = random(1 << 20);
    for _ in 0..2048 {
        if file.write_all(&chunk).and_then(|()| file.sync_data()).is_err() {
            return;
        }
    }
    panic!("the pool never got full");
}

/// Every call on what is in the pool, delete included.
async fn all_unavailable(ground: &Ground, id: &str) {
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    check(daemon.identity.probe(ProbeRequest {}).await, Code::Ok);
    check(daemon.controller.delete_volume(delete(id)).await, Code::Unavailable);
    check(daemon.controller.list_volumes(ListVolumesRequest::default()).await, Code::Unavailable);
    check(daemon.controller.create_volume(create_with("a", 16 * MIB, &how)).await, Code::Unavailable);
    check(daemon.controller.create_snapshot(snapshot_of(id, "s")).await, Code::Unavailable);
    check(daemon.controller.controller_publish_volume(publish_with(id, &how)).await, Code::Unavailable);
    check(daemon.node.node_stage_volume(stage_at(id, &ground.path("x"), &how)).await, Code::Unavailable);
    let health = daemon.node.node_get_storage_health(NodeGetStorageHealthRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().backend_health[0].reason, "PoolUnavailable");
}

#[tokio::test]
async fn a_pool_that_is_gone_is_not_taken_for_an_empty_one() {
    let ground = Ground::new(Kind::On("ext4"));
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    daemon.kill();
    let disk = ground.disk.as_ref().unwrap();
    // Not mounted: an empty directory, or none at all, is where the pool was.
    disk.unmount();
    all_unavailable(&ground, &id).await;
    fs::create_dir(disk.point.join("pool")).unwrap();
    all_unavailable(&ground, &id).await;
    assert_eq!(fs::read_dir(disk.point.join("pool")).unwrap().count(), 0, "nothing was made in its place");
    // Another pool in its place.
    let made = ground.lagan(&["pool", "init", &text(&disk.point.join("pool"))]);
    assert!(made.status.success(), "{made:?}");
    all_unavailable(&ground, &id).await;
    run("rm", &["-r", &text(&disk.point.join("pool"))]);
    // Mounted, but read-only.
    disk.mount("loop,ro");
    all_unavailable(&ground, &id).await;
    disk.unmount();
    // Mounted late, under a driver that runs: it is found without a restart.
    let mut daemon = ground.start().await;
    check(daemon.controller.delete_volume(delete(&id)).await, Code::Unavailable);
    disk.mount("loop");
    assert_eq!(daemon.create("a", 16, &how).await.volume_id, id);
    daemon.delete(&id).await;
    ground.account();
}

#[tokio::test]
async fn a_disk_that_moved_to_another_host() {
    let mut ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    let content = random(1 << 20);
    write(&Path::new(&target).join("data"), &content);
    daemon.hide(&ground, &id, "a").await;
    let served = ground.lagan(&["pool", "adopt", "--yes", &text(&ground.pool())]);
    let said = String::from_utf8_lossy(&served.stderr).into_owned();
    assert!(!served.status.success() && said.contains("served by another"), "{said}");
    daemon.kill();
    let closed = ground.lagan(&["pool", "close", &text(&ground.pool())]);
    assert!(closed.status.success(), "{closed:?}");
    ground.settings.push_str("machine_id = \"another\"\n");
    all_unavailable(&ground, &id).await;
    let image = text(&ground.pool().join("fs"));
    assert!(!ground.mounts().contains(&image), "whose it is must be known before it is mounted");
    let asked = ground.lagan(&["pool", "adopt", &text(&ground.pool())]);
    assert!(!asked.status.success(), "without a yes nothing is adopted");
    all_unavailable(&ground, &id).await;
    let adopted = ground.lagan(&["pool", "adopt", "--yes", &text(&ground.pool())]);
    assert!(adopted.status.success(), "{adopted:?}");
    let mut daemon = ground.start().await;
    assert_eq!(daemon.create("a", 16, &how).await.volume_id, id, "the same id");
    let target = daemon.show(&ground, &id, "a", &how).await;
    assert!(fs::read(Path::new(&target).join("data")).unwrap() == content, "the same data");
    daemon.hide(&ground, &id, "a").await;
    daemon.kill();
    ground.settings.clear();
    all_unavailable(&ground, &id).await;
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone_and_told() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let volumes = ground.volumes();
    let strangers = ["notes.txt", "00000000000000000000000000000000.raw"];
    for name in strangers {
        fs::write(volumes.join(name), b"somebody's").unwrap();
    }
    // The record of one volume on the file of another.
    run(
        "cp",
        &["-a", &text(&ground.file_of(&id)), &text(&volumes.join("11111111111111111111111111111111.raw"))],
    );
    daemon.kill();
    let mut daemon = ground.start().await;
    let listed =
        daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(listed.len(), 1);
    let pool = id.split('.').nth(1).unwrap();
    let doubtful = [
        ("00000000000000000000000000000000", Code::Ok),
        ("11111111111111111111111111111111", Code::Unavailable),
    ];
    for (name, expected) in doubtful {
        let id = format!("v.{pool}.{name}");
        check(daemon.controller.delete_volume(delete(&id)).await, expected);
        assert!(volumes.join(format!("{name}.raw")).exists(), "what has no record is never deleted");
    }
    let report = ground.lagan(&["doctor", "--check"]);
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(!report.status.success(), "{said}");
    for name in ["notes.txt", "00000000000000000000000000000000", "11111111111111111111111111111111"] {
        assert!(said.contains(name), "{name} in {said}");
    }
    for name in [strangers[0], strangers[1], "11111111111111111111111111111111.raw"] {
        fs::remove_file(volumes.join(name)).unwrap();
    }
    ground.account();
}

#[tokio::test]
async fn the_accountant_sees_each_kind_of_leak() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let finds = |expected: &str| {
        let report = ground.lagan(&["doctor", "--check"]);
        let said = String::from_utf8_lossy(&report.stdout).into_owned();
        assert!(!report.status.success() && said.contains(expected), "{expected} in {said}");
    };
    // A device that nobody asked us for.
    let device = run("losetup", &["-f", "--show", &text(&ground.file_of(&id))]);
    finds("was not attached by Lagan");
    finds("published to no node");
    check(daemon.controller.delete_volume(delete(&id)).await, Code::FailedPrecondition);
    run("losetup", &["-d", device.trim()]);
    // A mount that was taken away behind our back.
    daemon.show(&ground, &id, "a", &how).await;
    ground.account();
    File::options().write(true).open(ground.file_of(&id)).unwrap().set_len(4096).unwrap();
    finds("holds 4.0 KiB of 16.0 MiB");
    File::options().write(true).open(ground.file_of(&id)).unwrap().set_len(16 << 20).unwrap();
    daemon.hide(&ground, &id, "a").await;
    ground.account();
}

/// How a driver ends that should not start.
#[track_caller]
fn ends(mut child: Child) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(ended) = child.try_wait().unwrap() {
            return ended.code();
        }
        if begun.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it has started");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn a_second_instance_is_refused() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let id = daemon.create("a", 16, &filesystem("ext4")).await.volume_id;
    for (mode, endpoint) in [("all", "other.sock"), ("controller", "other.sock"), ("node", "other.sock")] {
        let socket = text(&ground.root.join(endpoint));
        let log = fs::metadata(ground.root.join("log")).unwrap().len();
        assert_eq!(ends(ground.spawn(&["--mode", mode, "--endpoint", &socket])), Some(1));
        let said =
            fs::read_to_string(ground.root.join("log")).unwrap().split_off(usize::try_from(log).unwrap());
        assert!(said.contains("served by another") && said.contains("stop that one first"), "{mode}: {said}");
    }
    check(daemon.identity.probe(ProbeRequest {}).await, Code::Ok);
    assert!(daemon.socket.exists(), "the socket of the first is untouched");
    daemon.delete(&id).await;
    // Killed, it leaves its socket; the next one replaces it.
    let socket = daemon.socket.clone();
    daemon.kill();
    assert!(socket.exists());
    let daemon = ground.start().await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(daemon.stop().success());
    assert!(!socket.exists(), "asked to stop, it takes its socket along");
    // Also one that is asked as soon as its socket is there.
    let mut child = ground.spawn(&[]);
    while !socket.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it has not started");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_socket_that_is_in_use_or_no_socket_is_kept() {
    let ground = Ground::new(Kind::Image);
    let socket = ground.root.join("csi.sock");
    fs::write(&socket, b"a file of somebody").unwrap();
    assert_eq!(ground.spawn(&[]).wait().unwrap().code(), Some(1));
    assert_eq!(fs::read(&socket).unwrap(), b"a file of somebody");
    fs::remove_file(&socket).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(ground.spawn(&[]).wait().unwrap().code(), Some(1));
    drop(listener);
    let daemon = ground.start().await;
    assert!(!daemon.said().contains("panicked"));
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written() {
    let ground = Ground::new(Kind::Image);
    let state = text(&ground.root.join("state"));
    run("mount", &["-t", "tmpfs", "-o", "ro", "tmpfs", &state]);
    let mut child = ground.spawn(&[]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    run("umount", &[&state]);
    let said = fs::read_to_string(ground.root.join("log")).unwrap();
    assert!(said.contains("state_dir") && said.contains("make it writable"), "{said}");
}

#[tokio::test]
async fn a_host_that_lacks_something_is_told_what() {
    let ground = Ground::new(Kind::Image);
    let refused = |prelude: &str, expected: &str| {
        assert_eq!(ground.spawn_in(prelude, &[]).wait().unwrap().code(), Some(1), "{prelude}");
        let said = fs::read_to_string(ground.root.join("log")).unwrap();
        assert!(said.lines().last().unwrap().contains(expected), "{expected} in {said}");
    };
    refused("mount -t tmpfs tmpfs /dev", "load the kernel module `loop`");
    refused("mount --bind /dev/null /etc/machine-id", "/etc/machine-id");
    // A tool that is missing is missed when it is needed, and then by the name of its package.
    let child = ground.spawn_in("mount --bind /dev/null /usr/sbin/mkfs.btrfs", &[]);
    let mut daemon = ground.connect(child).await;
    let create = |name: &str, mib| create_with(name, mib * MIB, &filesystem(name));
    let said = check(daemon.controller.create_volume(create("btrfs", 128)).await, Code::Unavailable);
    assert!(said.contains("install the package btrfs-progs"), "{said}");
    check(daemon.controller.create_volume(create("ext4", 16)).await, Code::Ok);
    let report = ground.lagan(&["doctor"]);
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    for line in ["kernel", "loop devices", "mke2fs", "pool p", "daemon"] {
        assert!(said.contains(line), "{line} in {said}");
    }
}

/// The kernel offers one free device to everybody who asks: whoever loses that race too often was told that its volume is in use.
#[tokio::test]
async fn many_volumes_are_staged_at_the_same_time() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start_with(&["--log-level", "error"]).await;
    let how = block(Mode::SingleNodeMultiWriter);
    let mut staged = Vec::new();
    for n in 0..128 {
        let id = daemon.create(&format!("v{n}"), 1, &how).await.volume_id;
        daemon.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
        let (mut node, staging) = (daemon.node.clone(), ground.path(&format!("{n}-staging")));
        let request = stage_at(&id, &staging, &how);
        staged.push(async move {
            node.node_stage_volume(request).await.unwrap();
            (id, staging)
        });
    }
    // Slow enough that all of them are between the question and the binding at the same time.
    let mut slow = interfere(daemon.pid(), "ioctl", "delay_enter=1000");
    let staged = futures_util::future::join_all(staged).await;
    slow.kill().unwrap();
    slow.wait().unwrap();
    for (id, staging) in staged {
        daemon.node.node_unstage_volume(unstage_at(&id, &staging)).await.unwrap();
    }
    ground.account();
}

/// An XFS whose disk was full at the wrong moment answers EIO to whoever looks at it. It could not be unpublished.
#[tokio::test]
async fn a_filesystem_that_has_shut_down_is_taken_away() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    for name in ["xfs", "ext4"] {
        let how = filesystem(name);
        let id = daemon.create(name, least(name), &how).await.volume_id;
        let target = daemon.show(&ground, &id, name, &how).await;
        let file = Path::new(&target).join("data");
        write(&file, b"flushed");
        run("xfs_io", &["-x", "-c", "shutdown", &target]);
        assert!(fs::File::create(Path::new(&target).join("more")).is_err(), "{name} has shut down");
        daemon.hide(&ground, &id, name).await;
        assert!(!Path::new(&target).exists());
        ground.account();
        daemon.show(&ground, &id, name, &how).await;
        assert_eq!(fs::read(&file).unwrap(), b"flushed", "{name}");
        daemon.hide(&ground, &id, name).await;
        daemon.delete(&id).await;
    }
    ground.account();
    assert!(daemon.stop().success());
}

/// What others keep there is counted once a minute: space that they gave back was refused for as long.
#[tokio::test]
async fn room_that_others_give_back_is_room_at_once() {
    let ground = Ground::sized(Kind::Image, 512);
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeWriter);
    let filler = ground.pool().join("fs/filler");
    fill(&filler);
    check(daemon.controller.create_volume(create_with("a", MIB, &how)).await, Code::ResourceExhausted);
    fs::remove_file(&filler).unwrap();
    // XFS gives it back in its own time, which is shorter than that.
    let begun = Instant::now();
    while daemon.controller.create_volume(create_with("a", MIB, &how)).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(daemon.stop().success());
}
