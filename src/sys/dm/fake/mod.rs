//! A model of device-mapper: thin pools in files of a directory, with the kernel's rules for opens, suspends, tables and
//! messages. What the kernel would let happen, and nobody should do, is a panic.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{Door, Info, Line, SECTOR};
use crate::{
    bytes::Bytes,
    sys::{
        device::DeviceNumber,
        fate::{Fate, Well},
        file,
    },
};

mod door;
mod records;

use records::Unflushed;

/// Major number of devices.
const MAJOR: u32 = 254;
/// Length of a block of data, and of the device of records.
const CHUNK: Bytes = Bytes::new(64 << 10);
const RECORDS: Bytes = Bytes::mib(4);
/// Blocks of metadata of a pool, and of one of its devices.
const METADATA: u64 = 16 << 10;
const METADATA_EACH: u64 = 2;

/// The model. Clones share it; what is in it goes with the last of them.
#[derive(Clone, Debug)]
pub struct FakeMapper {
    state: Arc<Mutex<State>>,
    directory: Arc<tempfile::TempDir>,
    fate: Arc<dyn Fate>,
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<String, Device>,
    /// Thin devices of the one pool, with the files of their blocks.
    thins: BTreeMap<u32, PathBuf>,
    minors: u32,
    held: bool,
    /// Data that there is, and that may be used.
    data: Bytes,
    /// The pool refuses changes, as one does whose metadata cannot be written.
    read_only: bool,
    /// And does from the next one on, which it loses.
    loses: bool,
    records: Unflushed,
}

#[derive(Clone, Debug)]
struct Device {
    uuid: String,
    minor: u32,
    active: Option<Vec<Line>>,
    pending: Option<(Vec<Line>, bool)>,
    suspended: bool,
    read_only: bool,
    transient: bool,
}

impl Device {
    fn thin(&self) -> Option<u32> {
        thin_of(self.active.as_ref()?)
    }

    /// A table holds what it names from when it is loaded.
    fn holds(&self, thin: u32) -> bool {
        let pending = self.pending.as_ref().and_then(|(table, _)| thin_of(table));
        [self.thin(), pending].contains(&Some(thin))
    }
}

fn thin_of(table: &[Line]) -> Option<u32> {
    let line = table.first().filter(|line| line.target == "thin")?;
    line.text.split(' ').nth(1)?.parse().ok()
}

fn length_of(table: &[Line]) -> u64 {
    table.iter().map(|line| line.length * SECTOR).sum()
}

impl FakeMapper {
    /// A model without a device, in a new directory below `parent`, whose thin pool will have this much data.
    ///
    /// # Errors
    /// Those of making a directory.
    pub fn new(parent: &std::path::Path, data: Bytes) -> io::Result<Self> {
        let directory = Arc::new(tempfile::Builder::new().prefix("lagan-test-").tempdir_in(parent)?);
        let state = State { data, ..State::default() };
        Ok(Self { state: Arc::new(Mutex::new(state)), directory, fate: Arc::new(Well) })
    }

    /// The same model, as a process has it that has a fate.
    #[must_use]
    pub fn under(&self, fate: Arc<dyn Fate>) -> Self {
        Self { fate, ..self.clone() }
    }

    /// Cuts the power: devices go, but for that of records and the pool, and of each block of records that was not flushed
    /// `choose` says, given the number of possibilities, whether it is the old one or the new one: disks write 4 KiB as a
    /// whole or not at all. What a thin pool was told is there: it commits with each message.
    ///
    /// # Errors
    /// Those of writing files.
    pub fn power_cut(&self, records: &str, pool: &str, choose: impl FnMut(usize) -> usize) -> io::Result<()> {
        let mut state = self.state();
        let names = state.devices.keys();
        let gone: Vec<_> = names.filter(|name| ![records, pool].contains(&name.as_str())).cloned().collect();
        gone.iter().for_each(|name| self.forget(&mut state, name));
        state.held = false;
        let Some(device) = state.devices.get(records) else { return Ok(()) };
        let file = OpenOptions::new().read(true).write(true).open(self.blocks_of(&state, device))?;
        state.records.power_cut(&file, choose)
    }

    /// Numbers of thin devices.
    #[must_use]
    pub fn thins(&self) -> Vec<u32> {
        self.state().thins.keys().copied().collect()
    }

    /// Does a call as its fate will have it.
    fn call<T>(&self, name: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.fate.call(name)?;
        let done = call()?;
        self.fate.answer(name)?;
        Ok(done)
    }

    /// Whether two are the same model.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a device for records.
    ///
    /// # Errors
    /// Those of writing files.
    pub fn make_records(&self, name: &str) -> io::Result<()> {
        let line =
            Line { start: 0, length: RECORDS.get() / SECTOR, target: "linear".into(), text: "8:0 0".into() };
        self.make(name, line)
    }

    /// Makes the thin pool.
    ///
    /// # Errors
    /// Those of writing files.
    pub fn make_pool(&self, name: &str) -> io::Result<()> {
        let length = self.state().data.get() / SECTOR;
        let text = format!("8:1 8:2 {} 0", CHUNK.get() / SECTOR);
        self.make(name, Line { start: 0, length, target: "thin-pool".into(), text })
    }

    fn make(&self, name: &str, line: Line) -> io::Result<()> {
        let minor = self.create(name, &format!("TEST-{name}"))?.number.minor();
        let file = File::create(self.directory.path().join(format!("dm-{minor}")))?;
        if line.target == "linear" {
            file.set_len(line.length * SECTOR)?;
        }
        self.load(name, &[line], false)?;
        self.resume(name)
    }

