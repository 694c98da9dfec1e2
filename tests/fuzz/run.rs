//! The run: two workers that make calls in stories, a watch over both, and what is required of every answer.

use std::{
    collections::BTreeMap,
    fs,
    panic::{set_hook, take_hook},
    process::abort,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use protox::prost_reflect::DescriptorPool;
use tokio::runtime::Builder;
use tonic::Code;

use crate::{
    calls::{Answer, Call, Caller},
    hostile::{Random, keep, kept, setting},
    town::{Kind, Town},
};

const WORKERS: usize = 2;
/// Calls in one story, each of which begins with an empty host: short enough for its disk not to stay full.
const STORY: u64 = 1000;
/// How long a call may take before it counts as one that never ends, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most memory of the whole process, the modelled disks included.
const MEMORY_MIB: u64 = 256;
/// Longest message, as it is sent: clients take heads of 16 KiB and no longer.
const MESSAGE_LIMIT: usize = 7 << 10;

/// What no service of ours offers.
const NOT_OFFERED: &[&str] = &[
    "/csi.v1.Controller/ControllerModifyVolume",
    "/csi.v1.SnapshotMetadata/GetMetadataAllocated",
    "/csi.v1.SnapshotMetadata/GetMetadataDelta",
];

/// What a worker does now.
#[derive(Default)]
struct Now {
    since: Mutex<Option<(Instant, Call)>>,
}

/// What is known of the run.
#[derive(Default)]
struct Run {
    workers: [Now; WORKERS],
    stories: AtomicU64,
    calls: AtomicU64,
    panics: AtomicU64,
    done: AtomicBool,
    /// Answers by method and code.
    answers: Mutex<BTreeMap<(String, u32), u64>>,
    wrong: Mutex<Vec<String>>,
    most_memory: AtomicU64,
}

static RUN: OnceLock<Run> = OnceLock::new();

fn run() -> &'static Run {
    RUN.get_or_init(Run::default)
}

/// Notes what was wrong with a call, and keeps the call.
fn wrong(what: &str, call: &Call) {
    let path = keep("calls", &call.to_bytes());
    run().wrong.lock().unwrap().push(format!("{what}: {} ({})", call.path, path.display()));
}

/// Panics anywhere count, those of detached work too, which nobody else would hear of.
fn count_panics() {
    let before = take_hook();
    set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let worker = thread.name().and_then(|name| name.strip_prefix("worker-")?.parse::<usize>().ok());
        if let Some(worker) = worker {
            run().panics.fetch_add(1, Ordering::Relaxed);
            if let Ok(now) = run().workers[worker].since.try_lock()
                && let Some((_, call)) = &*now
            {
                wrong(&format!("panic: {panic}"), call);
            }
        }
        before(panic);
    }));
}

/// Resident memory of this process in MiB.
fn memory() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    (pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096) >> 20
}

/// Ends the process, loudly, where a call does not end.
fn watch() {
    while !run().done.load(Ordering::Relaxed) {
        for now in &run().workers {
            let late = now.since.lock().unwrap().clone().filter(|(since, _)| since.elapsed() > PATIENCE);
            if let Some((_, call)) = late {
                println!(
                    "a call does not end: {}, kept as {}",
                    call.path,
                    keep("hangs", &call.to_bytes()).display()
                );
                abort();
            }
        }
        run().most_memory.fetch_max(memory(), Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
    }
}

/// What is required of an answer, whatever was asked.
fn judge(answer: &Answer, call: &Call, caller: &Caller) -> Result<(), String> {
    let code = i32::try_from(answer.code).map(Code::from_i32).unwrap_or(Code::Unknown);
    if code == Code::Ok {
        return Ok(());
    }
    if answer.message.is_empty() || answer.message.len() > MESSAGE_LIMIT {
        return Err(format!("{code:?} with a message of {} bytes", answer.message.len()));
    }
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unimplemented
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Unavailable
        | Code::DeadlineExceeded => Ok(()),
        // What is no message at all is so answered by gRPC itself ("Status codes and their use in gRPC").
        Code::Internal if !caller.is_readable(call) => Ok(()),
        _ => Err(format!("{code:?} ({}): {}", answer.code, answer.message)),
    }
}

/// One story, which its number decides.
async fn story(number: u64, worker: usize, protocol: &DescriptorPool) {
    let seed = setting("FUZZ_SEED", 1).wrapping_mul(1_000_003).wrapping_add(number);
    let mut random = Random::new(!seed);
    let kind = match number * 7 % 20 {
        0..12 => Kind::Host,
        12..17 => Kind::Peers,
        17..19 => Kind::Router,
        _ => Kind::Kubelet,
    };
    let town = Town::new(kind).await;
    let traps = ["/t/../etc", "/etc/passwd", "/t", "/t/pods"];
    let mut caller = Caller::new(protocol, kind.services(), seed).below("/t", &traps);
    for _ in 0..STORY {
        let call = caller.next();
        make(&town, &mut caller, &mut random, worker, call).await;
    }
    if let Err(what) = town.check().await {
        run().wrong.lock().unwrap().push(format!("story {number}: {what}"));
    }
}

