//! Threads of loom in the place of a runtime: work runs apart from its caller on one of them, and a caller waits on its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use loom::thread::{JoinHandle, Thread};

/// As `lagan::blocking::detach`: on a thread of its own, and a panic stays there.
pub(crate) fn detach<T: 'static>(operation: impl Future<Output = T> + 'static) -> JoinHandle<Option<T>> {
    loom::thread::spawn(move || catch_unwind(AssertUnwindSafe(|| block_on(operation))).ok())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for `future` on this thread. That of loom would let other threads go first while tokio clones a waker, within a
/// step of tokio's that nobody may look into.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(loom::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => loom::thread::park(),
        }
    }
}
