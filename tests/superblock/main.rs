//! `sys::superblock` against the real tools and the real kernel: what it reads is what they made, and what it writes
//! they accept. Needs root.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod interrupted;
mod made;
mod rig;
mod xfs;

use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{FileExt, OpenOptionsExt},
};

use lagan::{
    bytes::Bytes,
    filesystem::Filesystem,
    sys::superblock::{Contents, Identity, probe, renew},
};
use uuid::Uuid;

use crate::rig::{Image, blank, make_with, run, run_status, scratch, text};

/// The smallest, an ordinary, and one with all mirrors of btrfs but the last.
fn sizes(filesystem: Filesystem) -> [Bytes; 3] {
    [filesystem.minimum(), Bytes::gib(1), Bytes::gib(100)]
}

fn fresh() -> Identity {
    Identity { uuid: Uuid::new_v4(), hash_seed: Some(Uuid::new_v4()) }
}

fn of_clone() -> Identity {
    Identity { uuid: Uuid::new_v4(), hash_seed: None }
}

/// Copies the image three times, each under an identity of its own that the tools confirm.
fn three_copies(source: &Image, identity: fn() -> Identity) -> Vec<Image> {
    let before = source.superblock();
    let copy = |number| {
        let copy = source.copy(&format!("copy-{number}"));
        let identity = identity();
        renew(&copy.open(), copy.size, &identity).unwrap();
        let after = copy.superblock();
        assert_eq!(after.uuid, identity.uuid);
        assert_eq!((after.size, after.clean, after.errors), (before.size, true, false));
        assert_eq!(copy.blkid(), identity.uuid);
        copy.check();
        copy
    };
    (0..3).map(copy).collect()
}

/// A template and its copies, then a used volume and its clones, all mounted side by side.
fn lives(filesystem: Filesystem) {
    for size in sizes(filesystem) {
        let directory = scratch();
        let source = make_with(directory.path().join("source"), size, filesystem, &[]);
        let made = source.superblock();
        assert_eq!(made.filesystem, filesystem);
        assert_eq!((made.uuid, made.size), (source.blkid(), size));
        assert!(made.clean && !made.errors);

        let copies = three_copies(&source, fresh);
        let mounts: Vec<_> = copies.iter().map(Image::mount).collect();
        source.mount().fill("source");
        for (number, mount) in mounts.iter().enumerate() {
            mount.fill(&number.to_string());
        }
        drop(mounts);
        for (number, copy) in copies.iter().enumerate() {
            assert!(copy.superblock().clean);
            copy.check();
            copy.mount().verify(&number.to_string());
        }

        let clones = three_copies(&source, of_clone);
        let original = source.mount();
        for round in 0..3 {
            let mounts: Vec<_> = clones.iter().map(Image::mount).collect();
            for mount in &mounts {
                mount.verify("source");
                mount.write_durably(&format!("round-{round}"), "more");
            }
        }
        original.verify("source");
        clones.iter().for_each(Image::check);
        // A clone of a clone.
        renew(&clones[0].open(), size, &of_clone()).unwrap();
        clones[0].check();
        clones[0].mount().verify("source");
    }
}

#[test]
fn ext4_lives_under_new_identities() {
    lives(Filesystem::Ext4);
}

#[test]
fn xfs_lives_under_new_identities() {
    lives(Filesystem::Xfs);
}

#[test]
fn btrfs_lives_under_new_identities() {
    lives(Filesystem::Btrfs);
}

/// A copy taken while the filesystem is mounted and written, as a snapshot is.
fn crashed(filesystem: Filesystem, source: &Image) -> Image {
    let mount = source.mount();
    mount.fill("before");
    rustix::fs::sync();
    mount.write_durably("late", "fsynced");
    let copy = source.copy("crashed");
    assert_eq!(copy.superblock().filesystem, filesystem);
    assert!(!copy.superblock().clean);
    copy
}

#[test]
fn a_journal_to_replay_refuses_a_new_identity() {
    for filesystem in [Filesystem::Ext4, Filesystem::Xfs] {
        let directory = scratch();
        let source = make_with(directory.path().join("source"), filesystem.minimum(), filesystem, &[]);
        let copy = crashed(filesystem, &source);
        let before = std::fs::read(&copy.path).unwrap();
        let refused = renew(&copy.open(), copy.size, &of_clone()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ResourceBusy);
        assert!(std::fs::read(&copy.path).unwrap() == before, "a refusal writes nothing");

        // Replay, then it may. XFS of the same uuid may not be mounted beside the source without nouuid.
        copy.mount_with(if filesystem == Filesystem::Xfs { "nouuid" } else { "rw" }).verify("before");
        assert!(copy.superblock().clean);
        renew(&copy.open(), copy.size, &of_clone()).unwrap();
        copy.check();
        let _source = source.mount();
        copy.mount().verify("before");
    }
}

