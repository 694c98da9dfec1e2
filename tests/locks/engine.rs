//! The two files of the driver, upon primitives of loom.

#[path = "../../src/engine/locks.rs"]
pub(crate) mod locks;
mod sync;
#[path = "../../src/engine/work.rs"]
pub(crate) mod work;