    /// Makes the pool refuse changes, or take them again.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// Lets the next message come to nothing, unsaid, as where the metadata cannot be written just then: from that on the
    /// pool refuses changes.
    pub fn lose_next(&self) {
        self.state().loses = true;
    }

    /// Makes the pool so long.
    pub fn set_data(&self, data: Bytes) {
        self.state().data = data;
    }

    /// A device that somebody else made in the pool.
    ///
    /// # Errors
    /// `AlreadyExists` where there is one.
    pub fn intrude(&self, thin: u32) -> io::Result<()> {
        self.create_thin(&mut self.state(), thin)
    }

    fn create_thin(&self, state: &mut State, thin: u32) -> io::Result<()> {
        if state.thins.contains_key(&thin) {
            return Err(Errno::EXIST.into());
        }
        let path = self.directory.path().join(format!("thin-{thin}"));
        File::create(&path)?;
        state.thins.insert(thin, path);
        Ok(())
    }

    fn create_snap(&self, state: &mut State, thin: u32, origin: u32) -> io::Result<()> {
        let from = state.thins.get(&origin).cloned().ok_or(Errno::NODATA)?;
        for (name, device) in state.devices.iter().filter(|(_, device)| device.thin() == Some(origin)) {
            // One of a moment is our own, which may have been left by a removal that failed.
            assert!(
                device.suspended || name.contains("-work-"),
                "{name} may be written to while a snapshot of it is cut"
            );
        }
        self.create_thin(state, thin)?;
        let from = File::open(from)?;
        let to = OpenOptions::new().write(true).open(&state.thins[&thin])?;
        to.set_len(from.metadata()?.len())?;
        file::copy_data(&from, &to, &mut |_| Ok(()))
    }

    fn delete(state: &mut State, thin: u32) -> io::Result<()> {
        if state.devices.values().any(|device| device.holds(thin)) {
            return Err(Errno::BUSY.into());
        }
        let path = state.thins.remove(&thin).ok_or(Errno::NODATA)?;
        fs::remove_file(path)
    }

    /// Space of the blocks in a file, as a pool counts it.
    fn mapped(path: &std::path::Path) -> io::Result<u64> {
        Ok((path.metadata()?.blocks() * SECTOR).next_multiple_of(CHUNK.get()))
    }

    fn pool_status(state: &State) -> io::Result<String> {
        let mapped = state.thins.values().map(|path| Self::mapped(path)).sum::<io::Result<u64>>()?;
        let (used, total) = (mapped / CHUNK.get(), state.data.get() / CHUNK.get());
        let metadata = METADATA_EACH * state.thins.len() as u64;
        let mode = match state.read_only {
            true => "ro",
            false if used >= total => "out_of_data_space",
            false => "rw",
        };
        let held = if state.held { "7" } else { "-" };
        let used = used.min(total);
        Ok(format!(
            "0 {metadata}/{METADATA} {used}/{total} {held} {mode} discard_passdown queue_if_no_space - 1024 "
        ))
    }

    /// Where the blocks of a device are.
    fn blocks_of(&self, state: &State, device: &Device) -> PathBuf {
        let own = || self.directory.path().join(format!("dm-{}", device.minor));
        device.thin().and_then(|thin| state.thins.get(&thin).cloned()).unwrap_or_else(own)
    }

    fn is_open(&self, state: &State, device: &Device) -> bool {
        let path = self.blocks_of(state, device);
        // A lease is had only on what nobody else has open.
        File::open(path).is_ok_and(|file| matches!(file::sole_use(&file), Ok(None)))
    }

    fn info_of(&self, state: &State, name: &str, device: &Device) -> Info {
        Info {
            number: DeviceNumber::new(MAJOR, device.minor),
            name: name.to_owned(),
            uuid: device.uuid.clone(),
            open_count: u32::from(device.active.is_some() && self.is_open(state, device)),
            suspended: device.suspended,
            read_only: device.read_only,
            active: device.active.is_some(),
            pending: device.pending.is_some(),
            transient: device.transient,
        }
    }

    /// Takes away what its last user has left.
    fn sweep(&self, state: &mut State) {
        let gone = |(name, device): (&String, &Device)| {
            (device.transient && !self.is_open(state, device)).then(|| name.clone())
        };
        let gone: Vec<_> = state.devices.iter().filter_map(gone).collect();
        gone.iter().for_each(|name| self.forget(state, name));
    }

    fn forget(&self, state: &mut State, name: &str) {
        if let Some(device) = state.devices.remove(name) {
            // A link to the blocks of a thin device, or the blocks themselves.
            fs::remove_file(self.node(DeviceNumber::new(MAJOR, device.minor))).unwrap_or_default();
        }
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Device) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        self.sweep(&mut state);
        change(state.devices.get_mut(name).ok_or(Errno::NXIO)?)
    }

    /// Lets a device go on, with the table that was loaded last.
    fn start(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let mut device = state.devices.get(name).cloned().ok_or(Errno::NXIO)?;
        if let Some((table, read_only)) = device.pending.take() {
            (device.active, device.read_only) = (Some(table), read_only);
        }
        let Some(table) = &device.active else { return Err(Errno::INVAL.into()) };
        device.suspended = false;
        if device.thin().is_some() {
            let (blocks, node) =
                (self.blocks_of(&state, &device), self.node(DeviceNumber::new(MAJOR, device.minor)));
            let file = OpenOptions::new().write(true).open(&blocks)?;
            file.set_len(file.metadata()?.len().max(length_of(table)))?;
            if !node.exists() {
                fs::hard_link(blocks, node)?;
            }
        }
        state.devices.insert(name.to_owned(), device);
        Ok(())
    }
}
