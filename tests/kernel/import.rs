//! Files and devices of somebody else, copied into a pool of files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc,
    time::Duration,
};

use lagan::proto::IMPORT;
use serde_json::Value;
use tonic::{Code, Request, metadata::MetadataValue};

use crate::{
    requests::{check, create_with},
    rig::{Daemon, Ground, HTTP, Kind, filesystem, random, run, text, write},
};

/// A filesystem in a file, with something in it, that nobody uses.
fn disk(ground: &Ground, name: &str, make: &[&str]) -> (String, Vec<u8>) {
    let (image, point) = (ground.root.join(name), ground.root.join("targets").join(format!("{name}-made")));
    // No whole number of blocks: what comes from elsewhere may be as long as it likes.
    File::create(&image).unwrap().set_len((320 << 20) + 512).unwrap();
    run(&format!("mkfs.{}", make[0]), &[&make[1..], &["-q", &text(&image)]].concat());
    fs::create_dir(&point).unwrap();
    run("mount", &["-o", "loop", &text(&image), &text(&point)]);
    let content = random(3 << 20);
    write(&point.join("data"), &content);
    run("umount", &[&text(&point)]);
    (text(&image), content)
}

fn imported(ground: &Ground, arguments: &[&str]) -> Value {
    let output = ground.lagan(&[&["volume", "import"], arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].clone()
}

#[track_caller]
fn refused(ground: &Ground, arguments: &[&str], word: &str) {
    let output = ground.lagan(&[&["volume", "import"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(word), "{word:?} in {said}");
}

/// Made longer than its source, it grows when it is staged.
async fn grows(daemon: &mut Daemon, ground: &Ground, image: &str, name: &str) {
    let larger = imported(ground, &["larger", "--device", image, "--size", "512MiB"]);
    let (larger, how) = (larger["id"].as_str().unwrap(), filesystem(name));
    let shown = daemon.show(ground, larger, "larger", &how).await;
    let room = run("stat", &["-f", "-c", "%b %S", &shown]);
    let room = room.split_whitespace().map(|it| it.parse::<u64>().unwrap()).product::<u64>();
    assert!(room > 400 << 20, "{name} has grown with its volume: {room}");
    daemon.hide(ground, larger, "larger").await;
    daemon.delete(larger).await;
}

fn uuid_of(path: &str) -> String {
    run("blkid", &["-p", "-o", "value", "-s", "UUID", path])
}

#[tokio::test]
async fn files_and_devices_become_volumes() {
    for kind in [Kind::Image, Kind::On("ext4")] {
        let mut ground = Ground::new(kind);
        ground.http = HTTP;
        let mut daemon = ground.start().await;
        // The image of a pool has long sectors, and so has everything in it.
        let short = kind != Kind::Image;
        let make: [&[&str]; 3] = if short {
            [&["ext4", "-b1024"], &["xfs"], &["btrfs"]]
        } else {
            [&["ext4", "-b4096"], &["xfs", "-ssize=4096"], &["btrfs"]]
        };
        for make in make {
            let name = make[0];
            let (image, content) = disk(&ground, name, make);
            let before = fs::read(&image).unwrap();
            let made = imported(&ground, &[name, "--device", &image]);
            let id = made["id"].as_str().unwrap();
            assert_eq!(made["size"], (320 << 20) + 4096, "rounded up to whole blocks");
            // Growing an ext4 in use takes a right that not every machine gives to tests: the one in the virtual machine does.
            if name != "ext4" {
                grows(&mut daemon, &ground, &image, name).await;
            }
            let how = filesystem(name);
            let shown = daemon.show(&ground, id, name, &how).await;
            assert!(fs::read(Path::new(&shown).join("data")).unwrap() == content, "{name} on {kind:?}");
            daemon.hide(&ground, id, name).await;
            assert!(fs::read(&image).unwrap() == before, "the source is as it was");
            let same = uuid_of(&image) == uuid_of(&text(&ground.file_of(id)));
            // An ext4 made elsewhere may have checksums that start from its uuid; two of it can be mounted all the same.
            assert!(!same || name == "ext4", "both can be mounted");
            daemon.delete(id).await;
        }
        // A device, of which nobody knows what is in it.
        let (raw, content) = (text(&ground.root.join("raw")), random(5 << 20));
        write(Path::new(&raw), &content);
        let device = run("losetup", &["-f", "--show", "-r", &raw]).trim().to_owned();
        let made = imported(&ground, &["raw", "--device", &device, "--size", "16MiB"]);
        let id = made["id"].as_str().unwrap();
        assert_eq!(made["size"], 16 << 20);
        let copy = fs::read(ground.file_of(id)).unwrap();
        assert!(copy[..5 << 20] == content && copy[5 << 20..].iter().all(|byte| *byte == 0));
        refused(&ground, &["raw", "--device", "/dev/null"], "ALREADY_EXISTS");
        run("losetup", &["-d", &device]);
        daemon.delete(id).await;
        ground.account();
    }
}

#[tokio::test]
async fn what_is_in_use_or_no_device_is_refused() {
    let ground = Ground::new(Kind::Image);
    let mut daemon = ground.start().await;
    let (image, _) = disk(&ground, "used", &["ext4", "-b4096"]);
    let point = ground.path("used-made");
    run("mount", &["-o", "loop", &image, &point]);
    refused(&ground, &["v", "--device", &image], "somebody writes to it");
    let device = run("findmnt", &["-n", "-o", "SOURCE", &point]).trim().to_owned();
    refused(&ground, &["v", "--device", &device], "mounted, or in use");
    run("umount", &[&point]);
    let device = run("losetup", &["--find", "--show", &image]).trim().to_owned();
    let raw = File::options().write(true).open(&device).unwrap();
    let (done, stop) = mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
            raw.write_all_at(b"torn", 300 << 20).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    refused(&ground, &["v", "--device", &device], "somebody writes to it");
    drop(done);
    writer.join().unwrap();
    run("losetup", &["-d", &device]);
    let (short, _) = disk(&ground, "short", &["ext4", "-b1024"]);
    refused(&ground, &["v", "--device", &short], "sectors shorter than 4.0 KiB");
    refused(&ground, &["v", "--device", "/dev/null"], "no block device and no file");
    refused(&ground, &["v", "--device", "/nowhere"], "does not exist");
    refused(&ground, &["v", "--thin-id", "1048577"], "only a pool of LVM");
    refused(&ground, &["v", "--lv", "vg/lv"], "only a pool of LVM");
    let nothing = ground.lagan(&["volume", "import", "v"]);
    assert_eq!(nothing.status.code(), Some(2));

    // No parameter does it, and no metadata that is not understood.
    let mut parameter = create_with("v", 0, &filesystem("ext4"));
    parameter.parameters.insert(IMPORT.into(), format!("device:{image}"));
    check(daemon.controller.create_volume(parameter).await, Code::InvalidArgument);
    for hostile in [&b"device:relative"[..], b"file:/etc/shadow", b"\xff", b""] {
        let mut request = Request::new(create_with("v", 0, &filesystem("ext4")));
        request.metadata_mut().insert_bin(IMPORT, MetadataValue::from_bytes(hostile));
        check(daemon.controller.create_volume(request).await, Code::InvalidArgument);
    }
    ground.account();
}
