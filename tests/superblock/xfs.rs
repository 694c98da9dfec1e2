//! XFS logs as the kernel leaves them: used, wrapped around, written with large buffers, after a crash.

use std::{fs, io::ErrorKind};

use lagan::{filesystem::Filesystem, sys::superblock::renew};

use crate::{
    of_clone,
    rig::{Mount, make_with, run, scratch, text},
};

/// Makes files each of which is a record of its own in the log (`wsync`), 4 KiB at least.
fn work(mount: &Mount, round: u32) {
    for number in 0..1000 {
        fs::File::create_new(mount.path(&format!("{round}-{number}"))).unwrap();
    }
}

fn verify(mount: &Mount, rounds: u32) {
    for round in 0..rounds {
        for number in 0..1000 {
            assert!(mount.path(&format!("{round}-{number}")).exists());
        }
    }
}

#[test]
fn a_log_that_wrapped_around_takes_a_new_identity() {
    let layouts =
        [("size=12m", "wsync"), ("size=12m,su=32k", "wsync"), ("size=20m,su=256k", "wsync,logbsize=256k")];
    for (log, options) in layouts {
        let directory = scratch();
        let filesystem = Filesystem::Xfs;
        let image = make_with(directory.path().join("image"), filesystem.minimum(), filesystem, &["-l", log]);
        // A thousand records of 4 KiB a round: the fourth, at the latest, wraps 12 MiB; a stripe unit does so sooner.
        for round in 0..5 {
            work(&image.mount_with(options), round);
            assert!(image.superblock().clean, "{log}, round {round}");
            renew(&image.open(), image.size, &of_clone()).unwrap();
            image.check();
            // Mounted, written and lost at once: recovery must not meet the record of before.
            let mount = image.mount();
            mount.write_durably("late", "fsynced");
            let crashed = image.copy("crashed");
            drop(mount);
            assert!(!crashed.superblock().clean);
            let mount = crashed.mount();
            verify(&mount, round + 1);
            assert_eq!(fs::read_to_string(mount.path("late")).unwrap(), "fsynced");
            drop(mount);
            crashed.check();
        }
    }
}

#[test]
fn a_log_that_xfs_admin_wrote_wants_a_mount_first() {
    let directory = scratch();
    let filesystem = Filesystem::Xfs;
    let image = make_with(directory.path().join("image"), filesystem.minimum(), filesystem, &[]);
    image.mount().fill("source");
    // It leaves old blocks behind its first record; the kernel takes the last record of the ring for the head.
    run("xfs_admin", &["-U", "generate", text(&image.path)]);
    assert_eq!(image.superblock().uuid, image.blkid());
    assert!(!image.superblock().clean);
    assert_eq!(renew(&image.open(), image.size, &of_clone()).unwrap_err().kind(), ErrorKind::ResourceBusy);
    image.mount().verify("source");
    assert!(image.superblock().clean);
    renew(&image.open(), image.size, &of_clone()).unwrap();
    image.check();
    image.mount().verify("source");
}
