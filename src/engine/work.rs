//! Work that outlives its call. A changing call runs as a task of its own, with its locks: a caller that goes away
//! does not stop it. The identical call joins the one that runs and gets its answer; another one on the same object
//! is told to come back.
//!
//! | call | alone on | beside others on |
//! | --- | --- | --- |
//! | CreateVolume | the volume's name | its source |
//! | CreateSnapshot | the snapshot's name | the volume |
//! | DeleteVolume, ControllerPublish, ControllerUnpublish, ControllerExpand, every Node call | the volume | |
//! | DeleteSnapshot | the snapshot | |
//! | CreateVolumeGroupSnapshot | the group's name | the volumes |
//! | DeleteVolumeGroupSnapshot | the group and its snapshots | |
//!
//! Reading calls take no lock: a record is replaced as a whole.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::{
    locks::{Guard, Key, Locks, Mode},
    sync::{Mutex, MutexGuard, Notify, watch},
};
use crate::{
    blocking::detach,
    bytes::Bytes,
    digest::Digest,
    error::{Error, ErrorKind, Result},
    pool::Progress,
};

/// A call that changes something.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name of the call.
    pub call: &'static str,
    /// What it works on, for people.
    pub subject: String,
    /// Tells whether two calls are the same one.
    pub fingerprint: Digest,
    /// What it must hold while it runs.
    pub locks: Vec<(Key, Mode)>,
}

/// A call that runs now.
#[derive(Clone, Debug)]
pub struct Running {
    /// Name of the call.
    pub call: &'static str,
    /// What it works on.
    pub subject: String,
    /// For how long.
    pub elapsed: Duration,
    /// Bytes copied, and to be copied.
    pub progress: (Bytes, Bytes),
}

/// The answer of a task, whatever its type; `None` while it runs.
type Answer = Option<Result<Arc<dyn Any + Send + Sync>>>;

struct Entry {
    task: Task,
    begun: Instant,
    progress: Arc<Progress>,
    answer: watch::Receiver<Answer>,
}

#[derive(Default)]
struct State {
    running: HashMap<Digest, Entry>,
    closed: bool,
}

/// Everything that runs now. Clones share it.
#[derive(Clone)]
pub struct Work {
    inner: Arc<Inner>,
}

struct Inner {
    locks: Arc<Locks>,
    limit: usize,
    state: Mutex<State>,
    idle: Notify,
}

impl Work {
    /// Room for at most `limit` tasks at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let (locks, state, idle) = (Arc::default(), Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { locks, limit, state, idle }) }
    }

    /// Runs `work` to its end, whatever becomes of this call, or joins the same task that runs already.
    ///
    /// # Errors
    /// That of the work; `Busy` where another task holds what this one needs, or too many run; `Unavailable` when
    /// we are shutting down; `Broken` where the work panicked.
    pub async fn run<T, F>(&self, task: Task, work: impl FnOnce(Arc<Progress>) -> F) -> Result<T>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        settled(self.start_or_join(task, work)?).await
    }

    /// The answer of the same task where it runs now, or `Busy` where another one holds what it needs; `None` where nothing is
    /// in its way. Nothing is begun.
    pub async fn join<T>(&self, task: &Task) -> Option<Result<T>>
    where
        T: Clone + Send + Sync + 'static,
    {
        let running = {
            let state = self.inner.state();
            match state.running.get(&task.fingerprint) {
                Some(entry) => Ok(entry.answer.clone()),
                None => self
                    .inner
                    .locks
                    .try_acquire(&task.locks)
                    .map(drop)
                    .map_or_else(|key| Err(Some(state.explain(&key))), |()| Err(None)),
            }
        };
        match running {
            Ok(answer) => Some(settled(answer).await),
            Err(busy) => busy.map(Err),
        }
    }

    fn start_or_join<T, F>(
        &self,
        task: Task,
        work: impl FnOnce(Arc<Progress>) -> F,
    ) -> Result<watch::Receiver<Answer>>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut state = self.inner.state();
        if let Some(entry) = state.running.get(&task.fingerprint) {
            tracing::debug!(call = task.call, "joined the same call that runs already");
            return Ok(entry.answer.clone());
        }
        if state.closed {
            return Err(Error::new(ErrorKind::Unavailable, "shutting down"));
        }
        if state.running.len() >= self.inner.limit {
            let what = format!("{} operations run already, which is the limit", self.inner.limit);
            return Err(Error::new(ErrorKind::Busy, what));
        }
        let guard = self.inner.locks.try_acquire(&task.locks).map_err(|key| state.explain(&key))?;
        let (sender, answer) = watch::channel(None);
        let progress = Arc::<Progress>::default();
        let leave = Leave {
            inner: Arc::clone(&self.inner),
            fingerprint: task.fingerprint.clone(),
            guard: Some(guard),
        };
        let work = work(Arc::clone(&progress));
        let entry = Entry { task, begun: Instant::now(), progress, answer: answer.clone() };
        state.running.insert(leave.fingerprint.clone(), entry);
        drop(state);
        let detached = async move {
            let result = work.await.map(|value| Arc::new(value) as Arc<dyn Any + Send + Sync>);
            // First the locks, then the answer: whoever acts on the answer must not meet our locks.
            drop(leave);
            sender.send_replace(Some(result));
        };
        drop(detach(detached));
        Ok(answer)
    }

    /// What runs now.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let state = self.inner.state();
        let describe = |entry: &Entry| Running {
            call: entry.task.call,
            subject: entry.task.subject.clone(),
            elapsed: entry.begun.elapsed(),
            progress: entry.progress.read(),
        };
        state.running.values().map(describe).collect()
    }

    /// Takes no new task from now on, and returns when the last one is done.
    pub async fn drain(&self) {
        self.inner.state().closed = true;
        loop {
            let idle = self.inner.idle.notified();
            if self.inner.state().running.is_empty() {
                return;
            }
            idle.await;
        }
    }
}

