//! SIGKILL before each state-changing system call of each operation, with live writers on the source and on a neighbour.
//! Afterwards nobody hangs, nothing is lost or left, and the same request succeeds.

use std::{path::Path, time::Duration};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    VolumeContentSource,
};
use tonic::Status;

use crate::{
    disks::Disk,
    group,
    kill::{kill_at, note},
    requests::{
        create_with, delete, from_snapshot, from_volume, group_of, publish_with, snapshot_of, stage_at,
        ungroup, unpublish_from, unstage_at,
    },
    rig::{Daemon, Ground, Kind, MIB, filesystem, text},
    writer::{Writer, lines_in},
};

/// The calls that change something: messages to device-mapper, records, flushes, nodes, mounts, requests to the minder.
/// Each has its rounds, since a tracer counts each for itself.
const CHANGES: [&str; 19] = [
    "ioctl",
    "pwrite64",
    "fdatasync",
    "fsync",
    "sendmsg",
    "mknodat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "fsconfig",
    "fsmount",
    "open_tree",
    "mount_setattr",
    "move_mount",
    "umount2",
];
/// How long a writer may be made to wait, in a machine that is emulated.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What is done, and killed.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Create,
    Snapshot,
    /// Of the source and its neighbour, both written to.
    Set,
    Clone,
    Restore,
    Grow,
    /// Publish and stage, and back.
    Stage,
    Delete,
}

const ALL: [Operation; 8] = [
    Operation::Create,
    Operation::Snapshot,
    Operation::Set,
    Operation::Clone,
    Operation::Restore,
    Operation::Grow,
    Operation::Stage,
    Operation::Delete,
];

/// Those that OPERATIONS names, or all: a run at every point takes hours, and may be made in pieces.
fn chosen() -> Vec<Operation> {
    let Ok(wanted) = std::env::var("OPERATIONS") else { return ALL.to_vec() };
    let name = |operation: Operation| format!("{operation:?}").to_lowercase();
    let find = |word: &str| ALL.into_iter().find(|operation| name(*operation) == word);
    let named = |word: &str| find(word).unwrap_or_else(|| panic!("OPERATIONS: {word:?} is none of {ALL:?}"));
    let chosen: Vec<_> = wanted.split_whitespace().map(named).collect();
    if chosen.is_empty() { ALL.to_vec() } else { chosen }
}

/// What operations work on.
struct Stage {
    /// Published, and written to all the time.
    source: String,
    neighbour: String,
    snapshot: String,
    /// Made anew for each trial that deletes or grows it.
    victim: String,
    /// Where it is staged.
    staging: String,
    size: i64,
}

impl Stage {
    async fn prepare(&mut self, daemon: &mut Daemon) {
        self.size += MIB;
        self.victim = daemon.create("victim", 64, &filesystem("ext4")).await.volume_id;
    }
}

fn copy(name: &str, source: Option<VolumeContentSource>) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_content_source: source, ..create_with(name, 64 * MIB, &filesystem("ext4")) }
}

/// Does it; the id of what was made.
async fn attempt(daemon: &mut Daemon, stage: &Stage, operation: Operation) -> Result<Option<String>, Status> {
    let made = match operation {
        Operation::Create => Some(create_with("made", 64 * MIB, &filesystem("ext4"))),
        Operation::Clone => Some(copy("made", from_volume(&stage.source))),
        Operation::Restore => Some(copy("made", from_snapshot(&stage.snapshot))),
        _ => None,
    };
    if let Some(request) = made {
        let volume = daemon.controller.create_volume(request).await?.into_inner().volume.unwrap();
        return Ok(Some(volume.volume_id));
    }
    match operation {
        Operation::Snapshot => {
            let answer = daemon.controller.create_snapshot(snapshot_of(&stage.source, "cut")).await?;
            Ok(Some(answer.into_inner().snapshot.unwrap().snapshot_id))
        }
        Operation::Set => {
            let request = group_of(&[&stage.source, &stage.neighbour], "set");
            let group = daemon.groups.create_volume_group_snapshot(request).await?.into_inner();
            let group = group.group_snapshot.unwrap();
            daemon.groups.delete_volume_group_snapshot(ungroup(&group)).await.map(|_| None)
        }
        Operation::Grow => {
            let capacity_range = Some(CapacityRange { required_bytes: stage.size, limit_bytes: 0 });
            let request = ControllerExpandVolumeRequest {
                volume_id: stage.victim.clone(),
                capacity_range,
                ..ControllerExpandVolumeRequest::default()
            };
            daemon.controller.controller_expand_volume(request).await.map(|_| None)
        }
        Operation::Stage => {
            let (how, path) = (filesystem("ext4"), &stage.staging);
            daemon.controller.controller_publish_volume(publish_with(&stage.victim, &how)).await?;
            daemon.node.node_stage_volume(stage_at(&stage.victim, path, &how)).await?;
            daemon.node.node_unstage_volume(unstage_at(&stage.victim, path)).await?;
            let unpublished = unpublish_from(&stage.victim, "");
            daemon.controller.controller_unpublish_volume(unpublished).await.map(|_| None)
        }
        _ => daemon.controller.delete_volume(delete(&stage.victim)).await.map(|_| None),
    }
}

async fn remove(daemon: &mut Daemon, id: Option<String>) {
    match id {
        Some(id) if id.starts_with("s.") => {
            let request = DeleteSnapshotRequest { snapshot_id: id, ..DeleteSnapshotRequest::default() };
            daemon.controller.delete_snapshot(request).await.unwrap();
        }
        Some(id) => daemon.delete(&id).await,
        None => {}
    }
}

