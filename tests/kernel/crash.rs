//! The driver killed and started again, the machine rebooted, and a driver that never comes back.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::net::UnixDatagram,
    path::Path,
    time::{Duration, Instant},
};

use lagan::proto::ListVolumesRequest;
use rustix::process::{Signal, kill_process};
use tonic::Code;

use crate::{
    requests::{
        create_with, delete, from_snapshot, hide_at, publish_with, show_at, snapshot_of, stage_at,
        unpublish_from, unstage_at,
    },
    rig::{Ground, Kind, MIB, filesystem, random, write},
    writer::Writer,
};

#[tokio::test]
async fn killed_between_any_two_calls() {
    let ground = Ground::new(Kind::Image);
    let how = filesystem("ext4");
    let (staging, target) = (ground.path("staging"), ground.path("target"));
    let content = random(1 << 20);
    let mut daemon = ground.start().await;
    let created =
        daemon.controller.create_volume(create_with("a", 16 * MIB, &how)).await.unwrap().into_inner();
    let id = created.volume.unwrap().volume_id;
    macro_rules! again {
        () => {
            daemon.kill();
            ground.account();
            daemon = ground.start().await;
        };
    }
    again!();
    assert_eq!(daemon.create("a", 16, &how).await.volume_id, id, "the pool knows the name");
    daemon.controller.controller_publish_volume(publish_with(&id, &how)).await.unwrap();
    again!();
    daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
    again!();
    daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
    daemon.node.node_publish_volume(show_at(&id, &staging, &target, &how)).await.unwrap();
    write(&Path::new(&target).join("data"), &content);
    let mut open = File::create(Path::new(&target).join("open")).unwrap();
    again!();
    open.write_all(b"through the restart").unwrap();
    drop(open);
    daemon.node.node_publish_volume(show_at(&id, &staging, &target, &how)).await.unwrap();
    assert!(fs::read(Path::new(&target).join("data")).unwrap() == content);
    let snapshot = daemon.snapshot(&id, "s").await.unwrap();
    again!();
    assert_eq!(daemon.snapshot(&id, "s").await.unwrap(), snapshot);
    daemon.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
    again!();
    daemon.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
    daemon.node.node_unstage_volume(unstage_at(&id, &staging)).await.unwrap();
    again!();
    daemon.controller.controller_unpublish_volume(unpublish_from(&id, "n1")).await.unwrap();
    again!();
    daemon.controller.delete_volume(delete(&id)).await.unwrap();
    again!();
    let restored = daemon.copy("r", from_snapshot(&snapshot.snapshot_id), &how).await.volume_id;
    let shown = daemon.show(&ground, &restored, "r", &how).await;
    assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content);
    daemon.hide(&ground, &restored, "r").await;
    ground.account();
}

#[tokio::test]
async fn a_reboot() {
    for kind in [Kind::Image, Kind::On("ext4")] {
        let ground = Ground::new(kind);
        let mut daemon = ground.start().await;
        let how = filesystem("xfs");
        let id = daemon.create("a", 300, &how).await.volume_id;
        let target = daemon.show(&ground, &id, "a", &how).await;
        let content = random(1 << 20);
        write(&Path::new(&target).join("data"), &content);
        daemon.kill();
        ground.power_off();
        let mut daemon = ground.start().await;
        ground.account();
        // The orchestrator goes on where it was: it may publish again, or take away what is not there any more.
        let staging = format!("{target}-staging");
        daemon.node.node_stage_volume(stage_at(&id, &staging, &how)).await.unwrap();
        daemon.node.node_publish_volume(show_at(&id, &staging, &target, &how)).await.unwrap();
        assert!(fs::read(Path::new(&target).join("data")).unwrap() == content);
        daemon.kill();
        ground.power_off();
        let mut daemon = ground.start().await;
        daemon.hide(&ground, &id, "a").await;
        ground.account();
    }
}

/// A pool whose copies take seconds, with a volume in use on it; a snapshot is being cut.
pub(crate) async fn frozen(ground: &Ground) -> (crate::rig::Daemon, String, Writer) {
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 3000, &how).await.volume_id;
    let target = daemon.show(ground, &id, "a", &how).await;
    let content = random(64 << 20);
    for n in 0..40 {
        write(&Path::new(&target).join(n.to_string()), &content);
    }
    let writer = Writer::on(&target);
    let mut controller = daemon.controller.clone();
    let request = snapshot_of(&id, "s");
    drop(tokio::spawn(async move { controller.create_snapshot(request).await }));
    let intents = ground.pool().join("pauses");
    let begun = Instant::now();
    while fs::read_dir(&intents).map_or(0, Iterator::count) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no pause was begun");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        writer.stalls(Duration::from_millis(150), Duration::from_secs(20)),
        "the filesystem was never frozen"
    );
    (daemon, id, writer)
}

