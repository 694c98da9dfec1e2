//! What the driver does with volumes and snapshots, never with what kind of pool, and without a word of gRPC. The
//! calls here are the unlocked steps; `work` runs them with their locks, apart from the caller.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::{
    bytes::Bytes,
    error::{Error, ErrorKind, Result},
    id::{NodeId, PoolId, PoolName, SnapshotId, VolumeId},
    pool::{
        Capacity, Pool,
        fill::Fill,
        record::{Snapshot, Volume},
        set::Pools,
    },
};

pub mod accountant;
mod grants;
pub mod groups;
mod guardian;
pub mod health;
mod index;
pub mod locks;
mod plan;
pub mod snapshots;
mod sync;
pub mod volumes;
pub mod work;

use index::{Doubtful, Index};

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// What is on it.
    pub entries: Vec<Arc<T>>,
    /// There is more behind it.
    pub more: bool,
}

/// How the engine is to behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The one node that reaches these pools.
    pub node: NodeId,
    /// Most volumes that it takes; 0 is without limit.
    pub max_volumes: u32,
}

/// What the engine asks of the host that its pools are on: it grants, deletes and takes back on what the kernel
/// says, not on what it remembers.
#[async_trait]
pub trait Uses: Send + Sync {
    /// Takes a volume away from this host where nobody uses it; fine where it is not there.
    ///
    /// # Errors
    /// `InUse` where it is published or open, naming where or by whom.
    async fn release(&self, id: VolumeId) -> Result<()>;
}

/// The controller's side. Clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    pools: Arc<Pools>,
    uses: Arc<dyn Uses>,
    settings: Settings,
    index: Mutex<Index>,
    /// Held while a pool is read into the index.
    loading: tokio::sync::Mutex<()>,
}

/// Counts and sums of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Volumes in open pools.
    pub volumes: usize,
    /// Those that are granted to a node.
    pub granted: usize,
    /// Snapshots in open pools.
    pub snapshots: usize,
}

/// A configured pool at one moment.
#[derive(Clone, Debug)]
pub struct PoolState {
    /// Its name.
    pub name: PoolName,
    /// Its capacity, and what of it is promised; `None` where it cannot be used.
    pub room: Option<(Capacity, Bytes)>,
    /// Flushes to its disk since it was opened.
    pub flushes: u64,
    /// How full it is.
    pub fills: Vec<Fill>,
}

impl Engine {
    /// An engine over these pools, none of which is read yet.
    #[must_use]
    pub fn new(pools: Arc<Pools>, uses: Arc<dyn Uses>, settings: Settings) -> Self {
        let (index, loading) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { inner: Arc::new(Inner { pools, uses, settings, index, loading }) }
    }

    /// Opens every pool that can be opened, finishes or undoes what was begun in it, and reads its records.
    ///
    /// # Errors
    /// `Busy` where another process serves one: two would destroy each other's work. Pools that cannot be opened
    /// for other reasons come back with them; they are tried again when they are asked for.
    pub async fn start(&self) -> Result<Vec<Error>> {
        let mut closed = Vec::new();
        for (name, pool) in self.inner.pools.all().await {
            let ready = match pool {
                Ok(pool) => self.ready(&pool).await.map_err(|error| error.within(format!("pool {name}"))),
                Err(error) => Err(error),
            };
            match ready {
                Err(error) if error.kind() == ErrorKind::Busy => return Err(error),
                Err(error) => closed.push(error),
                Ok(()) => {}
            }
        }
        Ok(closed)
    }

