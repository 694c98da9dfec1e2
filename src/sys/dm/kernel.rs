//! Device-mapper by ioctl (`linux/dm-ioctl.h`). No tool is run and no udev is needed; where one runs, its disk rules are told to
//! keep off.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, FileType, Mode, mkdirat, mknodat},
    io::Errno,
};

use super::{
    super::{
        device::{self, DeviceNumber},
        raw,
    },
    Door, Info, Line, OURS, Suspend,
};

const CONTROL: &str = "/dev/mapper/control";
/// `MAPPER_CTRL_MINOR` of the misc devices (major 10).
const CONTROL_NUMBER: (u32, u32) = (10, 236);

/// Commands.
const LIST_DEVICES: u8 = 2;
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const DEV_STATUS: u8 = 7;
const TABLE_LOAD: u8 = 9;
const TABLE_CLEAR: u8 = 10;
const TABLE_STATUS: u8 = 12;
const TARGET_MSG: u8 = 14;
const DEV_ARM_POLL: u8 = 16;

/// Flags of `struct dm_ioctl`.
const READ_ONLY: u32 = 1;
const SUSPENDED: u32 = 1 << 1;
const STATUS_TABLE: u32 = 1 << 4;
const ACTIVE: u32 = 1 << 5;
const INACTIVE: u32 = 1 << 6;
const BUFFER_FULL: u32 = 1 << 8;
const SKIP_LOCKFS: u32 = 1 << 10;
const NO_FLUSH: u32 = 1 << 11;
const DATA_OUT: u32 = 1 << 16;
const DEFERRED_REMOVE: u32 = 1 << 17;

/// What udev's rules are not to do with a device of ours (`DM_UDEV_DISABLE_*`, libdevmapper.h): no links, no scan of
/// what is on it, nothing of subsystems such as LVM.
const KEEP_OFF: u32 = (0x1 | 0x2 | 0x4 | 0x8) << 16;

/// Offsets in `struct dm_ioctl`.
const VERSION: usize = 0;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const OPEN_COUNT: usize = 24;
const FLAGS: usize = 28;
const EVENT: usize = 32;
const DEVICE: usize = 40;
const NAME: usize = 48;
const UUID: usize = 176;
/// Its length, and that of `struct dm_target_spec`.
const HEADER: usize = 312;
const SPEC: usize = 40;
/// Longest name and uuid, without the closing zero.
const NAME_LIMIT: usize = 127;
const UUID_LIMIT: usize = 128;
/// Longest answer that is asked for.
const ANSWER_LIMIT: usize = 16 << 20;

/// The kernel's door to device-mapper.
#[derive(Debug)]
pub struct Kernel {
    control: File,
}

impl From<OwnedFd> for Kernel {
    fn from(door: OwnedFd) -> Self {
        Self { control: door.into() }
    }
}

/// One command and its answer.
struct Call {
    buffer: Vec<u8>,
}

impl Call {
    fn new(name: &str, data: &[u8]) -> io::Result<Self> {
        if name.len() > NAME_LIMIT || name.contains('\0') {
            return Err(Errno::INVAL.into());
        }
        let mut call = Self { buffer: vec![0; (HEADER + data.len()).next_multiple_of(8)] };
        call.set(VERSION, 4);
        call.set(DATA_START, u32::try_from(HEADER).unwrap_or_default());
        call.put(NAME, name.as_bytes());
        call.put(HEADER, data);
        Ok(call)
    }

    fn with_room(mut self, length: usize) -> Self {
        self.buffer.resize(length, 0);
        self
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        self.buffer[offset..offset + data.len()].copy_from_slice(data);
    }

