//! An administrator at work in the same group and pool while volumes live and die: neither notices the other.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tonic::Code;

use crate::{
    group::{self, POOL, VG, lvm},
    requests::{from_volume, hide_at},
    rig::{Daemon, Ground, Kind, filesystem, random, write},
    writer::Writer,
};

const PIECE: usize = 1 << 20;

/// How many commands of LVM are run.
fn wanted() -> usize {
    std::env::var("COMMANDS").map_or(40, |count| count.parse().unwrap())
}

/// What the administrator keeps on a thin volume of LVM.
fn device(name: &str) -> File {
    File::options().read(true).write(true).open(format!("/dev/mapper/{VG}-{name}")).unwrap()
}

/// One round: create, write, snapshot, extend, report, rename, and all of it removed again.
fn round(number: usize, content: &[u8], run: &dyn Fn(&[&str])) {
    let (pool, size) = (format!("{VG}/{POOL}"), ["-V", "32m"]);
    let (name, copy, moved) = (format!("a{number}"), format!("s{number}"), format!("m{number}"));
    let full = |name: &str| format!("{VG}/{name}");
    run(&[&["lvcreate", "-y", "-n", &name], &size[..], &["--thinpool", &pool]].concat());
    let file = device(&name);
    file.write_all_at(content, 4096).unwrap();
    file.sync_all().unwrap();
    drop(file);
    run(&["lvcreate", "-y", "-s", "-kn", "-n", &copy, &full(&name)]);
    run(&["lvextend", "-y", "-L", "+4m", &full(&name)]);
    run(&["lvs", "-a", "-o", "+data_percent,metadata_percent", VG]);
    run(&["lvrename", VG, &copy, &moved]);
    for kept in [&name, &moved] {
        let mut read = vec![0; content.len()];
        device(kept).read_exact_at(&mut read, 4096).unwrap();
        assert!(read == content, "{kept}");
    }
    run(&["lvremove", "-fy", &full(&name)]);
    run(&["lvremove", "-fy", &full(&moved)]);
    match number % 4 {
        0 => run(&["lvextend", "-y", "-L", "+4m", &pool]),
        1 => run(&["lvextend", "-y", "--poolmetadatasize", "+4m", &pool]),
        _ => run(&["vgs", VG]),
    }
}

/// Volumes that live and die meanwhile; how many.
async fn live(daemon: &mut Daemon, ground: &Ground, source: &str, stop: &AtomicBool) -> usize {
    let how = filesystem("ext4");
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("v{count}");
        let id = match count % 2 {
            0 => daemon.create(&name, 64, &how).await.volume_id,
            _ => daemon.copy(&name, from_volume(source), &how).await.volume_id,
        };
        let shown = daemon.show(ground, &id, &name, &how).await;
        let content = random(PIECE);
        write(&Path::new(&shown).join("data"), &content);
        let mut read = Vec::new();
        File::open(Path::new(&shown).join("data")).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == content, "{name}");
        unpublish(daemon, ground, &id, &name).await;
        daemon.hide(ground, &id, &name).await;
        daemon.delete(&id).await;
        count += 1;
    }
    count
}

/// A command that was started while a file was open has it too, until it has become that program: in use is in use.
async fn unpublish(daemon: &mut Daemon, ground: &Ground, id: &str, name: &str) {
    for _attempt in 0..100 {
        match daemon.node.node_unpublish_volume(hide_at(id, &ground.path(name))).await {
            Err(status) if status.code() == Code::FailedPrecondition => {}
            answer => return drop(answer.unwrap()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} stays in use");
}

#[tokio::test]
async fn neither_notices_the_other() {
    group::ensure(3072);
    let ground = Ground::new(Kind::Lvm(VG, POOL));
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let source = daemon.create("source", 64, &how).await.volume_id;
    let shown = daemon.show(&ground, &source, "source", &how).await;
    let kept = random(3 * PIECE);
    write(&Path::new(&shown).join("kept"), &kept);
    let writer = Writer::on(&shown);
    lvm(&["lvcreate", "-y", "-n", "neighbour", "-V", "32m", "--thinpool", &format!("{VG}/{POOL}")]);
    device("neighbour").write_all_at(&kept, 0).unwrap();

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let administrator = std::thread::spawn({
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        move || {
            let content = random(PIECE);
            let ended = std::panic::catch_unwind(|| {
                for number in (0..).take_while(|_| done.load(Ordering::Relaxed) < wanted()) {
                    round(number, &content, &|arguments| {
                        lvm(arguments);
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            // Whatever happened, nobody waits for more.
            stop.store(true, Ordering::Relaxed);
            ended
        }
    });
    let lived = live(&mut daemon, &ground, &source, &stop).await;
    assert!(administrator.join().unwrap().is_ok(), "a command of LVM failed");
    println!("{} commands of LVM beside {lived} volumes that lived and died", done.load(Ordering::Relaxed));
    assert!(lived > 0);

    writer.resumes();
    writer.end();
    assert!(std::fs::read(Path::new(&shown).join("kept")).unwrap() == kept);
    let mut read = vec![0; kept.len()];
    device("neighbour").read_exact_at(&mut read, 0).unwrap();
    assert!(read == kept, "what the administrator keeps");
    lvm(&["lvremove", "-fy", &format!("{VG}/neighbour")]);
    daemon.hide(&ground, &source, "source").await;
    daemon.delete(&source).await;
    ground.account();
}
