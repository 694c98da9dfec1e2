//! What a real driver touches while it is asked what nobody should ask: every file that it opens, makes or removes, and
//! every program that it starts, as strace sees them.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lagan::sys::cmd::{Commands, Tool};
use tower::{Service, ServiceExt};

use crate::{
    calls::{Answer, Caller},
    hostile::setting,
    rig::{Ground, Kind, run, text, try_run},
};

/// The calls of the kernel that take a path and do something with it.
const TRACED: &str = "trace=open,openat,openat2,creat,execve,execveat,unlink,unlinkat,mkdir,mkdirat,rmdir,rename,\
                      renameat,renameat2,symlink,symlinkat,link,linkat,mknod,mknodat,truncate,chmod,fchmodat,chown,\
                      fchownat,mount,move_mount,umount2";

/// Where programs and their libraries lie, and what the kernel shows of itself. Read, never written.
const SYSTEM: &[&str] = &["/lib", "/usr/lib", "/etc/ld.so.cache", "/etc/machine-id", "/proc", "/sys"];

/// Devices that are ours to open: loop devices, whoever's they are, are looked at to find our own.
const DEVICES: &[&str] = &["/dev/loop", "/dev/mapper/control", "/dev/null", "/dev/urandom"];

/// Every file below a place, with what must not change.
fn listing(root: &Path) -> BTreeSet<(PathBuf, u32, i64, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if metadata.is_dir() {
                directories.push(path.clone());
            }
            found.insert((path, metadata.mode(), metadata.mtime_nsec(), content));
        }
    }
    found
}

/// Follows a running driver, and whatever it starts.
#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn follow(process: i32, log: &Path) -> Child {
    let process = process.to_string();
    let arguments =
        ["-f", "-qq", "-y", "-s", "4096", "-e", TRACED, "-e", "signal=none", "-p", &process, "-o"];
    let strace = Command::new("strace").args(arguments).arg(log).stdin(Stdio::null()).spawn();
    strace.expect("strace must be installed")
}

/// One line of the log: the call, the paths that it names, and what was opened.
struct Seen<'l> {
    call: &'l str,
    paths: Vec<PathBuf>,
    failed: bool,
    writes: bool,
    /// The number of what was opened.
    descriptor: Option<&'l str>,
}

/// Takes a line apart; `None` for one that is no call, or the first half of one.
fn seen(line: &str) -> Option<Seen<'_>> {
    let line = line.split_once(' ')?.1.trim_start();
    let (call, rest) = match line.strip_prefix("<... ") {
        Some(rest) => rest.split_once(" resumed>")?,
        None => line.split_once('(')?,
    };
    if rest.ends_with("<unfinished ...>") && !call.starts_with("exec") {
        return None;
    }
    let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "0"));
    let failed = result.starts_with('-');
    let mut paths = Vec::new();
    // The file that was opened, wherever links led.
    let opened = result.split_once('<').filter(|_| call.starts_with("open"));
    if let Some((_, path)) = opened {
        paths.push(PathBuf::from(path.trim_end_matches('>')));
    } else {
        // A name is relative to the descriptor before it.
        let mut base = PathBuf::from("/");
        for (index, piece) in arguments.split('"').enumerate() {
            if index % 2 == 1 {
                paths.push(plain(&base.join(piece)));
                base = PathBuf::from("/");
            } else if let Some((_, inside)) = piece.rsplit_once('<') {
                base = PathBuf::from(inside.split('>').next().unwrap_or_default());
            }
        }
    }
    let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| arguments.contains(flag));
    let writes = writes || !call.starts_with("open");
    Some(Seen { call, paths, failed, writes, descriptor: opened.map(|(number, _)| number) })
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// What may be touched, and started.
struct Allowed {
    places: Vec<PathBuf>,
    programs: BTreeSet<PathBuf>,
}

impl Allowed {
    fn on(ground: &Ground) -> Self {
        let (commands, root) = (Commands::find(), fs::canonicalize(&ground.root).unwrap());
        let tools = Tool::ALL.into_iter().filter_map(|tool| commands.path(tool)).map(Path::to_owned);
        // The minder is the driver once more.
        let programs = tools.chain([ground.program.clone().into(), "/proc/self/exe".into()]).collect();
        let places = ["targets", "state", "pool", "csi.sock"].map(|name| root.join(name)).into();
        Self { places, programs }
    }