/// The calls before which an operation is killed: those that it makes, if points are asked for; otherwise the first kind.
async fn changes(
    mut daemon: Daemon,
    ground: &Ground,
    stage: &mut Stage,
    operation: Operation,
) -> (Daemon, Vec<&'static str>) {
    if std::env::var_os("POINTS").is_none() {
        return (daemon, vec![CHANGES[0]]);
    }
    let file = text(&ground.root.join("trace"));
    stage.prepare(&mut daemon).await;
    let mut tracer = note(daemon.pid(), &CHANGES.join(","), &file);
    let made = attempt(&mut daemon, stage, operation).await.unwrap();
    remove(&mut daemon, made).await;
    daemon.delete(&stage.victim).await;
    daemon.kill();
    drop(tracer.wait());
    let trace = std::fs::read_to_string(file).unwrap();
    // A line begins with the number of the thread.
    let count = |call: &&str| trace.lines().filter(|line| line.contains(&format!(" {call}("))).count();
    let made: Vec<_> = CHANGES.into_iter().filter(|call| count(call) > 0).collect();
    let counts: Vec<_> = made.iter().map(|call| format!("{} {call}", count(call))).collect();
    println!("{operation:?} makes {}", counts.join(", "));
    (ground.start().await, made)
}

/// Which points are tried: all, or so many of each operation and kind of call.
pub(crate) fn is_tried(point: u32) -> bool {
    match std::env::var("POINTS").unwrap_or_default().as_str() {
        "all" => true,
        "" => point == 2,
        count => point <= count.parse().unwrap(),
    }
}

/// One operation, killed at one point; the driver that came after, and `false` where it was done before the point came.
async fn trial(
    mut daemon: Daemon,
    ground: &Ground,
    stage: &mut Stage,
    operation: Operation,
    (calls, point): (&str, u32),
) -> (Daemon, bool) {
    stage.prepare(&mut daemon).await;
    let mut tracer = kill_at(daemon.pid(), calls, point);
    let answer = attempt(&mut daemon, stage, operation).await;
    let survived = answer.is_ok();
    assert!(survived || daemon.was_killed(), "{operation:?} at {calls} {point}: {answer:?}");
    daemon.kill();
    drop(tracer.wait());
    let mut daemon = ground.start().await;
    let made = attempt(&mut daemon, stage, operation).await;
    let made = made.unwrap_or_else(|status| panic!("{operation:?} killed at {calls} {point}: {status:?}"));
    remove(&mut daemon, made).await;
    daemon.delete(&stage.victim).await;
    (daemon, !survived)
}

#[tokio::test]
async fn killed_at_any_point() {
    group::ensure(3072);
    killed_on(&Ground::new(Kind::Lvm(group::VG, group::POOL))).await;
}

#[tokio::test]
async fn killed_at_any_point_on_a_disk() {
    let (disk, ground) = Disk::with_pool(4096);
    killed_on(&ground).await;
    disk.retire(&ground);
}

async fn killed_on(ground: &Ground) {
    let how = filesystem("ext4");
    let mut daemon = ground.start().await;
    let (source, neighbour) = (
        daemon.create("source", 64, &how).await.volume_id,
        daemon.create("neighbour", 64, &how).await.volume_id,
    );
    let shown = daemon.show(ground, &source, "source", &how).await;
    let beside = daemon.show(ground, &neighbour, "neighbour", &how).await;
    let snapshot = daemon.snapshot(&source, "before").await.unwrap().snapshot_id;
    let (victim, staging) = (String::new(), ground.path("staging"));
    let mut stage = Stage { source, neighbour, snapshot, victim, staging, size: 64 * MIB };
    let writers = [Writer::on(&shown), Writer::on(&beside)];
    for operation in chosen() {
        let (mut killed, mut waited) = (0, [Duration::ZERO; 2]);
        let (next, calls) = changes(daemon, ground, &mut stage, operation).await;
        daemon = next;
        for call in calls {
            for point in (1..200).filter(|point| is_tried(*point)) {
                let (next, died) = trial(daemon, ground, &mut stage, operation, (call, point)).await;
                daemon = next;
                for (writer, waited) in writers.iter().zip(&mut waited) {
                    writer.resumes();
                    *waited = writer.longest().max(*waited);
                    assert!(*waited < PATIENCE, "{operation:?} killed at {call} {point}: {waited:?}");
                }
                ground.account();
                if !died {
                    break;
                }
                killed += 1;
            }
        }
        assert!(killed > 0, "{operation:?} was never killed");
        let [source, neighbour] = waited;
        println!(
            "{operation:?}: killed at {killed} points; a line took {source:?}, the neighbour's {neighbour:?}"
        );
    }
    let written = writers.map(Writer::end);
    for ((id, name), lines) in
        [(&stage.source, "source"), (&stage.neighbour, "neighbour")].iter().zip(written)
    {
        // Read from the disk, and not from memory.
        daemon.hide(ground, id, name).await;
        let shown = daemon.show(ground, id, name, &how).await;
        assert_eq!(lines_in(Path::new(&shown)), lines, "{name}");
        daemon.hide(ground, id, name).await;
        daemon.delete(id).await;
    }
    remove(&mut daemon, Some(stage.snapshot)).await;
    ground.account();
}
