//! Lagan: a CSI driver for Linux block storage. The modules in reading order, lowest first; each may import those
//! above it only as far as the table in ARCHITECTURE.md allows, which `tests/architecture.rs` holds it to.

// Values: nothing of ours below them.
pub mod bytes;
pub mod capability;
pub mod digest;
pub mod error;
pub mod filesystem;
pub mod id;
pub mod trace;

// The bridge between asynchronous code and calls that block.
pub mod blocking;

// The raw operating system.
pub mod sys;

// Where volumes are cut from.
pub mod pool;

// What is done with them, never with what.
pub mod engine;
pub mod node;

// Other processes of the cluster.
pub mod peers;

// The edge: the wire protocol, generated, and what speaks it.
pub mod csi;
pub mod kubelet;
pub mod proto;
pub mod router;

// Assembly.
pub mod app;
pub mod cli;
pub mod config;
pub mod server;
pub mod telemetry;

#[cfg(test)]
#[path = "../tests/support/hostile.rs"]
mod hostile;
