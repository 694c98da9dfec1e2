//! A process whose system calls are interfered with.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Pid;

/// A tracer that kills a process before the `point`th system call of one of these kinds that one of its threads makes;
/// each kind is counted for itself.
pub(crate) fn kill_at(process: Pid, calls: &str, point: u32) -> Child {
    interfere(process, calls, &format!("signal=SIGKILL:when={point}"))
}

/// A tracer that does as strace(1) says to these system calls of a process.
pub(crate) fn interfere(process: Pid, calls: &str, how: &str) -> Child {
    let inject = format!("inject={calls}:{how}");
    attach(process, &["-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject])
}

/// A tracer that writes these system calls of a process to a file, a line each, in full, until the process ends.
pub(crate) fn note(process: Pid, calls: &str, file: &str) -> Child {
    attach(process, &["-v", "-s", "65536", "-o", file, "-e", &format!("trace={calls}")])
}

/// The same, with the path behind each descriptor.
pub(crate) fn note_paths(process: Pid, calls: &str, file: &str) -> Child {
    attach(process, &["-y", "-o", file, "-e", &format!("trace={calls}")])
}

#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn attach(process: Pid, how: &[&str]) -> Child {
    let pid = process.as_raw_nonzero().to_string();
    let mut strace = Command::new("strace");
    let tracer = strace.args(["-f", "-qq", "-p", &pid]).args(how).stdin(Stdio::null()).spawn().unwrap();
    let traced = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    let begun = Instant::now();
    while !fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| traced(task.unwrap())) {
        assert!(begun.elapsed() < Duration::from_secs(30), "strace does not attach");
        std::thread::sleep(Duration::from_millis(10));
    }
    tracer
}
