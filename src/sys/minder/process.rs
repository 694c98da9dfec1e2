//! The minder's own life, and that of the *freezers* that it forks: a freeze waits for writes that are under way, without
//! end where one of them has none, and nothing can be done with a process that waits so. The minder never does; a
//! freezer that comes too late is thawed after.

use std::{
    io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg},
    process::{PidfdFlags, WaitId, WaitIdOptions, getppid, pidfd_open, waitid},
};

use super::super::dm::{Door, Suspend, kernel::Kernel};
use super::{
    ANSWER, BUSY, DONE, FREEZE, HEAD, LATE, PAUSE_LIMIT, REFUSED, REQUEST,
    raw::{self, Forked},
};

/// Freezers that may be late at a time: each is held by a write that does not end.
const LATE_LIMIT: usize = 64;

/// What the minder watches over. Never more than one of `frozen` and `freezing`.
#[derive(Default)]
struct Watch {
    frozen: Option<(Targets, Instant)>,
    freezing: Option<(Freezer, Instant)>,
    /// Number of the request that asked for it.
    asked: Number,
    late: Vec<Freezer>,
    /// The daemon is gone: what is still to be thawed is, and then the minder goes too.
    orphaned: bool,
}

/// What tells the answer to one request from that to another.
type Number = [u8; 4];

/// What is frozen together.
#[derive(Default)]
struct Targets {
    filesystems: Vec<OwnedFd>,
    mapper: Option<Kernel>,
    devices: Vec<String>,
}

/// A process that freezes.
struct Freezer {
    process: OwnedFd,
    targets: Targets,
}

struct Request {
    number: Number,
    what: u8,
    limit: Duration,
    targets: Targets,
}

/// The minder's whole life.
pub(super) fn mind(line: &OwnedFd) -> io::Result<()> {
    raw::ignore_termination();
    rustix::thread::set_name(c"lagan-minder").unwrap_or_default();
    // What was inherited must not keep a log, a socket or a pool busy.
    raw::close_all_but(&[line.as_fd()]);
    // Works without the right to lock, only less surely; the pages used below are touched by the first request.
    raw::lock_memory().unwrap_or_default();
    let mut watch = Watch::default();
    while !watch.is_done() {
        let [request, ended] = match wait(line, &watch) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INTR) => continue,
            other => other?,
        };
        watch.end_what_is_over(line);
        if ended {
            watch.collect(line);
        }
        if request {
            match receive(line) {
                Ok(Some(request)) => watch.answer(line, request),
                Ok(None) | Err(_) => watch.orphan(),
            }
        }
    }
    Ok(())
}

/// Waits for a request, the end of a freezer, or a time that is up.
fn wait(line: &OwnedFd, watch: &Watch) -> io::Result<[bool; 2]> {
    let patience = watch.deadline().map(|until| until.saturating_duration_since(Instant::now()));
    let patience = patience.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    let wanted = if watch.orphaned { PollFlags::empty() } else { PollFlags::IN };
    let mut polled = vec![PollFd::new(line, wanted)];
    polled.extend(watch.freezers().map(|freezer| PollFd::new(&freezer.process, PollFlags::IN)));
    // A closed line is reported whether it is waited for or not.
    let begin = usize::from(watch.orphaned);
    poll(&mut polled[begin..], patience.as_ref())?;
    let request = !watch.orphaned && !polled[0].revents().is_empty();
    Ok([request, polled[1..].iter().any(|freezer| !freezer.revents().is_empty())])
}

impl Watch {
    fn is_done(&self) -> bool {
        self.orphaned && self.frozen.is_none() && self.freezing.is_none() && self.late.is_empty()
    }

    fn freezers(&self) -> impl Iterator<Item = &Freezer> {
        self.freezing.iter().map(|(freezer, _)| freezer).chain(&self.late)
    }

    fn deadline(&self) -> Option<Instant> {
        let freezing = self.freezing.as_ref().map(|(_, until)| *until);
        self.frozen.as_ref().map(|(_, until)| *until).or(freezing)
    }

    /// The writers come first: a pause whose time is up ends, a freezer whose time is up is late.
    fn end_what_is_over(&mut self, line: &OwnedFd) {
        let now = Instant::now();
        if let Some((targets, _)) = self.frozen.take_if(|(_, until)| *until <= now) {
            targets.thaw();
        }
        if let Some((freezer, _)) = self.freezing.take_if(|(_, until)| *until <= now) {
            self.late.push(freezer);
            send(line, self.asked, LATE, 0);
        }
    }

    /// Takes in what freezers have done.
    fn collect(&mut self, line: &OwnedFd) {
        self.late.retain_mut(|freezer| match freezer.outcome() {
            None => true,
            Some(outcome) => {
                // One that was killed may have frozen some of them.
                if outcome.is_none_or(|errno| errno == 0) {
                    freezer.targets.thaw();
                }
                false
            }
        });
        let Some((freezer, until)) = self.freezing.take() else { return };
        match freezer.outcome() {
            None => self.freezing = Some((freezer, until)),
            Some(Some(0)) => {
                self.frozen = Some((freezer.targets, until));
                send(line, self.asked, DONE, 0);
            }
            Some(Some(errno)) => send(line, self.asked, REFUSED, errno),
            Some(None) => {
                freezer.targets.thaw();
                send(line, self.asked, LATE, 0);
            }
        }
    }

