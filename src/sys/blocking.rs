//! The bridge from asynchronous code to system calls that block: a thread of the runtime's pool for each.

use crate::error::{Error, ErrorKind, Result};

/// Runs `work` where it may block. A panic in it becomes an error of its own call, no more.
///
/// # Errors
/// That of `work`; `Broken` where it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(panicked) => Err(Error::new(ErrorKind::Broken, "a system call step panicked").because(panicked)),
    }
}
