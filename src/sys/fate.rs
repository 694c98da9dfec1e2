//! Who decides what becomes of a step that a model takes. A model alone takes every step well; a simulation lets each one
//! wait, fail, or be the last of its process.

use std::{fmt, future::Future, io, pin::Pin};

/// What becomes of a step, once that is decided.
pub type Outcome = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// It decides.
pub trait Fate: fmt::Debug + Send + Sync {
    /// A step of a longer change: others may come between it and the one before. Nothing of it is done before this is
    /// settled, and nothing at all where it fails.
    fn step(&self, step: &'static str) -> Outcome;

    /// A system call, which comes back at once; nothing is done where it fails.
    ///
    /// # Errors
    /// Those that it is to give.
    fn call(&self, call: &'static str) -> io::Result<()>;

    /// The answer of a call that was done; where it fails that is all that is heard of it.
    ///
    /// # Errors
    /// Those that it is to give.
    fn answer(&self, _call: &'static str) -> io::Result<()> {
        Ok(())
    }
}

/// All goes well.
#[derive(Clone, Copy, Debug)]
pub struct Well;

impl Fate for Well {
    fn step(&self, _step: &'static str) -> Outcome {
        Box::pin(std::future::ready(Ok(())))
    }

    fn call(&self, _call: &'static str) -> io::Result<()> {
        Ok(())
    }
}
