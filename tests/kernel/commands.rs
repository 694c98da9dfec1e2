//! The command line against a daemon, as a person uses it.

use std::process::Output;

use serde_json::Value;

use crate::{
    requests::publish_with,
    rig::{Ground, Kind, filesystem},
};

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(word), "{word:?} in {said}");
}

#[tokio::test]
async fn the_life_of_a_volume_by_hand() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let lagan = |arguments: &[&str]| ground.lagan(arguments);
    let shown = |arguments: &[&str]| json(&ground.lagan(&[arguments, &["--output", "json"]].concat()));

    let made = shown(&["volume", "create", "db", "--size", "64MiB"]);
    let id = made[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(made[0]["size"], 64 << 20);
    assert_eq!(shown(&["volume", "create", "db", "--size", "64MiB"]), made, "the same again");
    let listed = String::from_utf8(lagan(&["volume", "list"]).stdout).unwrap();
    assert!(listed.lines().count() == 2 && listed.contains("db") && listed.contains("64"), "{listed}");
    assert_eq!(shown(&["volume", "show", &id])[0]["health"], "well");
    assert_eq!(shown(&["pool", "list"])[0]["state"], "open");

    let snapshot = shown(&["snapshot", "create", "before", &id])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(shown(&["snapshot", "show", &snapshot])[0]["group"], "");
    let copy = shown(&["volume", "create", "copy", "--from-snapshot", &snapshot]);
    let copy = copy[0]["id"].as_str().unwrap();
    assert_eq!(shown(&["volume", "list"]).as_array().unwrap().len(), 2);

    let set = shown(&["snapshot", "create", "both", &id, copy]);
    let group = set[0]["group"].as_str().unwrap().to_owned();
    assert_eq!(shown(&["snapshot", "create", "both", copy, &id]), set);
    assert_eq!(shown(&["snapshot", "show", &group]).as_array().unwrap().len(), 2);
    let member = set[1]["id"].as_str().unwrap();
    refused(&lagan(&["snapshot", "delete", "--yes", member]), &group);
    assert!(lagan(&["snapshot", "delete", "--yes", &group]).status.success());
    refused(&lagan(&["snapshot", "delete", "--yes", &group]), "does not exist");
    refused(&lagan(&["snapshot", "show", member]), "does not exist");

    daemon.controller.controller_publish_volume(publish_with(&id, &filesystem("ext4"))).await.unwrap();
    refused(&lagan(&["volume", "delete", "--yes", &id]), "published to node n1");
    assert!(lagan(&["volume", "unpublish", &id]).status.success());
    refused(&lagan(&["volume", "delete", &id]), "db");
    for volume in [&id, copy] {
        assert!(lagan(&["volume", "delete", "--yes", volume]).status.success());
        refused(&lagan(&["volume", "delete", "--yes", volume]), "does not exist");
    }
    assert!(lagan(&["snapshot", "delete", "--yes", &snapshot]).status.success());
    assert_eq!(shown(&["snapshot", "list"]).as_array().unwrap().len(), 0);
    assert_eq!(shown(&["doctor", "--check"])["findings"].as_array().unwrap().len(), 0);
}