#[test]
fn a_btrfs_log_tree_survives_a_new_identity() {
    let directory = scratch();
    let source = make_with(directory.path().join("source"), Bytes::gib(1), Filesystem::Btrfs, &[]);
    let copy = crashed(Filesystem::Btrfs, &source);
    renew(&copy.open(), copy.size, &of_clone()).unwrap();
    let _source = source.mount();
    let mount = copy.mount();
    mount.verify("before");
    assert_eq!(std::fs::read_to_string(mount.path("late")).unwrap(), "fsynced");
    drop(mount);
    copy.check();
}

#[test]
fn a_grown_filesystem_takes_a_new_identity() {
    for filesystem in Filesystem::ALL {
        let directory = scratch();
        let mut image = make_with(directory.path().join("image"), filesystem.minimum(), filesystem, &[]);
        image.mount().fill("source");
        image.size = Bytes::gib(20);
        image.open().set_len(image.size.get()).unwrap();
        let path = text(&image.path);
        if filesystem == Filesystem::Ext4 {
            run("e2fsck", &["-fp", path]);
            run("resize2fs", &[path]);
        } else {
            let mount = image.mount();
            let place = text(mount.directory());
            match filesystem {
                Filesystem::Xfs => run("xfs_growfs", &["-d", place]),
                _ => run("btrfs", &["filesystem", "resize", "max", place]),
            };
        }
        let before = image.superblock();
        assert_eq!((before.size, before.clean), (image.size, true));
        for clone in three_copies(&image, of_clone) {
            clone.mount().verify("source");
            clone.check();
        }
    }
}

/// The last line of a tool's report that starts with `label`, without it.
fn line<'report>(report: &'report str, label: &str) -> &'report str {
    report.lines().filter_map(|line| line.trim().strip_prefix(label)).next_back().unwrap().trim()
}

#[test]
fn every_copy_of_the_superblock_follows_on_xfs_and_btrfs() {
    let directory = scratch();
    let make = |filesystem: Filesystem, gib| {
        let image = make_with(directory.path().join(filesystem.name()), Bytes::gib(gib), filesystem, &[]);
        let (identity, before) = (fresh(), image.superblock().uuid);
        renew(&image.open(), image.size, &identity).unwrap();
        (image, identity, before)
    };

    let (image, identity, before) = make(Filesystem::Xfs, 100);
    for group in 0..4 {
        let group = format!("sb {group}");
        let report =
            run("xfs_db", &["-r", "-c", &group, "-c", "print uuid meta_uuid crc", text(&image.path)]);
        assert_eq!(line(&report, "uuid ="), identity.uuid.to_string());
        assert_eq!(line(&report, "meta_uuid ="), before.to_string());
        assert!(report.contains("(correct)"), "{report}");
    }

    let (image, identity, before) = make(Filesystem::Btrfs, 300);
    for mirror in ["0", "1", "2"] {
        let report = run("btrfs", &["inspect-internal", "dump-super", "-s", mirror, text(&image.path)]);
        assert_eq!(line(&report, "fsid"), identity.uuid.to_string());
        assert_eq!(line(&report, "metadata_uuid"), before.to_string());
        assert!(line(&report, "csum\t").contains("[match]"), "{report}");
    }
}

/// The backups of ext4 keep the identity it was made with, hash seed included. What was indexed under the new seed
/// must be found again when the primary is lost and a backup takes its place.
#[test]
fn an_ext4_without_its_primary_is_repaired_from_a_backup() {
    let directory = scratch();
    let image = make_with(directory.path().join("image"), Bytes::gib(1), Filesystem::Ext4, &[]);
    let (identity, made) = (fresh(), image.superblock().uuid);
    renew(&image.open(), image.size, &identity).unwrap();
    let names: Vec<_> = (0..5000).map(|number| format!("a file of an indexed directory {number}")).collect();
    {
        let mount = image.mount();
        mount.fill("before");
        std::fs::create_dir(mount.path("indexed")).unwrap();
        for name in &names {
            std::fs::write(mount.path("indexed").join(name), name).unwrap();
        }
    }
    image.open().write_all_at(&[0; 1024], 1024).unwrap();

    // It ends with 1: errors, all corrected.
    let (_, report) = run_status("e2fsck", &["-f", "-y", "-b", "32768", "-B", "4096", text(&image.path)]);
    assert!(report.contains("FILE SYSTEM WAS MODIFIED"), "{report}");

    assert_eq!(image.superblock().uuid, made, "the test is about a backup of the old identity");
    image.check();
    let mount = image.mount();
    mount.verify("before");
    for name in &names {
        assert_eq!(&std::fs::read_to_string(mount.path("indexed").join(name)).unwrap(), name);
    }
    assert_eq!(std::fs::read_dir(mount.path("indexed")).unwrap().count(), names.len());
    assert_eq!(std::fs::read_dir(mount.path("lost+found")).unwrap().count(), 0);
}

