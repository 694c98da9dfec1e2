//! What is shipped has nothing by which it could be made to fail: faults come from outside. LAGAN=path for another build.

use std::fs;

/// What would be in a program that can be told to fail: names of such libraries, the variable by which they are told, and the
/// system call by which these tests do it.
const TRACES: [&str; 5] = ["fail_point", "failpoint", "FAILPOINTS", "proptest", "ptrace"];
/// What would be in one that carries a model of the kernel or of a pool. A build for tests may carry what nobody calls.
const MODELS: [&str; 4] = ["src/pool/fake", "src/sys/fake", "4pool4fake", "3sys4fake"];

fn found_in<'t>(program: &[u8], traces: &[&'t str]) -> Vec<&'t str> {
    let program = String::from_utf8_lossy(program);
    traces.iter().copied().filter(|trace| program.contains(trace)).collect()
}

#[test]
fn nothing_in_it_can_be_told_to_fail() {
    let shipped = std::env::var("LAGAN").ok();
    let program = shipped.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_lagan").to_owned());
    let content = fs::read(&program).unwrap();
    assert!(String::from_utf8_lossy(&content).contains("lagan-pool.json"), "{program} is no driver");
    assert_eq!(found_in(&content, &TRACES), [""; 0], "in {program}");
    if shipped.is_some() {
        assert_eq!(found_in(&content, &MODELS), [""; 0], "in {program}");
    }
}

/// The check must be able to fail: these tests are such a program.
#[test]
fn traces_are_found_where_they_are() {
    let tests = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(found_in(&tests, &TRACES), TRACES);
    assert_eq!(found_in(&tests, &MODELS), MODELS);
    let one = [b"\x7fELF some code, _ZN5lagan4pool4fake8FakePool, and more".as_slice()].concat();
    assert_eq!(found_in(&one, &MODELS), ["4pool4fake"]);
    assert_eq!(found_in(&one, &TRACES), [""; 0]);
}

/// No feature, and no dependency that is linked, is for it.
#[test]
fn no_feature_and_no_dependency_is_for_it() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(!manifest.contains("[features]"), "a feature could put something in");
    let linked = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    for library in ["fail =", "nix =", "proptest =", "mockall =", "loom =", "shuttle ="] {
        assert!(!linked.contains(library), "{library} is linked");
    }
    assert!(manifest.contains("nix ="), "the list is of names that the manifest knows");
}