    fn set(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_ne_bytes());
    }

    fn flag(mut self, flags: u32) -> Self {
        let flags = u32_at(&self.buffer, FLAGS) | flags;
        self.set(FLAGS, flags);
        self
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// Text up to its closing zero.
fn text_at(bytes: &[u8], offset: usize, limit: usize) -> String {
    let field = bytes.get(offset..).unwrap_or_default();
    let field = &field[..field.len().min(limit)];
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

impl Kernel {
    /// Opens the door, and makes it where nobody else does (a container without the host's /dev).
    ///
    /// # Errors
    /// Those of open(2) and mknod(2); the kernel loads its module when the door is opened.
    pub fn open() -> io::Result<Self> {
        let open = || OpenOptions::new().read(true).write(true).open(CONTROL);
        let control = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(CWD, "/dev/mapper", Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let number = DeviceNumber::new(CONTROL_NUMBER.0, CONTROL_NUMBER.1).raw();
                match mknodat(CWD, CONTROL, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, number) {
                    Ok(()) | Err(Errno::EXIST) => open()?,
                    Err(error) => return Err(error.into()),
                }
            }
            other => other?,
        };
        Ok(Self { control })
    }

    /// Sends a command; the answer, grown until it fits.
    fn send(&self, command: u8, mut call: Call) -> io::Result<Vec<u8>> {
        loop {
            let size = call.buffer.len();
            call.set(DATA_SIZE, u32::try_from(size).unwrap_or(u32::MAX));
            let mut answer = call.buffer.clone();
            raw::device_mapper(self.control.as_fd(), command, &mut answer)?;
            if u32_at(&answer, FLAGS) & BUFFER_FULL == 0 {
                return Ok(answer);
            }
            if size >= ANSWER_LIMIT {
                return Err(Errno::TOOBIG.into());
            }
            call = call.with_room(size * 4);
        }
    }

    fn lines(&self, call: Call) -> io::Result<Vec<Line>> {
        let answer = self.send(TABLE_STATUS, call.with_room(16 << 10))?;
        let first = offset_of_data(&answer);
        let mut lines = Vec::new();
        let mut offset = first;
        for _ in 0..u32_at(&answer, TARGET_COUNT) {
            lines.push(Line {
                start: u64_at(&answer, offset),
                length: u64_at(&answer, offset + 8),
                target: text_at(&answer, offset + 24, 16),
                text: text_at(&answer, offset + SPEC, ANSWER_LIMIT),
            });
            // Counted from the first one, other than in a load.
            offset = first + usize::try_from(u32_at(&answer, offset + 20)).unwrap_or(usize::MAX / 2);
        }
        Ok(lines)
    }
}

impl Door for Kernel {
    fn create(&self, name: &str, uuid: &str) -> io::Result<Info> {
        if uuid.len() > UUID_LIMIT {
            return Err(Errno::INVAL.into());
        }
        let mut call = Call::new(name, &[])?;
        call.put(UUID, uuid.as_bytes());
        Ok(info(&self.send(DEV_CREATE, call)?))
    }

    fn load(&self, name: &str, table: &[Line], read_only: bool) -> io::Result<()> {
        let mut data = Vec::new();
        for line in table {
            let length = (SPEC + line.text.len() + 1).next_multiple_of(8);
            let mut spec = vec![0; length];
            spec[0..8].copy_from_slice(&line.start.to_ne_bytes());
            spec[8..16].copy_from_slice(&line.length.to_ne_bytes());
            spec[20..24].copy_from_slice(&u32::try_from(length).unwrap_or_default().to_ne_bytes());
            let target = line.target.as_bytes();
            spec[24..24 + target.len().min(15)].copy_from_slice(&target[..target.len().min(15)]);
            spec[SPEC..SPEC + line.text.len()].copy_from_slice(line.text.as_bytes());
            data.extend(spec);
        }
        let mut call = Call::new(name, &data)?.flag(if read_only { READ_ONLY } else { 0 });
        call.set(TARGET_COUNT, u32::try_from(table.len()).unwrap_or_default());
        self.send(TABLE_LOAD, call).map(drop)
    }

    fn clear(&self, name: &str) -> io::Result<()> {
        self.send(TABLE_CLEAR, Call::new(name, &[])?).map(drop)
    }

    fn suspend(&self, name: &str, how: Suspend) -> io::Result<()> {
        let flags = match how {
            Suspend::Clean => 0,
            Suspend::Brief => SKIP_LOCKFS,
            Suspend::Cut => SKIP_LOCKFS | NO_FLUSH,
        };
        self.send(DEV_SUSPEND, Call::new(name, &[])?.flag(SUSPENDED | flags)).map(drop)
    }

    fn resume(&self, name: &str) -> io::Result<()> {
        let mut call = Call::new(name, &[])?;
        // Of a device of somebody else udev keeps the links: told to keep off, it would remove them.
        if self.info(name).is_ok_and(|info| info.is_some_and(|info| info.uuid.starts_with(OURS))) {
            call.set(EVENT, KEEP_OFF);
        }
        self.send(DEV_SUSPEND, call).map(drop)
    }

    fn exchange(&self, name: &str) -> io::Result<()> {
        let mut call = Call::new(name, &[])?.flag(SKIP_LOCKFS);
        call.set(EVENT, KEEP_OFF);
        self.send(DEV_SUSPEND, call).map(drop)
    }

    fn remove(&self, name: &str) -> io::Result<bool> {
        let mut call = Call::new(name, &[])?;
        call.set(EVENT, KEEP_OFF);
        match self.send(DEV_REMOVE, call) {
            Ok(_) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove_when_closed(&self, name: &str) -> io::Result<()> {
        let mut call = Call::new(name, &[])?.flag(DEFERRED_REMOVE);
        call.set(EVENT, KEEP_OFF);
        self.send(DEV_REMOVE, call).map(drop)
    }

    fn info(&self, name: &str) -> io::Result<Option<Info>> {
        match self.send(DEV_STATUS, Call::new(name, &[])?) {
            Ok(answer) => Ok(Some(info(&answer))),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn find(&self, uuid: &str) -> io::Result<Option<Info>> {
        let mut call = Call::new("", &[])?;
        call.put(UUID, uuid.as_bytes());
        match self.send(DEV_STATUS, call) {
            Ok(answer) => Ok(Some(info(&answer))),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn wait_for_event(&self, patience: Duration) -> io::Result<bool> {
        self.send(DEV_ARM_POLL, Call::new("", &[])?)?;
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        Ok(poll(&mut [PollFd::new(&self.control, PollFlags::IN)], Some(&patience))? > 0)
    }

    fn list(&self) -> io::Result<Vec<(String, DeviceNumber)>> {
        let answer = self.send(LIST_DEVICES, Call::new("", &[])?.with_room(16 << 10))?;
        let mut found = Vec::new();
        let mut offset = offset_of_data(&answer);
        // struct dm_name_list: a number, the way to the next, a name.
        while u64_at(&answer, offset) != 0 {
            let name = text_at(&answer, offset + 12, NAME_LIMIT + 1);
            found.push((name, DeviceNumber::from_kernel(u64_at(&answer, offset))));
            match u32_at(&answer, offset + 8) {
                0 => break,
                next => offset += usize::try_from(next).unwrap_or(usize::MAX / 2),
            }
        }
        Ok(found)
    }

    fn status(&self, name: &str) -> io::Result<Vec<Line>> {
        self.lines(Call::new(name, &[])?.flag(NO_FLUSH))
    }

    fn table(&self, name: &str) -> io::Result<Vec<Line>> {
        self.lines(Call::new(name, &[])?.flag(STATUS_TABLE))
    }

    fn message(&self, name: &str, message: &str) -> io::Result<Option<String>> {
        // struct dm_target_msg: a sector, and text.
        let mut data = vec![0; 8];
        data.extend(message.as_bytes());
        data.push(0);
        let answer = self.send(TARGET_MSG, Call::new(name, &data)?.with_room(HEADER + 4096))?;
        let said = u32_at(&answer, FLAGS) & DATA_OUT != 0;
        Ok(said.then(|| text_at(&answer, offset_of_data(&answer), ANSWER_LIMIT)))
    }

    fn open(&self, info: &Info) -> io::Result<File> {
        if info.suspended || !info.active {
            return Err(Errno::BUSY.into());
        }
        device::open(&self.node(info.number), info.number)
    }

    fn node(&self, number: DeviceNumber) -> PathBuf {
        device::node_of("dm-", number)
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        Some(self.control.as_fd())
    }
}

fn offset_of_data(answer: &[u8]) -> usize {
    usize::try_from(u32_at(answer, DATA_START)).unwrap_or(HEADER)
}

fn info(answer: &[u8]) -> Info {
    let flags = u32_at(answer, FLAGS);
    Info {
        number: DeviceNumber::from_kernel(u64_at(answer, DEVICE)),
        name: text_at(answer, NAME, NAME_LIMIT + 1),
        uuid: text_at(answer, UUID, UUID_LIMIT + 1),
        open_count: u32_at(answer, OPEN_COUNT),
        suspended: flags & SUSPENDED != 0,
        read_only: flags & READ_ONLY != 0,
        active: flags & ACTIVE != 0,
        pending: flags & INACTIVE != 0,
        transient: flags & DEFERRED_REMOVE != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_laid_out_as_the_kernel_reads_it() {
        let call = Call::new("pool", b"data").unwrap().flag(READ_ONLY).flag(SUSPENDED);
        let bytes = call.buffer;
        assert_eq!(u32_at(&bytes, VERSION), 4);
        assert_eq!(u32_at(&bytes, FLAGS), 3);
        assert_eq!(text_at(&bytes, NAME, 128), "pool");
        assert_eq!(&bytes[offset_of_data(&bytes)..][..4], b"data");
        assert!(Call::new(&"x".repeat(128), &[]).is_err());
        assert!(Call::new("a\0b", &[]).is_err());
    }
}