/// Makes a call, and looks at the answer.
async fn make(town: &Town, caller: &mut Caller, random: &mut Random, worker: usize, call: Call) {
    *run().workers[worker].since.lock().unwrap() = Some((Instant::now(), call.clone()));
    run().calls.fetch_add(1, Ordering::Relaxed);
    if random.chance(2) {
        // Somebody who does not wait: the work goes on, or is not begun.
        let call = town.call(call, random);
        tokio::select! { biased; _ = call => {}, () = std::future::ready(()) => {} }
        return;
    }
    let answer = town.call(call.clone(), random).await;
    caller.heard.listen(&answer.body);
    if let Err(what) = judge(&answer, &call, caller) {
        wrong(&what, &call);
    }
    *run().answers.lock().unwrap().entry((call.path, answer.code)).or_default() += 1;
}

fn work(worker: usize, stories: u64, protocol: &DescriptorPool) {
    let runtime = Builder::new_current_thread()
        .thread_name(format!("worker-{worker}"))
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap();
    loop {
        let number = run().stories.fetch_add(1, Ordering::Relaxed);
        if number >= stories || run().wrong.lock().unwrap().len() > 20 {
            return;
        }
        runtime.block_on(story(number, worker, protocol));
    }
}

/// What failed before, each by itself on a host with nothing in it.
fn replay(protocol: &DescriptorPool) -> usize {
    let runtime = Builder::new_current_thread().thread_name("worker-0").enable_all().build().unwrap();
    let kept: Vec<_> = ["calls", "hangs"].into_iter().flat_map(kept).collect();
    for bytes in &kept {
        runtime.block_on(async {
            for kind in [Kind::Host, Kind::Peers, Kind::Kubelet] {
                let town = Town::new(kind).await;
                let (mut caller, mut random) = (Caller::new(protocol, kind.services(), 0), Random::new(5));
                make(&town, &mut caller, &mut random, 0, Call::from_bytes(bytes)).await;
            }
        });
    }
    kept.len()
}

#[test]
fn hostile_calls_are_answered() {
    let wanted = setting("FUZZ_REQUESTS", 50_000);
    let protocol = Caller::protocol();
    count_panics();
    let begun = Instant::now();
    let replayed = replay(&protocol);
    let stories = wanted.div_ceil(STORY);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (protocol, name) = (protocol.clone(), format!("worker-{worker}"));
                thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, move || work(worker, stories, &protocol))
                    .unwrap()
            })
            .collect();
        let watch = scope.spawn(watch);
        let ended: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        run().done.store(true, Ordering::Relaxed);
        watch.join().unwrap();
        assert!(ended.iter().all(Result::is_ok), "a worker panicked");
    });
    tell(begun.elapsed(), replayed);
}

/// The figures, and whether they are what they must be.
fn tell(took: Duration, replayed: usize) {
    let (run, answers) = (run(), run().answers.lock().unwrap());
    let calls = run.calls.load(Ordering::Relaxed);
    let mut by_code = BTreeMap::<u32, u64>::new();
    answers.iter().for_each(|((_, code), count)| *by_code.entry(*code).or_default() += count);
    let shares: Vec<_> = by_code
        .iter()
        .map(|(code, count)| {
            let name = i32::try_from(*code).map(Code::from_i32);
            format!("{:?} {count}", name.unwrap_or(Code::Unknown))
        })
        .collect();
    if setting("FUZZ_TABLE", 0) > 0 {
        answers.iter().for_each(|((path, code), count)| println!("{path} {code}: {count}"));
    }
    println!("answers: {}", shares.join(", "));
    let pool = Caller::protocol();
    let methods: Vec<_> = pool
        .services()
        .flat_map(|service| {
            service
                .methods()
                .map(|method| format!("/{}/{}", service.full_name(), method.name()))
                .collect::<Vec<_>>()
        })
        .collect();
    let never: Vec<_> = methods.iter().filter(|path| !answers.contains_key(&((*path).clone(), 0))).collect();
    println!(
        "calls of {} methods, {} of them made with success; {replayed} calls were kept from earlier runs",
        methods.len(),
        methods.len() - never.len(),
    );
    let (panics, memory) = (run.panics.load(Ordering::Relaxed), run.most_memory.load(Ordering::Relaxed));
    let wrong = run.wrong.lock().unwrap();
    println!(
        "{calls} requests in {:.1} s, {:.0} a second: {panics} panics, 0 hangs, {} wrong answers, {memory} MiB at most",
        took.as_secs_f64(),
        calls as f64 / took.as_secs_f64(),
        wrong.len(),
    );
    assert!(wrong.is_empty() && panics == 0, "{:#?}", *wrong);
    assert!(memory <= MEMORY_MIB, "{memory} MiB");
    assert_eq!(
        never,
        NOT_OFFERED.iter().collect::<Vec<_>>(),
        "of these none succeeded, or one did that must not"
    );
}
