//! `lagan bench` on real pools: it measures, and leaves nothing behind, however it ends.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lagan::proto::{ListVolumesRequest, volume_capability::access_mode::Mode};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    requests::block,
    rig::{Ground, Kind, text},
};

#[expect(clippy::disallowed_methods, reason = "tests run the tool as a person would")]
fn bench(ground: &Ground, arguments: &[&str]) -> Command {
    let mut command = Command::new(&ground.program);
    command.args(["bench", "--concurrency", "1,8", "--volumes", "1,20", "--mounts", "50"]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a benchmark in this directory has left there, in the kernel too.
fn left(ground: &Ground, directory: &str) -> Vec<String> {
    let mine = |name: &String| name.contains("bench");
    let files = fs::read_dir(directory).unwrap().map(|entry| text(&entry.unwrap().path()));
    let devices = crate::rig::run("losetup", &["-l", "-n", "-O", "BACK-FILE"]);
    let devices = devices.lines().filter(|line| line.contains(&text(&ground.root))).map(str::to_owned);
    files.chain(ground.mounts()).chain(devices).filter(mine).collect()
}

#[tokio::test]
async fn every_scenario_on_a_throw_away_pool() {
    let ground = Ground::new(Kind::Image);
    let directory = text(&ground.root);
    let scenarios = "rpc,life,storm,churn,snapshot,mount,fill";
    let arguments = [
        "--directory",
        &directory,
        "--image",
        "2GiB",
        "--scenario",
        scenarios,
        "--rounds",
        "1",
        "--json",
        "--goals",
    ];
    let output = bench(&ground, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["notes"], serde_json::json!([]), "nothing was refused");
    let figures = report["figures"].as_array().unwrap();
    for scenario in ["floor"].into_iter().chain(scenarios.split(',')) {
        let of: Vec<_> = figures.iter().filter(|row| row["scenario"] == scenario).collect();
        assert!(!of.is_empty(), "{scenario} is missing");
        // A count may be zero, such as that of wake-ups.
        for row in of.iter().filter(|row| row["unit"] != "") {
            assert!(row["p50"].as_f64().is_some_and(|figure| figure > 0.0), "{row}");
        }
    }
    let flushes = figures.iter().find(|row| row["what"] == "raw 1.0 GiB: flushes of a clone").unwrap();
    assert_eq!(flushes["p50"], 1.0);
    assert!(report["goals"].as_array().is_some_and(|goals| goals.len() > 10), "{}", report["goals"]);
    assert_eq!(left(&ground, &directory), [""; 0]);
}

#[tokio::test]
async fn an_interrupted_run_leaves_nothing() {
    let ground = Ground::new(Kind::Image);
    let directory = text(&ground.root);
    let arguments = ["--directory", &directory, "--image", "2GiB", "--scenario", "storm", "--rounds", "1000"];
    let mut running = bench(&ground, &arguments).spawn().unwrap();
    let mounted = || ground.mounts().iter().filter(|point| point.contains("/targets/lagan/")).count();
    let begun = Instant::now();
    while mounted() < 8 {
        let ended = running.try_wait().unwrap();
        assert!(
            ended.is_none() && begun.elapsed() < Duration::from_secs(60),
            "nothing is measured: {ended:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&running), Signal::INT).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    assert_eq!(left(&ground, &directory), [""; 0]);
}

/// A driver in use, beside itself: what is not the benchmark's stays.
#[tokio::test]
async fn a_driver_in_use_keeps_what_it_had() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeMultiWriter);
    let id = daemon.create("bench-0", 8, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "mine", &how).await;
    let (directory, socket) = (text(&ground.root.join("targets")), text(&daemon.socket));
    let arguments = [
        "--directory",
        &directory,
        "--socket",
        &format!("unix://{socket}"),
        "--peer",
        &format!("again={socket}"),
        "--scenario",
        "churn,snapshot",
        "--rounds",
        "1",
    ];
    let output = bench(&ground, &arguments).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    for words in
        ["fsync of a new file", "x fsync of a new file", "times as good", "create + delete, 8 at a time"]
    {
        assert!(shown.contains(words), "{words:?} in {shown}");
    }
    assert_eq!(left(&ground, &directory), [""; 0]);
    let list = daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let ids: Vec<_> = list.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    assert_eq!(ids, std::slice::from_ref(&id));
    assert!(fs::exists(&target).unwrap());
    daemon.hide(&ground, &id, "mine").await;
    daemon.delete(&id).await;
    ground.account();
}
