//! Device-mapper: devices are made, loaded, suspended, resumed, removed and asked, and targets are sent messages. By the
//! kernel (`kernel`), or by a model of it that keeps its rules (`fake`).

use std::{
    fmt,
    fs::File,
    io,
    ops::Deref,
    os::{fd::BorrowedFd, unix::fs::FileExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::device::DeviceNumber;

pub mod fake;
pub mod kernel;

/// What the uuids of devices of ours begin with.
pub const OURS: &str = "LAGAN-";
/// Length of a sector, the unit of tables.
pub const SECTOR: u64 = 512;

/// A device as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its number.
    pub number: DeviceNumber,
    /// Its name.
    pub name: String,
    /// Its uuid: text of whoever made it.
    pub uuid: String,
    /// How often it is open or mounted.
    pub open_count: u32,
    /// Nothing passes through it.
    pub suspended: bool,
    /// It refuses writes.
    pub read_only: bool,
    /// It has a table.
    pub active: bool,
    /// A table waits for the next resume.
    pub pending: bool,
    /// It goes when its last user does.
    pub transient: bool,
}

/// A line of a table, or of what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// Kind of target, such as `thin`.
    pub target: String,
    /// Its parameters, or its state.
    pub text: String,
}

/// How a device is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspend {
    /// A filesystem on it is frozen, and what is under way is awaited: what is below is as after an unmount.
    Clean,
    /// Only what is under way is awaited: to exchange a table.
    Brief,
    /// Nothing is awaited; what is under way comes back as it may: to cut a user off.
    Cut,
}

/// What can be asked of device-mapper.
pub trait Door: fmt::Debug + Send + Sync {
    /// Makes a device without a table.
    ///
    /// # Errors
    /// Those of the ioctl; `ResourceBusy` where there is one of the name or uuid.
    fn create(&self, name: &str, uuid: &str) -> io::Result<Info>;

    /// Gives a device a table, for its next resume.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn load(&self, name: &str, table: &[Line], read_only: bool) -> io::Result<()>;

    /// Drops the table that waits for the next resume; fine where there is none.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn clear(&self, name: &str) -> io::Result<()>;

    /// Stops a device.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn suspend(&self, name: &str, how: Suspend) -> io::Result<()>;

    /// Lets a device go on, with the table that was loaded last.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn resume(&self, name: &str) -> io::Result<()>;

    /// Gives a device that runs the table that was loaded last: one call, in which it stands still, and which nothing can
    /// cut in two.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn exchange(&self, name: &str) -> io::Result<()>;

    /// Removes a device; `false` where it is in use. Fine where there is none.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn remove(&self, name: &str) -> io::Result<bool>;

    /// Lets a device go when its last user does; now, where it has none.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn remove_when_closed(&self, name: &str) -> io::Result<()>;

    /// What the kernel knows of a device; `None` where there is none of the name.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn info(&self, name: &str) -> io::Result<Option<Info>>;

    /// The device with this uuid.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn find(&self, uuid: &str) -> io::Result<Option<Info>>;

    /// Waits until anything happens to any device, such as a pool that passes its low-water mark; `false` where nothing does.
    ///
    /// # Errors
    /// Those of the ioctl and of poll(2).
    fn wait_for_event(&self, patience: Duration) -> io::Result<bool>;

    /// The names of all devices, whosever they are.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn list(&self) -> io::Result<Vec<(String, DeviceNumber)>>;

    /// What each target of a device says of itself.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn status(&self, name: &str) -> io::Result<Vec<Line>>;

    /// The table of a device.
    ///
    /// # Errors
    /// Those of the ioctl.
    fn table(&self, name: &str) -> io::Result<Vec<Line>>;

    /// Sends a target a message; what it answers, if it does.
    ///
    /// # Errors
    /// Those of the target.
    fn message(&self, name: &str, message: &str) -> io::Result<Option<String>>;

    /// Opens a device. One that is suspended is refused: whoever touches it hangs, and cannot be killed.
    ///
    /// # Errors
    /// Those of open(2); `ResourceBusy` for a suspended one.
    fn open(&self, info: &Info) -> io::Result<File>;

    /// The same, for records.
    ///
    /// # Errors
    /// As [`Door::open`].
    fn open_store(&self, info: &Info) -> io::Result<Box<dyn Store>> {
        Ok(Box::new(self.open(info)?))
    }

    /// Where the node of a device is.
    fn node(&self, number: DeviceNumber) -> PathBuf;

    /// What another process needs to do the same; a model has nothing of the kind.
    fn handle(&self) -> Option<BorrowedFd<'_>>;
}

/// A place for records: a device, or a model of one that loses what was not flushed.
pub trait Store: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// Those of lseek(2).
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// Those of pread(2); `UnexpectedEof` beyond the end.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data`, which lasts from the next flush on.
    ///
    /// # Errors
    /// Those of pwrite(2).
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// Those of fdatasync(2). After one nobody knows what is on the disk.
    fn flush(&self) -> io::Result<()>;
}

impl Store for File {
    fn length(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The door to device-mapper. Clones share it.
#[derive(Clone, Debug)]
pub struct Mapper(Arc<dyn Door>);

impl Mapper {
    /// That of the kernel.
    ///
    /// # Errors
    /// Those of open(2) and mknod(2); the kernel loads its module when the door is opened.
    pub fn open() -> io::Result<Self> {
        Ok(kernel::Kernel::open()?.into())
    }
}

impl<D: Door + 'static> From<D> for Mapper {
    fn from(door: D) -> Self {
        Self(Arc::new(door))
    }
}

impl Deref for Mapper {
    type Target = dyn Door;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}
