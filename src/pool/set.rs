//! The pools of a host, each open or closed with a reason. A closed one is tried again whenever it is asked for: a
//! disk that is mounted late needs no restart, and nothing polls.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use async_trait::async_trait;

use super::Pool;
use crate::{
    error::{Error, ErrorKind, Result},
    id::{PoolId, PoolName},
};

/// Opens one configured pool, whatever its kind.
#[async_trait]
pub trait Opener: Send + Sync {
    /// Opens it.
    ///
    /// # Errors
    /// `Unavailable` where it is missing or foreign, with the reason.
    async fn open(&self) -> Result<Arc<dyn Pool>>;

    /// The identity it had when it was open last, where that is known.
    fn expected(&self) -> Option<PoolId>;

    /// Remembers the identity of the one that is served from now on.
    ///
    /// # Errors
    /// Those of writing it down.
    fn accepted(&self, _id: PoolId) -> Result<()> {
        Ok(())
    }
}

/// One configured pool.
struct Slot {
    name: PoolName,
    opener: Box<dyn Opener>,
    open: RwLock<Option<Arc<dyn Pool>>>,
    /// Held while it is being opened.
    opening: tokio::sync::Mutex<()>,
}

impl Slot {
    fn current(&self) -> Option<Arc<dyn Pool>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Every pool of the configuration, in its order.
#[derive(Default)]
pub struct Pools {
    slots: Vec<Slot>,
    /// Held while it is found out whether one that was opened is there already.
    comparing: Mutex<()>,
    forgotten: HashSet<PoolId>,
}

impl Pools {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pool, closed as yet.
    pub fn add(&mut self, name: PoolName, opener: Box<dyn Opener>) {
        self.slots.push(Slot {
            name,
            opener,
            open: RwLock::default(),
            opening: tokio::sync::Mutex::default(),
        });
    }

    async fn open(&self, slot: &Slot) -> Result<Arc<dyn Pool>> {
        if let Some(pool) = slot.current() {
            return Ok(pool);
        }
        let _opening = slot.opening.lock().await;
        if let Some(pool) = slot.current() {
            return Ok(pool);
        }
        let pool = slot.opener.open().await.map_err(|error| error.within(format!("pool {}", slot.name)))?;
        let _comparing = self.comparing.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that was copied as a whole: the ids and the devices of the two would be the same. The one that was served
        // before is the original, open or not.
        let id = pool.id();
        let known_here = slot.opener.expected() == Some(id);
        let twin = |other: &&Slot| {
            !std::ptr::eq(*other, slot)
                && (other.current().is_some_and(|other| other.id() == id)
                    || !known_here && other.opener.expected() == Some(id))
        };
        if let Some(twin) = self.slots.iter().find(twin) {
            let what = format!("pool {}: it is a copy of pool {}", slot.name, twin.name);
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        slot.opener.accepted(id)?;
        *slot.open.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pool));
        Ok(pool)
    }

    /// Takes a pool for lost: what was in it is gone, and no longer waited for.
    pub fn forget(&mut self, id: PoolId) {
        self.forgotten.insert(id);
    }

    /// The pool with this identity; `None` only where the operator has forgotten it.
    ///
    /// # Errors
    /// `Unavailable` where none of this host is it, or the one that was it cannot be opened: never "gone".
    pub async fn find(&self, id: PoolId) -> Result<Option<Arc<dyn Pool>>> {
        let open = self.slots.iter().filter_map(Slot::current).find(|pool| pool.id() == id);
        if open.is_some() {
            return Ok(open);
        }
        let mut reason = None;
        for slot in self.slots.iter().filter(|slot| slot.current().is_none()) {
            let expected = slot.opener.expected();
            if expected.is_some_and(|expected| expected != id) {
                continue;
            }
            match self.open(slot).await {
                Ok(pool) if pool.id() == id => return Ok(Some(pool)),
                Ok(_) => {}
                Err(error) => reason = reason.filter(|_| expected.is_none()).or(Some(error)),
            }
        }
        if self.forgotten.contains(&id) {
            return Ok(None);
        }
        let what = format!("pool {id} is not served here now");
        Err(reason.map_or_else(|| Error::new(ErrorKind::Unavailable, &what), |error| error.within(&what)))
    }

    /// The pool with this identity.
    ///
    /// # Errors
    /// Those of [`Pools::find`]; `NotFound` where the operator has forgotten it.
    pub async fn get(&self, id: PoolId) -> Result<Arc<dyn Pool>> {
        let forgotten =
            || Error::new(ErrorKind::NotFound, format!("pool {id} was forgotten by the operator"));
        self.find(id).await?.ok_or_else(forgotten)
    }

