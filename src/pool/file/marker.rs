//! The identity of a file pool: a small file in its directory that says which pool this is, and whose. Its locks are
//! taken on that file, so they are where the pool is. A directory without the file is no pool, never an empty one.
//! Beside an image it is asked before the image is mounted: another machine may have it mounted.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Doing, Error, ErrorKind, Result},
    id::{PoolId, VolumeId},
    pool::{Role, byte_of, record::Timestamp},
    sys::{
        device::Inode,
        file::{Access, Directory, stat},
        lock::{ByteLock, Sharing},
    },
};

/// Name of the file.
pub(super) const MARKER: &str = "lagan-pool.json";
const VERSION: u32 = 1;

/// What the file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Marker {
    /// Version of the pool's layout.
    lagan_pool: u32,
    /// The pool's identity.
    pub(super) id: PoolId,
    /// The machine that may serve it.
    pub(super) machine: String,
    /// When it was made.
    created: Timestamp,
}

impl Marker {
    /// That of a new pool.
    pub(super) fn new(machine: &str) -> Self {
        let (id, created) = (PoolId::random(), Timestamp::now());
        Self { lagan_pool: VERSION, id, machine: machine.to_owned(), created }
    }

    /// That of a pool that has lost it.
    pub(super) fn of(id: PoolId, machine: &str) -> Self {
        Self { id, ..Self::new(machine) }
    }

    /// The same pool, served by another machine.
    pub(super) fn adopted_by(self, machine: &str) -> Self {
        Self { machine: machine.to_owned(), ..self }
    }

    /// Reads it; `None` where there is none.
    pub(super) fn read(root: &Directory) -> Result<Option<Self>> {
        let what = || format!("read {} of pool {}", MARKER, root.path().display());
        let file = match root.open_file(MARKER, Access::Read) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.doing(what)?,
        };
        let text = std::io::read_to_string(std::io::Read::take(file, 4096)).doing(what)?;
        let unreadable = |reason: String| Error::new(ErrorKind::Unavailable, format!("{}: {reason}", what()));
        let marker: Self = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        if marker.lagan_pool != VERSION {
            return Err(unreadable(format!("layout version {} is not {VERSION}", marker.lagan_pool)));
        }
        Ok(Some(marker))
    }

    /// Writes it, durably.
    pub(super) fn write(&self, root: &Directory) -> Result<()> {
        let what = || format!("write {} of pool {}", MARKER, root.path().display());
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::new(ErrorKind::Broken, what()).because(error))?;
        root.write_file(MARKER, &text).doing(what)
    }
}

/// Takes the locks of a role, to be kept while the pool is served. `Busy` where another process serves it.
pub(super) fn lock(root: &Directory, role: Role) -> Result<Vec<ByteLock>> {
    let busy = |name: &str| {
        format!("pool {} is served by another {name} process: stop that one first", root.path().display())
    };
    role.locks().map(|(byte, name)| lock_byte(root, byte, Sharing::Alone, || busy(name))).collect()
}

/// Takes a volume for one piece of work, against the other process that serves the pool. `Busy` where that one has it.
pub(super) fn take_turn(root: &Directory, id: VolumeId, sharing: Sharing) -> Result<ByteLock> {
    lock_byte(root, byte_of(id), sharing, || format!("another process is at work on volume {id}"))
}

fn lock_byte(root: &Directory, byte: i64, sharing: Sharing, busy: impl Fn() -> String) -> Result<ByteLock> {
    let what = || format!("lock pool {}", root.path().display());
    // The file may be replaced (adoption) between opening and locking it: a lock on the old one locks nothing.
    for _attempt in 0..8 {
        let file = root.open_file(MARKER, Access::Write).doing(what)?;
        let opened = stat(&file).doing(what)?.inode;
        let Some(lock) = ByteLock::try_take(file, byte, sharing).doing(what)? else {
            return Err(Error::new(ErrorKind::Busy, busy()));
        };
        if current(root).doing(what)? == Some(opened) {
            return Ok(lock);
        }
    }
    Err(Error::new(ErrorKind::Busy, what()))
}

fn current(root: &Directory) -> std::io::Result<Option<Inode>> {
    Ok(root.stat(MARKER)?.map(|stat| stat.inode))
}
