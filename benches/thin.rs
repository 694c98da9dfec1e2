//! What a volume of a thin pool costs, beside the commands of LVM that do the same in the same pool, in the same run. Runs in
//! the virtual machine (`make bench-vm`), which is emulated: only ratios mean anything.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints figures, and panics where it fails"
)]

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use lagan::{
    bytes::Bytes,
    id::SnapshotId,
    pool::{
        Attach, Pool, Role,
        record::{Content, Source, Volume},
        thin::{self, ThinPool},
    },
    sys::{cmd::Commands, minder::Minder},
};

#[path = "thin/data.rs"]
mod data;
#[path = "../tests/support/disk.rs"]
#[expect(dead_code, reason = "shared with tests")]
mod disk;
#[path = "../tests/support/group.rs"]
#[expect(dead_code, reason = "shared with tests")]
mod group;
#[path = "../tests/support/records.rs"]
mod records;
#[path = "thin/sets.rs"]
mod sets;

use group::{POOL, VG, lvm};

/// Times of each kind of change.
#[derive(Default)]
struct Costs {
    create: Vec<Duration>,
    snapshot: Vec<Duration>,
    clone: Vec<Duration>,
    delete: Vec<Duration>,
}

impl Costs {
    fn medians(&self) -> [f64; 4] {
        [&self.create, &self.snapshot, &self.clone, &self.delete].map(|times| {
            let mut times = times.clone();
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() * 1e3
        })
    }
}

fn timed<T>(into: &mut Vec<Duration>, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    into.push(begun.elapsed());
    done
}

fn volume(pool: &ThinPool, source: Option<Source>) -> Volume {
    records::volume(pool.id(), "bench", Bytes::mib(64), Content::Raw, source)
}

struct Ours {
    runtime: tokio::runtime::Runtime,
    pool: ThinPool,
    /// In use, with a filesystem on it that is mounted.
    source: Volume,
}

impl Ours {
    fn create(&self, source: Option<Source>) -> Volume {
        let volume = volume(&self.pool, source);
        self.runtime.block_on(self.pool.create_volume(&volume, &Arc::default())).unwrap();
        volume
    }

    fn delete(&self, volume: &Volume) {
        self.runtime.block_on(self.pool.delete_volume(volume.id)).unwrap();
    }

    fn cut(&self, volume: &Volume) -> SnapshotId {
        let snapshot = records::snapshot_of(volume, "bench");
        self.runtime.block_on(self.pool.create_snapshot(&snapshot, &Arc::default())).unwrap().id
    }

    fn costs(&self, rounds: usize) -> Costs {
        let mut costs = Costs::default();
        for _ in 0..rounds {
            let made = timed(&mut costs.create, || self.create(None));
            let cut = timed(&mut costs.snapshot, || self.cut(&self.source));
            let copy = timed(&mut costs.clone, || self.create(Some(Source::Snapshot(cut))));
            timed(&mut costs.delete, || self.delete(&made));
            self.delete(&copy);
            self.runtime.block_on(self.pool.delete_snapshot(cut)).unwrap();
        }
        costs
    }
}

/// A snapshot of a volume that is open, and has no filesystem to be frozen: by us and by a command, in milliseconds.
fn snapshot_of_raw(ours: &Ours, rounds: usize) -> [f64; 2] {
    let volume = ours.create(None);
    let how = Attach { read_only: false, transient: false, label: "bench".into() };
    let _held = ours.runtime.block_on(ours.pool.attach(volume.id, &how)).unwrap();
    lvm(&["lvcreate", "-y", "-n", "open", "-V", "64m", "--thinpool", &format!("{VG}/{POOL}")]);
    let _open = fs::File::open(format!("/dev/{VG}/open")).unwrap();
    let (mut us, mut them) = (Costs::default(), Costs::default());
    for _ in 0..rounds {
        let cut = timed(&mut us.snapshot, || ours.cut(&volume));
        ours.runtime.block_on(ours.pool.delete_snapshot(cut)).unwrap();
        timed(&mut them.snapshot, || lvm(&["lvcreate", "-y", "-s", "-n", "cut", &format!("{VG}/open")]));
        lvm(&["lvremove", "-y", &format!("{VG}/cut")]);
    }
    [us.snapshot, them.snapshot].map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e3
    })
}

