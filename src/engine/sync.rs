//! What locks and joins are made of. They name these here and nowhere else, so that `tests/locks` can compile the same two
//! files upon primitives of which it tries every interleaving.

pub(super) use std::sync::{Mutex, MutexGuard};
pub(super) use tokio::sync::{Notify, watch};
