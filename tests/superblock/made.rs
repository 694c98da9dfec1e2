//! What the options of mkfs make: features that Linux 5.14 mounts, and little on the disk.

use std::os::unix::fs::{FileExt, MetadataExt};

use lagan::{bytes::Bytes, filesystem::Filesystem};

use crate::rig::{make_with, scratch};

/// The feature words, by their place in the image.
const fn features(filesystem: Filesystem) -> [(u64, [u8; 4]); 3] {
    match filesystem {
        // s_feature_compat, _incompat and _ro_compat
        Filesystem::Ext4 => [
            (1024 + 0x5c, 0x3c_u32.to_le_bytes()),
            (1024 + 0x60, 0x22c2_u32.to_le_bytes()),
            (1024 + 0x64, 0x46b_u32.to_le_bytes()),
        ],
        // sb_features_compat, _ro_compat and _incompat
        Filesystem::Xfs => {
            [(208, 0_u32.to_be_bytes()), (212, 0xd_u32.to_be_bytes()), (216, 0xb_u32.to_be_bytes())]
        }
        // compat_flags, compat_ro_flags and incompat_flags
        Filesystem::Btrfs => [
            (0x1_00ac, 0_u32.to_le_bytes()),
            (0x1_00b4, 0x3_u32.to_le_bytes()),
            (0x1_00bc, 0x341_u32.to_le_bytes()),
        ],
    }
}

#[test]
fn what_is_made_has_the_features_of_linux_5_14() {
    for filesystem in Filesystem::ALL {
        let directory = scratch();
        let image = make_with(directory.path().join("image"), Bytes::gib(1), filesystem, &[]);
        for (at, expected) in features(filesystem) {
            let mut word = [0; 4];
            image.open().read_exact_at(&mut word, at).unwrap();
            assert_eq!(word, expected, "{filesystem}, byte {at}");
        }
    }
}

#[test]
fn a_new_ext4_takes_little_and_goes_on_so() {
    let directory = scratch();
    let image = make_with(directory.path().join("image"), Bytes::gib(100), Filesystem::Ext4, &[]);
    let allocated = || image.open().metadata().unwrap().blocks() * 512;
    assert!(allocated() < 8_000_000, "{} bytes", allocated());
    // The kernel leaves inode tables alone that are marked as zeroed.
    image.mount().write_durably("file", "content");
    assert!(allocated() < 16_000_000, "{} bytes", allocated());
}

/// What a reflink of it costs. The filesystem that the image is on may merge two places, never part one.
#[test]
fn a_new_ext4_of_a_tib_lies_in_few_places() {
    let directory = scratch();
    let image = make_with(directory.path().join("image"), Bytes::gib(1024), Filesystem::Ext4, &[]);
    let (file, mut at, mut places) = (image.open(), 0, 0);
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        places += 1;
    }
    assert!((10..100).contains(&places), "{places}");
}
