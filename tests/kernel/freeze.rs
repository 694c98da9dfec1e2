//! Freezes that do not go as they should: a write that does not end, a freeze of somebody else, a minder that is killed.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
    process::{Pid, Signal, kill_process},
};
use tonic::Code;

use crate::{
    crash::{frozen, slow_ground},
    requests::{check, snapshot_of},
    rig::{Daemon, Ground, Kind, filesystem, run, write},
};

/// A pool that copies, with a volume in use on it.
async fn in_use(freeze_limit: &str) -> (Ground, Daemon, String, String) {
    let mut ground = Ground::new(Kind::On("ext4"));
    ground.pool_settings.push_str(&format!("freeze_limit = \"{freeze_limit}\"\n"));
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 64, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    (ground, daemon, id, target)
}

/// Writes below a directory, apart; whether that is done within the time.
fn can_write(directory: &str, name: &str, patience: Duration) -> bool {
    let path = Path::new(directory).join(name);
    let writer = std::thread::spawn(move || fs::write(path, b"on").unwrap());
    let begun = Instant::now();
    while !writer.is_finished() && begun.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.is_finished()
}

/// A freeze waits for writes that are under way. A tenant can have one that lasts as long as he likes: it must hold
/// up nobody but him, and what is frozen at last must be thawed.
#[tokio::test]
async fn a_write_that_does_not_end() {
    let (ground, mut daemon, id, target) = in_use("1s").await;
    let (empty, mut full) =
        pipe_with(PipeFlags::CLOEXEC).map(|(read, write)| (read, File::from(write))).unwrap();
    let file = File::create(Path::new(&target).join("endless")).unwrap();
    let tenant =
        std::thread::spawn(move || splice(&empty, None, &file, None, 4096, SpliceFlags::empty()).unwrap());
    std::thread::sleep(Duration::from_millis(200));
    let said =
        check(daemon.controller.create_snapshot(snapshot_of(&id, "s")).await, Code::FailedPrecondition);
    assert!(said.contains("did not end"), "{said}");
    assert!(!can_write(&target, "beside", Duration::from_millis(300)), "the freeze is not under way");
    // The daemon is not the one who waits: killed, it is gone, and the next one serves the pool.
    daemon.kill();
    let mut daemon = ground.start().await;
    assert!(!tenant.is_finished());
    full.write_all(b"the end").unwrap();
    assert_eq!(tenant.join().unwrap(), 7);
    assert!(can_write(&target, "after", Duration::from_secs(5)), "frozen too late, it was never thawed");
    daemon.snapshot(&id, "s").await.unwrap();
    daemon.hide(&ground, &id, "a").await;
    ground.account();
}

#[tokio::test]
async fn a_freeze_of_somebody_else_is_theirs_to_end() {
    let (ground, mut daemon, id, target) = in_use("2s").await;
    write(&Path::new(&target).join("data"), b"data");
    run("fsfreeze", &["-f", &target]);
    let answer = daemon.controller.create_snapshot(snapshot_of(&id, "s")).await;
    let still = !can_write(&target, "new", Duration::from_millis(300));
    run("fsfreeze", &["-u", &target]);
    let said = check(answer, Code::Aborted);
    assert!(said.contains("somebody else"), "{said}");
    assert!(still, "their backup was cut short");
    daemon.snapshot(&id, "s").await.unwrap();
    daemon.hide(&ground, &id, "a").await;
}

#[tokio::test]
async fn a_minder_that_is_killed_in_a_freeze() {
    let ground = slow_ground();
    let (mut daemon, id, writer) = frozen(&ground).await;
    let own = daemon.pid().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let minder: i32 = children.trim().parse().unwrap();
    kill_process(Pid::from_raw(minder).unwrap(), Signal::KILL).unwrap();
    // The copy goes on to its end, and the daemon thaws in the minder's place.
    writer.resumes();
    writer.end();
    let said = check(daemon.controller.create_snapshot(snapshot_of(&id, "again")).await, Code::Unavailable);
    assert!(said.contains("restart the driver"), "{said}");
    daemon.kill();
    let mut daemon = ground.start().await;
    daemon.snapshot(&id, "again").await.unwrap();
    daemon.hide(&ground, &id, "a").await;
    ground.account();
}
