//! The life of a volume, on every kind of pool, with every filesystem and raw.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{FileExt, symlink},
    path::Path,
};

use lagan::proto::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, volume_capability::access_mode::Mode,
    volume_usage::Unit,
};
use tonic::Code;

use crate::{
    requests::{block, check, hide_at, mount_with, publish_with, show_at, stage_at, unstage_at},
    rig::{Ground, Kind, MIB, filesystem, least, random, run, write},
};

const POOLS: [Kind; 3] = [Kind::Image, Kind::On("ext4"), Kind::On("btrfs")];

#[tokio::test]
async fn every_filesystem_on_every_pool() {
    for kind in POOLS {
        let ground = Ground::new(kind);
        let mut daemon = ground.start().await;
        for name in ["ext4", "xfs", "btrfs"] {
            let how = filesystem(name);
            let volume = daemon.create(name, least(name), &how).await;
            let target = daemon.show(&ground, &volume.volume_id, name, &how).await;
            let content = random(1 << 20);
            write(&Path::new(&target).join("data"), &content);
            let table = run("findmnt", &["-n", "-o", "FSTYPE,VFS-OPTIONS", &target]);
            assert!(table.contains(name) && table.contains("nosuid") && table.contains("nodev"), "{table}");
            assert!(!table.contains("nosymfollow"), "{table}");
            let staging = run("findmnt", &["-n", "-o", "VFS-OPTIONS", &format!("{target}-staging")]);
            assert!(staging.contains("nosymfollow"), "{staging}");
            let stats = NodeGetVolumeStatsRequest {
                volume_id: volume.volume_id.clone(),
                volume_path: target.clone(),
                ..NodeGetVolumeStatsRequest::default()
            };
            let usage = daemon.node.node_get_volume_stats(stats).await.unwrap().into_inner().usage;
            assert_eq!(usage[0].unit, i32::from(Unit::Bytes));
            assert!(usage[0].total > 0 && usage[0].total <= volume.capacity_bytes, "{usage:?}");
            ground.account();
            daemon.hide(&ground, &volume.volume_id, name).await;
            assert!(!Path::new(&target).exists(), "the target is removed");
            let again = daemon.show(&ground, &volume.volume_id, name, &how).await;
            assert_eq!(fs::read(Path::new(&again).join("data")).unwrap(), content, "{name} on {kind:?}");
            daemon.hide(&ground, &volume.volume_id, name).await;
            daemon.delete(&volume.volume_id).await;
        }
        ground.account();
        assert!(daemon.stop().success());
    }
}

#[tokio::test]
async fn raw_devices_and_their_read_only_face() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeMultiWriter);
    let id = daemon.create("raw", 8, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "raw", &how).await;
    let content = random(8192);
    let device = File::options().read(true).write(true).open(&target).unwrap();
    device.write_all_at(&content, 4096).unwrap();
    device.sync_all().unwrap();
    drop(device);
    assert_eq!(run("blockdev", &["--getsize64", "--getss", &target]), format!("{}\n4096\n", 8 * MIB));
    let (staging, face) = (format!("{target}-staging"), ground.path("face"));
    let read_only = NodePublishVolumeRequest { readonly: true, ..show_at(&id, &staging, &face, &how) };
    for _ in 0..2 {
        daemon.node.node_publish_volume(read_only.clone()).await.unwrap();
    }
    let mut read = vec![0; 8192];
    File::open(&face).unwrap().read_exact_at(&mut read, 4096).unwrap();
    assert_eq!(read, content);
    // Not even root writes through it, remounted or not.
    let refused = File::options().write(true).open(&face).and_then(|mut device| device.write_all(b"x"));
    assert!(refused.is_err(), "a read-only publish was written through");
    ground.account();
    daemon.node.node_unpublish_volume(hide_at(&id, &face)).await.unwrap();
    assert_eq!(ground.loops().len(), 2, "that of the image and that of the volume");
    // Open in a process, it is not taken away, and the answer says who has it; so too where only the device is open.
    let own = format!("({})", std::process::id());
    let holder = File::open(&target).unwrap();
    let said =
        check(daemon.node.node_unpublish_volume(hide_at(&id, &target)).await, Code::FailedPrecondition);
    assert!(said.contains(&own), "{said}");
    drop(holder);
    let holder = File::open(ground.device_of(&id)).unwrap();
    daemon.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
    let unstaged = daemon.node.node_unstage_volume(unstage_at(&id, &staging)).await;
    let said = check(unstaged, Code::FailedPrecondition);
    assert!(said.contains(&own), "{said}");
    drop(holder);
    daemon.hide(&ground, &id, "raw").await;
    daemon.delete(&id).await;
    ground.account();
}