    fn answer(&mut self, line: &OwnedFd, request: Request) {
        let number = request.number;
        if request.what != FREEZE {
            // One whose answer was not heard may still be under way.
            self.late.extend(self.freezing.take().map(|(freezer, _)| freezer));
            let in_time = self.frozen.take().is_some_and(|(targets, _)| {
                targets.thaw();
                true
            });
            send(line, number, if in_time { DONE } else { LATE }, 0);
        } else if self.frozen.is_some() || self.freezing.is_some() || self.late.len() >= LATE_LIMIT {
            send(line, number, BUSY, 0);
        } else {
            match Freezer::start(request.targets) {
                Ok(freezer) => {
                    self.freezing = Some((freezer, Instant::now() + request.limit));
                    self.asked = number;
                }
                Err(_) => send(line, number, BUSY, 0),
            }
        }
    }

    fn orphan(&mut self) {
        self.orphaned = true;
        if let Some((targets, _)) = self.frozen.take() {
            targets.thaw();
        }
        self.late.extend(self.freezing.take().map(|(freezer, _)| freezer));
    }
}

impl Freezer {
    fn start(targets: Targets) -> io::Result<Self> {
        match raw::fork()? {
            Forked::Child => {
                // Nothing of the minder's, nor of other freezers', may be kept open by one that hangs.
                raw::close_all_but(&targets.handles());
                rustix::thread::set_name(c"lagan-freezer").unwrap_or_default();
                raw::exit_now(targets.freeze())
            }
            Forked::Parent(child) => Ok(Self { process: pidfd_open(child, PidfdFlags::empty())?, targets }),
        }
    }

    /// `None` while it runs; the error number it ended with, zero where all are frozen; `Some(None)` where it was
    /// killed.
    fn outcome(&self) -> Option<Option<u8>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.process.as_fd()), options) {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.exit_status().and_then(|status| u8::try_from(status).ok())),
            Err(_) => Some(None),
        }
    }
}

impl Targets {
    /// What comes with a request: filesystems, or the door of device-mapper where there are names of devices.
    fn new(mut handles: Vec<OwnedFd>, devices: Vec<String>) -> Self {
        let door = if devices.is_empty() { None } else { handles.pop() };
        Self { filesystems: handles, mapper: door.map(Kernel::from), devices }
    }

    fn handles(&self) -> Vec<BorrowedFd<'_>> {
        self.filesystems.iter().map(AsFd::as_fd).chain(self.mapper.iter().filter_map(Door::handle)).collect()
    }

    /// What a freezer does: freezes all, or none of them. A freeze that somebody else has begun is not touched.
    fn freeze(&self) -> i32 {
        let minder = getppid();
        for (frozen, filesystem) in self.filesystems.iter().enumerate() {
            if let Err(error) = raw::freeze(filesystem.as_fd()) {
                thaw_filesystems(&self.filesystems[..frozen]);
                return status_of(&error);
            }
        }
        for (suspended, device) in self.devices.iter().enumerate() {
            let suspend = |mapper: &Kernel| match mapper.suspend(device, Suspend::Clean) {
                // It has gone since, with its last user: nobody writes to it.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => Ok(()),
                other => other,
            };
            if let Some(Err(error)) = self.mapper.as_ref().map(suspend) {
                self.resume(&self.devices[..suspended]);
                thaw_filesystems(&self.filesystems);
                return status_of(&error);
            }
        }
        if getppid() != minder {
            self.thaw();
        }
        0
    }

    fn thaw(&self) {
        self.resume(&self.devices);
        thaw_filesystems(&self.filesystems);
    }

    fn resume(&self, devices: &[String]) {
        for device in devices {
            // Nobody is left to tell; one that is not suspended any more is well.
            if let Some(mapper) = &self.mapper {
                mapper.resume(device).unwrap_or_default();
            }
        }
    }
}

fn thaw_filesystems(filesystems: &[OwnedFd]) {
    for filesystem in filesystems {
        raw::thaw(filesystem.as_fd()).unwrap_or_default();
    }
}

/// An error as the exit status of a process.
fn status_of(error: &io::Error) -> i32 {
    error.raw_os_error().filter(|errno| (1..=255).contains(errno)).unwrap_or(255)
}

fn send(line: &OwnedFd, [a, b, c, d]: Number, what: u8, errno: u8) {
    let answer: [u8; ANSWER] = [a, b, c, d, what, errno];
    // A daemon that is gone is seen by the next look at the line.
    rustix::net::send(line, &answer, SendFlags::NOSIGNAL).unwrap_or_default();
}

/// One request; `None` when the other end is closed.
fn receive(line: &OwnedFd) -> io::Result<Option<Request>> {
    let mut message = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PAUSE_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(line, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
    let mut handles = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            handles.extend(received);
        }
    }
    let Some((head, names)) = message[..got.bytes].split_first_chunk::<HEAD>() else { return Ok(None) };
    let [a, b, c, d, what, millis @ ..] = *head;
    let (number, limit) = ([a, b, c, d], Duration::from_millis(u64::from_le_bytes(millis)));
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let devices = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    Ok(Some(Request { number, what, limit, targets: Targets::new(handles, devices) }))
}
