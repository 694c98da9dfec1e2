//! Snapshots of several volumes at one instant, mounted and raw, and a driver that dies in the pause for good.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lagan::proto::{ListSnapshotsRequest, VolumeCapability, volume_capability::access_mode::Mode};

use crate::{
    counter::{Counter, said_by},
    disks::Disk,
    group,
    kill::{interfere, kill_at},
    kills::{PATIENCE, is_tried},
    requests::{block, from_snapshot, group_of, ungroup},
    rig::{Daemon, Ground, Kind, filesystem, run},
    writer::Writer,
};

/// One used as a filesystem, one as a device.
fn uses() -> [(&'static str, VolumeCapability); 2] {
    [("mounted", filesystem("ext4")), ("raw", block(Mode::SingleNodeWriter))]
}

/// Where a count is in what was published.
fn place_of(shown: &str) -> PathBuf {
    let path = Path::new(shown);
    if path.is_dir() { path.join("count") } else { path.to_owned() }
}

async fn count_in(daemon: &mut Daemon, ground: &Ground, snapshot: &str, how: &VolumeCapability) -> u64 {
    let id = daemon.copy("restored", from_snapshot(snapshot), how).await.volume_id;
    let shown = daemon.show(ground, &id, "restored", how).await;
    let count = said_by(&place_of(&shown));
    daemon.hide(ground, &id, "restored").await;
    daemon.delete(&id).await;
    count
}

#[tokio::test]
async fn the_order_of_writes_is_never_broken() {
    group::ensure(3072);
    order_is_kept(&Ground::new(Kind::Lvm(group::VG, group::POOL))).await;
}

#[tokio::test]
async fn the_order_of_writes_is_never_broken_on_a_disk() {
    let (disk, ground) = Disk::with_pool(4096);
    order_is_kept(&ground).await;
    disk.retire(&ground);
}

async fn order_is_kept(ground: &Ground) {
    let mut daemon = ground.start().await;
    let (mut ids, mut places) = (Vec::new(), Vec::new());
    for (name, how) in uses() {
        let id = daemon.create(name, 64, &how).await.volume_id;
        places.push(place_of(&daemon.show(ground, &id, name, &how).await));
        ids.push(id);
    }
    for order in [[0, 1], [1, 0]] {
        let counter = Counter::in_both(order.map(|n| places[n].clone()));
        for set in 0..5 {
            let cut = daemon.group(&[&ids[0], &ids[1]], &format!("set {set}")).await.unwrap();
            let mut counts = Vec::new();
            for n in order {
                let member = cut.snapshots.iter().find(|member| member.source_volume_id == ids[n]).unwrap();
                counts.push(count_in(&mut daemon, ground, &member.snapshot_id, &uses()[n].1).await);
            }
            assert!(
                counts[1] <= counts[0] && counts[0] <= counts[1] + 1,
                "set {set} of {order:?}: {} counted first, {} then",
                counts[0],
                counts[1]
            );
            daemon.groups.delete_volume_group_snapshot(ungroup(&cut)).await.unwrap();
        }
        counter.end();
    }
    for (id, (name, _)) in ids.iter().zip(uses()) {
        daemon.hide(ground, id, name).await;
        daemon.delete(id).await;
    }
    ground.account();
}

/// How many devices of ours stand still.
fn suspended() -> usize {
    let devices = run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,suspended"]);
    devices.lines().filter(|line| line.starts_with("lagan-") && line.ends_with(":Suspended")).count()
}

/// Two volumes that are written to.
async fn written_to(daemon: &mut Daemon, ground: &Ground) -> (Vec<String>, Vec<Writer>) {
    let (mut ids, mut writers) = (Vec::new(), Vec::new());
    for name in ["a", "b"] {
        let how = filesystem("ext4");
        let id = daemon.create(name, 64, &how).await.volume_id;
        writers.push(Writer::on(&daemon.show(ground, &id, name, &how).await));
        ids.push(id);
    }
    (ids, writers)
}

/// Cuts a set, and removes everything.
async fn end(mut daemon: Daemon, ground: &Ground, ids: &[String], writers: Vec<Writer>) {
    let cut = daemon.group(&[&ids[0], &ids[1]], "set").await.unwrap();
    daemon.groups.delete_volume_group_snapshot(ungroup(&cut)).await.unwrap();
    for writer in writers {
        writer.end();
    }
    for (id, name) in ids.iter().zip(["a", "b"]) {
        daemon.hide(ground, id, name).await;
        daemon.delete(id).await;
    }
    ground.account();
}

/// Each kind of call is counted for itself.
#[tokio::test]
async fn killed_between_any_two_steps() {
    group::ensure(3072);
    killed_on(&Ground::new(Kind::Lvm(group::VG, group::POOL))).await;
}

#[tokio::test]
async fn killed_between_any_two_steps_on_a_disk() {
    let (disk, ground) = Disk::with_pool(4096);
    killed_on(&ground).await;
    disk.retire(&ground);
}

async fn killed_on(ground: &Ground) {
    let mut daemon = ground.start().await;
    let (ids, writers) = written_to(&mut daemon, ground).await;
    for call in ["ioctl", "pwrite64", "fdatasync", "sendmsg"] {
        let (mut killed, mut whole) = (0, 0);
        for point in (1..200).filter(|point| is_tried(*point)) {
            let mut tracer = kill_at(daemon.pid(), call, point);
            let mut survived = false;
            if let Ok(cut) = daemon.group(&[&ids[0], &ids[1]], "set").await {
                survived = daemon.groups.delete_volume_group_snapshot(ungroup(&cut)).await.is_ok();
            }
            daemon.kill();
            drop(tracer.wait());
            for writer in &writers {
                let waited = writer.resumes();
                assert!(waited < PATIENCE, "killed at {call} {point}: a writer waited {waited:?}");
            }
            daemon = ground.start().await;
            ground.account();
            let left = daemon.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap();
            let left = left.into_inner().entries.len();
            assert!(left == 0 || left == 2, "killed at {call} {point}: {left} are left");
            if survived {
                break;
            }
            (killed, whole) = (killed + 1, whole + usize::from(left == 2));
            let cut = daemon.group(&[&ids[0], &ids[1]], "set").await.unwrap();
            daemon.groups.delete_volume_group_snapshot(ungroup(&cut)).await.unwrap();
        }
        assert!(killed > 0, "{call}: never killed");
        println!("{call}: killed at {killed} points, the group was there after {whole}");
    }
    end(daemon, ground, &ids, writers).await;
}

#[tokio::test]
async fn a_driver_killed_in_the_pause_and_never_restarted_hangs_nobody() {
    group::ensure(3072);
    let mut ground = Ground::new(Kind::Lvm(group::VG, group::POOL));
    ground.pool_settings.push_str("freeze_limit = \"60s\"\n");
    let mut daemon = ground.start().await;
    let (ids, writers) = written_to(&mut daemon, &ground).await;
    // Every message is slow: the pause lasts as long as two of them.
    let mut tracer = interfere(daemon.pid(), "ioctl", "delay_enter=1000000");
    let mut groups = daemon.groups.clone();
    let request = group_of(&[&ids[0], &ids[1]], "set");
    let call = tokio::spawn(async move { groups.create_volume_group_snapshot(request).await });
    let begun = Instant::now();
    while suspended() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(300), "never suspended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!call.is_finished(), "it was over before it could be killed");
    daemon.kill();
    let killed = Instant::now();
    for writer in &writers {
        writer.resumes();
    }
    let took = killed.elapsed();
    println!("writers went on after {took:?}");
    assert!(took < Duration::from_secs(2), "writers went on after {took:?}");
    drop(tracer.wait());
    end(ground.start().await, &ground, &ids, writers).await;
}
