//! Who may work on what at a time. A lock is taken at once or not at all, several together or none of them, and is
//! gone with its guard. Nothing here waits, so nothing here can deadlock.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use super::sync::Mutex;
use crate::id::{GroupId, SnapshotId, VolumeId};

/// What a lock is on. Names are locked while an object is made, since it has no id yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The name of a volume.
    VolumeName(String),
    /// The name of a snapshot.
    SnapshotName(String),
    /// The name of a group.
    GroupName(String),
    /// A volume, in every role.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A group.
    Group(GroupId),
}

/// How a key is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By nobody else.
    Exclusive,
    /// Beside others that only read it: the source of a copy.
    Shared,
}

/// How many hold a key: one exclusively, or some together.
#[derive(Clone, Copy, Debug)]
enum Holders {
    Exclusive,
    Shared(usize),
}

/// The table of locks.
#[derive(Debug, Default)]
pub struct Locks {
    held: Mutex<HashMap<Key, Holders>>,
}

/// Locks that are held; dropping it gives them back.
#[derive(Debug)]
pub struct Guard {
    locks: Arc<Locks>,
    keys: Vec<(Key, Mode)>,
}

impl Locks {
    /// Takes all of `keys`, or none and says which one is in the way.
    ///
    /// # Errors
    /// The first key that somebody else holds.
    pub fn try_acquire(self: &Arc<Self>, keys: &[(Key, Mode)]) -> Result<Guard, Key> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let blocked = keys.iter().find(|(key, mode)| match (held.get(key), mode) {
            (None, _) | (Some(Holders::Shared(_)), Mode::Shared) => false,
            (Some(_), _) => true,
        });
        if let Some((key, _)) = blocked {
            return Err(key.clone());
        }
        for (key, mode) in keys {
            let holders = match (held.get(key), mode) {
                (_, Mode::Exclusive) => Holders::Exclusive,
                (Some(Holders::Shared(count)), Mode::Shared) => Holders::Shared(count + 1),
                (_, Mode::Shared) => Holders::Shared(1),
            };
            held.insert(key.clone(), holders);
        }
        Ok(Guard { locks: Arc::clone(self), keys: keys.to_vec() })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, _) in &self.keys {
            match held.get_mut(key) {
                Some(Holders::Shared(count)) if *count > 1 => *count -= 1,
                _ => {
                    held.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Key {
        Key::VolumeName(name.to_owned())
    }

    #[test]
    fn exclusive_excludes_and_shared_shares() {
        let locks = Arc::new(Locks::default());
        let first = locks.try_acquire(&[(name("a"), Mode::Exclusive)]).unwrap();
        assert_eq!(locks.try_acquire(&[(name("a"), Mode::Shared)]).unwrap_err(), name("a"));
        drop(first);
        let readers: Vec<_> =
            (0..3).map(|_| locks.try_acquire(&[(name("a"), Mode::Shared)]).unwrap()).collect();
        assert!(locks.try_acquire(&[(name("a"), Mode::Exclusive)]).is_err());
        drop(readers);
        assert!(locks.try_acquire(&[(name("a"), Mode::Exclusive)]).is_ok());
    }

    #[test]
    fn all_or_nothing() {
        let locks = Arc::new(Locks::default());
        let _b = locks.try_acquire(&[(name("b"), Mode::Exclusive)]).unwrap();
        let both = [(name("a"), Mode::Exclusive), (name("b"), Mode::Shared)];
        assert_eq!(locks.try_acquire(&both).unwrap_err(), name("b"));
        assert!(
            locks.try_acquire(&[(name("a"), Mode::Exclusive)]).is_ok(),
            "nothing was kept of the failed try"
        );
    }

    #[test]
    fn a_guard_dropped_in_a_panic_gives_its_locks_back() {
        let locks = Arc::new(Locks::default());
        let theirs = Arc::clone(&locks);
        let panicked = std::thread::spawn(move || {
            let _guard = theirs.try_acquire(&[(name("a"), Mode::Exclusive)]).unwrap();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(locks.try_acquire(&[(name("a"), Mode::Exclusive)]).is_ok());
    }
}