#[tokio::test]
async fn read_only_is_enforced() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    write(&Path::new(&target).join("data"), b"content");
    let (staging, second) = (format!("{target}-staging"), ground.path("second"));
    let read_only = NodePublishVolumeRequest { readonly: true, ..show_at(&id, &staging, &second, &how) };
    daemon.node.node_publish_volume(read_only).await.unwrap();
    assert_eq!(fs::read(Path::new(&second).join("data")).unwrap(), b"content");
    let refused = fs::write(Path::new(&second).join("new"), b"x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    daemon.node.node_unpublish_volume(hide_at(&id, &second)).await.unwrap();
    daemon.hide(&ground, &id, "a").await;
    // Granted read-only, the filesystem itself is.
    let mut grant = publish_with(&id, &how);
    grant.readonly = true;
    daemon.controller.controller_publish_volume(grant).await.unwrap();
    daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
    daemon.node.node_publish_volume(show_at(&id, &staging, &target, &how)).await.unwrap();
    let refused = fs::write(Path::new(&target).join("new"), b"x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    daemon.hide(&ground, &id, "a").await;
    ground.account();
}

#[tokio::test]
async fn paths_that_lead_elsewhere_are_refused() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    let staging = format!("{target}-staging");
    let outside = ground.root.join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    symlink(&outside, ground.path("link")).unwrap();
    symlink(outside.join("inner"), ground.path("last")).unwrap();
    for path in ["link/inner", "link", "last", "link/new"] {
        let request = show_at(&id, &staging, &ground.path(path), &how);
        let status = daemon.node.node_publish_volume(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status:?}");
        let status = daemon.node.node_unpublish_volume(hide_at(&id, &ground.path(path))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status:?}");
    }
    assert!(outside.join("inner").is_dir(), "nothing behind the link was removed");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing behind the link was made");
    for path in ["/etc/lagan-test", "/proc/self/root/etc", &format!("{}/../outside", ground.path("x"))] {
        check(
            daemon.node.node_publish_volume(show_at(&id, &staging, path, &how)).await,
            Code::InvalidArgument,
        );
    }
    daemon.hide(&ground, &id, "a").await;
    for link in ["link", "last"] {
        fs::remove_file(ground.path(link)).unwrap();
    }
    ground.account();
}

#[tokio::test]
async fn a_wrong_device_behind_a_path_is_refused() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    daemon.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
    let (staging, target) = (ground.path("staging"), ground.path("target"));
    fs::create_dir(&staging).unwrap();
    run("mount", &["-t", "tmpfs", "tmpfs", &staging]);
    check(daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await, Code::FailedPrecondition);
    check(daemon.node.node_unstage_volume(unstage_at(&id, &staging)).await, Code::Ok);
    assert_eq!(ground.mounts().len(), 2, "what is not ours is still mounted, and nothing else was");
    run("umount", &[&staging]);
    daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
    // Somebody mounts something over our stage: publishing it would show a stranger's data.
    run("mount", &["-t", "tmpfs", "tmpfs", &staging]);
    let request = show_at(&id, &staging, &target, &how);
    check(daemon.node.node_publish_volume(request.clone()).await, Code::FailedPrecondition);
    run("umount", &[&staging]);
    daemon.node.node_publish_volume(request).await.unwrap();
    daemon.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
    daemon.node.node_unstage_volume(unstage_at(&id, &staging)).await.unwrap();
    daemon.controller.controller_unpublish_volume(crate::requests::unpublish_from(&id, "n1")).await.unwrap();
    ground.account();
}

#[tokio::test]
async fn what_is_busy_says_who_holds_it() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("xfs");
    let id = daemon.create("a", 300, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    let mut held = File::create(Path::new(&target).join("open")).unwrap();
    held.write_all(b"still writing").unwrap();
    check(daemon.node.node_unpublish_volume(hide_at(&id, &target)).await, Code::FailedPrecondition);
    held.write_all(b" and never cut off").unwrap();
    drop(held);
    let mut content = String::new();
    File::open(Path::new(&target).join("open")).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "still writing and never cut off");
    daemon.hide(&ground, &id, "a").await;
    ground.account();
}

#[tokio::test]
async fn a_raw_volume_with_a_filesystem_on_it_can_be_mounted() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let raw = block(Mode::SingleNodeMultiWriter);
    let id = daemon.create("raw", 16, &raw).await.volume_id;
    daemon.controller.controller_publish_volume(publish_with(&id, &raw)).await.unwrap();
    let (staging, how) = (ground.path("raw-staging"), filesystem("ext4"));
    let said =
        check(daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await, Code::FailedPrecondition);
    assert!(said.contains("created raw"), "no filesystem, and none is made: {said}");
    run("mke2fs", &["-q", "-b", "4096", "-t", "ext4", &ground.file_of(&id).display().to_string()]);
    daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
    let other = mount_with(Mode::SingleNodeMultiWriter, "xfs", &[]);
    let elsewhere = ground.path("elsewhere");
    check(daemon.node.node_stage_volume(stage_at(&id, &elsewhere, &other)).await, Code::FailedPrecondition);
    daemon.hide(&ground, &id, "raw").await;
    ground.account();
}
