//! What a real driver touches while it is asked what nobody should ask: every file that it opens, makes or removes, and
//! every program that it starts, as strace sees them.

use std::{
    collections::BTreeSet,
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
    rig::{Ground, Kind, text},
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
    if let Some(opened) = result.split_once('<').filter(|_| call.starts_with("open")) {
        paths.push(PathBuf::from(opened.1.trim_end_matches('>')));
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
    Some(Seen { call, paths, failed, writes: writes || !call.starts_with("open") })
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

/// What strace has seen that must not be.
fn strays(log: &str, ground: &Ground) -> (usize, usize, BTreeSet<String>) {
    let (commands, root) = (Commands::find(), fs::canonicalize(&ground.root).unwrap());
    let programs: BTreeSet<_> = Tool::ALL.into_iter().filter_map(|tool| commands.path(tool)).collect();
    let own = [root.join("targets"), root.join("state"), root.join("pool"), root.join("csi.sock")];
    let (mut opened, mut started, mut strays) = (0, 0, BTreeSet::new());
    for line in log.lines() {
        let Some(seen) = seen(line) else { continue };
        if seen.call.starts_with("exec") {
            started += 1;
            let program = seen.paths.first().cloned().unwrap_or_default();
            let ours = program == Path::new(&ground.program) || program.starts_with("/proc");
            if !ours && !programs.contains(program.as_path()) {
                strays.insert(format!("started {}", program.display()));
            }
            continue;
        }
        if seen.failed {
            continue;
        }
        opened += 1;
        for path in &seen.paths {
            let shown = text(path);
            let is_own = own.iter().any(|place| path.starts_with(place));
            let system = SYSTEM.iter().any(|place| path.starts_with(place)) && !seen.writes;
            // Files without a name, and those of the pool's own filesystem by the inside of it, are no places.
            let nowhere = !path.is_absolute() || shown == "/" || shown.contains(" (deleted)");
            let device = DEVICES.iter().any(|prefix| shown.starts_with(prefix));
            if !(is_own || system || nowhere || device) {
                strays.insert(format!("{} {shown}", seen.call));
            }
        }
    }
    (opened, started, strays)
}

#[tokio::test]
async fn nothing_outside_its_places_is_touched() {
    let requests = setting("AUDIT_REQUESTS", 10_000);
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
    assert!(daemon.stop().success());
    strace.wait().unwrap();
    let (opened, started, strays) = strays(&fs::read_to_string(&log).unwrap(), &ground);
    println!(
        "{requests} requests, {done} of them carried out: {opened} files opened, made or removed and {started} programs \
         started, {} of them outside the list; {} INTERNAL",
        strays.len(),
        internal.len()
    );
    assert!(opened > 100 && started > 0, "the audit sees what is done");
    assert!(strays.is_empty(), "{strays:#?}");
    assert!(internal.is_empty(), "{internal:#?}");
    assert_eq!(before, listing(&outside), "the canaries");
    ground.power_off();
    ground.account();
}
