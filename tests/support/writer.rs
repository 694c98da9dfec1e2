//! A workload that writes and flushes: it tells whether anybody made it wait.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A program that writes and flushes without end; how far it is, and when it last got on.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    pub(crate) fn on(directory: &str) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut file = File::create(Path::new(directory).join("log")).unwrap();
        let thread = std::thread::spawn({
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    file.write_all(b"one more line\n").unwrap();
                    file.sync_data().unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                    // A workload, not a stress test: others share the machine.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { stop, count, thread }
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

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