    fn path(&self, path: &Path, writes: bool) -> bool {
        let shown = text(path);
        let system = SYSTEM.iter().any(|place| path.starts_with(place)) && !writes;
        // Files without a name, and what is in the pool's own filesystem by its inside, are in no place.
        let nowhere = !path.is_absolute() || shown == "/" || shown.contains(" (deleted)");
        let device = DEVICES.iter().any(|prefix| shown.starts_with(prefix));
        system || nowhere || device || self.places.iter().any(|place| path.starts_with(place))
    }
}

/// What was done, and what of it must not have been.
#[derive(Debug, Default)]
struct Audit {
    touched: usize,
    started: usize,
    strays: BTreeSet<String>,
}

fn audit(log: &str, allowed: &Allowed) -> Audit {
    let (mut audit, mut open) = (Audit::default(), HashMap::new());
    for line in log.lines() {
        let Some(seen) = seen(line) else { continue };
        if seen.call.starts_with("exec") {
            audit.started += 1;
            let program = seen.paths.first().cloned().unwrap_or_default();
            if !allowed.programs.contains(&program) {
                audit.strays.insert(format!("started {}", program.display()));
            }
            audit.strays.extend(strange_argument(line).map(|argument| format!("started with {argument}")));
            continue;
        }
        if seen.failed {
            continue;
        }
        audit.touched += 1;
        for path in &seen.paths {
            // What is named by a descriptor is what that was opened on.
            let by_descriptor = path.strip_prefix("/proc/self/fd").ok().and_then(|rest| {
                let (number, rest) = (rest.iter().next()?, rest.iter().skip(1).collect::<PathBuf>());
                let base: &PathBuf = open.get(number.to_str()?)?;
                Some(if rest.as_os_str().is_empty() { base.clone() } else { base.join(rest) })
            });
            let path = by_descriptor.as_ref().unwrap_or(path);
            if !allowed.path(path, seen.writes) {
                audit.strays.insert(format!("{} {}", seen.call, path.display()));
            }
        }
        if let (Some(descriptor), Some(path)) = (seen.descriptor, seen.paths.last()) {
            open.insert(descriptor.to_owned(), path.clone());
        }
    }
    audit
}

/// An argument of a program that is not of our own making: what callers send has other letters, or words of this test.
fn strange_argument(line: &str) -> Option<String> {
    let (_, arguments) = line.split_once(", [")?;
    let (arguments, _) = arguments.split_once("], ")?;
    let ours = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/_-=,.:^#@ ".contains(c);
        text.chars().all(plain)
            && !["name-", "text-", "staging-", ".."].iter().any(|word| text.contains(word))
    };
    let quoted = arguments.split('"').skip(1).step_by(2);
    quoted.filter(|text| !ours(text)).map(str::to_owned).next()
}

/// The audit must be able to fail.
#[test]
fn strays_are_seen() {
    let allowed = Allowed { places: vec!["/r/targets".into()], programs: ["/sbin/mke2fs".into()].into() };
    let check = |line: &str| audit(line, &allowed).strays.into_iter().collect::<Vec<_>>();
    for fine in [
        "7 openat(AT_FDCWD</>, \"/usr/lib/x.so\", O_RDONLY|O_CLOEXEC) = 3</usr/lib/x.so>",
        "7 openat2(5</r/targets>, \"a\", {flags=O_PATH, resolve=RESOLVE_BENEATH}, 24) = 8</r/targets/a>",
        "7 openat2(5</r/targets>, \"../etc/passwd\", {flags=O_PATH}, 24) = -1 EXDEV (Invalid cross-device link)",
        "7 mkdirat(5</r/targets>, \"a\", 0750) = 0",
        "7 execve(\"/sbin/mke2fs\", [\"/sbin/mke2fs\", \"--\", \"/dev/loop0\"], 0x1 /* 3 vars */) = 0",
    ] {
        assert!(check(fine).is_empty(), "{fine}");
    }
    for (stray, shown) in [
        ("7 openat(AT_FDCWD</>, \"/usr/lib/x\", O_RDWR) = 3</usr/lib/x>", "openat /usr/lib/x"),
        ("7 openat2(5</r/targets>, \"l\", {flags=O_PATH}, 24) = 8</etc/passwd>", "openat2 /etc/passwd"),
        ("7 <... openat resumed>) = 8</etc/passwd>", "openat /etc/passwd"),
        ("7 unlinkat(5</r/targets>, \"../x\", 0) = 0", "unlinkat /r/x"),
        (
            "7 openat(AT_FDCWD</>, \"/x\", O_PATH) = 8</r>\n7 umount2(\"/proc/self/fd/8/y\", 0) = 0",
            "umount2 /r/y",
        ),
        ("7 execve(\"/bin/sh\", [\"sh\"], 0x1 /* 3 vars */) = 0", "started /bin/sh"),
        ("7 execve(\"/bin/sh\", [\"sh\"], 0x1 <unfinished ...>", "started /bin/sh"),
        ("7 execve(\"/sbin/mke2fs\", [\"mke2fs\", \"name-3\"], 0x1 /* 3 vars */) = 0", "started with name-3"),
        ("7 execve(\"/sbin/mke2fs\", [\"mke2fs\", \"$(x)\"], 0x1 /* 3 vars */) = 0", "started with $(x)"),
    ] {
        assert_eq!(check(stray).last().unwrap(), shown);
    }
}

