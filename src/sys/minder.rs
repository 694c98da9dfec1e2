//! The minder: a small process, forked at the start and locked in memory, that ends every freeze we begin. It does so
//! when we ask, when the deadline passes, or when our end of the socket closes, which is how it learns that we died.
//! So no writer waits for a driver that was killed and never restarted.
//!
//! A freeze goes: hand the minder a descriptor of the filesystem, freeze, work, ask it to thaw. It answers whether
//! that was in time; a copy made under a freeze that ended early is worthless.

use std::{
    fs::File,
    io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use super::raw::{self, Forked};

/// Filesystems in one pause.
const PAUSE_LIMIT: usize = 64;
/// A request: what to do, and for how long a pause may last, in milliseconds.
const REQUEST: usize = 9;
const HOLD: u8 = 1;
const END: u8 = 2;

/// Our end of the line to the minder.
#[derive(Debug)]
pub struct Minder {
    line: Mutex<File>,
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
                raw::exit_now(i32::from(mind(&its).is_err()))
            }
            Forked::Parent => Ok(Self { line: Mutex::new(File::from(ours)) }),
        }
    }

    /// Freezes filesystems, given by open directories on them, for at most `limit`. One pause at a time.
    ///
    /// # Errors
    /// `WouldBlock` while another pause lasts or where one is frozen by somebody else (EBUSY); EPIPE where the
    /// minder is gone, and then nothing was frozen.
    pub fn pause(&self, filesystems: &[OwnedFd], limit: Duration) -> io::Result<Pause<'_>> {
        if filesystems.len() > PAUSE_LIMIT {
            return Err(Errno::TOOBIG.into());
        }
        if !self.ask(HOLD, limit, filesystems)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let pause = Pause { minder: self, ended: false };
        for filesystem in filesystems {
            raw::freeze(filesystem.as_fd())?;
        }
        Ok(pause)
    }

    /// Sends one request and waits for its answer.
    fn ask(&self, what: u8, limit: Duration, filesystems: &[OwnedFd]) -> io::Result<bool> {
        let line = self.line.lock().map_err(|_poisoned| Errno::PIPE)?;
        let mut request = [what; REQUEST];
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        request[1..].copy_from_slice(&millis.to_le_bytes());
        let handles: Vec<_> = filesystems.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PAUSE_LIMIT))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !handles.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&handles)) {
            return Err(Errno::TOOBIG.into());
        }
        sendmsg(&*line, &[IoSlice::new(&request)], &mut control, SendFlags::NOSIGNAL)?;
        let mut answer = [0];
        match rustix::io::read(&*line, &mut answer)? {
            1 => Ok(answer[0] == 1),
            _ => Err(Errno::PIPE.into()),
        }
    }
}

impl Pause<'_> {
    /// Ends the pause; `false` where the minder had ended it already because it lasted too long.
    ///
    /// # Errors
    /// EPIPE where the minder is gone: it thawed everything when it went, or a restart will.
    pub fn end(mut self) -> io::Result<bool> {
        self.ended = true;
        self.minder.ask(END, Duration::ZERO, &[])
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The one failure is a minder that is gone, and there is nothing left to ask it.
            self.minder.ask(END, Duration::ZERO, &[]).unwrap_or_default();
        }
    }
}

/// Thaws a filesystem that a pause of an earlier process may have left frozen; fine where it is not frozen.
///
/// # Errors
/// Those of ioctl(2) with `FITHAW`.
pub fn thaw(filesystem: impl AsFd) -> io::Result<()> {
    match raw::thaw(filesystem.as_fd()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// What the minder watches over.
struct Held {
    filesystems: Vec<OwnedFd>,
    until: Instant,
}

impl Held {
    fn thaw(&self) {
        for filesystem in &self.filesystems {
            // Nobody is left to tell; a filesystem that is not frozen is the usual "error".
            raw::thaw(filesystem.as_fd()).unwrap_or_default();
        }
    }
}

/// The minder's whole life.
fn mind(line: &OwnedFd) -> io::Result<()> {
    raw::ignore_termination();
    rustix::thread::set_name(c"lagan-minder").unwrap_or_default();
    // What was inherited must not keep a log, a socket or a pool busy.
    raw::close_all_but(line.as_fd());
    // Works without the right to lock, only less surely; the pages used below are touched by the first request.
    raw::lock_memory().unwrap_or_default();
    let mut held: Option<Held> = None;
    loop {
        let left = held.as_ref().map(|held| held.until.saturating_duration_since(Instant::now()));
        let patience = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(line, PollFlags::IN)], patience.as_ref()) {
            Ok(0) => {
                // Too late: the writers come first.
                if let Some(held) = held.take() {
                    held.thaw();
                }
            }
            Ok(_) => match receive(line) {
                Ok(Some(request)) => answer(line, request, &mut held)?,
                Ok(None) | Err(_) => {
                    held.iter().for_each(Held::thaw);
                    return Ok(());
                }
            },
            Err(Errno::INTR) => {}
            Err(error) => {
                held.iter().for_each(Held::thaw);
                return Err(error.into());
            }
        }
    }
}

struct Request {
    what: u8,
    limit: Duration,
    filesystems: Vec<OwnedFd>,
}

fn answer(line: &OwnedFd, request: Request, held: &mut Option<Held>) -> io::Result<()> {
    let yes = match (request.what, held.take()) {
        (HOLD, None) => {
            *held = Some(Held { filesystems: request.filesystems, until: Instant::now() + request.limit });
            true
        }
        (HOLD, still) => {
            *held = still;
            false
        }
        (_, Some(pause)) => {
            pause.thaw();
            true
        }
        (_, None) => false,
    };
    rustix::net::send(line, &[u8::from(yes)], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One request; `None` when the other end is closed.
fn receive(line: &OwnedFd) -> io::Result<Option<Request>> {
    let mut message = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PAUSE_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(line, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
    if got.bytes != REQUEST {
        return Ok(None);
    }
    let mut filesystems = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(handles) = part {
            filesystems.extend(handles);
        }
    }
    let mut millis = [0; 8];
    millis.copy_from_slice(&message[1..]);
    let limit = Duration::from_millis(u64::from_le_bytes(millis));
    Ok(Some(Request { what: message[0], limit, filesystems }))
}
