//! The command line as a person meets it: what it refuses, how it says so, and with which exit status. Needs no root.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::{
    fs,
    process::{Command, Output},
};

#[expect(clippy::disallowed_methods, reason = "tests run the tool as a person would")]
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env_remove("CSI_ENDPOINT")
        .env_remove("LAGAN_NODE_ID")
        .output()
        .unwrap()
}

const LAGAN: &str = env!("CARGO_BIN_EXE_lagan");

fn lagan(arguments: &[&str]) -> Output {
    run(LAGAN, arguments)
}

/// Expects an exit status, and words on standard error.
#[track_caller]
fn check(output: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn with_config(text: &str, arguments: &[&str]) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    lagan(&[&["--config", file.path().to_str().unwrap()], arguments].concat())
}

#[test]
fn a_wrong_configuration_is_told_as_a_whole() {
    let text =
        "node_id = ''\nendpoint = 'tcp://x'\nsurprise = 1\n[[pool]]\nname = 'p'\nkind = 'tape'\npath = 'x'\n";
    let words = ["5 problem(s)", "node_id:", "endpoint:", "surprise:", "pool[0].kind:", "pool[0].path:"];
    check(&with_config(text, &["serve"]), 1, &words);
    check(&lagan(&["--config", "/no/such/file", "serve"]), 1, &["/no/such/file"]);
}

#[test]
fn a_socket_path_that_the_kernel_does_not_take() {
    let long = format!("unix:///{}", "x".repeat(120));
    check(&lagan(&["--endpoint", &long, "serve"]), 1, &["121 bytes", "choose a shorter one"]);
}

#[test]
fn what_is_not_understood_exits_with_two() {
    check(&lagan(&["fly"]), 2, &["fly"]);
    check(&lagan(&["volume", "create"]), 2, &["<NAME>"]);
    check(&lagan(&["volume", "create", "a", "--size", "many"]), 2, &["not a size"]);
    check(&lagan(&["volume", "show", "../../etc"]), 2, &["the id of a volume"]);
    check(&lagan(&["volume", "create", "a", "--block", "--fstype", "xfs"]), 2, &["--block"]);
}

#[test]
fn without_a_daemon() {
    let output = with_config("endpoint = '/nonexistent/csi.sock'", &["volume", "list"]);
    check(&output, 1, &["no daemon answers on unix:///nonexistent/csi.sock", "lagan serve"]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests run the tool as a person would")]
fn a_node_is_named_in_the_environment() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "endpoint = '/nonexistent/csi.sock'\nnode_id = 'of-the-file'\nmachine_id = 'm'\n")
        .unwrap();
    let run = |arguments: &[&str]| {
        let long = "n".repeat(129);
        let mut command = Command::new(LAGAN);
        command.arg("--config").arg(file.path()).args(arguments);
        command
            .args(["volume", "list"])
            .env_remove("CSI_ENDPOINT")
            .env("LAGAN_NODE_ID", long)
            .output()
            .unwrap()
    };
    check(&run(&[]), 1, &["1 problem(s)", "node_id:"]);
    check(&run(&["--node-id", "n1"]), 1, &["no daemon answers"]);
}

#[test]
fn who_is_not_root_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "machine_id = 'm'\nhttp = 'off'\n").unwrap();
    run("chmod", &["644", file.path().to_str().unwrap()]);
    let serve = ["--config", file.path().to_str().unwrap(), "serve"];
    let output = if rustix::process::geteuid().is_root() {
        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", LAGAN];
        run("setpriv", &[nobody.as_slice(), &serve].concat())
    } else {
        lagan(&serve)
    };
    check(&output, 1, &["CAP_SYS_ADMIN", "run this as root"]);
}

#[test]
fn nothing_is_destroyed_without_a_yes() {
    let id = "s.00000000000000000000000000000000.00000000000000000000000000000000";
    let output = with_config("endpoint = '/nonexistent/csi.sock'", &["snapshot", "delete", id]);
    check(&output, 1, &[id, "nothing done: say --yes"]);
}

#[test]
fn completions_and_manual_come_from_the_same_source() {
    for shell in ["bash", "zsh", "fish"] {
        let script = lagan(&["completions", shell]);
        check(&script, 0, &[]);
        assert!(String::from_utf8_lossy(&script.stdout).contains("snapshot"));
    }
    let manual = lagan(&["man"]);
    check(&manual, 0, &[]);
    let manual = String::from_utf8_lossy(&manual.stdout).into_owned();
    assert!(manual.contains(".TH lagan") && manual.contains("doctor"), "{manual}");
    check(&lagan(&["--version"]), 0, &[]);
    check(&lagan(&["help", "pool", "init"]), 0, &[]);
}
