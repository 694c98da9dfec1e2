//! Snapshots of several volumes at one instant, on the file pool: what they hold, what is refused, and a driver that is
//! killed while it cuts them.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use lagan::proto::{VolumeGroupSnapshot, volume_capability::access_mode::Mode};
use tonic::Code;

use crate::{
    counter::{Counter, said_by},
    crash::slow_ground,
    kill::kill_at,
    requests::{block, check, from_snapshot, group_of, ungroup},
    rig::{Daemon, Ground, Kind, filesystem, least, random, write},
    writer::Writer,
};

/// What a restored snapshot says, mounted.
async fn count_in(daemon: &mut Daemon, ground: &Ground, snapshot: &str, kind: &str) -> u64 {
    let id = daemon.copy("restored", from_snapshot(snapshot), &filesystem(kind)).await.volume_id;
    let target = daemon.show(ground, &id, "restored", &filesystem(kind)).await;
    let count = said_by(&Path::new(&target).join("count"));
    daemon.hide(ground, &id, "restored").await;
    daemon.delete(&id).await;
    count
}

fn member<'g>(group: &'g VolumeGroupSnapshot, volume: &str) -> &'g str {
    let member = group.snapshots.iter().find(|member| member.source_volume_id == volume);
    &member.unwrap().snapshot_id
}

async fn two(daemon: &mut Daemon, ground: &Ground, kind: &str) -> ([String; 2], [String; 2]) {
    let (mut ids, mut targets) = (Vec::new(), Vec::new());
    for name in ["a", "b"] {
        let id = daemon.create(name, least(kind), &filesystem(kind)).await.volume_id;
        targets.push(daemon.show(ground, &id, name, &filesystem(kind)).await);
        ids.push(id);
    }
    (ids.try_into().unwrap(), targets.try_into().unwrap())
}

async fn take_away(daemon: &mut Daemon, ground: &Ground, ids: [String; 2]) {
    for (id, name) in ids.iter().zip(["a", "b"]) {
        daemon.hide(ground, id, name).await;
        daemon.delete(id).await;
    }
    ground.account();
}

