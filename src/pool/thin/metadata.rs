//! Metadata of the thin pool, read while the pool works: it holds a snapshot of it for whoever asks, one at a time.

use std::time::Duration;

use rustix::io::Errno;

use super::below;
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    sys::{
        device::{self, DeviceNumber},
        dm::Mapper,
        thin_metadata::{ThinDevice, ThinMetadata},
    },
};

/// A metadata snapshot that is held for us; let go of with this value.
struct Reserved<'m> {
    mapper: &'m Mapper,
    pool: &'m str,
}

impl<'m> Reserved<'m> {
    fn take(mapper: &'m Mapper, pool: &'m str) -> Result<Self> {
        let what = || format!("hold the metadata of thin pool {pool}");
        // Another reader needs a moment, not longer.
        for pause in [10, 20, 50, 100, 200, 500, 1000, 0] {
            match mapper.message(pool, "reserve_metadata_snap") {
                Ok(_) => return Ok(Self { mapper, pool }),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                    std::thread::sleep(Duration::from_millis(pause));
                }
                Err(error) => return Err(Error::io(what(), error)),
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!(
                "{}: somebody else holds it, or has died over it (the next start of the daemon lets go)",
                what()
            ),
        ))
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // What stays is let go of by the next start of a controller.
        self.mapper.message(self.pool, "release_metadata_snap").map(drop).unwrap_or_default();
    }
}

/// Reads the metadata of a pool as it is at this moment.
pub(super) fn read<T>(
    mapper: &Mapper,
    pool: &str,
    what: impl FnOnce(&ThinMetadata) -> std::io::Result<T>,
) -> Result<T> {
    let doing = || format!("read the metadata of thin pool {pool}");
    let table = mapper.table(pool).doing(doing)?;
    let number = table.first().and_then(|line| number_of(line.text.split(' ').next()?));
    let number = number.ok_or_else(|| Error::new(ErrorKind::Broken, doing()))?;
    let _reserved = Reserved::take(mapper, pool)?;
    let device = device::open_direct(&device::node_of("dm-", number), number).doing(doing)?;
    ThinMetadata::open(device).and_then(|metadata| what(&metadata)).doing(doing)
}

fn number_of(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber::new(major.parse().ok()?, minor.parse().ok()?))
}

/// The thin devices of ours in a pool, by their numbers.
pub(super) fn devices(mapper: &Mapper, pool: &str) -> Result<Vec<ThinDevice>> {
    let mut all = read(mapper, pool, ThinMetadata::devices)?;
    all.retain(|device| (below::FIRST..below::LAST).contains(&device.number));
    Ok(all)
}

/// Whether the pool holds a metadata snapshot for somebody.
pub(super) fn is_held(mapper: &Mapper, pool: &str) -> Result<bool> {
    let status = mapper.status(pool).doing(|| format!("ask thin pool {pool} what it holds"))?;
    // `transaction metadata data held-root …`; a dash where nothing is held.
    Ok(status.first().and_then(|line| line.text.split(' ').nth(3)).is_some_and(|it| it != "-"))
}

/// Lets go of a metadata snapshot that a reader has left; `false` where there is none.
pub(super) fn release_left(mapper: &Mapper, pool: &str) -> Result<bool> {
    let held = is_held(mapper, pool)?;
    if held {
        let what = || format!("let go of the metadata of thin pool {pool}");
        mapper.message(pool, "release_metadata_snap").doing(what)?;
    }
    Ok(held)
}
