//! Ways in that are not there: a socket of somebody else, a link that comes while a path is looked up.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use tonic::Code;

use crate::{
    hostile::setting,
    requests::{check, hide_at, show_at},
    rig::{Ground, Kind, filesystem, text, try_run},
};

#[tokio::test]
async fn nobody_else_reaches_the_socket() {
    let ground = Ground::new(Kind::Image);
    let daemon = ground.start().await;
    // Even where everybody may look into its directory.
    fs::set_permissions(&ground.root, fs::Permissions::from_mode(0o755)).unwrap();
    let program = ground.root.join("targets/lagan");
    fs::copy(&ground.program, &program).unwrap();
    let ask = [&text(&program), "--endpoint", &text(&daemon.socket), "volume", "list"];
    let (well, said) = try_run(ask[0], &ask[1..]);
    assert!(well, "{said}");
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let (well, said) = try_run("setpriv", &[&nobody, &ask[..]].concat());
    assert!(!well && said.contains("Permission denied"), "{said}");
    fs::remove_file(program).unwrap();
}

/// What is wrong with a path is the caller's to mend, and no bug of ours.
#[tokio::test]
async fn a_path_that_cannot_be_made_is_told_so() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    fs::write(ground.path("file"), "").unwrap();
    let long = "n".repeat(256);
    for (path, shown, hidden) in [
        ("missing/a", Code::FailedPrecondition, Code::Ok),
        ("file/a", Code::FailedPrecondition, Code::Ok),
        (long.as_str(), Code::InvalidArgument, Code::InvalidArgument),
    ] {
        let (path, staging) = (ground.path(path), format!("{target}-staging"));
        check(daemon.node.node_publish_volume(show_at(&id, &staging, &path, &how)).await, shown);
        check(daemon.node.node_unpublish_volume(hide_at(&id, &path)).await, hidden);
    }
    daemon.hide(&ground, &id, "a").await;
    fs::remove_file(ground.path("file")).unwrap();
    ground.account();
}

/// A directory and a link that leads elsewhere take turns under one name, while volumes are shown and taken away there.
#[tokio::test]
async fn a_link_swapped_meanwhile_leads_nowhere() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let id = daemon.create("a", 16, &how).await.volume_id;
    let target = daemon.show(&ground, &id, "a", &how).await;
    let outside = ground.root.join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    let (place, link) = (ground.path("place"), ground.path("link"));
    fs::create_dir(&place).unwrap();
    symlink(&outside, &link).unwrap();
    let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let swapper = thread::spawn({
        let (stop, swaps, place, link) = (Arc::clone(&stop), Arc::clone(&swaps), place.clone(), link.clone());
        move || {
            // In the end the directory is where it was.
            while !stop.load(Ordering::Relaxed) || swaps.load(Ordering::Relaxed) % 2 == 1 {
                renameat_with(CWD, &place, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let (wanted, mut shown, mut refused) = (setting("AUDIT_SWAPS", 100_000), 0, 0);
    while swaps.load(Ordering::Relaxed) < wanted || shown == 0 || refused == 0 {
        let path = format!("{place}/inner");
        match daemon.node.node_publish_volume(show_at(&id, &format!("{target}-staging"), &path, &how)).await {
            Ok(_) => shown += 1,
            Err(_) => refused += 1,
        }
        // It may be refused likewise.
        drop(daemon.node.node_unpublish_volume(hide_at(&id, &path)).await);
        let stray = ground.mounts().into_iter().find(|point| point.starts_with(&text(&outside)));
        assert_eq!(stray, None, "mounted behind a link");
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    println!(
        "{} swaps, {shown} publishes, {refused} refused, 0 behind the link",
        swaps.load(Ordering::Relaxed)
    );
    assert!(outside.join("inner").is_dir() && fs::read_dir(outside.join("inner")).unwrap().count() == 0);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made or removed behind the link");
    daemon.node.node_unpublish_volume(hide_at(&id, &format!("{place}/inner"))).await.unwrap();
    daemon.hide(&ground, &id, "a").await;
    fs::remove_file(&link).unwrap();
    ground.account();
}
