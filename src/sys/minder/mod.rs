//! The minder: a small process, forked at the start and locked in memory, that begins and ends every freeze of ours. It
//! thaws when we ask, when the time is up, or when our end of the socket closes, which is how it learns that we died.
//! So no writer waits for a driver that was killed and never restarted.
//!
//! A copy made under a freeze that ended early is worthless: the minder says whether it was in time.

use std::{
    fs::File,
    io,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Mutex,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
        sendmsg, socketpair,
    },
};

use super::raw::{self, Forked};

mod process;

/// Filesystems in one pause.
const PAUSE_LIMIT: usize = 64;
/// A request: its number, what to do, and for how long a pause may last, in milliseconds; then the names of devices to
/// suspend, each with a closing zero. Filesystems come as descriptors, and where there are devices one of device-mapper's
/// door last.
const HEAD: usize = 13;
/// Longest request.
const REQUEST: usize = HEAD + PAUSE_LIMIT * 128;
/// Freeze what comes with the request.
const FREEZE: u8 = 1;
/// Thaw it.
const THAW: u8 = 2;

/// An answer: the number of its request, one of these, and an error number. Without the first, an answer that could not be
/// read once would be taken for that of the next request, and a copy for one of an instant that was none.
const ANSWER: usize = 6;
/// It is as asked.
const DONE: u8 = 1;
/// It took too long: what was frozen is thawed, and what will be is thawed then.
const LATE: u8 = 2;
/// There is a pause already.
const BUSY: u8 = 3;
/// The kernel refused, and nothing of ours is frozen.
const REFUSED: u8 = 4;

/// Our end of the line to the minder.
#[derive(Debug)]
pub struct Minder {
    /// And the number of the last request.
    line: Mutex<(File, u32)>,
}

/// Filesystems that are frozen. Dropping it thaws them.
#[derive(Debug)]
pub struct Pause<'m> {
    minder: &'m Minder,
    ended: bool,
}

impl Minder {
    /// Forks the minder. Call it first thing, while the process has one thread.
    ///
    /// # Errors
    /// Those of socketpair(2) and fork(2); an error where there is more than one thread.
    pub fn start() -> io::Result<Self> {
        if std::fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("the minder must be forked before any thread is started"));
        }
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match raw::fork()? {
            Forked::Child => {
                drop(ours);
                raw::exit_now(i32::from(process::mind(&its).is_err()))
            }
            Forked::Parent(_) => Ok(Self { line: Mutex::new((File::from(ours), 0)) }),
        }
    }

    /// Freezes filesystems, given by open directories on them, for at most `limit`, the freezing included. One pause at
    /// a time.
    ///
    /// # Errors
    /// `WouldBlock` while another pause lasts; `ResourceBusy` where one is frozen by somebody else; `TimedOut` where the
    /// freezing took too long, as one write that does not end makes it; `BrokenPipe` where the minder is gone.
    pub fn pause(&self, filesystems: &[OwnedFd], limit: Duration) -> io::Result<Pause<'_>> {
        let handles: Vec<_> = filesystems.iter().map(AsFd::as_fd).collect();
        self.begin(limit, &handles, &[])
    }

    /// Suspends devices of device-mapper, by name, with the filesystems on them, for at most `limit`.
    ///
    /// # Errors
    /// As [`Minder::pause`].
    pub fn suspend(
        &self,
        mapper: BorrowedFd<'_>,
        devices: &[String],
        limit: Duration,
    ) -> io::Result<Pause<'_>> {
        self.begin(limit, &[mapper], devices)
    }

    fn begin(
        &self,
        limit: Duration,
        handles: &[BorrowedFd<'_>],
        devices: &[String],
    ) -> io::Result<Pause<'_>> {
        if handles.len() > PAUSE_LIMIT || devices.len() > PAUSE_LIMIT {
            return Err(Errno::TOOBIG.into());
        }
        let answer = self.ask(FREEZE, limit, handles, devices).or_else(|error| {
            // It may be frozen. Whoever cannot even say that it is to end must end it.
            self.ask(THAW, Duration::ZERO, &[], &[]).map_err(|_unsaid| Errno::PIPE)?;
            Err::<_, io::Error>(error)
        })?;
        match answer {
            [DONE, _] => Ok(Pause { minder: self, ended: false }),
            [LATE, _] => Err(io::ErrorKind::TimedOut.into()),
            [REFUSED, errno] => Err(io::Error::from_raw_os_error(errno.into())),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Sends one request and waits for its answer.
    fn ask(
        &self,
        what: u8,
        limit: Duration,
        handles: &[BorrowedFd<'_>],
        devices: &[String],
    ) -> io::Result<[u8; 2]> {
        let mut line = self.line.lock().map_err(|_poisoned| Errno::PIPE)?;
        line.1 = line.1.wrapping_add(1);
        let (line, number) = (&line.0, line.1.to_le_bytes());
        let mut request = number.to_vec();
        request.push(what);
        request.extend(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
        for device in devices {
            request.extend(device.as_bytes());
            request.push(0);
        }
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PAUSE_LIMIT))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !handles.is_empty() && !control.push(SendAncillaryMessage::ScmRights(handles)) {
            return Err(Errno::TOOBIG.into());
        }
        sendmsg(line, &[IoSlice::new(&request)], &mut control, SendFlags::NOSIGNAL)?;
        loop {
            let mut answer = [0; ANSWER];
            if rustix::io::read(line, &mut answer)? != ANSWER {
                return Err(Errno::PIPE.into());
            }
            let [.., what, errno] = answer;
            if answer.starts_with(&number) {
                return Ok([what, errno]);
            }
        }
    }
}

impl Pause<'_> {
    /// Ends the pause; `false` where the minder had ended it already because it lasted too long.
    ///
    /// # Errors
    /// `BrokenPipe` where the minder is gone: nobody has thawed anything then.
    pub fn end(mut self) -> io::Result<bool> {
        self.ended = true;
        Ok(self.minder.ask(THAW, Duration::ZERO, &[], &[])?[0] == DONE)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The one failure is a minder that is gone, and there is nothing left to ask it.
            self.minder.ask(THAW, Duration::ZERO, &[], &[]).unwrap_or_default();
        }
    }
}

/// Thaws a filesystem that an earlier pause of ours may have left frozen; fine where it is not frozen.
///
/// # Errors
/// Those of ioctl(2) with `FITHAW`.
pub fn thaw(filesystem: impl AsFd) -> io::Result<()> {
    match raw::thaw(filesystem.as_fd()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
        other => other,
    }
}