    /// Pools that only a new process may use again.
    pub fn broken(&self) -> Vec<PoolName> {
        let broken = |slot: &&Slot| slot.current().is_some_and(|pool| pool.is_broken());
        self.slots.iter().filter(broken).map(|slot| slot.name.clone()).collect()
    }

    /// The pool with this name, or the first one.
    ///
    /// # Errors
    /// `NoSpace` where the configuration has none of the name: another host may; `Unavailable` where it cannot be opened.
    pub async fn named(&self, name: Option<&PoolName>) -> Result<Arc<dyn Pool>> {
        let slot = match name {
            None => self.slots.first(),
            Some(name) => self.slots.iter().find(|slot| slot.name == *name),
        };
        let Some(slot) = slot else {
            let known: Vec<_> = self.slots.iter().map(|slot| slot.name.as_str()).collect();
            let wanted = name.map_or("", PoolName::as_str);
            let what = format!("there is no pool {wanted:?} here: expected one of {}", known.join(", "));
            return Err(Error::new(ErrorKind::NoSpace, what));
        };
        self.open(slot).await
    }

    /// The pools whose identity is known, open or not, but for those that the operator has forgotten.
    #[must_use]
    pub fn known(&self) -> Vec<(PoolId, PoolName)> {
        let id = |slot: &Slot| slot.current().map(|pool| pool.id()).or_else(|| slot.opener.expected());
        let known = self.slots.iter().filter_map(|slot| Some((id(slot)?, slot.name.clone())));
        known.filter(|(id, _)| !self.forgotten.contains(id)).collect()
    }

    /// The names of all of them.
    pub fn names(&self) -> impl Iterator<Item = &PoolName> {
        self.slots.iter().map(|slot| &slot.name)
    }

    /// The pool with this name, if it is open.
    #[must_use]
    pub fn current(&self, name: &PoolName) -> Option<Arc<dyn Pool>> {
        self.slots.iter().find(|slot| slot.name == *name)?.current()
    }

    /// Every pool by name, open or with the reason why not.
    pub async fn all(&self) -> Vec<(PoolName, Result<Arc<dyn Pool>>)> {
        let mut all = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            all.push((slot.name.clone(), self.open(slot).await));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Bytes,
        error::Chain,
        pool::fake::{FakeDisk, FakePool},
        sys::fake::FakeKernel,
    };

    struct On(FakeDisk, Option<PoolId>);

    #[async_trait]
    impl Opener for On {
        async fn open(&self) -> Result<Arc<dyn Pool>> {
            Ok(Arc::new(FakePool::new(self.0.clone(), FakeKernel::new(&["/t"]))))
        }

        fn expected(&self) -> Option<PoolId> {
            self.1
        }
    }

    /// Is not there.
    struct Late(PoolId);

    #[async_trait]
    impl Opener for Late {
        async fn open(&self) -> Result<Arc<dyn Pool>> {
            Err(Error::new(ErrorKind::Unavailable, "its disk is missing"))
        }

        fn expected(&self) -> Option<PoolId> {
            Some(self.0)
        }
    }

    async fn open(slots: Vec<Box<dyn Opener>>) -> Vec<bool> {
        let mut pools = Pools::new();
        for (number, opener) in slots.into_iter().enumerate() {
            pools.add(format!("p{number}").parse().unwrap(), opener);
        }
        let all = pools.all().await;
        for (_, pool) in &all {
            let Err(error) = pool else { continue };
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            let said = Chain(error).to_string();
            assert!(said.contains("copy of pool p") || said.contains("missing"), "{said}");
        }
        all.iter().map(|(_, pool)| pool.is_ok()).collect()
    }

    #[tokio::test]
    async fn of_a_pool_and_its_copy_one_is_served() {
        let (disk, other) = (FakeDisk::new(Bytes::gib(1)), FakeDisk::new(Bytes::gib(1)));
        let id = FakePool::new(disk.clone(), FakeKernel::new(&["/t"])).id();
        let on = |disk: &FakeDisk, expected| Box::new(On(disk.clone(), expected)) as Box<dyn Opener>;
        assert_eq!(open(vec![on(&disk, None), on(&disk, None), on(&other, None)]).await, [true, false, true]);
        // The original, whichever comes first, and even while it is away.
        assert_eq!(open(vec![on(&disk, None), on(&disk, Some(id))]).await, [false, true]);
        assert_eq!(open(vec![on(&disk, None), Box::new(Late(id))]).await, [false, false]);
        assert_eq!(open(vec![on(&other, None), Box::new(Late(id))]).await, [true, false]);
    }
}
