//! Every error at every call site, and SIGKILL at each of them: the unmodified driver on real loop devices and filesystems, its
//! system calls interfered with from outside. Needs root and ptrace(2), and knows the calls of x86-64 only.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

mod binary;
#[path = "../support/calls.rs"]
mod calls;
mod coverage;
#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
mod doubles;
mod flushes;
mod kills;
mod life;
mod memory;
#[path = "../support/requests.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod requests;
#[path = "../kernel/rig.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod rig;
mod sites;
mod stage;
mod table;
mod tools;
mod torture;
#[path = "../support/tracer.rs"]
mod tracer;
mod world;
#[path = "../support/writer.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod writer;
