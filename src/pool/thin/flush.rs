//! Flushes of the device of records.

use std::sync::{
    Condvar, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::{
    error::{Error, ErrorKind, Result},
    sys::dm::Store,
};

/// Flushes that callers share: whoever comes while one is under way waits for the next, which is for all who came.
#[derive(Debug, Default)]
pub(super) struct Flush {
    state: Mutex<Turns>,
    changed: Condvar,
    pub(super) count: AtomicU64,
    /// One has failed: the kernel reports that once, and a later success would hide it.
    pub(super) broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Turns {
    begun: u64,
    done: u64,
}

impl Flush {
    /// Makes durable what was written before this call.
    pub(super) fn wait_for(&self, device: &dyn Store) -> Result<()> {
        let mut turns = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = turns.begun + 1;
        while turns.done < mine {
            if turns.begun > turns.done {
                turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            turns.begun += 1;
            let current = turns.begun;
            drop(turns);
            self.count.fetch_add(1, Ordering::Relaxed);
            if device.flush().is_err() {
                self.broken.store(true, Ordering::Release);
            }
            turns = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            turns.done = current;
            self.changed.notify_all();
        }
        drop(turns);
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "flush the device of records"));
        }
        Ok(())
    }
}
