//! The power goes at any flush. Every write below the volume group is logged (dm-log-writes) and replayed up to each flush
//! on a disk of its own: what was acknowledged before it is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, DeleteSnapshotRequest, ListSnapshotsRequest,
    ListVolumesRequest, volume_capability::access_mode::Mode,
};

use crate::{
    disk::text,
    group::{POOL, lvm, try_lvm},
    log::Log,
    requests::{block, from_snapshot},
    rig::{Daemon, Ground, Kind, MIB, filesystem, random, run, write},
};

const VG: &str = "lagancut";
/// The disk while all goes well, and the one that it is replayed to.
const LOGGED: &str = "cut-logged";
const REPLAYED: &str = "cut-replayed";
const DISK_MIB: u64 = 1024;

/// A loop device whose node is gone, so that nobody takes what lies on it for a disk of its own.
struct Hidden {
    node: String,
    number: String,
}

impl Hidden {
    fn new(file: &Path) -> Self {
        let node = run("losetup", &["-f", "--show", &text(file)]).trim().to_owned();
        let number = run("stat", &["-c", "%Hr:%Lr", &node]).trim().to_owned();
        fs::remove_file(&node).unwrap();
        Self { node, number }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let (major, minor) = self.number.split_once(':').unwrap();
        run("mknod", &[&self.node, "b", major, minor]);
        run("losetup", &["-d", &self.node]);
    }
}

fn sparse(directory: &Path, name: &str, mib: u64) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

fn dmsetup(arguments: &[&str]) {
    run("dmsetup", &[arguments, &["--noudevsync", "--verifyudev"]].concat());
}

/// What was acknowledged, by the name of its mark.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    /// Volumes and snapshots with their lengths.
    objects: BTreeMap<String, i64>,
    /// What a file of the mounted volume holds.
    file: Vec<u8>,
}

impl Known {
    /// An object is there with a length; with none it is gone.
    fn has(&mut self, id: &str, mib: i64) {
        self.objects.insert(id.to_owned(), mib * MIB);
        self.objects.retain(|_, length| *length > 0);
    }
}

struct Story {
    known: Vec<Known>,
    mounted: String,
}

impl Story {
    /// Something is acknowledged from here on.
    fn acknowledge(&mut self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.last().cloned().unwrap_or_default();
        change(&mut known);
        run("dmsetup", &["message", LOGGED, "0", "mark", &format!("ack-{}", self.known.len())]);
        self.known.push(known);
    }