#[tokio::test]
async fn nothing_outside_its_places_is_touched() {
    let requests = setting("AUDIT_REQUESTS", 6000);
    let ground = Ground::new(Kind::Image);
    let outside = ground.root.join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    for name in ["canary", "deep/canary"] {
        fs::write(outside.join(name), "to be left alone").unwrap();
    }
    fs::create_dir(ground.root.join("targets/pods")).unwrap();
    symlink(&outside, ground.root.join("targets/link")).unwrap();
    symlink(outside.join("canary"), ground.root.join("targets/pods/file")).unwrap();
    symlink("../outside", ground.root.join("targets/pods/up")).unwrap();
    symlink("/proc/1/root", ground.root.join("targets/proc")).unwrap();
    let before = listing(&outside);
    let daemon = ground.start().await;
    let log = ground.root.join("strace");
    let mut strace = follow(daemon.pid().as_raw_nonzero().get(), &log);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
        !status.contains("TracerPid:\t0\n")
    };
    while !traced() {
        assert!(
            std::time::Instant::now() < deadline && strace.try_wait().unwrap().is_none(),
            "strace does not follow"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let root = text(&ground.root.join("targets"));
    let traps =
        ["link/canary", "link", "pods/file", "pods/up/canary", "proc/etc/passwd", "../outside/canary", ""];
    let mut traps: Vec<_> = traps.iter().map(|trap| format!("{root}/{trap}")).collect();
    traps.extend([text(&outside), text(&outside.join("canary")), "/etc/passwd".to_owned()]);
    let traps: Vec<_> = traps.iter().map(String::as_str).collect();
    let services = ["Identity", "Controller", "GroupController", "Node"];
    let mut caller =
        Caller::new(&Caller::protocol(), &services, setting("FUZZ_SEED", 1)).below(&root, &traps);
    let (mut done, mut internal) = (0_u64, Vec::new());
    for _ in 0..requests {
        // An import is a person's, who names files of the host.
        let mut call = caller.next();
        call.import = None;
        let answer = daemon.channel.clone().ready().await.unwrap().call(call.clone().into_request()).await;
        let answer = Answer::read(answer.unwrap()).await;
        caller.heard.listen(&answer.body);
        done += u64::from(answer.code == 0);
        if (answer.code == 13 && caller.is_readable(&call)) || answer.code == 2 {
            internal.push(format!("{}: {}", call.path, answer.message));
        }
    }
    ground.account();
    assert!(daemon.stop().success());
    strace.wait().unwrap();
    let Audit { touched, started, strays } = audit(&fs::read_to_string(&log).unwrap(), &Allowed::on(&ground));
    println!(
        "{requests} requests, {done} of them carried out: {touched} files opened, made or removed and {started} programs \
         started, {} of them outside the list; {} INTERNAL",
        strays.len(),
        internal.len()
    );
    assert!(touched > 100 && started > 0, "the audit sees what is done");
    assert!(strays.is_empty(), "{strays:#?}");
    assert!(internal.is_empty(), "{internal:#?}");
    assert_eq!(before, listing(&outside), "the canaries");
    // What was staged and published is nobody's any more.
    for point in ground.mounts().iter().rev().filter(|point| point.starts_with(&root)) {
        run("umount", &[point]);
    }
    ground.loops().iter().for_each(|device| drop(try_run("losetup", &["-d", device])));
}
