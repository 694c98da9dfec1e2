//! A model of device-mapper: thin pools in files of a directory, with the kernel's rules for opens, suspends, tables and
//! messages. What the kernel would let happen, and nobody should do, is a panic.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::io::Errno;

use super::{Door, Info, Line, SECTOR, Suspend};
use crate::{
    bytes::Bytes,
    sys::{device::DeviceNumber, file},
};

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
        Ok(Self { state: Arc::new(Mutex::new(State { data, ..State::default() })), directory })
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
            assert!(device.suspended, "{name} may be written to while a snapshot of it is cut");
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

impl Door for FakeMapper {
    fn create(&self, name: &str, uuid: &str) -> io::Result<Info> {
        let mut state = self.state();
        self.sweep(&mut state);
        if state.devices.iter().any(|(known, device)| known == name || device.uuid == uuid) {
            return Err(Errno::BUSY.into());
        }
        state.minors += 1;
        let device = Device {
            uuid: uuid.to_owned(),
            minor: state.minors,
            active: None,
            pending: None,
            suspended: false,
            read_only: false,
            transient: false,
        };
        state.devices.insert(name.to_owned(), device.clone());
        Ok(self.info_of(&state, name, &device))
    }

    fn load(&self, name: &str, table: &[Line], read_only: bool) -> io::Result<()> {
        let mut state = self.state();
        for line in table.iter().filter(|line| line.target == "thin") {
            let thin = line.text.split(' ').nth(1).and_then(|thin| thin.parse::<u32>().ok());
            if !thin.is_some_and(|thin| state.thins.contains_key(&thin)) {
                return Err(Errno::NODATA.into());
            }
        }
        let device = state.devices.get_mut(name).ok_or(Errno::NXIO)?;
        device.pending = Some((table.to_vec(), read_only));
        Ok(())
    }

    fn clear(&self, name: &str) -> io::Result<()> {
        self.change(name, |device| {
            device.pending = None;
            Ok(())
        })
    }

    fn suspend(&self, name: &str, _how: Suspend) -> io::Result<()> {
        self.change(name, |device| {
            assert!(!device.suspended, "{name} is suspended twice: nobody counts that");
            device.suspended = true;
            Ok(())
        })
    }

    fn resume(&self, name: &str) -> io::Result<()> {
        self.start(name)
    }

    fn exchange(&self, name: &str) -> io::Result<()> {
        self.start(name)
    }

    fn remove(&self, name: &str) -> io::Result<bool> {
        let mut state = self.state();
        self.sweep(&mut state);
        let Some(device) = state.devices.get(name) else { return Ok(true) };
        if device.active.is_some() && self.is_open(&state, device) {
            return Ok(false);
        }
        self.forget(&mut state, name);
        Ok(true)
    }

    fn remove_when_closed(&self, name: &str) -> io::Result<()> {
        self.change(name, |device| {
            device.transient = true;
            Ok(())
        })
    }

    fn info(&self, name: &str) -> io::Result<Option<Info>> {
        let mut state = self.state();
        self.sweep(&mut state);
        Ok(state.devices.get(name).map(|device| self.info_of(&state, name, device)))
    }

    fn find(&self, uuid: &str) -> io::Result<Option<Info>> {
        let mut state = self.state();
        self.sweep(&mut state);
        let found = state.devices.iter().find(|(_, device)| device.uuid == uuid);
        Ok(found.map(|(name, device)| self.info_of(&state, name, device)))
    }

    fn wait_for_event(&self, patience: Duration) -> io::Result<bool> {
        std::thread::sleep(patience);
        Ok(false)
    }

    fn list(&self) -> io::Result<Vec<(String, DeviceNumber)>> {
        let mut state = self.state();
        self.sweep(&mut state);
        let all = state.devices.iter();
        Ok(all.map(|(name, device)| (name.clone(), DeviceNumber::new(MAJOR, device.minor))).collect())
    }

    fn status(&self, name: &str) -> io::Result<Vec<Line>> {
        let state = self.state();
        let device = state.devices.get(name).ok_or(Errno::NXIO)?;
        let said = |line: &Line| -> io::Result<Line> {
            let text = match line.target.as_str() {
                "thin-pool" => Self::pool_status(&state)?,
                "thin" => format!("{} -", Self::mapped(&self.blocks_of(&state, device))? / SECTOR),
                _ => String::new(),
            };
            Ok(Line { text, ..line.clone() })
        };
        device.active.iter().flatten().map(said).collect()
    }

    fn table(&self, name: &str) -> io::Result<Vec<Line>> {
        let state = self.state();
        let device = state.devices.get(name).ok_or(Errno::NXIO)?;
        Ok(device.active.clone().unwrap_or_default())
    }

    fn message(&self, _name: &str, message: &str) -> io::Result<Option<String>> {
        let mut state = self.state();
        if state.read_only {
            return Err(Errno::OPNOTSUPP.into());
        }
        if std::mem::take(&mut state.loses) {
            state.read_only = true;
            return Ok(None);
        }
        let words: Vec<&str> = message.split(' ').collect();
        let number = |word: &str| word.parse::<u32>().map_err(|_bad| io::Error::from(Errno::INVAL));
        match words[..] {
            ["create_thin", thin] => self.create_thin(&mut state, number(thin)?)?,
            ["create_snap", thin, origin] => self.create_snap(&mut state, number(thin)?, number(origin)?)?,
            ["delete", thin] => Self::delete(&mut state, number(thin)?)?,
            ["reserve_metadata_snap"] if state.held => return Err(Errno::BUSY.into()),
            ["reserve_metadata_snap"] => state.held = true,
            ["release_metadata_snap"] if !state.held => return Err(Errno::INVAL.into()),
            ["release_metadata_snap"] => state.held = false,
            _ => panic!("{message:?}: the count of transactions is LVM's, and nothing else is ever sent"),
        }
        Ok(None)
    }

    fn open(&self, info: &Info) -> io::Result<File> {
        if info.suspended || !info.active {
            return Err(Errno::BUSY.into());
        }
        OpenOptions::new().read(true).write(!info.read_only).open(self.node(info.number))
    }

    fn node(&self, number: DeviceNumber) -> PathBuf {
        self.directory.path().join(format!("dm-{}", number.minor()))
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
