//! The raw operating system: what the kernel offers, as safe functions that know nothing of volumes or CSI.

pub mod cmd;
pub mod device;
pub mod disk;
pub mod dm;
pub mod fake;
pub mod fate;
pub mod file;
pub mod foreign;
pub mod grow;
pub mod host;
pub mod kernel;
pub mod lock;
pub mod loopdev;
pub mod minder;
pub mod mount;
pub mod mountinfo;
pub mod superblock;
pub mod survey;
pub mod target;
pub mod thin_metadata;

mod holders;
mod raw;
mod repair;
