//! From an earlier build to this one and back, under a volume in use: what one has made the other one goes on with. Run by
//! `make test-upgrade`, which builds the earlier one (`LAGAN_BEFORE`).

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says why")]

#[path = "../support/disk.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod disk;
#[path = "../support/requests.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod requests;
#[path = "../kernel/rig.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod rig;
#[path = "../support/writer.rs"]
#[expect(dead_code, reason = "shared with tests that ask for more")]
mod writer;

use std::{collections::BTreeSet, fs, path::Path};

use lagan::proto::{DeleteSnapshotRequest, ListSnapshotsRequest, ListVolumesRequest};

use crate::{
    requests::{from_snapshot, from_volume},
    rig::{Daemon, Ground, Kind, filesystem, random, write},
    writer::Writer,
};

/// Everything that a daemon lists.
async fn listed(daemon: &mut Daemon) -> BTreeSet<String> {
    let volumes = daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    let snapshots =
        daemon.controller.list_snapshots(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let volumes = volumes.entries.into_iter().map(|entry| format!("{entry:?}"));
    volumes.chain(snapshots.entries.into_iter().map(|entry| format!("{entry:?}"))).collect()
}

/// Ends the daemon, and starts another program in its place.
async fn replaced(daemon: Daemon, ground: &mut Ground, program: &str) -> Daemon {
    assert!(daemon.stop().success());
    program.clone_into(&mut ground.program);
    let daemon = ground.start().await;
    ground.account();
    daemon
}

async fn there_and_back(kind: Kind) {
    let before =
        std::env::var("LAGAN_BEFORE").expect("LAGAN_BEFORE: the earlier program (`make test-upgrade`)");
    let mut ground = Ground::new(kind);
    let after = std::mem::replace(&mut ground.program, before.clone());
    let how = filesystem("xfs");
    let content = random(1 << 20);

    let mut daemon = ground.start().await;
    let used = daemon.create("used", 320, &how).await.volume_id;
    let shown = daemon.show(&ground, &used, "used", &how).await;
    write(&Path::new(&shown).join("data"), &content);
    let writer = Writer::on(&shown);
    let old_cut = daemon.snapshot(&used, "old").await.unwrap().snapshot_id;
    let old_copy = daemon.copy("old-copy", from_snapshot(&old_cut), &how).await.volume_id;
    let all = listed(&mut daemon).await;

    let mut daemon = replaced(daemon, &mut ground, &after).await;
    assert_eq!(listed(&mut daemon).await, all);
    assert_eq!(daemon.create("used", 320, &how).await.volume_id, used, "a retry finds it");
    let new_cut = daemon.snapshot(&used, "new").await.unwrap().snapshot_id;
    let new_copy = daemon.copy("new-copy", from_snapshot(&old_cut), &how).await.volume_id;
    let clone = daemon.copy("clone", from_volume(&used), &how).await.volume_id;
    let group = daemon.group(&[&used, &new_copy], "group").await.unwrap();
    let all = listed(&mut daemon).await;

    let mut daemon = replaced(daemon, &mut ground, &before).await;
    assert_eq!(listed(&mut daemon).await, all);
    for (copy, name) in [(&new_copy, "new-copy"), (&old_copy, "old-copy"), (&clone, "clone")] {
        let shown = daemon.show(&ground, copy, name, &how).await;
        assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content, "{name}");
        daemon.hide(&ground, copy, name).await;
    }
    let last = daemon.copy("last", from_snapshot(&new_cut), &how).await.volume_id;
    daemon.controller.controller_publish_volume(requests::publish_with(&last, &how)).await.unwrap();

    let mut daemon = replaced(daemon, &mut ground, &after).await;
    assert!(writer.end() > 0);
    daemon.hide(&ground, &used, "used").await;
    daemon.controller.controller_unpublish_volume(requests::unpublish_from(&last, "")).await.unwrap();
    daemon.groups.delete_volume_group_snapshot(requests::ungroup(&group)).await.unwrap();
    for cut in [old_cut, new_cut] {
        let request = DeleteSnapshotRequest { snapshot_id: cut, ..Default::default() };
        daemon.controller.delete_snapshot(request).await.unwrap();
    }
    for id in [&used, &old_copy, &new_copy, &clone, &last] {
        daemon.delete(id).await;
    }
    assert_eq!(listed(&mut daemon).await, BTreeSet::new());
    ground.account();
}

#[tokio::test]
async fn a_pool_that_shares_blocks() {
    there_and_back(Kind::Image).await;
}

#[tokio::test]
async fn a_pool_that_copies() {
    there_and_back(Kind::On("ext4")).await;
}
