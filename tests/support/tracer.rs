//! Interferes with an unmodified process from outside, by ptrace(2): notes the system calls of its threads, and at a chosen one
//! kills it before or after, lets the call fail without effect, lets it happen and answers that it failed, or falsifies
//! what it reads. strace(1) knows no "after". Programs that the process starts are not followed.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc::{self, user_regs_struct},
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

use crate::calls;

/// A system call that was made.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// What it is: its name, and of some the request or the kind of file that it is about.
    pub(crate) kind: String,
    /// The how manieth of its kind.
    pub(crate) nth: u32,
    /// What it is about, for messages: a path, or a descriptor.
    pub(crate) about: String,
    /// What it answered; negative is an error number.
    pub(crate) answer: i64,
}

/// What is done at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The process is killed before the call does anything.
    KillBefore,
    /// It is killed when the call has been made, before it learns of it.
    KillAfter,
    /// The call does nothing, and fails with this error number.
    Fail(i32),
    /// The call does what it does, and then seems to have failed.
    Lose(i32),
    /// Half of what was asked for is read or written.
    Short,
    /// Nothing is read: as at the end of a file.
    Empty,
    /// What was read is all zeros.
    Zeros,
    /// What was read is something else.
    Garbage,
    /// It takes this many milliseconds longer.
    Delay(u64),
}

/// Which call is meant.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The `nth` of a kind.
    Nth(String, u32),
    /// The `nth` after the one before was met, whatever it is.
    Later(u32),
}

/// What is to be done, and where.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) place: Place,
    pub(crate) act: Act,
}

#[derive(Default)]
struct State {
    noting: bool,
    calls: Vec<Call>,
    counts: HashMap<String, u32>,
    /// What is still to be done; the first one is waited for.
    shots: Vec<Shot>,
    /// Calls since the last shot.
    since: u32,
    fired: Vec<Call>,
}

/// What was seen and done.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) calls: Vec<Call>,
    /// The calls that were interfered with.
    pub(crate) fired: Vec<Call>,
}

/// Follows a process until that ends.
pub(crate) struct Tracer {
    state: Arc<Mutex<State>>,
}

impl Tracer {
    /// Begins to follow a process, all its threads and those that it will start.
    pub(crate) fn attach(process: i32) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let (ready, attached) = mpsc::channel();
        thread::spawn({
            let state = Arc::clone(&state);
            move || Follower::new(process, state).run(&ready)
        });
        attached.recv().expect("the process can be traced");
        Self { state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process still runs.
    pub(crate) fn follows(&self) -> bool {
        Arc::strong_count(&self.state) > 1
    }

    /// From now on calls are noted, and these things done at them.
    pub(crate) fn begin(&self, shots: &[Shot]) {
        *self.state() = State { noting: true, shots: shots.to_vec(), ..State::default() };
    }

    /// How many calls were interfered with so far.
    pub(crate) fn met(&self) -> usize {
        self.state().fired.len()
    }

    /// Ends it.
    pub(crate) fn end(&self) -> Seen {
        let State { calls, fired, .. } = std::mem::take(&mut *self.state());
        Seen { calls, fired }
    }
}

/// The thread that ptrace(2) knows as the tracer.
struct Follower {
    process: i32,
    state: Arc<Mutex<State>>,
    /// What each thread is doing in the kernel.
    inside: HashMap<Pid, Inside>,
    /// Threads that are to go on later.
    held: Vec<(Pid, Instant)>,
}

struct Inside {
    call: Call,
    act: Option<Act>,
    /// The registers with which it was entered.
    regs: user_regs_struct,
}

impl Follower {
    fn new(process: i32, state: Arc<Mutex<State>>) -> Self {
        Self { process, state, inside: HashMap::new(), held: Vec::new() }
    }

    fn run(mut self, ready: &mpsc::Sender<()>) {
        self.seize_all();
        ready.send(()).unwrap_or_default();
        // Only what this thread traces: other threads have children of their own.
        let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let look = ours | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        loop {
            let patience = if self.held.is_empty() { WaitPidFlag::empty() } else { WaitPidFlag::WNOHANG };
            let next = match waitid(Id::All, look | patience) {
                // Its end is for whoever started it: it is not taken away.
                Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..))
                    if thread.as_raw() == self.process =>
                {
                    return;
                }
                Ok(WaitStatus::StillAlive) => {
                    self.release();
                    continue;
                }
                Ok(status) => status.pid(),
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            if let Ok(status) = waitpid(next, Some(ours)) {
                self.handle(status);
            }
        }
    }

    /// Lets those go on whose time has come.
    fn release(&mut self) {
        thread::sleep(Duration::from_millis(1));
        let now = Instant::now();
        for (thread, _) in self.held.extract_if(.., |(_, until)| *until <= now) {
            ptrace::syscall(thread, None).unwrap_or_default();
        }
    }

