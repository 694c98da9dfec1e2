//! A set of snapshots at one instant, of mounted volumes under writers, beside one command of LVM for each: how long it
//! takes, and for how long a writer stands still.

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lagan::{
    digest::Digest,
    id::GroupId,
    pool::{
        Attach, Held, Pool,
        record::{Group, Snapshot, Timestamp, Volume},
    },
};

use crate::{
    Ours,
    group::{POOL, VG, lvm},
    mount, records, timed,
};

/// Volumes in a set.
const COUNT: usize = 3;

/// A program that writes and flushes, and the longest that it had to wait.
struct Writer {
    longest: Arc<Mutex<Duration>>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn on(directory: &str) -> Self {
        let (longest, stop) = (Arc::<Mutex<Duration>>::default(), Arc::<AtomicBool>::default());
        let mut file = File::create(format!("{directory}/log")).unwrap();
        let (its, ended) = (Arc::clone(&longest), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let begun = Instant::now();
                file.write_all(b"one more line\n").unwrap();
                file.sync_data().unwrap();
                let mut longest = its.lock().unwrap();
                *longest = longest.max(begun.elapsed());
                drop(longest);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { longest, stop, thread }
    }

    /// The longest wait since this was asked last.
    fn waited(&self) -> Duration {
        std::mem::take(&mut *self.longest.lock().unwrap())
    }
}

/// Volumes that are mounted and written to.
struct Busy(Vec<Writer>);

impl Busy {
    fn on(whose: &str, devices: &[String]) -> Self {
        let begin = |(n, device): (usize, &String)| {
            let at = format!("/var/tmp/{whose}{n}");
            mount(device, &at);
            Writer::on(&at)
        };
        Self(devices.iter().enumerate().map(begin).collect())
    }

    fn longest(&self) -> Duration {
        self.0.iter().map(Writer::waited).max().unwrap_or_default()
    }

    /// How long `work` takes, and the longest that a writer waits for it.
    fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Duration, Duration) {
        self.longest();
        let mut took = Vec::new();
        let done = timed(&mut took, work);
        // A wait is counted when it is over.
        std::thread::sleep(Duration::from_millis(300));
        (done, took[0], self.longest())
    }

    fn end(self) {
        for writer in self.0 {
            writer.stop.store(true, Ordering::Relaxed);
            writer.thread.join().unwrap();
        }
    }
}

fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn cut(ours: &Ours, volumes: &[Volume]) -> GroupId {
    let (id, created) = (GroupId::random(ours.pool.id()), Timestamp::now());
    let member =
        |volume: &Volume| Snapshot { group: Some(id), created, ..records::snapshot_of(volume, "bench") };
    let snapshots: Vec<_> = volumes.iter().map(member).collect();
    let members = snapshots.iter().map(|snapshot| snapshot.id.uuid).collect();
    let group = Group { id, name: "bench".into(), members, digest: Digest::of([]), created };
    ours.runtime.block_on(ours.pool.create_group(&group, &snapshots, &Arc::default())).unwrap();
    id
}

fn by_us(ours: &Ours, rounds: usize) -> Vec<(Duration, Duration)> {
    let volumes: Vec<_> = (0..COUNT).map(|_| ours.create(None)).collect();
    // As what is staged to be mounted: it is held until it is.
    let how = Attach { read_only: false, transient: true, label: "bench".into() };
    let attach = |volume: &Volume| ours.runtime.block_on(ours.pool.attach(volume.id, &how)).unwrap();
    let held: Vec<_> = volumes.iter().map(attach).collect();
    let path = |held: &Held| held.attached.device.path.to_string_lossy().into_owned();
    let busy = Busy::on("ours", &held.iter().map(path).collect::<Vec<_>>());
    let round = |_| {
        let (group, took, waited) = busy.during(|| cut(ours, &volumes));
        ours.runtime.block_on(ours.pool.delete_group(group)).unwrap();
        (took, waited)
    };
    let times = (0..rounds).map(round).collect();
    busy.end();
    times
}

fn by_commands(rounds: usize) -> Vec<(Duration, Duration)> {
    let names: Vec<_> = (0..COUNT).map(|n| format!("{VG}/set{n}")).collect();
    for n in 0..COUNT {
        let pool = format!("{VG}/{POOL}");
        lvm(&["lvcreate", "-y", "-n", &format!("set{n}"), "-V", "64m", "--thinpool", &pool]);
    }
    let busy = Busy::on("theirs", &names.iter().map(|name| format!("/dev/{name}")).collect::<Vec<_>>());
    let round = |_| {
        let ((), took, waited) = busy.during(|| {
            for (n, name) in names.iter().enumerate() {
                lvm(&["lvcreate", "-y", "-s", "-n", &format!("cut{n}"), name]);
            }
        });
        (0..COUNT).for_each(|n| drop(lvm(&["lvremove", "-y", &format!("{VG}/cut{n}")])));
        (took, waited)
    };
    let times = (0..rounds).map(round).collect();
    busy.end();
    times
}

/// Measures and prints.
pub(crate) fn run(ours: &Ours) {
    let (us, them) = (by_us(ours, 15), by_commands(5));
    let medians = |times: &[(Duration, Duration)]| {
        [median(times.iter().map(|(took, _)| *took)), median(times.iter().map(|(_, waited)| *waited))]
    };
    let ([took, waited], [theirs, they]) = (medians(&us), medians(&them));
    println!(
        "  set of {COUNT} mounted volumes under writers: {took:.1} ms, a writer waits {waited:.1} ms at most"
    );
    println!("  {COUNT} lvcreate -s instead: {theirs:.1} ms, a writer waits {they:.1} ms at most");
    println!("  the longest pause is 1/{:.1} of {COUNT} lvcreate -s", theirs / waited);
}