    /// Counts of what is known.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (volumes, granted, snapshots) = self.index().counts();
        Counts { volumes, granted, snapshots }
    }

    /// Volumes and snapshots in a pool, and the space promised to them; `None` where it has not been read.
    #[must_use]
    pub fn counts_of(&self, pool: PoolId) -> Option<(usize, usize, Bytes)> {
        let index = self.index();
        index.knows(pool).then(|| index.counts_of(pool))
    }

    /// Every configured pool and its room, `None` where it cannot be used.
    pub async fn pool_states(&self) -> Vec<PoolState> {
        let mut states = Vec::new();
        for (name, pool) in self.inner.pools.all().await {
            let mut state = PoolState { name, room: None, flushes: 0, fills: Vec::new() };
            if let Ok(pool) = pool {
                let room = pool.capacity().await.ok();
                state.room = room.map(|room| (room, self.index().committed(pool.id())));
                state.flushes = pool.flushes();
                state.fills = pool.fills().await.unwrap_or_default();
            }
            states.push(state);
        }
        states
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a pool's records are in the index, as they are.
    async fn ready(&self, pool: &Arc<dyn Pool>) -> Result<()> {
        if !self.index().knows(pool.id()) {
            self.load(pool).await?;
        }
        // Asked each time: no lock is held while the pool is asked.
        while let Some(what) = { self.index().doubtful(pool.id()) } {
            self.ask_again(pool, what).await?;
        }
        Ok(())
    }

    /// Asks the pool what has become of something that a change has failed of.
    async fn ask_again(&self, pool: &Arc<dyn Pool>, what: Doubtful) -> Result<()> {
        match what {
            Doubtful::Volume(id) => {
                let found = pool.find_volume(id).await?;
                let mut index = self.index();
                if index.settle(what) {
                    index.remove_volume(id);
                    found.into_iter().for_each(|volume| index.put_volume(volume));
                }
            }
            Doubtful::Snapshot(id) => {
                let gone = pool.find_snapshot(id).await?.is_none();
                let mut index = self.index();
                if index.settle(what) && gone {
                    index.remove_snapshot(id);
                }
            }
            Doubtful::Group(id) => {
                let gone = pool.find_group(id).await?.is_none();
                let mut index = self.index();
                if index.settle(what) && gone {
                    index.remove_group(id);
                }
            }
        }
        Ok(())
    }

    async fn load(&self, pool: &Arc<dyn Pool>) -> Result<()> {
        let _loading = self.inner.loading.lock().await;
        if self.index().knows(pool.id()) {
            return Ok(());
        }
        let (finished, listing) = pool.begin().await?;
        for done in finished {
            tracing::warn!(pool = %pool.id(), done, "finished or undone after an earlier process");
        }
        for damaged in &listing.damaged {
            tracing::error!(pool = %pool.id(), damaged, "a record cannot be read; its object is left alone");
        }
        self.index().load(pool.id(), listing);
        Ok(())
    }

    async fn pool(&self, id: PoolId) -> Result<Arc<dyn Pool>> {
        let pool = self.inner.pools.get(id).await?;
        self.ready(&pool).await?;
        Ok(pool)
    }

    /// The pool, or `None` where the operator has forgotten it, and with it all that was in it.
    async fn find_pool(&self, id: PoolId) -> Result<Option<Arc<dyn Pool>>> {
        let pool = self.inner.pools.find(id).await?;
        if let Some(pool) = &pool {
            self.ready(pool).await?;
        }
        Ok(pool)
    }

    /// Every pool, for answers that would be wrong with one missing.
    async fn all_pools(&self) -> Result<Vec<Arc<dyn Pool>>> {
        let mut all = Vec::new();
        for (_, pool) in self.inner.pools.all().await {
            let pool = pool.map_err(|error| error.as_kind(ErrorKind::Unavailable))?;
            self.ready(&pool).await?;
            all.push(pool);
        }
        Ok(all)
    }

    /// What the index has, once every pool is open that can be: one that opens now may hold what is looked for.
    async fn look_up<T: Send>(&self, find: impl Fn(&Index) -> Option<T> + Send + Sync) -> Option<T> {
        let known = find(&self.index());
        if known.is_some() {
            return known;
        }
        for pool in self.inner.pools.all().await.into_iter().filter_map(|(_, pool)| pool.ok()) {
            if let Err(error) = self.ready(&pool).await {
                tracing::warn!(%error, pool = %pool.id(), "pool cannot be read");
            }
        }
        find(&self.index())
    }

    /// Finds a name; where it is not known, makes sure that it is not that of an object in a pool that is closed, or whose
    /// record cannot be read: a second, empty volume in the place of the first would look like lost data. Only in the pool
    /// that the request goes to (`home`), which is the same each time: the others go on without it.
    async fn find_named<T: Send>(
        &self,
        find: impl Fn(&Index) -> Option<T> + Send + Sync,
        home: impl Future<Output = Result<PoolId>> + Send,
    ) -> Result<Option<T>> {
        if let Some(known) = self.look_up(&find).await {
            return Ok(Some(known));
        }
        let home = home.await?;
        let pool = self.pool(home).await?;
        // It may have been read only now.
        if let Some(found) = find(&self.index()) {
            return Ok(Some(found));
        }
        if !self.index().damaged().contains(&home) {
            return Ok(None);
        }
        let damaged = pool.list().await?.damaged;
        let Some(first) = damaged.first() else {
            self.index().note_damaged(home, damaged);
            return Ok(None);
        };
        let what = format!(
            "pool {home} holds {} record(s) that cannot be read, one of which may have this name ({first}): mend or move \
             away what `lagan doctor --check` names",
            damaged.len()
        );
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    async fn volume(&self, id: VolumeId) -> Result<(Arc<dyn Pool>, Arc<Volume>)> {
        let pool = self.pool(id.pool).await?;
        let volume = self.index().volume(id);
        // What cannot be read is not gone: only the pool knows the difference.
        let volume = match volume {
            None => pool.find_volume(id).await?.map(Arc::new),
            known => known,
        };
        let gone = || Error::new(ErrorKind::NotFound, format!("volume {id} does not exist"));
        Ok((pool, volume.ok_or_else(gone)?))
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<(Arc<dyn Pool>, Arc<Snapshot>)> {
        let pool = self.pool(id.pool).await?;
        let snapshot = self.index().snapshot(id);
        let snapshot = match snapshot {
            None => pool.find_snapshot(id).await?.map(Arc::new),
            known => known,
        };
        let gone = || Error::new(ErrorKind::NotFound, format!("snapshot {id} does not exist"));
        Ok((pool, snapshot.ok_or_else(gone)?))
    }

    /// Stores a changed record, then knows it.
    async fn update(&self, pool: &Arc<dyn Pool>, volume: Volume) -> Result<()> {
        pool.update_volume(&volume).await.inspect_err(|_| self.index().doubt(Doubtful::Volume(volume.id)))?;
        self.index().put_volume(volume);
        Ok(())
    }
}

/// Space promised to what is being made; given back when it is made, and then counted, or has failed.
struct Promise {
    engine: Engine,
    pool: PoolId,
    amount: Bytes,
}

impl Engine {
    /// Promises space in a pool, where it has any left.
    fn promise(&self, id: PoolId, capacity: &Capacity, amount: Bytes) -> Result<Promise> {
        let mut index = self.index();
        plan::admit(capacity, index.committed(id), amount)?;
        index.commit(id, amount);
        drop(index);
        Ok(Promise { engine: self.clone(), pool: id, amount })
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.engine.index().release(self.pool, self.amount);
    }
}
