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

use super::{
    ANSWER, BUSY, DONE, FREEZE, LATE, PAUSE_LIMIT, REFUSED, REQUEST,
    raw::{self, Forked},
};

/// Freezers that may be late at a time: each is held by a write that does not end.
const LATE_LIMIT: usize = 64;

/// What the minder watches over. Never more than one of `frozen` and `freezing`.
#[derive(Default)]
struct Watch {
    frozen: Option<Frozen>,
    freezing: Option<(Freezer, Instant)>,
    late: Vec<Freezer>,
    /// The daemon is gone: what is still to be thawed is, and then the minder goes too.
    orphaned: bool,
}

struct Frozen {
    filesystems: Vec<OwnedFd>,
    until: Instant,
}

/// A process that freezes.
struct Freezer {
    process: OwnedFd,
    filesystems: Vec<OwnedFd>,
}

struct Request {
    what: u8,
    limit: Duration,
    filesystems: Vec<OwnedFd>,
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
        self.frozen.as_ref().map(|frozen| frozen.until).or(freezing)
    }

    /// The writers come first: a pause whose time is up ends, a freezer whose time is up is late.
    fn end_what_is_over(&mut self, line: &OwnedFd) {
        let now = Instant::now();
        if let Some(frozen) = self.frozen.take_if(|frozen| frozen.until <= now) {
            thaw_all(&frozen.filesystems);
        }
        if let Some((freezer, _)) = self.freezing.take_if(|(_, until)| *until <= now) {
            self.late.push(freezer);
            send(line, LATE, 0);
        }
    }

    /// Takes in what freezers have done.
    fn collect(&mut self, line: &OwnedFd) {
        self.late.retain_mut(|freezer| match freezer.outcome() {
            None => true,
            Some(outcome) => {
                // One that was killed may have frozen some of them.
                if outcome.is_none_or(|errno| errno == 0) {
                    thaw_all(&freezer.filesystems);
                }
                false
            }
        });
        let Some((freezer, until)) = self.freezing.take() else { return };
        match freezer.outcome() {
            None => self.freezing = Some((freezer, until)),
            Some(Some(0)) => {
                self.frozen = Some(Frozen { filesystems: freezer.filesystems, until });
                send(line, DONE, 0);
            }
            Some(Some(errno)) => send(line, REFUSED, errno),
            Some(None) => {
                thaw_all(&freezer.filesystems);
                send(line, LATE, 0);
            }
        }
    }

    fn answer(&mut self, line: &OwnedFd, request: Request) {
        if request.what != FREEZE {
            let in_time = self.frozen.take().is_some_and(|frozen| {
                thaw_all(&frozen.filesystems);
                true
            });
            send(line, if in_time { DONE } else { LATE }, 0);
        } else if self.frozen.is_some() || self.freezing.is_some() || self.late.len() >= LATE_LIMIT {
            send(line, BUSY, 0);
        } else {
            match Freezer::start(request.filesystems) {
                Ok(freezer) => self.freezing = Some((freezer, Instant::now() + request.limit)),
                Err(_) => send(line, BUSY, 0),
            }
        }
    }

    fn orphan(&mut self) {
        self.orphaned = true;
        if let Some(frozen) = self.frozen.take() {
            thaw_all(&frozen.filesystems);
        }
        self.late.extend(self.freezing.take().map(|(freezer, _)| freezer));
    }
}

impl Freezer {
    fn start(filesystems: Vec<OwnedFd>) -> io::Result<Self> {
        match raw::fork()? {
            Forked::Child => {
                // Nothing of the minder's, nor of other freezers', may be kept open by one that hangs.
                let kept: Vec<BorrowedFd<'_>> = filesystems.iter().map(AsFd::as_fd).collect();
                raw::close_all_but(&kept);
                rustix::thread::set_name(c"lagan-freezer").unwrap_or_default();
                raw::exit_now(freeze_all(&filesystems))
            }
            Forked::Parent(child) => {
                Ok(Self { process: pidfd_open(child, PidfdFlags::empty())?, filesystems })
            }
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

/// What a freezer does: freezes all, or none of them. A freeze that somebody else has begun is not touched.
fn freeze_all(filesystems: &[OwnedFd]) -> i32 {
    let minder = getppid();
    for (frozen, filesystem) in filesystems.iter().enumerate() {
        if let Err(error) = raw::freeze(filesystem.as_fd()) {
            thaw_all(&filesystems[..frozen]);
            return error.raw_os_error().filter(|errno| (1..=255).contains(errno)).unwrap_or(255);
        }
    }
    if getppid() != minder {
        thaw_all(filesystems);
    }
    0
}

fn thaw_all(filesystems: &[OwnedFd]) {
    for filesystem in filesystems {
        // Nobody is left to tell; one that is not frozen any more is well.
        raw::thaw(filesystem.as_fd()).unwrap_or_default();
    }
}

fn send(line: &OwnedFd, what: u8, errno: u8) {
    let answer: [u8; ANSWER] = [what, errno];
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