    /// Every kind of change, one after the other.
    async fn happen(daemon: &mut Daemon, ground: &Ground) -> Self {
        let (raw, ext4) = (block(Mode::SingleNodeWriter), filesystem("ext4"));
        let mut story = Self { known: Vec::new(), mounted: String::new() };
        story.acknowledge(|_| {});
        let first = daemon.create("first", 16, &raw).await.volume_id;
        story.acknowledge(|known| known.has(&first, 16));
        let second = daemon.create("second", 32, &ext4).await.volume_id;
        story.acknowledge(|known| known.has(&second, 32));
        let shown = daemon.show(ground, &second, "second", &ext4).await;
        let content = random(1 << 20);
        write(&Path::new(&shown).join("data"), &content);
        File::open(&shown).unwrap().sync_all().unwrap();
        story.acknowledge(|known| known.file = content);
        let cut = daemon.snapshot(&second, "cut").await.unwrap().snapshot_id;
        story.acknowledge(|known| known.has(&cut, 32));
        let request = ControllerExpandVolumeRequest {
            volume_id: first.clone(),
            capacity_range: Some(CapacityRange { required_bytes: 24 * MIB, limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        daemon.controller.controller_expand_volume(request).await.unwrap();
        story.acknowledge(|known| known.has(&first, 24));
        let restored = daemon.copy("restored", from_snapshot(&cut), &ext4).await.volume_id;
        story.acknowledge(|known| known.has(&restored, 32));
        daemon.delete(&first).await;
        story.acknowledge(|known| known.has(&first, 0));
        let request = DeleteSnapshotRequest { snapshot_id: cut.clone(), ..DeleteSnapshotRequest::default() };
        daemon.controller.delete_snapshot(request).await.unwrap();
        story.acknowledge(|known| known.has(&cut, 0));
        daemon.hide(ground, &second, "second").await;
        story.mounted = second;
        story
    }

    /// After a cut behind the `last`th acknowledgement: that much is there, and at most what came next besides.
    async fn check(&self, last: usize, daemon: &mut Daemon, ground: &Ground) {
        let found = found(daemon).await;
        let before = &self.known[last].objects;
        let after = &self.known.get(last + 1).unwrap_or(&self.known[last]).objects;
        let all: BTreeSet<_> = before.keys().chain(after.keys()).chain(found.keys()).collect();
        for id in all {
            let there = found.get(id);
            assert!(
                there == before.get(id) || there == after.get(id),
                "after acknowledgement {last} {id} was {:?} and would be {:?}, but is {there:?}",
                before.get(id),
                after.get(id)
            );
        }
        let file = &self.known[last].file;
        if !file.is_empty() {
            let how = filesystem("ext4");
            let published = daemon
                .controller
                .controller_unpublish_volume(crate::requests::unpublish_from(&self.mounted, ""));
            published.await.unwrap();
            let shown = daemon.show(ground, &self.mounted, "again", &how).await;
            assert!(&fs::read(Path::new(&shown).join("data")).unwrap() == file, "what was flushed");
            daemon.hide(ground, &self.mounted, "again").await;
        }
    }
}

async fn found(daemon: &mut Daemon) -> BTreeMap<String, i64> {
    let volumes = daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let snapshots =
        daemon.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let volumes = volumes.entries.into_iter().map(|entry| entry.volume.unwrap());
    let snapshots = snapshots.entries.into_iter().map(|entry| entry.snapshot.unwrap());
    volumes
        .map(|volume| (volume.volume_id, volume.capacity_bytes))
        .chain(snapshots.map(|snapshot| (snapshot.snapshot_id, snapshot.size_bytes)))
        .collect()
}

/// Takes the pool down as a power cut does: nothing of it is left in the kernel.
fn take_down(disk: &str) {
    for line in run("dmsetup", &["ls"]).lines().filter(|line| line.starts_with("lagan-")) {
        dmsetup(&["remove", line.split_whitespace().next().unwrap()]);
    }
    lvm(&["vgchange", "-an", VG]);
    dmsetup(&["remove", disk]);
}

/// Which cuts are tried, of so many.
fn tried(count: usize) -> Vec<usize> {
    match std::env::var("POINTS").as_deref() {
        Ok("all") => (0..count).collect(),
        Ok(points) if !points.is_empty() => {
            let points = points.parse::<usize>().unwrap().min(count);
            (0..points).map(|point| (point + 1) * count / points - 1).collect()
        }
        _ => vec![count / 4, count / 2, count - 1],
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there() {
    let place = tempfile::Builder::new().prefix("lagan-test-").tempdir_in("/var/tmp").unwrap();
    let source = Hidden::new(&sparse(place.path(), "source", DISK_MIB));
    let log_file = sparse(place.path(), "log", 8 * DISK_MIB);
    let log = Hidden::new(&log_file);
    let sectors = DISK_MIB << 11;
    let table = format!("0 {sectors} log-writes {} {}", source.number, log.number);
    dmsetup(&["create", LOGGED, "--table", &table]);
    lvm(&["vgcreate", "-y", VG, &format!("/dev/mapper/{LOGGED}")]);
    lvm(&["lvcreate", "-y", "--type", "thin-pool", "-L", "512m", "--poolmetadatasize", "4m", "-n", POOL, VG]);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let mut daemon = ground.start().await;
    let story = Story::happen(&mut daemon, &ground).await;
    daemon.kill();
    take_down(LOGGED);
    drop((source, log));

    let target_file = sparse(place.path(), "target", DISK_MIB);
    let (log, target) = (Log::open(&log_file), File::options().write(true).open(&target_file).unwrap());
    let hidden = Hidden::new(&target_file);
    let entries = log.entries();
    let begun = entries.iter().position(|entry| entry.mark.as_deref() == Some("ack-0")).unwrap();
    let cuts: Vec<_> = (begun..entries.len()).filter(|at| entries[*at].is_flush()).collect();
    let chosen: BTreeSet<_> = tried(cuts.len()).into_iter().map(|number| cuts[number]).collect();
    let mut last = 0;
    for (at, entry) in entries.iter().enumerate() {
        if let Some(number) = entry.mark.as_deref().and_then(|mark| mark.strip_prefix("ack-")) {
            last = number.parse().unwrap();
        }
        log.replay(entry, &target);
        if chosen.contains(&at) {
            target.sync_all().unwrap();
            examine(&ground, place.path(), &hidden, &story, last).await;
        }
    }
    println!("the power went at {} of {} flushes", chosen.len(), cuts.len());
    assert!(!try_lvm(&["vgs", VG]).0, "the group is gone with its disk");
    drop(hidden);
}

/// Starts on what a cut has left, with what is changed kept apart from it.
async fn examine(ground: &Ground, place: &Path, replayed: &Hidden, story: &Story, last: usize) {
    let changes = Hidden::new(&sparse(place, "changes", DISK_MIB));
    let table = format!("0 {} snapshot {} {} N 8", DISK_MIB << 11, replayed.number, changes.number);
    dmsetup(&["create", REPLAYED, "--table", &table]);
    let mut daemon = ground.start().await;
    story.check(last, &mut daemon, ground).await;
    let how = block(Mode::SingleNodeWriter);
    let other = daemon.create("other", 8, &how).await.volume_id;
    daemon.delete(&other).await;
    ground.account();
    daemon.kill();
    take_down(REPLAYED);
    drop(changes);
}
