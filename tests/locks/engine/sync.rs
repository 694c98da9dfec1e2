//! The primitives of locks and joins, of which every interleaving is tried: the mutex is that of loom, the channel and the
//! bell are those of tokio, and each use of one is a point at which any other thread may go first. What tokio does
//! within one such step is checked by tokio itself, with loom as well.

pub(crate) use loom::sync::{Mutex, MutexGuard};

/// A moment at which another thread may go first.
#[derive(Debug, Default)]
struct Point(loom::sync::atomic::AtomicUsize);

impl Point {
    fn pass(&self) {
        self.0.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Notify {
    bell: tokio::sync::Notify,
    point: Point,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.point.pass();
        self.bell.notified()
    }

    pub(crate) fn notify_waiters(&self) {
        self.point.pass();
        self.bell.notify_waiters();
    }
}

pub(crate) mod watch {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio::sync::watch;

    use super::Point;

    pub(crate) struct Sender<T> {
        point: Arc<Point>,
        sender: Option<watch::Sender<T>>,
        sent: AtomicBool,
    }

    #[derive(Clone)]
    pub(crate) struct Receiver<T> {
        point: Arc<Point>,
        receiver: watch::Receiver<T>,
    }

    pub(crate) fn channel<T>(first: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(first);
        let point = Arc::<Point>::default();
        let sender = Sender { point: Arc::clone(&point), sender: Some(sender), sent: AtomicBool::new(false) };
        (sender, Receiver { point, receiver })
    }

    impl<T> Sender<T> {
        pub(crate) fn send_replace(&self, value: T) -> Option<T> {
            self.point.pass();
            self.sent.store(true, Ordering::Relaxed);
            self.sender.as_ref().map(|sender| sender.send_replace(value))
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            // Only an end without an answer is seen by whoever waits.
            if !self.sent.load(Ordering::Relaxed) {
                self.point.pass();
            }
            drop(self.sender.take());
        }
    }

    impl<T> Receiver<T> {
        pub(crate) async fn wait_for(
            &mut self,
            condition: impl FnMut(&T) -> bool,
        ) -> Result<watch::Ref<'_, T>, watch::error::RecvError> {
            self.point.pass();
            self.receiver.wait_for(condition).await
        }
    }
}
