//! What the processes of a simulation have in common, and the scheduler decides about: calls and answers on their way, and
//! steps that wait for their turn.

use std::{
    collections::BTreeSet,
    io,
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use lagan::sys::fate::{Fate, Outcome};
use rustix::io::Errno;
use tokio::sync::oneshot;
use tonic::{body::Body, codegen::http};
use tower::Service;

use crate::chance::Chance;

/// One life of a process.
pub(crate) type Life = u32;

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The socket of an orchestrator on a host.
    Host(usize),
    /// The door of a host for routers.
    Peers(usize),
    Router(usize),
}

pub(crate) type Reply = Result<http::Response<Body>, io::Error>;

/// A call on its way.
pub(crate) struct Packet {
    pub(crate) number: u32,
    /// The orchestrator's call; a router's has none.
    pub(crate) call: Option<u32>,
    pub(crate) to: Place,
    pub(crate) request: http::Request<Body>,
    pub(crate) back: oneshot::Sender<Reply>,
    /// The process that waits for the answer, if it is not an orchestrator.
    pub(crate) from: Option<Life>,
}

/// An answer on its way back.
pub(crate) struct Answer {
    pub(crate) number: u32,
    pub(crate) reply: Reply,
    pub(crate) back: oneshot::Sender<Reply>,
    pub(crate) from: Option<Life>,
}

/// A step that a process waits to take.
pub(crate) struct Step {
    pub(crate) life: Life,
    pub(crate) name: &'static str,
    pub(crate) go: oneshot::Sender<io::Result<()>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) packets: Vec<Packet>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) steps: Vec<Step>,
    /// Processes that have died in the middle of a system call.
    pub(crate) died: BTreeSet<Life>,
    /// What is to become of system calls: one in so many fails, and one in so many is the last one; zero is never.
    pub(crate) calls_fail: usize,
    pub(crate) calls_kill: usize,
    chance: Option<Chance>,
    next: u32,
    /// What happened to system calls, for the trace.
    pub(crate) happened: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub(crate) fn new(chance: Chance) -> Self {
        let shared = Self::default();
        shared.lock().chance = Some(chance);
        shared
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(crate) const fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

/// What a process dies of in the middle of a system call. It unwinds like a panic and is none.
struct Killed;

/// The fate of one process: its steps wait for the scheduler, its system calls are decided on the spot.
#[derive(Clone)]
pub(crate) struct Conductor {
    pub(crate) shared: Shared,
    pub(crate) life: Life,
}

impl std::fmt::Debug for Conductor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "life {}", self.life)
    }
}

impl Fate for Conductor {
    fn step(&self, name: &'static str) -> Outcome {
        let (go, gone) = oneshot::channel();
        self.shared.lock().steps.push(Step { life: self.life, name, go });
        Box::pin(async move {
            match gone.await {
                Ok(outcome) => outcome,
                // The scheduler has forgotten the process.
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn call(&self, name: &'static str) -> io::Result<()> {
        let mut state = self.shared.lock();
        let (fail, kill) = (state.calls_fail, state.calls_kill);
        let Some(chance) = state.chance.as_mut() else { return Ok(()) };
        let killed = kill > 0 && chance.once_in(kill);
        let errors = [Errno::IO, Errno::NOMEM, Errno::NODEV];
        let failed = (fail > 0 && chance.once_in(fail)).then(|| chance.pick(&errors));
        if killed || state.died.contains(&self.life) {
            state.happened.push(format!("  {name}: killed"));
            state.died.insert(self.life);
            drop(state);
            resume_unwind(Box::new(Killed));
        }
        match failed {
            None => Ok(()),
            Some(error) => {
                state.happened.push(format!("  {name}: {error}"));
                Err(error.into())
            }
        }
    }
}

/// The way to a process.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) shared: Shared,
    pub(crate) to: Place,
    pub(crate) call: Option<u32>,
    pub(crate) from: Option<Life>,
}

impl Service<http::Request<Body>> for Way {
    type Response = http::Response<Body>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Reply>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (back, answer) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            let number = state.number();
            let (call, to, from) = (self.call.or_else(|| call_of(&request)), self.to, self.from);
            state.packets.push(Packet { number, call, to, request, back, from });
        }
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(lost())) })
    }
}

/// The call that a request belongs to which a router passes on; none where the router asks for itself, under a trace of its own.
fn call_of(request: &http::Request<Body>) -> Option<u32> {
    let header = request.headers().get("traceparent")?.to_str().ok()?;
    let trace = u128::from_str_radix(header.split('-').nth(1)?, 16).ok()?;
    u32::try_from(trace).ok()
}

/// What a caller is told by its own side where an answer does not come.
pub(crate) fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection is lost")
}