    /// Threads may come while they are listed: until nothing new is found.
    fn seize_all(&self) {
        let mut known = Vec::new();
        loop {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.process)).into_iter().flatten().flatten();
            let tasks = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok().map(Pid::from_raw));
            let new: Vec<Pid> = tasks.filter(|task| !known.contains(task)).collect();
            if new.is_empty() {
                return;
            }
            for task in new {
                known.push(task);
                let options = Options::PTRACE_O_TRACESYSGOOD
                    | Options::PTRACE_O_TRACECLONE
                    | Options::PTRACE_O_EXITKILL;
                // One that was started by one that is traced is traced already; one may have ended.
                if ptrace::seize(task, options).is_ok() {
                    ptrace::interrupt(task).unwrap_or_default();
                }
            }
        }
    }

    fn handle(&mut self, status: WaitStatus) {
        let (thread, signal) = match status {
            WaitStatus::PtraceSyscall(thread) => {
                self.at_call(thread);
                if self.held.iter().any(|(held, _)| *held == thread) {
                    return;
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..) => {
                self.inside.remove(&thread);
                return;
            }
            _ => return,
        };
        // It may have been killed meanwhile.
        ptrace::syscall(thread, signal).unwrap_or_default();
    }

    fn at_call(&mut self, thread: Pid) {
        let noting = self.state().noting;
        if !noting && !self.inside.contains_key(&thread) {
            return;
        }
        let (Ok(info), Ok(regs)) = (ptrace::syscall_info(thread), ptrace::getregs(thread)) else { return };
        match info.op {
            libc::PTRACE_SYSCALL_INFO_ENTRY if noting => self.enter(thread, regs),
            libc::PTRACE_SYSCALL_INFO_EXIT => self.leave(thread, regs),
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&mut self, thread: Pid, mut regs: user_regs_struct) {
        let Some((kind, about)) = calls::describe(thread.as_raw(), &regs) else { return };
        let (call, act) = self.state().meet(kind, about);
        match act {
            Some(Act::KillBefore) => self.kill(),
            Some(Act::Fail(_) | Act::Empty) => {
                regs.orig_rax = u64::MAX;
                ptrace::setregs(thread, regs).unwrap_or_default();
            }
            Some(Act::Short) => {
                let mut shorter = regs;
                *length_in(&mut shorter) /= 2;
                ptrace::setregs(thread, shorter).unwrap_or_default();
            }
            _ => {}
        }
        self.inside.insert(thread, Inside { call, act, regs });
    }

    fn leave(&mut self, thread: Pid, mut regs: user_regs_struct) {
        let Some(Inside { mut call, act, regs: entered }) = self.inside.remove(&thread) else { return };
        call.answer = regs.rax.cast_signed();
        match act {
            Some(Act::KillAfter) => self.kill(),
            Some(Act::Fail(errno) | Act::Lose(errno)) => call.answer = -i64::from(errno),
            Some(Act::Empty) => call.answer = 0,
            Some(Act::Zeros) => falsify(thread, &entered, call.answer, |byte| *byte = 0),
            Some(Act::Garbage) => {
                falsify(thread, &entered, call.answer, |byte| *byte = byte.wrapping_mul(73) ^ 0xa5)
            }
            Some(Act::Delay(millis)) => {
                self.held.push((thread, Instant::now() + Duration::from_millis(millis)));
            }
            Some(Act::KillBefore | Act::Short) | None => {}
        }
        regs.rax = call.answer.cast_unsigned();
        if act == Some(Act::Short) {
            (regs.rdx, regs.r10) = (entered.rdx, entered.r10);
        }
        if act.is_some() {
            ptrace::setregs(thread, regs).unwrap_or_default();
        }
        let mut state = self.state();
        if act.is_some() {
            state.fired.push(call.clone());
        }
        state.calls.push(call);
    }

    fn kill(&self) {
        kill(Pid::from_raw(self.process), Signal::SIGKILL).unwrap_or_default();
    }
}

impl State {
    /// Counts a call; what is to be done at it.
    fn meet(&mut self, kind: String, about: String) -> (Call, Option<Act>) {
        let count = self.counts.entry(kind.clone()).or_default();
        *count += 1;
        let nth = *count;
        self.since += 1;
        let met = self.shots.first().is_some_and(|shot| match &shot.place {
            Place::Nth(wanted, which) => *wanted == kind && *which == nth,
            Place::Later(which) => self.since == *which,
        });
        let call = Call { kind, nth, about, answer: 0 };
        if !met {
            return (call, None);
        }
        self.since = 0;
        let act = self.shots.remove(0).act;
        if matches!(act, Act::KillBefore | Act::KillAfter) {
            self.fired.push(call.clone());
        }
        (call, Some(act))
    }
}

/// lgetxattr(path, name, value, size); the others that read or write have (descriptor, buffer, length).
fn is_attribute(entered: &user_regs_struct) -> bool {
    entered.orig_rax == libc::SYS_lgetxattr.cast_unsigned()
}

/// How much a call is to read or write.
fn length_in(regs: &mut user_regs_struct) -> &mut u64 {
    if is_attribute(regs) { &mut regs.r10 } else { &mut regs.rdx }
}

/// Changes what a call has read into the memory of the process.
fn falsify(thread: Pid, entered: &user_regs_struct, answer: i64, change: impl Fn(&mut u8)) {
    let Ok(length) = usize::try_from(answer) else { return };
    let at = if is_attribute(entered) { entered.rdx } else { entered.rsi };
    let Ok(memory) = fs::File::options().read(true).write(true).open(format!("/proc/{thread}/mem")) else {
        return;
    };
    let mut bytes = vec![0; length];
    memory.read_exact_at(&mut bytes, at).unwrap_or_default();
    bytes.iter_mut().for_each(change);
    memory.write_all_at(&bytes, at).unwrap_or_default();
}