/// What a task has come to, once it has.
async fn settled<T: Clone + Send + Sync + 'static>(mut answer: watch::Receiver<Answer>) -> Result<T> {
    let settled = answer.wait_for(Option::is_some).await;
    let settled =
        settled.map_err(|panicked| Error::new(ErrorKind::Broken, "the work panicked").because(panicked))?;
    match &*settled {
        Some(Ok(value)) => value
            .downcast_ref()
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::Broken, "two different calls have one fingerprint")),
        Some(Err(error)) => Err(error.clone()),
        None => Err(Error::new(ErrorKind::Broken, "the work has no answer")),
    }
}

impl State {
    fn explain(&self, key: &Key) -> Error {
        let holder = self.running.values().find(|entry| entry.task.locks.iter().any(|(held, _)| held == key));
        let what = match holder {
            Some(entry) => {
                let (done, total) = entry.progress.read();
                let far =
                    if total == Bytes::ZERO { String::new() } else { format!(", {done} of {total} copied") };
                let since = humantime::format_duration(Duration::from_millis(
                    u64::try_from(entry.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                ));
                format!("{} of {} is running (since {since}{far})", entry.task.call, entry.task.subject)
            }
            None => "another operation on it is running".to_owned(),
        };
        Error::new(ErrorKind::Busy, what)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task off the table, and its locks with it, however it ended.
struct Leave {
    inner: Arc<Inner>,
    fingerprint: Digest,
    guard: Option<Guard>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.running.remove(&self.fingerprint);
        drop(self.guard.take());
        drop(state);
        self.inner.idle.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn task(call: &'static str, name: &str) -> Task {
        Task {
            call,
            subject: name.to_owned(),
            fingerprint: Digest::of([call.as_bytes(), name.as_bytes()]),
            locks: vec![(Key::VolumeName(name.to_owned()), Mode::Exclusive)],
        }
    }

    #[tokio::test]
    async fn an_identical_call_joins_and_another_is_busy() {
        let work = Work::new(8);
        let (release, wait) = oneshot::channel::<()>();
        let first = tokio::spawn({
            let work = work.clone();
            async move { work.run(task("create", "a"), |_| async { Ok(wait.await.map_or(0, |()| 7)) }).await }
        });
        tokio::task::yield_now().await;
        let busy: Result<i32> = work.run(task("delete", "a"), |_| async { Ok(1) }).await;
        assert_eq!(busy.unwrap_err().kind(), ErrorKind::Busy);
        let second = work.run(task("create", "a"), |_| async { Ok(8) });
        let release = async move {
            tokio::task::yield_now().await;
            release.send(()).unwrap();
        };
        let (second, ()) = tokio::join!(second, release);
        assert_eq!((first.await.unwrap().unwrap(), second.unwrap()), (7, 7), "one ran, both have its answer");
        assert!(work.running().is_empty());
    }

    #[tokio::test]
    async fn what_only_joins_begins_nothing() {
        let work = Work::new(8);
        let (release, wait) = oneshot::channel::<()>();
        assert!(work.join::<i32>(&task("create", "a")).await.is_none());
        let first = tokio::spawn({
            let work = work.clone();
            async move { work.run(task("create", "a"), |_| async { Ok(wait.await.map_or(0, |()| 7)) }).await }
        });
        tokio::task::yield_now().await;
        let other = work.join::<i32>(&task("delete", "a")).await;
        assert_eq!(other.unwrap().unwrap_err().kind(), ErrorKind::Busy);
        let same = task("create", "a");
        let (joined, ()) = tokio::join!(work.join::<i32>(&same), async { release.send(()).unwrap() });
        assert_eq!((first.await.unwrap().unwrap(), joined.unwrap().unwrap()), (7, 7));
        assert!(work.running().is_empty());
    }

    #[tokio::test]
    async fn work_outlives_its_caller() {
        let work = Work::new(8);
        let (release, wait) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel();
        let call = work.run(task("create", "a"), |_| async move {
            wait.await.unwrap();
            done.send(()).unwrap();
            Ok(())
        });
        let cancelled = tokio::time::timeout(Duration::from_millis(5), call).await;
        assert!(cancelled.is_err());
        assert_eq!(work.running().len(), 1);
        release.send(()).unwrap();
        finished.await.unwrap();
        work.drain().await;
        let refused: Result<()> = work.run(task("create", "b"), |_| async { Ok(()) }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_own_call_and_leaves_no_lock() {
        let work = Work::new(8);
        let panicked: Result<()> = work.run(task("create", "a"), |_| async { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Broken);
        let again: Result<()> = work.run(task("create", "a"), |_| async { Ok(()) }).await;
        assert!(again.is_ok());
    }

    #[tokio::test]
    async fn there_is_a_limit() {
        let work = Work::new(1);
        let (_keep, wait) = oneshot::channel::<()>();
        let first = work.run(task("create", "a"), |_| async move { Ok(wait.await.is_ok()) });
        assert!(tokio::time::timeout(Duration::from_millis(5), first).await.is_err());
        let second: Result<bool> = work.run(task("create", "b"), |_| async { Ok(true) }).await;
        assert_eq!(second.unwrap_err().kind(), ErrorKind::Busy);
    }
}
