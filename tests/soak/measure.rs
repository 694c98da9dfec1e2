//! What the daemon uses while everything stands still, and whether that drifts.

use std::{fmt, fs, sync::atomic::Ordering::SeqCst, time::Duration};

use rustix::process::Pid;

use crate::{faults::Injector, life::State};

/// So much more may be used at the end than before: per cent and kilobytes of memory, descriptors, times.
const MEMORY: (u64, u64) = (10, 1024);
const DESCRIPTORS: u64 = 2;
/// A thread on which a call blocked is kept as long as there are calls to do in turn, and so is the memory that it uses. There
/// are never more than calls at one time: 8 of callers, 100 that are dropped; and a few of the daemon's own.
const THREADS: u64 = 120;
const PER_THREAD: u64 = 192;
const LATENCY: f64 = 3.0;

/// One minute.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    lives: u64,
    memory: u64,
    minder: u64,
    descriptors: u64,
    threads: u64,
    median: u64,
    p99: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7} lives  daemon {:>6} KiB  minder {:>5} KiB  {:>3} descriptors  {:>3} threads  p50 {:>7.1} ms  p99 {:>7.1} ms",
            self.lives,
            self.memory,
            self.minder,
            self.descriptors,
            self.threads,
            millis(self.median),
            millis(self.p99)
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Waits until every life has ended, asks the accountant, and looks.
pub(crate) async fn look(injector: &Injector<'_>, state: &State) -> Sample {
    let _still = state.quiet.write().await;
    state.check();
    injector.ground.account();
    let pid = injector.daemon.pid();
    let mut took = std::mem::take(&mut *state.took.lock().unwrap());
    took.sort_unstable();
    let at = |part: usize| {
        took.get((took.len() * part / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    Sample {
        lives: state.lives.load(SeqCst),
        memory: status(pid, "VmRSS:"),
        minder: minder(pid).map_or(0, |minder| status(minder, "VmRSS:")),
        descriptors: fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))
            .unwrap()
            .count()
            .try_into()
            .unwrap(),
        threads: status(pid, "Threads:"),
        median: at(50),
        p99: at(99),
    }
}

fn minder(daemon: Pid) -> Option<Pid> {
    let pid = daemon.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().and_then(|child| Pid::from_raw(child.parse().unwrap()))
}

/// A number of what the kernel says of a process.
fn status(pid: Pid, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

pub(crate) struct Verdict {
    pub(crate) text: String,
    pub(crate) well: bool,
}

/// The third quarter against the last: one process under the same faults.
pub(crate) fn verdict(samples: &[Sample], state: &State, faults: usize, stall: Duration) -> Verdict {
    let half = &samples[samples.len() / 2..];
    let (before, after) = half.split_at(half.len() / 2);
    let median = |samples: &[Sample], of: fn(&Sample) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    let both = |of: fn(&Sample) -> u64| (median(before, of), median(after, of));
    let memory = both(|sample| sample.memory);
    let minder = both(|sample| sample.minder);
    let descriptors = both(|sample| sample.descriptors);
    let threads = both(|sample| sample.threads);
    let p99 = both(|sample| sample.p99);
    let room = MEMORY.1 + threads.1.saturating_sub(threads.0) * PER_THREAD;
    let fits = |(before, after): (u64, u64)| after <= before + before * MEMORY.0 / 100 + room;
    let ratio = millis(p99.1) / millis(p99.0).max(0.001);
    let well = !before.is_empty()
        && fits(memory)
        && fits(minder)
        && descriptors.1 <= descriptors.0 + DESCRIPTORS
        && threads.1 <= THREADS
        && ratio <= LATENCY;
    let text = format!(
        "soak: {} minutes, {} lives, {} calls ({} asked again), {faults} faults: 0 lost, 0 leaked, 0 stuck; third quarter to \
         last: daemon {} to {} KiB, minder {} to {} KiB, descriptors {} to {}, threads {} to {}, p99 x {ratio:.2}; longest \
         write beside {} ms{}",
        samples.len(),
        state.lives.load(SeqCst),
        state.calls.load(SeqCst),
        state.again.load(SeqCst),
        memory.0,
        memory.1,
        minder.0,
        minder.1,
        descriptors.0,
        descriptors.1,
        threads.0,
        threads.1,
        stall.as_millis(),
        if well { "" } else { ": DRIFTED" }
    );
    Verdict { text, well }
}