/// The same by LVM's commands, whose own source is mounted too.
fn by_commands(rounds: usize) -> Costs {
    let mut costs = Costs::default();
    let (pool, full) = (format!("{VG}/{POOL}"), |name: &str| format!("{VG}/{name}"));
    for _ in 0..rounds {
        timed(&mut costs.create, || lvm(&["lvcreate", "-y", "-n", "made", "-V", "64m", "--thinpool", &pool]));
        timed(&mut costs.snapshot, || lvm(&["lvcreate", "-y", "-s", "-n", "cut", &full("source")]));
        timed(&mut costs.clone, || lvm(&["lvcreate", "-y", "-s", "-n", "copy", &full("cut")]));
        timed(&mut costs.delete, || lvm(&["lvremove", "-y", &full("made")]));
        lvm(&["lvremove", "-y", &full("copy")]);
        lvm(&["lvremove", "-y", &full("cut")]);
    }
    costs
}

/// Volumes of LVM's own, for its commands to be measured beside.
fn volumes_of_lvm(numbers: std::ops::Range<usize>) {
    let pool = format!("{VG}/{POOL}");
    for number in numbers {
        let name = format!("many{number}");
        lvm(&["lvcreate", "-y", "-an", "-kn", "-n", &name, "-V", "4m", "--thinpool", &pool]);
    }
}

fn mount(device: &str, at: &str) {
    disk::run("mkfs.ext4", &["-q", device]);
    fs::create_dir_all(at).unwrap();
    disk::run("mount", &[device, at]);
}

fn report(volumes: usize, ours: [f64; 4], theirs: [f64; 4]) {
    for (what, (ours, theirs)) in
        ["create", "snapshot of a volume in use", "clone", "delete"].iter().zip(ours.iter().zip(theirs))
    {
        println!("  {what:30} {ours:8.1} ms, by LVM {theirs:8.1} ms: {:5.0} times faster", theirs / ours);
    }
    println!("  (beside {volumes} others)");
}

fn main() {
    // Before there is a second thread.
    let minder = Arc::new(Minder::start().unwrap());
    let commands = Arc::new(Commands::find());
    group::ensure(4096);
    let group = thin::VolumeGroup { vg: VG.into(), thin_pool: POOL.into() };
    let place = thin::Place::Lvm(group);
    thin::init(&place, "bench", None, &commands).unwrap();
    let settings = thin::Settings {
        place,
        machine: "bench".into(),
        reserve_percent: 5,
        overcommit_percent: 10_000,
        freeze_limit: Duration::from_secs(30),
        templates: 4,
        extend: None,
    };
    let pool = ThinPool::open(settings, Role::Both, None, commands, Some(minder)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let source = volume(&pool, None);
    runtime.block_on(pool.create_volume(&source, &Arc::default())).unwrap();
    // As what is staged to be mounted.
    let how = Attach { read_only: false, transient: true, label: "bench".into() };
    let held = runtime.block_on(pool.attach(source.id, &how)).unwrap();
    mount(&held.attached.device.path.to_string_lossy(), "/var/tmp/ours");
    lvm(&["lvcreate", "-y", "-n", "source", "-V", "64m", "--thinpool", &format!("{VG}/{POOL}")]);
    mount(&format!("/dev/{VG}/source"), "/var/tmp/theirs");
    let ours = Ours { runtime, pool, source };

    println!("kernel {}", lagan::sys::host::kernel_release());
    let mut made: Vec<_> = (0..10).map(|_| ours.create(None)).collect();
    volumes_of_lvm(0..10);
    let few = ours.costs(15).medians();
    report(10, few, by_commands(5).medians());
    let [us, them] = snapshot_of_raw(&ours, 5);
    println!(
        "  snapshot of a raw volume in use {us:.1} ms, by LVM {them:.1} ms: {:.0} times faster",
        them / us
    );
    sets::run(&ours);
    data::run(&ours);
    for count in [1000, 4000] {
        made.extend((made.len()..count).map(|_| ours.create(None)));
        let many = ours.costs(15).medians();
        let growth: Vec<_> = many.iter().zip(few).map(|(many, few)| format!("{:.2}", many / few)).collect();
        println!("  ours beside {count} others, against 10: {} times", growth.join(", "));
        if count == 1000 {
            volumes_of_lvm(10..1000);
            report(count, many, by_commands(3).medians());
        }
    }
}
