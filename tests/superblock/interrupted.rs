//! A renewal that a crash cut short: with any part of its writes on disk, the same call finishes it.

use std::{fs, os::unix::fs::FileExt};

use lagan::{bytes::Bytes, filesystem::Filesystem, sys::superblock::renew};

use crate::{
    of_clone,
    rig::{Image, make_with, scratch},
};

/// The pages in which two images of the same size differ.
fn differences(old: &Image, new: &Image) -> Vec<(u64, [u8; 4096], [u8; 4096])> {
    let (old, new) = (old.open(), new.open());
    let mut found = Vec::new();
    let mut chunks = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for start in (0..old.metadata().unwrap().len()).step_by(1 << 20) {
        old.read_exact_at(&mut chunks.0, start).unwrap();
        new.read_exact_at(&mut chunks.1, start).unwrap();
        if chunks.0 == chunks.1 {
            continue;
        }
        let pages = chunks.0.chunks(4096).zip(chunks.1.chunks(4096)).zip((start..).step_by(4096));
        let pages = pages.filter(|((old, new), _)| old != new);
        found.extend(pages.map(|((old, new), at)| (at, old.try_into().unwrap(), new.try_into().unwrap())));
    }
    found
}

#[test]
fn an_interrupted_renewal_is_finished_by_another() {
    for filesystem in Filesystem::ALL {
        let directory = scratch();
        let size = Bytes::mib(400);
        let source = make_with(directory.path().join("source"), size, filesystem, &[]);
        source.mount().fill("source");
        let done = source.copy("done");
        let identity = of_clone();
        renew(&done.open(), size, &identity).unwrap();
        let changed = differences(&source, &done);
        // ext4: primary and journal. XFS: four groups and the log. btrfs: two mirrors of three.
        let expected = match filesystem {
            Filesystem::Ext4 => 2,
            Filesystem::Xfs => 5,
            Filesystem::Btrfs => 2,
        };
        assert_eq!(changed.len(), expected, "{filesystem}");
        // Each set of pages that can have reached the disk.
        for written in 0..1_u32 << changed.len() {
            let half = source.copy("half");
            for (bit, (at, _, new)) in changed.iter().enumerate() {
                if written >> bit & 1 == 1 {
                    half.open().write_all_at(new, *at).unwrap();
                }
            }
            renew(&half.open(), size, &identity).unwrap();
            assert_eq!(differences(&half, &done), [], "{filesystem}, pages {written:b}");
            fs::remove_file(&half.path).unwrap();
        }
    }
}