#[tokio::test]
async fn the_order_of_writes_is_never_broken() {
    for (place, kind, sets) in
        [(Kind::Image, "xfs", 10), (Kind::On("btrfs"), "ext4", 3), (Kind::On("ext4"), "ext4", 5)]
    {
        let ground = Ground::new(place);
        let mut daemon = ground.start().await;
        let (ids, targets) = two(&mut daemon, &ground, kind).await;
        let counter = Counter::in_both(targets.each_ref().map(|it| Path::new(it).join("count")));
        let mut last = 0;
        for set in 0..sets {
            let group = daemon.group(&[&ids[0], &ids[1]], &format!("set {set}")).await.unwrap();
            let first = count_in(&mut daemon, &ground, member(&group, &ids[0]), kind).await;
            let second = count_in(&mut daemon, &ground, member(&group, &ids[1]), kind).await;
            assert!(second <= first && first <= second + 1, "{place:?}, set {set}: {first}, then {second}");
            assert!(second > last, "{place:?}: the writer stands still");
            last = second;
            check(daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
        }
        counter.end();
        take_away(&mut daemon, &ground, ids).await;
    }
}

/// The controller cuts what another process has mounted.
#[tokio::test]
async fn a_node_of_its_own() {
    let ground = Ground::new(Kind::Image);
    let mut controller = ground.start_as("controller", "controller.sock").await;
    let mut node = ground.start_as("node", "node.sock").await;
    node.controller = controller.controller.clone();
    let (ids, targets) = two(&mut node, &ground, "ext4").await;
    let counter = Counter::in_both(targets.each_ref().map(|it| Path::new(it).join("count")));
    let group = controller.group(&[&ids[0], &ids[1]], "set").await.unwrap();
    let first = count_in(&mut node, &ground, member(&group, &ids[0]), "ext4").await;
    let second = count_in(&mut node, &ground, member(&group, &ids[1]), "ext4").await;
    assert!(second <= first && first <= second + 1, "{first}, then {second}");
    counter.end();
    check(controller.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
    check(node.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Unimplemented);
    take_away(&mut node, &ground, ids).await;
}

#[tokio::test]
async fn a_raw_volume_in_use_is_refused() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let (ids, _targets) = two(&mut daemon, &ground, "ext4").await;
    let raw = block(Mode::SingleNodeWriter);
    let id = daemon.create("raw", 16, &raw).await.volume_id;
    // Nobody has it: it stands still by itself.
    let group = daemon.group(&[&ids[0], &id], "quiet").await.unwrap();
    check(daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
    daemon.show(&ground, &id, "raw", &raw).await;
    let request = group_of(&[&ids[0], &id], "g");
    let said = check(daemon.groups.create_volume_group_snapshot(request).await, Code::FailedPrecondition);
    assert!(said.contains("same instant") && said.contains(&id), "{said}");
    assert_eq!(fs::read_dir(ground.pool().join("fs/snapshots")).unwrap().count(), 0, "nothing is left");
    daemon.hide(&ground, &id, "raw").await;
    daemon.delete(&id).await;
    take_away(&mut daemon, &ground, ids).await;
}

#[tokio::test]
async fn a_set_that_does_not_fit_into_the_freeze_is_refused() {
    let mut ground = Ground::new(Kind::On("ext4"));
    ground.pool_settings.push_str("freeze_limit = \"1ms\"\n");
    let mut daemon = ground.start().await;
    let (ids, targets) = two(&mut daemon, &ground, "xfs").await;
    for target in &targets {
        write(&Path::new(target).join("data"), &random(64 << 20));
    }
    let request = group_of(&[&ids[0], &ids[1]], "g");
    let said = check(daemon.groups.create_volume_group_snapshot(request).await, Code::FailedPrecondition);
    assert!(said.contains("a freeze may last") || said.contains("did not fit"), "{said}");
    assert_eq!(fs::read_dir(ground.pool().join("snapshots")).unwrap().count(), 0, "nothing is left");
    take_away(&mut daemon, &ground, ids).await;
}

#[tokio::test]
async fn a_driver_killed_in_the_pause_and_never_restarted_hangs_nobody() {
    let ground = slow_ground();
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let mut ids = Vec::new();
    let mut writers = Vec::new();
    for name in ["a", "b"] {
        let id = daemon.create(name, 1500, &how).await.volume_id;
        let target = daemon.show(&ground, &id, name, &how).await;
        let content = random(64 << 20);
        for n in 0..20 {
            write(&Path::new(&target).join(n.to_string()), &content);
        }
        ids.push(id);
        writers.push(Writer::on(&target));
    }
    let mut groups = daemon.groups.clone();
    let request = group_of(&[&ids[0], &ids[1]], "set");
    drop(tokio::spawn(async move { groups.create_volume_group_snapshot(request).await }));
    let begun = Instant::now();
    while fs::read_dir(ground.pool().join("pauses")).map_or(0, Iterator::count) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no pause was begun");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for writer in &writers {
        assert!(writer.stalls(Duration::from_millis(100), Duration::from_secs(20)), "never frozen");
    }
    daemon.kill();
    let killed = Instant::now();
    for writer in &writers {
        writer.resumes();
    }
    assert!(killed.elapsed() < Duration::from_secs(2), "writers went on after {:?}", killed.elapsed());
    for writer in writers {
        writer.end();
    }
    let mut daemon = ground.start().await;
    assert_eq!(fs::read_dir(ground.pool().join("pauses")).unwrap().count(), 0, "the intents are done with");
    assert_eq!(
        fs::read_dir(ground.pool().join("snapshots")).unwrap().count(),
        0,
        "nothing half-made is left"
    );
    let group = daemon.group(&[&ids[0], &ids[1]], "set").await.unwrap();
    check(daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
    take_away(&mut daemon, &ground, ids.try_into().unwrap()).await;
}

/// What changes something on the way of a group, the freeze included.
const CHANGES: [&str; 7] = ["linkat", "unlinkat", "fsetxattr", "fsync", "renameat", "ioctl", "sendmsg"];

/// Killed before each step that changes something while it makes or removes a group: afterwards there is all of it or
/// nothing, and the same request succeeds.
#[tokio::test]
async fn killed_between_any_two_steps() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let (ids, targets) = two(&mut daemon, &ground, "ext4").await;
    let writers = [Writer::on(&targets[0]), Writer::on(&targets[1])];
    let sources = [ids[0].as_str(), &ids[1]];
    let (mut killed, mut whole) = (0, 0);
    for call in CHANGES {
        // The tracer counts each kind of call for itself.
        for point in 1.. {
            let mut tracer = kill_at(daemon.pid(), call, point);
            let mut survived = false;
            if let Ok(group) = daemon.group(&sources, "set").await {
                survived = daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await.is_ok();
            }
            daemon.kill();
            drop(tracer.wait());
            for writer in &writers {
                assert!(writer.resumes() < Duration::from_secs(2), "{call} {point}: a writer waits");
            }
            daemon = ground.start().await;
            ground.account();
            let left = fs::read_dir(ground.pool().join("fs/snapshots")).unwrap().count();
            assert!(left == 0 || left == 3, "killed at {call} {point}: {left} files are left");
            if survived {
                break;
            }
            (killed, whole) = (killed + 1, whole + usize::from(left == 3));
            let group = daemon.group(&sources, "set").await.unwrap();
            check(daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await, Code::Ok);
        }
    }
    println!("killed at {killed} points, the group was there after {whole}");
    assert!(killed > 20 && whole > 0);
    for writer in writers {
        writer.end();
    }
    take_away(&mut daemon, &ground, ids).await;
}
