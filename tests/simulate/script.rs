//! The fate of a process to which one thing happens: at its call of a number.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use lagan::sys::fate::{Fate, Outcome};
use rustix::io::Errno;

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails, and nothing is done.
    Fails,
    /// It is done, and said to have failed.
    AnswerLost,
    /// It fails, and so do all that follow.
    AllFail,
    /// The process is killed before it.
    Kill,
    /// The power is cut before it; of what was not flushed all is lost, nothing, or something.
    Power(usize),
}

pub(crate) const FAULTS: [Fault; 7] = [
    Fault::Fails,
    Fault::AnswerLost,
    Fault::AllFail,
    Fault::Kill,
    Fault::Power(0),
    Fault::Power(1),
    Fault::Power(2),
];

/// What a process is killed with: it unwinds like a panic and is none.
struct Killed;

/// The fate of a process: what becomes of its call of a number, counted from when it is told to begin.
#[derive(Debug)]
pub(crate) struct Script {
    fault: Fault,
    at: usize,
    counting: AtomicBool,
    calls: AtomicUsize,
    /// The call that it came to.
    met: Mutex<Option<&'static str>>,
    dead: AtomicBool,
}

impl Script {
    pub(crate) fn new(fault: Fault, at: usize) -> Arc<Self> {
        let (counting, calls, met, dead) =
            (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { fault, at, counting, calls, met, dead })
    }

    pub(crate) fn count(&self, on: bool) {
        self.counting.store(on, Ordering::Relaxed);
    }

    pub(crate) fn met(&self) -> Option<&'static str> {
        *self.met.lock().unwrap()
    }
}

impl Fate for Script {
    fn step(&self, _step: &'static str) -> Outcome {
        Box::pin(std::future::ready(Ok(())))
    }

    fn call(&self, call: &'static str) -> io::Result<()> {
        let killed = || {
            // Whoever is dead tidies nothing up.
            if std::thread::panicking() { Err(Errno::IO.into()) } else { resume_unwind(Box::new(Killed)) }
        };
        if self.dead.load(Ordering::Relaxed) {
            return killed();
        }
        if !self.counting.load(Ordering::Relaxed) {
            return Ok(());
        }
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if number == self.at {
            *self.met.lock().unwrap() = Some(call);
        }
        match self.fault {
            Fault::Fails if number == self.at => Err(Errno::IO.into()),
            Fault::AllFail if number >= self.at => Err(Errno::IO.into()),
            Fault::Kill | Fault::Power(_) if number == self.at => {
                self.dead.store(true, Ordering::Relaxed);
                killed()
            }
            _ => Ok(()),
        }
    }

    fn answer(&self, _call: &'static str) -> io::Result<()> {
        let lost = self.fault == Fault::AnswerLost
            && self.counting.load(Ordering::Relaxed)
            && self.calls.load(Ordering::Relaxed) == self.at + 1;
        if lost { Err(Errno::IO.into()) } else { Ok(()) }
    }
}

/// Runs a process until it is done or dead; `None` where it has died.
pub(crate) fn lives<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(why) if why.is::<Killed>() => None,
        Err(why) => resume_unwind(why),
    }
}
