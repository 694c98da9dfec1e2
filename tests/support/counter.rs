//! A workload that counts in two places, always in the first one first: it tells whether two copies are of one instant.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A program that counts without end, and flushes each step.
pub(crate) struct Counter {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Counter {
    /// Begins to count in files or devices, once in each when this returns.
    pub(crate) fn in_both(places: [PathBuf; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let open = |place: &PathBuf| File::options().create(true).truncate(false).write(true).open(place);
        let files = places.each_ref().map(|place| open(place).unwrap());
        let count_to = move |count: u64| {
            for file in &files {
                file.write_all_at(&count.to_le_bytes(), 0).unwrap();
                file.sync_data().unwrap();
            }
        };
        count_to(1);
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || (2..).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(count_to)
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// How far it had counted in what this is a copy of.
pub(crate) fn said_by(copy: &Path) -> u64 {
    let mut count = [0; 8];
    fs::File::open(copy).unwrap().read_exact_at(&mut count, 0).unwrap();
    u64::from_le_bytes(count)
}
