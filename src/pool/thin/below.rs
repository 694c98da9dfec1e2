//! The thin pool below: what it says of itself, and the messages it takes (Documentation/admin-guide/device-mapper/
//! thin-provisioning.rst). Numbers of thin devices of ours begin at 2^20; LVM takes the lowest free from 1, and the
//! transaction id is LVM's alone: so both live in one pool.

use std::time::Duration;

use rustix::io::Errno;

use crate::{
    bytes::Bytes,
    error::{Doing, Error, ErrorKind, Result},
    sys::dm::{Line, Mapper, SECTOR},
};

/// The first number of ours; that of the keeper.
pub(super) const FIRST: u32 = 1 << 20;
/// One past the last that the kernel takes (24 bits).
pub(super) const LAST: u32 = 1 << 24;
/// Length of a block of metadata.
pub(super) const METADATA_BLOCK: u64 = 4096;

/// How a thin pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// All is well.
    Writable,
    /// No block is free.
    Full,
    /// Metadata cannot be changed.
    ReadOnly,
    /// It does not work at all.
    Failed,
}

/// What a thin pool says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// Changes by LVM: it counts each thin volume that it makes or removes.
    pub(super) transaction: u64,
    pub(super) health: Health,
    pub(super) data: Amount,
    pub(super) metadata: Amount,
    /// What it hands out at a time.
    pub(super) chunk: Bytes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) used: Bytes,
    pub(super) total: Bytes,
}

impl Status {
    /// Asks the pool.
    pub(super) fn read(mapper: &Mapper, pool: &str) -> Result<Self> {
        let what = || format!("ask thin pool {pool} how it is");
        let (status, table) = (mapper.status(pool).doing(what)?, mapper.table(pool).doing(what)?);
        let parsed = status.first().zip(table.first()).and_then(|(status, table)| parse(status, table));
        parsed.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("{}: it is no thin pool", what())))
    }
}

/// Whether a thin pool takes changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) mode: Mode,
    pub(super) needs_check: bool,
}

impl Health {
    fn parse(status: &Line) -> Option<Self> {
        let fields: Vec<&str> = status.text.split(' ').collect();
        let mode = match *fields.get(4).or(fields.first())? {
            "Fail" => Mode::Failed,
            "rw" => Mode::Writable,
            "out_of_data_space" => Mode::Full,
            _ => Mode::ReadOnly,
        };
        let needs_check = mode == Mode::Failed || fields.contains(&"needs_check");
        Some(Self { mode, needs_check }).filter(|_| status.target == "thin-pool")
    }

    /// Refuses changes that the pool would refuse, with what to do.
    pub(super) fn check(self) -> Result<()> {
        let what = match self.mode {
            Mode::Failed => "the thin pool has failed",
            _ if self.needs_check => "the thin pool needs a check",
            Mode::ReadOnly => {
                let what = "the thin pool has no room for more metadata: extend it (`lagan pool extend --metadata SIZE`)";
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            Mode::Writable | Mode::Full => return Ok(()),
        };
        let remedy = "stop what uses it and the driver, `lagan pool stop`, and repair it: `lvconvert --repair`; on a disk of \
                      its own start the driver, which checks it, and says if `lagan pool repair` is needed";
        Err(Error::new(ErrorKind::Unavailable, format!("{what}: {remedy}")))
    }
}

/// `transaction used/total used/total held mode discards when-full needs-check low-water`, or `Fail`; the block of data
/// is in the table: `metadata data block-sectors …`.
fn parse(line: &Line, table: &Line) -> Option<Status> {
    let health = Health::parse(line)?;
    let block = table.text.split(' ').nth(2)?.parse::<u64>().ok()?.checked_mul(SECTOR)?;
    let amount = |field: &str, unit: u64| {
        let (used, total) = field.split_once('/')?;
        let bytes = |count: &str| Some(Bytes::new(count.parse::<u64>().ok()?.checked_mul(unit)?));
        Some(Amount { used: bytes(used)?, total: bytes(total)? })
    };
    let mut status = Status {
        transaction: 0,
        health,
        data: Amount::default(),
        metadata: Amount::default(),
        chunk: Bytes::new(block),
    };
    if health.mode != Mode::Failed {
        let mut fields = line.text.split(' ');
        status.transaction = fields.next()?.parse().ok()?;
        status.metadata = amount(fields.next()?, METADATA_BLOCK)?;
        status.data = amount(fields.next()?, block)?;
    }
    Some(status)
}

/// Whether a number was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Yes,
    /// Somebody has it, of whom no record knows.
    Taken,
}

