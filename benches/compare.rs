//! What the driver costs, beside what the same job costs by hand, in the same run: `make bench`. Each figure is the
//! median of rounds in which ours and the baseline take turns; the ratio is that of the medians. Needs root.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and fails by panicking")]

#[path = "../tests/support/disk.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod disk;
#[path = "../tests/support/requests.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod requests;
#[path = "../tests/kernel/rig.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod rig;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use lagan::proto::{
    ControllerGetVolumeRequest, DeleteSnapshotRequest, ProbeRequest, VolumeCapability,
    volume_capability::access_mode::Mode,
};

use requests::{
    block, create_with, delete, from_snapshot, from_volume, hide_at, publish_with, show_at, stage_at,
    unpublish_from, unstage_at,
};
use rig::{Daemon, Ground, HTTP, Kind, MIB, filesystem, run, text};

const ROUNDS: usize = 15;
const GIB: i64 = 1 << 30;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn report(what: &str, figure: &str) {
    println!("  {what:<58} {figure}");
}

fn title(text: &str) {
    println!("\n{text}");
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (work.await, begun.elapsed())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo passes --bench; there is nothing to choose.
    println!("kernel {}, {}", lagan::sys::host::kernel_release(), load());
    let mut ground = Ground::sized(Kind::Image, 12 << 10);
    ground.http = HTTP;
    let mut daemon = start(&ground).await;
    memory("idle, no volume", &daemon);
    floors(&ground, &mut daemon).await;
    life(&ground, &mut daemon).await;
    copies(&ground, &mut daemon).await;
    space(&ground, &mut daemon).await;
    let daemon = many(&ground, daemon).await;
    drop(daemon);
    println!("\n{}", load());
}

/// The driver as it is run for real, its log included.
async fn start(ground: &Ground) -> Daemon {
    ground.start_with(&["--log-level", "info"]).await
}

fn load() -> String {
    let pressure = fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let pressure = pressure.split_whitespace().nth(1).unwrap_or("avg10=unknown").to_owned();
    let noisy = pressure.trim_start_matches("avg10=").parse().is_ok_and(|percent: f64| percent > 20.0);
    format!("CPU pressure {pressure}{}", if noisy { ": a noisy run, believe ratios only" } else { "" })
}

fn memory(when: &str, daemon: &Daemon) {
    let own = daemon.pid().as_raw_nonzero().to_string();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let resident = |process: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let minder: u64 = children.split_whitespace().map(resident).sum();
    title("Memory");
    report(when, &format!("{} KiB resident, and {minder} KiB the minder", resident(&own)));
    let before = wakeups(&own);
    std::thread::sleep(Duration::from_secs(3));
    report("wake-ups in 3 s of nothing to do", &(wakeups(&own) - before).to_string());
}

/// How often the threads of a process have given up the processor by themselves: each time they were woken before.
fn wakeups(process: &str) -> u64 {
    let of_thread = |task: fs::DirEntry| -> u64 {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| of_thread(task.unwrap())).sum()
}

/// What anything costs here at the least.
async fn floors(ground: &Ground, daemon: &mut Daemon) {
    title("Floors");
    let volumes = ground.volumes();
    let mut times: [Vec<Duration>; 3] = std::array::from_fn(|_| Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let file = File::create(volumes.join("floor")).unwrap();
        file.sync_all().unwrap();
        times[0].push(begun.elapsed());
        fs::remove_file(volumes.join("floor")).unwrap();
        times[1].push(timed(daemon.identity.probe(ProbeRequest {})).await.1);
        let begun = Instant::now();
        run("true", &[]);
        times[2].push(begun.elapsed());
    }
    let names =
        ["create and fsync an empty file in the pool", "an empty call (Probe)", "start a program (true)"];
    for (name, times) in names.into_iter().zip(times) {
        report(name, &format!("{:.3} ms", millis(median(times))));
    }
}

