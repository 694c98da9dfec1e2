//! What each call asks of the kernel, counted by a tracer outside of the driver: exact, so that no noise hides a flush, a program
//! or a look at all mounts more than there was; and the same however many volumes and mounts there are.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Child,
};

use futures_util::{StreamExt, stream};
use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, DeleteSnapshotRequest,
    NodeGetVolumeStatsRequest, ProbeRequest, VolumeCapability, volume_capability::access_mode::Mode,
};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::{
    kill::note_paths,
    requests::{
        block, create_with, delete, from_snapshot, from_volume, hide_at, publish_with, show_at, snapshot_of,
        stage_at, unpublish_from, unstage_at,
    },
    rig::{Daemon, Ground, Kind, MIB, filesystem, text},
};

/// System calls that are written down.
const CALLS: &str = "execve,fsync,fdatasync,syncfs,sync_file_range,ioctl,open,openat,openat2,fsetxattr,setxattr,lsetxattr,\
                     write,pwrite64,writev,pwritev,copy_file_range,ftruncate,fallocate,linkat,unlinkat";
/// What a library reads once for itself, at no certain time.
const LIBRARY: &str = "/proc/sys/vm/overcommit_memory";

/// So many volumes are published beside the one that is counted, each with a loop device.
const SHOWN: usize = 40;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Work {
    programs: u32,
    flushes: u32,
    /// Records written, and all bytes of files and records.
    records: u32,
    bytes: u64,
    ioctls: u32,
    opens: u32,
    /// Tables of mounts read.
    tables: u32,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { programs, flushes, records, bytes, ioctls, opens, tables } = self;
        write!(f, "{programs:8} {flushes:7} {records:7} {bytes:7} {ioctls:6} {opens:5} {tables:6}")
    }
}

impl Work {
    /// Adds what a line of strace(1) tells.
    fn take_in(&mut self, line: &str, pool: &str) {
        let call = line.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ' ');
        // The end of a call that another thread's came between.
        let Some((name, arguments)) = call.split_once('(').filter(|_| !call.starts_with('<')) else { return };
        match name {
            "execve" => self.programs += 1,
            "fsync" | "fdatasync" | "syncfs" => self.flushes += 1,
            "ioctl" => self.ioctls += 1,
            "open" | "openat" | "openat2" if !arguments.contains(LIBRARY) => {
                self.opens += 1;
                self.tables += u32::from(arguments.contains("mountinfo"));
            }
            "fsetxattr" | "setxattr" | "lsetxattr" => {
                self.records += 1;
                self.bytes += from_the_end(arguments, 1);
            }
            // Not answers to the caller, and not the log.
            "write" if arguments.contains(pool) => self.bytes += from_the_end(arguments, 0),
            "pwrite64" if arguments.contains(pool) => self.bytes += from_the_end(arguments, 1),
            "writev" | "pwritev" | "copy_file_range" if arguments.contains(pool) => {
                panic!("not counted yet: {line}")
            }
            _ => {}
        }
    }
}

/// The argument of a call with so many behind it. Text, which may hold anything, comes before.
fn from_the_end(arguments: &str, behind: usize) -> u64 {
    let begun = arguments.split(" <unfinished").next().unwrap();
    let begun = begun.rsplit_once(" = ").map_or(begun, |(call, _)| call.trim_end().trim_end_matches(')'));
    let argument = begun.rsplit(", ").nth(behind).unwrap();
    argument.parse().unwrap_or_else(|_| panic!("{arguments}"))
}

/// A tracer of a driver, and what it has told so far.
struct Tracer {
    strace: Child,
    file: PathBuf,
    read: usize,
    pool: String,
    rows: Vec<(String, Work)>,
}

impl Tracer {
    fn on(ground: &Ground, daemon: &Daemon) -> Self {
        let file = ground.root.join("trace");
        let strace = note_paths(daemon.pid(), CALLS, &text(&file));
        Self { strace, file, read: 0, pool: text(&ground.pool()), rows: Vec::new() }
    }

    /// What was done since the last time. The tracer writes a call down before it lets the driver go on, so an answered call is
    /// there as a whole.
    fn since(&mut self) -> Work {
        let told = fs::read_to_string(&self.file).unwrap();
        let mut work = Work::default();
        told[self.read..].lines().for_each(|line| work.take_in(line, &self.pool));
        self.read = told.len();
        work
    }

    async fn count<T>(&mut self, name: &str, call: impl Future<Output = T>) -> T {
        self.since();
        let answer = call.await;
        let work = self.since();
        self.rows.push((name.to_owned(), work));
        answer
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It may have ended with the driver.
        drop(self.strace.kill());
        drop(self.strace.wait());
    }
}

