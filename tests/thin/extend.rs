//! `lvextend` of the pool, killed before each of its changes: the pool stands still then, and every volume with it. A start
//! of the driver lets all of them go on, and the pool can be extended again.

use std::time::{Duration, Instant};

use crate::{
    group::{self, POOL, VG},
    rig::{Ground, Kind, filesystem, run, try_run},
    writer::Writer,
};

/// How long the writers may be made to wait once the driver is there, in a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(10);
/// Commands of device-mapper that change something.
const CHANGES: [&str; 6] =
    ["DM_DEV_SUSPEND", "DM_TABLE_LOAD", "DM_DEV_CREATE", "DM_DEV_REMOVE", "DM_TARGET_MSG", "DM_TABLE_CLEAR"];
const TRACE: &str = "/var/tmp/lagan-test-trace";

/// One more extent for the pool, under a tracer.
fn extend(tracer: &[&str]) -> bool {
    let config = group::config();
    let pool = format!("{VG}/{POOL}");
    let lvextend = ["lvm", "lvextend", "--config", &config, "-y", "-L", "+4m", &pool];
    try_run("strace", &[&["-f", "-qq"], tracer, &lvextend].concat()).0
}

/// The changes that an extension makes: a system call, and which one of its kind.
fn changes() -> Vec<(&'static str, usize)> {
    assert!(extend(&["-o", TRACE, "-e", "trace=ioctl,io_submit"]), "the pool can be extended");
    let trace = std::fs::read_to_string(TRACE).unwrap();
    let mut found = Vec::new();
    for (call, changes) in [("ioctl", &CHANGES[..]), ("io_submit", &["PWRITE"])] {
        let calls = trace.lines().filter(|line| line.contains(&format!("{call}(")));
        let numbered = calls.enumerate().filter(|(_, line)| changes.iter().any(|what| line.contains(what)));
        found.extend(numbered.map(|(number, _)| (call, number + 1)));
    }
    found
}

/// All of them, or some: in the middle of an extension devices stand still.
fn tried(all: &[(&'static str, usize)]) -> Vec<(&'static str, usize)> {
    match std::env::var("POINTS").as_deref() {
        Ok("all") => all.to_vec(),
        _ => vec![all[all.len() / 3], all[all.len() * 5 / 9]],
    }
}

#[tokio::test]
async fn killed_at_any_point() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let how = filesystem("ext4");
    let mut daemon = ground.start().await;
    let id = daemon.create("written", 64, &how).await.volume_id;
    let shown = daemon.show(&ground, &id, "written", &how).await;
    daemon.kill();
    let writer = Writer::on(&shown);
    let points = tried(&changes());
    let mut stood_still = 0;
    for (call, number) in &points {
        let inject = format!("inject={call}:signal=KILL:when={number}");
        let killed = !extend(&["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
        assert!(killed, "{call} {number}: it came to its end");
        stood_still += usize::from(writer.stalls(Duration::from_secs(1), Duration::from_secs(3)));
        let begun = Instant::now();
        let mut daemon = ground.start().await;
        let waited = writer.resumes();
        println!("{call} {number}: a start took {:?}", begun.elapsed());
        assert!(waited < PATIENCE, "{call} {number}: the writer waited {waited:?}");
        let made = daemon.create("made", 64, &how).await.volume_id;
        daemon.delete(&made).await;
        ground.account();
        assert!(extend(&["-o", "/dev/null", "-e", "trace=none"]), "{call} {number}: no way to extend it");
        daemon.kill();
    }
    assert!(stood_still > 0, "no kill made a writer wait: the test has lost its aim");
    println!("lvextend killed at {} points; the pool stood still after {stood_still}", points.len());
    let mut daemon = ground.start().await;
    writer.end();
    assert!(!run("dmesg", &[]).contains("EXT4-fs error"), "a filesystem has suffered");
    daemon.hide(&ground, &id, "written").await;
    daemon.delete(&id).await;
    ground.account();
}