/// An ext4 volume created, staged and published, and the same by the commands that other drivers run.
async fn life(ground: &Ground, daemon: &mut Daemon) {
    title(
        "An ext4 volume: CreateVolume, NodeStage, NodePublish; beside truncate, losetup, mkfs.ext4, mount, mount --bind",
    );
    let how = filesystem("ext4");
    for gib in [1, 100] {
        for n in 0..2 {
            let id = daemon.create(&format!("warm{n}"), gib << 10, &how).await.volume_id;
            daemon.delete(&id).await;
        }
        let before =
            (daemon.metric("lagan_programs_started_total"), daemon.metric("lagan_pool_flushes_total"));
        let mut ours: [Vec<Duration>; 4] = std::array::from_fn(|_| Vec::new());
        let (mut sums, mut theirs, mut undo) = (Vec::new(), Vec::new(), [vec![], vec![]]);
        for n in 0..ROUNDS {
            let name = format!("life{n}");
            let steps = one_life(ground, daemon, &name, gib << 10, &how).await;
            sums.push(steps[0] + steps[2] + steps[3]);
            undo[0].push(steps[4]);
            for (ours, step) in ours.iter_mut().zip(steps) {
                ours.push(step);
            }
            let (up, down) = by_hand(ground, gib);
            theirs.push(up);
            undo[1].push(down);
        }
        let flushes = (daemon.metric("lagan_pool_flushes_total") - before.1) / ROUNDS as u64;
        let programs = daemon.metric("lagan_programs_started_total") - before.0;
        let [create, grant, stage, publish] = ours.map(|times| millis(median(times)));
        let [back, their_back] = undo.map(median);
        compare(&format!("{gib} GiB, there"), median(sums), median(theirs));
        compare(&format!("{gib} GiB, and back (unpublish, unstage)"), back, their_back);
        report(
            "  of which",
            &format!("create {create:.2}, stage {stage:.2}, publish {publish:.2} ms; grant {grant:.2}"),
        );
        report(
            &format!("  programs started in {ROUNDS} lives"),
            &format!("{programs}; flushes in one: {flushes} (create, grant, take back, delete)"),
        );
    }
}

fn compare(what: &str, ours: Duration, theirs: Duration) {
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    report(
        what,
        &format!("{:.2} ms, by hand {:.2} ms: {ratio:.1} times faster", millis(ours), millis(theirs)),
    );
}

/// Create, grant, stage, publish, and unpublish with unstage; the rest of the way back is not timed.
async fn one_life(
    ground: &Ground,
    daemon: &mut Daemon,
    name: &str,
    mib: i64,
    how: &VolumeCapability,
) -> [Duration; 5] {
    let (staging, target) = (ground.path(&format!("{name}-staging")), ground.path(name));
    let (volume, create) = timed(daemon.create(name, mib, how)).await;
    let id = volume.volume_id;
    let request = publish_with(&id, how);
    let (granted, grant) = timed(daemon.controller.controller_publish_volume(request)).await;
    granted.unwrap();
    let (staged, stage) = timed(daemon.node.node_stage_volume(stage_at(&id, &staging, how))).await;
    staged.unwrap();
    let request = show_at(&id, &staging, &target, how);
    let (published, publish) = timed(daemon.node.node_publish_volume(request)).await;
    published.unwrap();
    let back = async {
        daemon.node.node_unpublish_volume(hide_at(&id, &target)).await.unwrap();
        daemon.node.node_unstage_volume(unstage_at(&id, &staging)).await.unwrap();
    };
    let ((), back) = timed(back).await;
    daemon.controller.controller_unpublish_volume(unpublish_from(&id, "")).await.unwrap();
    daemon.delete(&id).await;
    [create, grant, stage, publish, back]
}

fn by_hand(ground: &Ground, gib: i64) -> (Duration, Duration) {
    let file = text(&ground.volumes().join("by-hand"));
    let (stage, shown) = (ground.path("by-hand-staging"), ground.path("by-hand"));
    fs::create_dir(&stage).unwrap();
    fs::create_dir(&shown).unwrap();
    let begun = Instant::now();
    run("truncate", &["-s", &format!("{gib}G"), &file]);
    let device = run("losetup", &["-f", "--show", "--direct-io=on", &file]).trim().to_owned();
    run("mkfs.ext4", &["-q", &device]);
    run("mount", &[&device, &stage]);
    run("mount", &["--bind", &stage, &shown]);
    let up = begun.elapsed();
    let begun = Instant::now();
    run("umount", &[&shown]);
    run("umount", &[&stage]);
    run("losetup", &["-d", &device]);
    let down = begun.elapsed();
    fs::remove_dir(&stage).unwrap();
    fs::remove_dir(&shown).unwrap();
    fs::remove_file(&file).unwrap();
    (up, down)
}

/// Snapshot, restore and clone of volumes that hold 16 MiB, at two lengths.
async fn copies(ground: &Ground, daemon: &mut Daemon) {
    title("Copies of a volume with 16 MiB in it, not in use: 1 GiB and 100 GiB");
    for (kind, how) in [("raw", block(Mode::SingleNodeMultiWriter)), ("ext4", filesystem("ext4"))] {
        let mut medians: [Vec<Duration>; 3] = std::array::from_fn(|_| Vec::new());
        let mut sources = Vec::new();
        for gib in [1, 100] {
            let id = daemon.create(&format!("{kind}{gib}"), gib << 10, &how).await.volume_id;
            let file = File::options().write(true).open(ground.file_of(&id)).unwrap();
            file.write_all_at(&rig::random(16 << 20), 512 << 20).unwrap();
            file.sync_all().unwrap();
            sources.push(id);
        }
        let mut times: [[Vec<Duration>; 3]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| Vec::new()));
        // The two lengths take turns, so that both meet the same moods of the machine.
        for n in 0..3 * ROUNDS {
            for (times, source) in times.iter_mut().zip(&sources) {
                copy_once(daemon, source, &how, n, times).await;
            }
        }
        for of_length in times {
            for (medians, times) in medians.iter_mut().zip(of_length) {
                medians.push(median(times));
            }
        }
        for (name, medians) in ["snapshot", "restore", "clone"].into_iter().zip(medians) {
            let ratio = medians[1].as_secs_f64() / medians[0].as_secs_f64();
            report(
                &format!("{name} of {kind}"),
                &format!("{:.2} and {:.2} ms: ratio {ratio:.2}", millis(medians[0]), millis(medians[1])),
            );
        }
        for id in sources {
            daemon.delete(&id).await;
        }
    }
}