/// Every call on a volume, once.
async fn life(
    tracer: &mut Tracer,
    ground: &Ground,
    daemon: &mut Daemon,
    round: &str,
    how: &VolumeCapability,
) {
    let (staging, target) = (ground.path(&format!("{round}-staging")), ground.path(round));
    tracer.count("Probe", daemon.identity.probe(ProbeRequest {})).await.unwrap();
    let request = create_with(round, 64 * MIB, how);
    let made = tracer.count("CreateVolume", daemon.controller.create_volume(request)).await.unwrap();
    let id = made.into_inner().volume.unwrap().volume_id;
    let request = ControllerGetVolumeRequest { volume_id: id.clone() };
    tracer.count("GetVolume", daemon.controller.controller_get_volume(request)).await.unwrap();
    let request = publish_with(&id, how);
    tracer.count("ControllerPublish", daemon.controller.controller_publish_volume(request)).await.unwrap();
    tracer.count("NodeStage", daemon.node.node_stage_volume(stage_at(&id, &staging, how))).await.unwrap();
    let request = show_at(&id, &staging, &target, how);
    tracer.count("NodePublish", daemon.node.node_publish_volume(request)).await.unwrap();
    let request = NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: target.clone(),
        ..NodeGetVolumeStatsRequest::default()
    };
    tracer.count("NodeGetVolumeStats", daemon.node.node_get_volume_stats(request)).await.unwrap();
    let request = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    tracer.count("ControllerExpand", daemon.controller.controller_expand_volume(request)).await.unwrap();
    let request = hide_at(&id, &target);
    tracer.count("NodeUnpublish", daemon.node.node_unpublish_volume(request)).await.unwrap();
    let request = unstage_at(&id, &staging);
    tracer.count("NodeUnstage", daemon.node.node_unstage_volume(request)).await.unwrap();
    let request = unpublish_from(&id, "");
    tracer
        .count("ControllerUnpublish", daemon.controller.controller_unpublish_volume(request))
        .await
        .unwrap();
    let request = snapshot_of(&id, &format!("{round}-cut"));
    let cut = tracer.count("CreateSnapshot", daemon.controller.create_snapshot(request)).await.unwrap();
    let snapshot_id = cut.into_inner().snapshot.unwrap().snapshot_id;
    for (name, from) in [("restore", from_snapshot(&snapshot_id)), ("clone", from_volume(&id))] {
        let mut request = create_with(&format!("{round}-{name}"), 0, how);
        request.volume_content_source = from;
        let copied = tracer.count(name, daemon.controller.create_volume(request)).await.unwrap();
        daemon.delete(&copied.into_inner().volume.unwrap().volume_id).await;
    }
    let request = DeleteSnapshotRequest { snapshot_id, ..DeleteSnapshotRequest::default() };
    tracer.count("DeleteSnapshot", daemon.controller.delete_snapshot(request)).await.unwrap();
    tracer.count("DeleteVolume", daemon.controller.delete_volume(delete(&id))).await.unwrap();
}

/// Both kinds of volumes, counted once everything that is made at the first time is there.
async fn table(ground: &Ground, daemon: &mut Daemon, round: &str) -> String {
    let mut tracer = Tracer::on(ground, daemon);
    let mut lines = vec![format!("{:25}programs flushes records   bytes ioctls opens tables", "")];
    for (kind, how) in [("raw", block(Mode::SingleNodeMultiWriter)), ("ext4", filesystem("ext4"))] {
        for warm in 0..3 {
            tracer.rows.clear();
            life(&mut tracer, ground, daemon, &format!("{round}-{kind}-{warm}"), &how).await;
        }
        lines.extend(tracer.rows.iter().map(|(name, work)| format!("{kind:4} {name:20}{work}")));
    }
    lines.join("\n")
}

/// The promise for each call. Where a change of the driver alters a number on purpose, alter it here too.
const PROMISED: &str = "\x20                        programs flushes records   bytes ioctls opens tables
raw  Probe                      0       0       0       0      0     0      0
raw  CreateVolume               0       1       1    1536      0     1      0
raw  GetVolume                  0       0       0       0      0     0      0
raw  ControllerPublish          0       1       1    1536      0     1      0
raw  NodeStage                  0       0       0       0      4     6      0
raw  NodePublish                0       0       0       0      4     8      0
raw  NodeGetVolumeStats         0       0       0       0      2     2      0
raw  ControllerExpand           0       1       1    1536      4     4      0
raw  NodeUnpublish              0       0       0       0      2     6      0
raw  NodeUnstage                0       0       0       0      7     8      2
raw  ControllerUnpublish        0       1       1    1536      0     3      0
raw  CreateSnapshot             0       1       1    1536      1     3      0
raw  restore                    0       1       1    1536      1     2      0
raw  clone                      0       1       1    1536      1     3      0
raw  DeleteSnapshot             0       1       0       0      0     0      0
raw  DeleteVolume               0       1       0       0      0     2      0
ext4 Probe                      0       0       0       0      0     0      0
ext4 CreateVolume               0       1       1    9728      1     3      0
ext4 GetVolume                  0       0       0       0      0     0      0
ext4 ControllerPublish          0       1       1    1536      0     1      0
ext4 NodeStage                  0       0       0       0      4    11      0
ext4 NodePublish                0       0       0       0      2     7      0
ext4 NodeGetVolumeStats         0       0       0       0      2     3      0
ext4 ControllerExpand           0       1       1    1536      4     4      0
ext4 NodeUnpublish              0       0       0       0      2     6      0
ext4 NodeUnstage                0       0       0       0      4     9      2
ext4 ControllerUnpublish        0       1       1    1536      0     3      0
ext4 CreateSnapshot             0       1       1    1536      1     3      0
ext4 restore                    0       1       1    9728      1     2      0
ext4 clone                      0       1       1    9728      1     3      0
ext4 DeleteSnapshot             0       1       0       0      0     0      0
ext4 DeleteVolume               0       1       0       0      0     2      0";

