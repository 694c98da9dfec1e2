//! The bridge from asynchronous code to system calls that block. An operation is moved as a whole to a thread on which
//! blocking is allowed, so that it crosses threads once, not once a system call.

use std::{cell::Cell, marker::PhantomData};

use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
};
use tracing::{Instrument, Span};

use crate::error::{Error, ErrorKind, Result};

thread_local! {
    /// This thread is one on which an operation runs.
    static APART: Cell<bool> = const { Cell::new(false) };
    /// Nothing that is called on this thread blocks.
    static TOGETHER: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, nothing that this thread begins leaves it: for a simulation, where nothing blocks, and everything that is
/// begun has to end with the runtime that it was begun in.
#[derive(Debug)]
pub struct Together(PhantomData<*const ()>);

/// Keeps on this thread what it begins.
#[must_use]
pub fn together() -> Together {
    TOGETHER.set(true);
    Together(PhantomData)
}

impl Drop for Together {
    fn drop(&mut self) {
        TOGETHER.set(false);
    }
}

/// Marks the thread while it lives.
struct Mark;

impl Mark {
    fn set() -> Self {
        APART.set(true);
        Self
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        APART.set(false);
    }
}

/// Starts an operation on a thread of its own, where it may block. It goes on if nobody waits for it.
pub fn detach<T: Send + 'static>(operation: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let (runtime, span) = (Handle::current(), Span::current());
    if TOGETHER.get() {
        return runtime.spawn(operation.instrument(span));
    }
    spawn_blocking(move || {
        let _mark = Mark::set();
        span.in_scope(|| runtime.block_on(operation))
    })
}

/// Runs a question that only looks on a thread where it may block.
///
/// # Errors
/// That of the question; `Broken` where it panicked.
pub async fn apart<T: Send + 'static>(
    question: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    detach(question).await.unwrap_or_else(|panicked| Err(broken(panicked)))
}

/// Runs system calls that block: here, where this thread may, and on one that may otherwise. A panic in them becomes
/// an error of their own call, no more.
///
/// # Errors
/// That of `work`; `Broken` where it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if APART.get() || TOGETHER.get() {
        return work();
    }
    let span = Span::current();
    spawn_blocking(move || span.in_scope(work)).await.unwrap_or_else(|panicked| Err(broken(panicked)))
}

fn broken(panicked: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Broken, "a step panicked").because(panicked)
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn an_operation_stays_on_one_thread() {
        let here = current().id();
        let threads = apart(async {
            let first = blocking(|| Ok(current().id())).await?;
            tokio::task::yield_now().await;
            Ok([current().id(), first, blocking(|| Ok(current().id())).await?])
        });
        let threads = threads.await.unwrap();
        assert!(threads.iter().all(|thread| *thread == threads[0] && *thread != here));
        assert_ne!(blocking(|| Ok(current().id())).await.unwrap(), here, "elsewhere it is moved");
    }

    #[tokio::test]
    async fn together_nothing_leaves_the_thread() {
        let here = current().id();
        let kept = together();
        assert_eq!(apart(async { blocking(|| Ok(current().id())).await }).await.unwrap(), here);
        drop(kept);
        assert_ne!(blocking(|| Ok(current().id())).await.unwrap(), here);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let panicked: Result<()> = apart(async { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Broken);
        let panicked: Result<()> = blocking(|| panic!("on purpose")).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Broken);
    }
}
