//! A workload that writes and flushes: it tells whether anybody made it wait, and whether all that it wrote is there.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const LINE: &str = "one more line\n";
const LOG: &str = "log";

/// A program that writes and flushes without end: how far it is, and the longest that one line took, in milliseconds.
pub(crate) struct Writer {
    directory: PathBuf,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

/// Lines that a writer has left in a directory.
pub(crate) fn lines_in(directory: &Path) -> u64 {
    let content = fs::read_to_string(directory.join(LOG)).unwrap();
    assert_eq!(content.replace(LINE, ""), "", "something else than what was written");
    (content.len() / LINE.len()).try_into().unwrap()
}

impl Writer {
    pub(crate) fn on(directory: &str) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let longest = Arc::new(AtomicU64::new(0));
        let mut file = File::create(Path::new(directory).join(LOG)).unwrap();
        let thread = std::thread::spawn({
            let (stop, count, longest) = (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&longest));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    file.write_all(LINE.as_bytes()).unwrap();
                    file.sync_data().unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                    longest.fetch_max(begun.elapsed().as_millis().try_into().unwrap(), Ordering::SeqCst);
                    // A workload, not a stress test: others share the machine.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { directory: directory.into(), stop, count, longest, thread }
    }

    /// Waits until it has stood still for this long; `false` where that does not happen in time.
    pub(crate) fn stalls(&self, still: Duration, patience: Duration) -> bool {
        let begun = Instant::now();
        let (mut last, mut since) = (self.count.load(Ordering::SeqCst), Instant::now());
        while begun.elapsed() < patience {
            let now = self.count.load(Ordering::SeqCst);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() >= still {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// How long until it gets on.
    pub(crate) fn resumes(&self) -> Duration {
        let (begun, last) = (Instant::now(), self.count.load(Ordering::SeqCst));
        while self.count.load(Ordering::SeqCst) <= last + 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the writer hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
        begun.elapsed()
    }

    /// The longest that a line took since this was asked last.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.swap(0, Ordering::SeqCst))
    }

    /// Ends it; how many lines it wrote, all of which are there.
    pub(crate) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let lines = lines_in(&self.directory);
        assert_eq!(lines, self.count.load(Ordering::SeqCst), "lines were lost");
        lines
    }
}