pub(crate) fn slow_ground() -> Ground {
    let mut ground = Ground::sized(Kind::On("ext4"), 16384);
    ground.pool_settings.push_str("freeze_limit = \"60s\"\n");
    ground
}

#[tokio::test]
async fn a_driver_killed_in_a_freeze_and_never_restarted_hangs_nobody() {
    let ground = slow_ground();
    let (daemon, id, writer) = frozen(&ground).await;
    daemon.kill();
    let took = writer.resumes();
    assert!(took < Duration::from_secs(2), "writers went on after {took:?}");
    writer.end();
    let mut daemon = ground.start().await;
    assert_eq!(fs::read_dir(ground.pool().join("pauses")).unwrap().count(), 0, "the intent is done with");
    daemon.hide(&ground, &id, "a").await;
    let snapshots = fs::read_dir(ground.pool().join("snapshots")).unwrap().count();
    assert_eq!(snapshots, 0, "nothing half-made is left");
    daemon.snapshot(&id, "s").await.unwrap();
    ground.account();
}

#[tokio::test]
async fn a_driver_that_hangs_in_a_freeze_is_cut_short() {
    let mut ground = slow_ground();
    // Long enough for the copy, also on a slow disk, were the driver not stopped in the middle of it.
    ground.pool_settings = ground.pool_settings.replace("60s", "18s");
    let (mut daemon, id, writer) = frozen(&ground).await;
    kill_process(daemon.pid(), Signal::STOP).unwrap();
    let took = writer.resumes();
    assert!(took < Duration::from_secs(19), "writers went on after {took:?}");
    kill_process(daemon.pid(), Signal::CONT).unwrap();
    writer.end();
    // The copy notices, and gives up; until then the volume is not for others.
    let begun = Instant::now();
    while let Err(status) = daemon.node.node_unpublish_volume(hide_at(&id, &ground.path("a"))).await {
        assert_eq!(status.code(), Code::Aborted, "{status:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "the copy does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(fs::read_dir(ground.pool().join("snapshots")).unwrap().next().is_none(), "a torn copy was kept");
    daemon.hide(&ground, &id, "a").await;
    ground.account();
    daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
}

#[tokio::test]
async fn asked_to_stop_it_finishes_what_runs() {
    let ground = slow_ground();
    let (daemon, id, writer) = frozen(&ground).await;
    assert!(daemon.stop().success());
    writer.end();
    let mut daemon = ground.start().await;
    let listed = fs::read_dir(ground.pool().join("snapshots")).unwrap().count();
    assert_eq!(listed, 1, "the snapshot was finished before it went");
    daemon.hide(&ground, &id, "a").await;
    ground.account();
}

#[tokio::test]
async fn asked_twice_to_stop_it_leaves_at_once() {
    let ground = slow_ground();
    let (daemon, id, writer) = frozen(&ground).await;
    let begun = Instant::now();
    kill_process(daemon.pid(), Signal::TERM).unwrap();
    while !daemon.said().contains("finishing what runs") {
        assert!(begun.elapsed() < Duration::from_secs(5), "the signal was not heard");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(daemon.stop().success(), "the second signal");
    assert!(daemon_left_early(&ground), "it waited for the copy");
    let took = writer.resumes();
    assert!(took < Duration::from_secs(2), "writers went on after {took:?}");
    writer.end();
    let mut daemon = ground.start().await;
    daemon.hide(&ground, &id, "a").await;
    daemon.snapshot(&id, "s").await.unwrap();
    ground.account();
}

/// What the copy would have left, had it been waited for.
fn daemon_left_early(ground: &Ground) -> bool {
    fs::read_dir(ground.pool().join("snapshots")).unwrap().next().is_none()
}

#[tokio::test]
async fn the_service_manager_is_told_when_it_is_ready() {
    let ground = Ground::new(Kind::Image);
    let manager = ground.path("manager.sock");
    let told = UnixDatagram::bind(&manager).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut daemon = ground.connect(ground.spawn_in(&format!("export NOTIFY_SOCKET={manager}"), &[])).await;
    let mut message = [0; 256];
    let length = told.recv(&mut message).unwrap();
    assert!(String::from_utf8_lossy(&message[..length]).contains("READY=1"));
    daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap();
}
