//! Those beside: volumes that live through everything, and one that is written all the time, in place, so that not even a
//! full pool concerns it.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lagan::proto::{ListVolumesRequest, volume_capability::access_mode::Mode};

use crate::{
    requests::{block, create_with},
    rig::{Daemon, Ground, MIB, filesystem, random, write},
};

/// So many of the live volumes are mounted and hold something.
const WITH_CONTENT: usize = 10;
const NEIGHBOUR: &str = "neighbour";
const BLOCK: usize = 4096;
/// Blocks of the neighbour.
const BLOCKS: u64 = 1024;

/// Volumes that are there from the beginning to the end.
pub(crate) struct Live {
    ids: Vec<String>,
    content: Vec<(PathBuf, Vec<u8>)>,
}

impl Live {
    pub(crate) async fn make(ground: &Ground, daemon: &mut Daemon, count: u64) -> Self {
        let (mut ids, mut content) = (Vec::new(), Vec::new());
        let how = filesystem("ext4");
        for number in 0..count {
            let request = create_with(&format!("live-{number}"), 16 * MIB, &how);
            let made = daemon.controller.create_volume(request).await.unwrap().into_inner();
            ids.push(made.volume.unwrap().volume_id);
        }
        for (number, id) in ids.iter().take(WITH_CONTENT).enumerate() {
            let target = daemon.show(ground, id, &format!("live-{number}"), &how).await;
            let (file, bytes) = (PathBuf::from(target).join("data"), random(1 << 20));
            write(&file, &bytes);
            content.push((file, bytes));
        }
        Self { ids, content }
    }

    /// All are there, with what was written; then they go.
    pub(crate) async fn end(self, ground: &Ground, daemon: &mut Daemon) {
        let listed =
            daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        let found: Vec<_> = listed.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
        let mut expected = self.ids.clone();
        expected.sort();
        let listed = || String::from_utf8(ground.lagan(&["volume", "list"]).stdout).unwrap();
        assert_eq!(found.len(), expected.len(), "only those that live are left: {}", listed());
        assert!(found.iter().all(|id| expected.binary_search(id).is_ok()), "a live volume is missing");
        for (number, (file, bytes)) in self.content.iter().enumerate() {
            assert!(fs::read(file).unwrap() == *bytes, "{}", file.display());
            daemon.hide(ground, &self.ids[number], &format!("live-{number}")).await;
        }
        for id in &self.ids {
            daemon.delete(id).await;
        }
    }
}

/// A raw volume whose every block is written in turn, flushed and read again.
pub(crate) struct Neighbour {
    id: String,
    stop: Arc<AtomicBool>,
    longest: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Whatever happens, it lets go of the device.
impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Neighbour {
    pub(crate) async fn beside(ground: &Ground, daemon: &mut Daemon) -> Self {
        let how = block(Mode::SingleNodeWriter);
        let size = i64::try_from(BLOCKS).unwrap() * i64::try_from(BLOCK).unwrap() / MIB;
        let id = daemon.create(NEIGHBOUR, size, &how).await.volume_id;
        let device = daemon.show(ground, &id, NEIGHBOUR, &how).await;
        let (stop, longest) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let device = File::options().read(true).write(true).open(device).unwrap();
        let write = move |turn: u64| {
            let bytes = [turn.to_le_bytes(); BLOCK / 8].concat();
            let at = turn % BLOCKS * u64::try_from(BLOCK).unwrap();
            device.write_all_at(&bytes, at).unwrap();
            device.sync_data().unwrap();
            // From the disk, not from memory.
            rustix::fs::fadvise(&device, at, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut found = vec![0; BLOCK];
            device.read_exact_at(&mut found, at).unwrap();
            assert!(found == bytes, "the neighbour's block {at} is another one");
        };
        // Once through: from now on it needs no more room.
        (0..BLOCKS).for_each(&write);
        let thread = std::thread::spawn({
            let (stop, longest) = (Arc::clone(&stop), Arc::clone(&longest));
            move || {
                for turn in BLOCKS.. {
                    if stop.load(SeqCst) {
                        return;
                    }
                    let begun = Instant::now();
                    write(turn);
                    longest.fetch_max(begun.elapsed().as_millis().try_into().unwrap(), SeqCst);
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Self { id, stop, longest, thread: Some(thread) }
    }

    /// Ends it; the longest that one write took. It panics where one failed.
    pub(crate) async fn end(mut self, ground: &Ground, daemon: &mut Daemon) -> Duration {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        daemon.hide(ground, &self.id, NEIGHBOUR).await;
        daemon.delete(&self.id).await;
        Duration::from_millis(self.longest.load(SeqCst))
    }
}
