//! What the model does when it is asked, as its fate will have it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::BorrowedFd,
    path::PathBuf,
    time::Duration,
};

use rustix::io::Errno;

use super::{
    super::{Door, Info, Line, SECTOR, Store, Suspend},
    Device, FakeMapper, MAJOR,
    records::Records,
};
use crate::sys::device::DeviceNumber;

impl Door for FakeMapper {
    fn create(&self, name: &str, uuid: &str) -> io::Result<Info> {
        self.call("dm create", || {
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
        })
    }

    fn load(&self, name: &str, table: &[Line], read_only: bool) -> io::Result<()> {
        self.call("dm load", || {
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
        })
    }

    fn clear(&self, name: &str) -> io::Result<()> {
        self.call("dm clear", || {
            self.change(name, |device| {
                device.pending = None;
                Ok(())
            })
        })
    }

    fn suspend(&self, name: &str, _how: Suspend) -> io::Result<()> {
        self.call("dm suspend", || {
            self.change(name, |device| {
                assert!(!device.suspended, "{name} is suspended twice: nobody counts that");
                device.suspended = true;
                Ok(())
            })
        })
    }

    fn resume(&self, name: &str) -> io::Result<()> {
        self.call("dm resume", || self.start(name))
    }

    fn exchange(&self, name: &str) -> io::Result<()> {
        self.call("dm exchange", || self.start(name))
    }

    fn remove(&self, name: &str) -> io::Result<bool> {
        self.call("dm remove", || {
            let mut state = self.state();
            self.sweep(&mut state);
            let Some(device) = state.devices.get(name) else { return Ok(true) };
            if device.active.is_some() && self.is_open(&state, device) {
                return Ok(false);
            }
            self.forget(&mut state, name);
            Ok(true)
        })
    }

    fn remove_when_closed(&self, name: &str) -> io::Result<()> {
        self.call("dm remove_when_closed", || {
            self.change(name, |device| {
                device.transient = true;
                Ok(())
            })
        })
    }

    fn info(&self, name: &str) -> io::Result<Option<Info>> {
        self.call("dm info", || {
            let mut state = self.state();
            self.sweep(&mut state);
            Ok(state.devices.get(name).map(|device| self.info_of(&state, name, device)))
        })
    }

    fn find(&self, uuid: &str) -> io::Result<Option<Info>> {
        self.call("dm find", || {
            let mut state = self.state();
            self.sweep(&mut state);
            let found = state.devices.iter().find(|(_, device)| device.uuid == uuid);
            Ok(found.map(|(name, device)| self.info_of(&state, name, device)))
        })
    }

    fn wait_for_event(&self, patience: Duration) -> io::Result<bool> {
        std::thread::sleep(patience);
        Ok(false)
    }

    fn list(&self) -> io::Result<Vec<(String, DeviceNumber)>> {
        self.call("dm list", || {
            let mut state = self.state();
            self.sweep(&mut state);
            let all = state.devices.iter();
            Ok(all.map(|(name, device)| (name.clone(), DeviceNumber::new(MAJOR, device.minor))).collect())
        })
    }

    fn status(&self, name: &str) -> io::Result<Vec<Line>> {
        self.call("dm status", || {
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
        })
    }

    fn table(&self, name: &str) -> io::Result<Vec<Line>> {
        self.call("dm table", || {
            let state = self.state();
            let device = state.devices.get(name).ok_or(Errno::NXIO)?;
            Ok(device.active.clone().unwrap_or_default())
        })
    }

    fn message(&self, _name: &str, message: &str) -> io::Result<Option<String>> {
        self.call("dm message", || {
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
                ["create_snap", thin, origin] => {
                    self.create_snap(&mut state, number(thin)?, number(origin)?)?
                }
                ["delete", thin] => Self::delete(&mut state, number(thin)?)?,
                ["reserve_metadata_snap"] if state.held => return Err(Errno::BUSY.into()),
                ["reserve_metadata_snap"] => state.held = true,
                ["release_metadata_snap"] if !state.held => return Err(Errno::INVAL.into()),
                ["release_metadata_snap"] => state.held = false,
                _ => panic!("{message:?}: the count of transactions is LVM's, and nothing else is ever sent"),
            }
            Ok(None)
        })
    }

    fn open(&self, info: &Info) -> io::Result<File> {
        self.call("dm open", || {
            if info.suspended || !info.active {
                return Err(Errno::BUSY.into());
            }
            OpenOptions::new().read(true).write(!info.read_only).open(self.node(info.number))
        })
    }

    fn open_store(&self, info: &Info) -> io::Result<Box<dyn Store>> {
        let file = self.open(info)?;
        self.state().records.reopen(&file)?;
        Ok(Box::new(Records { file, mapper: self.clone() }))
    }

    fn node(&self, number: DeviceNumber) -> PathBuf {
        self.directory.path().join(format!("dm-{}", number.minor()))
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