#[test]
fn a_device_opened_for_direct_io_will_do() {
    for filesystem in Filesystem::ALL {
        let directory = scratch();
        let image = make_with(directory.path().join("image"), Bytes::gib(1), filesystem, &[]);
        let looped = image.attach();
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
        let device =
            OpenOptions::new().read(true).write(true).custom_flags(direct).open(&looped.device).unwrap();
        assert_eq!(probe(&device, image.size).unwrap(), Contents::Filesystem(image.superblock()));
        let identity = fresh();
        renew(&device, image.size, &identity).unwrap();
        device.sync_all().unwrap();
        drop((device, looped));
        assert_eq!(image.superblock().uuid, identity.uuid);
        image.check();
        let empty = blank(directory.path().join("empty"), Bytes::mib(4));
        let looped = empty.attach();
        let device = OpenOptions::new().read(true).custom_flags(direct).open(&looped.device).unwrap();
        assert_eq!(probe(&device, empty.size).unwrap(), Contents::Blank);
        drop((device, looped));
    }
}

#[test]
fn features_bound_to_the_uuid_are_refused() {
    let cases: [&[&str]; 4] = [
        &["-O", "^metadata_csum_seed"],
        &["-O", "^metadata_csum_seed,^metadata_csum,uninit_bg"],
        &["-O", "stable_inodes,encrypt"],
        &["-O", "mmp"],
    ];
    for more in cases {
        let directory = scratch();
        let image = make_with(directory.path().join("image"), Bytes::gib(1), Filesystem::Ext4, more);
        let before = image.superblock();
        let refused = renew(&image.open(), image.size, &of_clone()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{more:?}");
        assert_eq!(image.superblock(), before);
    }
}

#[test]
fn a_hash_seed_in_use_is_kept() {
    let directory = scratch();
    let image = make_with(directory.path().join("image"), Bytes::gib(1), Filesystem::Ext4, &[]);
    image.mount().fill("source");
    let refused = renew(&image.open(), image.size, &fresh()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    let nil = Identity { uuid: Uuid::nil(), hash_seed: None };
    assert_eq!(renew(&image.open(), image.size, &nil).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn other_contents_are_unknown_or_blank() {
    let directory = scratch();
    let size = Bytes::mib(64);
    let image = blank(directory.path().join("image"), size);
    assert_eq!(image.probe(), Contents::Blank);
    for offset in [0, 511, 1 << 20, (1 << 20) - 1, (63 << 20), (64 << 20) - 1] {
        image.open().write_all_at(&[1], offset).unwrap();
        let expected = if offset == 1 << 20 { Contents::Blank } else { Contents::Unknown };
        assert_eq!(image.probe(), expected, "a byte at {offset}");
        image.open().write_all_at(&[0], offset).unwrap();
    }
    for (number, kind) in ["ext2", "ext3"].into_iter().enumerate() {
        let image = blank(directory.path().join(number.to_string()), size);
        run("mke2fs", &["-q", "-F", "-t", kind, "-T", "default", text(&image.path)]);
        assert_eq!(image.probe(), Contents::Unknown, "{kind}");
        assert_eq!(renew(&image.open(), size, &of_clone()).unwrap_err().kind(), ErrorKind::InvalidData);
    }
    // Two whole superblocks: which one it is cannot be told.
    let image = make_with(directory.path().join("both"), Bytes::gib(1), Filesystem::Ext4, &[]);
    let other = make_with(directory.path().join("other"), Bytes::gib(1), Filesystem::Btrfs, &[]);
    let mut page = [0; 4096];
    other.open().read_exact_at(&mut page, 64 << 10).unwrap();
    image.open().write_all_at(&page, 64 << 10).unwrap();
    assert_eq!(image.probe(), Contents::Unknown);
    assert_eq!(renew(&image.open(), image.size, &of_clone()).unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn unreadable_is_not_blank() {
    let directory = scratch();
    let size = Bytes::mib(4);
    let image = blank(directory.path().join("image"), size);
    let write_only = OpenOptions::new().write(true).open(&image.path).unwrap();
    assert!(probe(&write_only, size).is_err());
    assert!(probe(&File::open(directory.path()).unwrap(), size).is_err());
    let longer = probe(&image.open(), Bytes::mib(8)).unwrap_err();
    assert_eq!(longer.kind(), ErrorKind::UnexpectedEof);
    for length in [0, 512, 4097] {
        let refused = probe(&image.open(), Bytes::new(length)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}