/// Makes a thin device; [`committed`] says whether it stays.
pub(super) fn create(mapper: &Mapper, pool: &str, thin: u32) -> Result<Made> {
    made(mapper, pool, &format!("create_thin {thin}"), || format!("make thin device {thin}"))
}

/// Makes a thin device that shares the blocks of another; that one must not be written meanwhile. [`committed`] says whether
/// it stays: it is asked later, since writers wait now.
pub(super) fn snapshot(mapper: &Mapper, pool: &str, thin: u32, origin: u32) -> Result<Made> {
    let what = || format!("make thin device {thin} from {origin}");
    made(mapper, pool, &format!("create_snap {thin} {origin}"), what)
}

fn made(mapper: &Mapper, pool: &str, message: &str, what: impl Fn() -> String) -> Result<Made> {
    match mapper.message(pool, message) {
        Ok(_) => Ok(Made::Yes),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => Ok(Made::Taken),
        Err(error) => Err(Error::io(what(), error)),
    }
}

/// Whether what messages did has come to the disk: the kernel does not say where that failed (`pool_message` in
/// drivers/md/dm-thin.c), but the pool takes no changes from then on.
pub(super) fn committed(mapper: &Mapper, pool: &str) -> Result<()> {
    let what = || format!("ask thin pool {pool} how it is");
    let status = mapper.status(pool).doing(what)?;
    let health = status.first().and_then(Health::parse);
    health.ok_or_else(|| Error::new(ErrorKind::Unavailable, what()))?.check()
}

/// Removes a thin device; fine where there is none.
///
/// # Errors
/// `InUse` where a device stands on it.
pub(super) fn delete(mapper: &Mapper, pool: &str, thin: u32) -> Result<()> {
    let what = || format!("delete thin device {thin}");
    // A device that goes when it is closed is in no list any more while it still holds what is below it.
    let gone = patiently(|| match mapper.message(pool, &format!("delete {thin}")) {
        Ok(_) => committed(mapper, pool).map(|()| true).map_err(|error| error.within(what())),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NODATA) => Ok(true),
            Some(Errno::BUSY) => Ok(false),
            _ => Err(Error::io(what(), error)),
        },
    })?;
    if gone { Ok(()) } else { Err(Error::new(ErrorKind::InUse, format!("{}: it is in use", what()))) }
}

/// Tries for a while what somebody may stand in the way of for a moment; `false` where somebody still does.
pub(super) fn patiently(mut attempt: impl FnMut() -> Result<bool>) -> Result<bool> {
    for pause in [0, 5, 20, 50, 100, 200, 500] {
        std::thread::sleep(Duration::from_millis(pause));
        if attempt()? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Option<Status> {
        let line = |text: &str| Line { start: 0, length: 8, target: "thin-pool".into(), text: text.into() };
        parse(&line(text), &line("253:0 253:1 128 0 0"))
    }

    #[test]
    fn what_a_pool_says() {
        let well = check("1 14/2048 25/4096 - rw discard_passdown queue_if_no_space - 1024 ").unwrap();
        assert_eq!((well.transaction, well.health.mode, well.health.needs_check), (1, Mode::Writable, false));
        assert_eq!((well.data.used, well.data.total), (Bytes::new(25 << 16), Bytes::mib(256)));
        assert_eq!(well.metadata.total, Bytes::mib(8));
        assert_eq!(well.chunk, Bytes::new(64 << 10));
        let full =
            check("1 14/2048 4096/4096 - out_of_data_space discard_passdown error_if_no_space - 1024 ");
        assert_eq!(full.unwrap().health.mode, Mode::Full);
        let sick =
            check("1 14/2048 25/4096 - ro discard_passdown queue_if_no_space needs_check 1024 ").unwrap();
        assert_eq!((sick.health.mode, sick.health.needs_check), (Mode::ReadOnly, true));
        assert!(sick.health.check().is_err());
        assert_eq!(check("Fail").unwrap().health.mode, Mode::Failed);
        assert_eq!(check("Error"), None);
    }

    #[test]
    fn hostile_input() {
        let sample =
            b"1 14/2048 25/4096 - rw discard_passdown queue_if_no_space - 1024 \n253:0 253:1 128 0 0";
        crate::hostile::feed("pool-status", &[sample, b"Fail\n253:0 253:1 128"], |input| {
            let text = String::from_utf8_lossy(input);
            let (status, table) = text.split_once('\n').unwrap_or((&text, "253:0 253:1 128"));
            let line =
                |text: &str| Line { start: 0, length: 8, target: "thin-pool".into(), text: text.into() };
            if let Some(status) = parse(&line(status), &line(table)) {
                drop(status.health.check());
            }
        });
    }
}