#[tokio::test]
async fn each_call_does_so_much_and_no_more() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start_with(&["--log-level", "error"]).await;
    let counted = table(&ground, &mut daemon, "one").await;
    assert!(counted == PROMISED, "counted:\n{counted}\npromised:\n{PROMISED}");
    ground.account();
}

/// Mounts of somebody else: binds in one tmpfs, which goes as a whole.
struct Others(PathBuf);

impl Others {
    fn add(root: &Path, count: usize) -> Self {
        let others = root.join("others");
        fs::create_dir(&others).unwrap();
        mount("lagan-test", &others, "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(&others, MountPropagationFlags::PRIVATE).unwrap();
        for n in 0..count {
            let point = others.join(n.to_string());
            fs::create_dir(&point).unwrap();
            mount_bind(&point, &point).unwrap();
        }
        Self(others)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}

/// No cost may grow with what is there besides: volumes (2,000, or as many as `WORK_VOLUMES` says), mounts, loop devices.
#[tokio::test]
async fn no_call_does_more_beside_many_volumes_or_mounts() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start_with(&["--log-level", "error"]).await;
    let few = table(&ground, &mut daemon, "few").await;
    let most = std::env::var("WORK_VOLUMES").map_or(2000, |count| count.parse().unwrap());
    let mut there = 0;
    for count in [100, most] {
        let how = block(Mode::SingleNodeMultiWriter);
        let many = (there..count).map(|n| {
            let (mut controller, request) =
                (daemon.controller.clone(), create_with(&format!("m{n}"), MIB, &how));
            async move { controller.create_volume(request).await.unwrap() }
        });
        stream::iter(many).buffer_unordered(16).for_each(|_| async {}).await;
        there = count;
        let counted = table(&ground, &mut daemon, &format!("beside{count}")).await;
        assert!(counted == few, "beside {count} volumes:\n{counted}\nbeside none:\n{few}");
    }
    let others = Others::add(&ground.root, 3000);
    let counted = table(&ground, &mut daemon, "mounts").await;
    drop(others);
    assert!(counted == few, "beside 3,000 mounts:\n{counted}\nbeside none:\n{few}");
    let how = block(Mode::SingleNodeMultiWriter);
    let mut shown = Vec::new();
    for n in 0..SHOWN {
        let (id, name) = (daemon.create(&format!("shown{n}"), 1, &how).await.volume_id, format!("shown{n}"));
        daemon.show(&ground, &id, &name, &how).await;
        shown.push((id, name));
    }
    let counted = table(&ground, &mut daemon, "shown").await;
    for (id, name) in shown {
        daemon.hide(&ground, &id, &name).await;
    }
    assert!(counted == few, "beside {SHOWN} in use:\n{counted}\nbeside none:\n{few}");
    ground.account();
}

#[test]
fn lines_of_the_tracer_are_understood() {
    let mut work = Work::default();
    for line in [
        "12 openat2(9</p/volumes>, \"a, b(c.raw\", {flags=O_RDONLY}, 24) = 10</p/volumes/a.raw>",
        "12 fsetxattr(10</p/volumes/#1 (deleted)>, \"trusted.lagan\", \"lagan1 \\\"x, y\"..., 1536, 0 <unfinished ...>",
        "13 fsync(10</p/volumes/#1 (deleted)>) = 0",
        "12 <... fsetxattr resumed>) = 0",
        "12 pwrite64(10</p/volumes/#1>, \"\\0\\1\"..., 4096, 1024) = 4096",
        "12 write(2</p-log>, \"x\", 1) = 1",
        "12 openat(AT_FDCWD, \"/proc/self/mountinfo\", O_RDONLY|O_CLOEXEC) = 11</proc/1/mountinfo>",
        "12 openat(AT_FDCWD, \"/proc/sys/vm/overcommit_memory\", O_RDONLY) = 11",
        "12 ioctl(10</dev/loop1>, LOOP_SET_CAPACITY) = 0",
        "14 execve(\"/sbin/mke2fs\", [\"mke2fs\"], 0x1) = 0",
    ] {
        work.take_in(line, "/p/");
    }
    let expected = Work { programs: 1, flushes: 1, records: 1, bytes: 5632, ioctls: 1, opens: 2, tables: 1 };
    assert_eq!(work, expected);
}