async fn copy_once(
    daemon: &mut Daemon,
    source: &str,
    how: &VolumeCapability,
    n: usize,
    times: &mut [Vec<Duration>; 3],
) {
    let (snapshot, took) = timed(daemon.snapshot(source, &format!("s{n}"))).await;
    times[0].push(took);
    let snapshot_id = snapshot.unwrap().snapshot_id;
    let (restored, took) = timed(daemon.copy(&format!("r{n}"), from_snapshot(&snapshot_id), how)).await;
    times[1].push(took);
    let (cloned, took) = timed(daemon.copy(&format!("c{n}"), from_volume(source), how)).await;
    times[2].push(took);
    for id in [restored.volume_id, cloned.volume_id] {
        daemon.delete(&id).await;
    }
    let request = DeleteSnapshotRequest { snapshot_id, ..DeleteSnapshotRequest::default() };
    daemon.controller.delete_snapshot(request).await.unwrap();
}

async fn space(ground: &Ground, daemon: &mut Daemon) {
    title("Space that a new volume of 100 GiB takes");
    for name in ["ext4", "xfs", "btrfs"] {
        let id = daemon.create("space", 100 << 10, &filesystem(name)).await.volume_id;
        let taken = fs::metadata(ground.file_of(&id)).unwrap().blocks() * 512;
        report(name, &format!("{:.1} MiB", Duration::from_micros(taken).as_secs_f64() / 1.048_576));
        daemon.delete(&id).await;
    }
}

/// How costs grow with the number of volumes, and how long a start takes with many.
async fn many(ground: &Ground, mut daemon: Daemon) -> Daemon {
    title("With many volumes (raw, 4 MiB, idle)");
    let few = costs(&mut daemon).await;
    let how = block(Mode::SingleNodeMultiWriter);
    let mut count = 0;
    let mut first = None;
    for target in [1000, 10_000] {
        let begun = Instant::now();
        while count < target {
            let request = create_with(&format!("many{count}"), 4 * MIB, &how);
            let volume = daemon.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
            first.get_or_insert(volume.volume_id);
            count += 1;
        }
        report(&format!("filled to {target}"), &format!("{:.1} s", begun.elapsed().as_secs_f64()));
        let now = costs(&mut daemon).await;
        for (name, (few, now)) in ["create", "get", "delete"].into_iter().zip(few.into_iter().zip(now)) {
            let ratio = now.as_secs_f64() / few.as_secs_f64();
            report(
                &format!("{name} beside {target} others"),
                &format!("{:.3} ms, alone {:.3} ms: ratio {ratio:.2}", millis(now), millis(few)),
            );
        }
        daemon.kill();
        let (started, took) = timed(start(ground)).await;
        daemon = started;
        report(&format!("from start to first answer with {target}"), &format!("{:.0} ms", millis(took)));
        memory(&format!("idle, {target} volumes"), &daemon);
    }
    empty(ground);
    daemon
}

/// Medians of create, get and delete.
async fn costs(daemon: &mut Daemon) -> [Duration; 3] {
    let how = block(Mode::SingleNodeMultiWriter);
    let mut times: [Vec<Duration>; 3] = std::array::from_fn(|_| Vec::new());
    for n in 0..10 * ROUNDS {
        let request = create_with(&format!("cost{n}"), GIB, &how);
        let (created, took) = timed(daemon.controller.create_volume(request)).await;
        times[0].push(took);
        let id = created.unwrap().into_inner().volume.unwrap().volume_id;
        let request = ControllerGetVolumeRequest { volume_id: id.clone() };
        let (got, took) = timed(daemon.controller.controller_get_volume(request)).await;
        times[1].push(took);
        got.unwrap();
        let (deleted, took) = timed(daemon.controller.delete_volume(delete(&id))).await;
        times[2].push(took);
        deleted.unwrap();
    }
    times.map(median)
}

/// Ten thousand deletes would only take time.
fn empty(ground: &Ground) {
    for entry in fs::read_dir(ground.volumes()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert!(Path::new(&ground.volumes()).exists());
}
