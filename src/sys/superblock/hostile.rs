//! Images that lie: small ones made by hand, each whole enough to be renewed, then spoiled at random, with and
//! without checksums put right again. Volumes reach us with whatever their users wrote on the raw device.

use std::{fs::File, os::unix::fs::FileExt};

use proptest::prelude::*;

use super::{page::crc_without, *};

/// The least that each of the three can be: one allocation group of XFS.
const LENGTH: Bytes = Bytes::mib(16);

fn le(page: &mut [u8; 4096], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn be(page: &mut [u8; 4096], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Pages of an image, by number.
type Pages = Vec<(u64, [u8; 4096])>;

/// Puts the checksum of a page right.
type Mend = fn(u64, &mut [u8; 4096]);

/// Superblock, group descriptors, the inode table and the journal in blocks 0 to 3.
fn ext4() -> (Pages, Mend) {
    let mut first = [0; 4096];
    for (at, value) in [
        (0x4, 4096),           // s_blocks_count_lo
        (0x18, 2),             // s_log_block_size
        (0x20, 32768),         // s_blocks_per_group
        (0x28, 8192),          // s_inodes_per_group
        (0x38, 0x1_ef53),      // s_magic, s_state
        (0x4c, 1),             // s_rev_level
        (0x58, 256),           // s_inode_size
        (0x5c, 0x4),           // has_journal
        (0x60, 0x40 | 0x2000), // extents, metadata_csum_seed
        (0x64, 0x1 | 0x400),   // sparse_super, metadata_csum
        (0x68, 7),             // s_uuid
        (0xe0, 8),             // s_journal_inum
        (0x174, 0x100),        // s_checksum_type
    ] {
        le(&mut first, 1024 + at, value);
    }
    let mut descriptors = [0; 4096];
    le(&mut descriptors, 0x8, 2);
    let mut inodes = [0; 4096];
    let inode = 7 * 256;
    le(&mut inodes, inode + 0x20, 0x8_0000);
    le(&mut inodes, inode + 0x28, 0x1_f30a);
    le(&mut inodes, inode + 0x28 + 0xc + 0x8, 3);
    let mut journal = [0; 4096];
    be(&mut journal, 0x0, 0xc03b_3998);
    be(&mut journal, 0x4, 4);
    be(&mut journal, 0x28, 0x10);
    journal[0x50] = 4;
    let mend: Mend = |number, page| match number {
        0 => {
            let sum = !crc32c::crc32c(&page[1024..1024 + 0x3fc]);
            le(page, 1024 + 0x3fc, sum);
        }
        3 => {
            let sum = !crc_without(&page[..1024], 0xfc);
            be(page, 0xfc, sum);
        }
        _ => {}
    };
    (vec![(0, first), (1, descriptors), (2, inodes), (3, journal)], mend)
}

/// Superblock in block 0 and a log of 16 blocks from block 8, with mkfs's unmount record.
fn xfs() -> (Pages, Mend) {
    let mut first = [0; 4096];
    for (at, value) in [
        (0, 0x5846_5342),           // sb_magicnum
        (4, 4096),                  // sb_blocksize
        (12, 4096),                 // sb_dblocks
        (32, 7),                    // sb_uuid
        (52, 8),                    // sb_logstart
        (84, 4096),                 // sb_agblocks
        (88, 1),                    // sb_agcount
        (96, 16),                   // sb_logblocks
        (100, 0xb4a5 << 16 | 4096), // sb_versionnum, sb_sectsize
        (124, 12 << 24),            // sb_agblklog
        (216, 0xb),                 // sb_features_incompat
    ] {
        be(&mut first, at, value);
    }
    let mut log = [0; 4096];
    for (at, value) in [
        (0, 0xfeed_babe),      // h_magicno
        (4, 1),                // h_cycle
        (8, 2),                // h_version
        (12, 512),             // h_len
        (40, 1),               // h_num_logops
        (320, 32768),          // h_size
        (512, 1),              // cycle of the data block
        (512 + 8, 0x20 << 16), // oh_flags
    ] {
        be(&mut log, at, value);
    }
    let mend: Mend = |number, page| {
        if number == 0 {
            let sum = crc_without(&page[..], 224);
            le(page, 224, sum);
        } else {
            let sum = crc32c::crc32c_append(crc_without(&page[..328], 32), &page[512..1024]);
            le(page, 32, sum);
        }
    };
    (vec![(0, first), (8, log)], mend)
}

/// The superblock.
fn btrfs() -> (Pages, Mend) {
    let mut page = [0; 4096];
    for (at, value) in [
        (0x20, 7),        // fsid
        (0x30, 64 << 10), // bytenr
        (0x38, 1),        // flags
        (0x70, 16 << 20), // total_bytes
        (0x88, 1),        // num_devices
        (0xc9 + 82, 7),   // dev_item.fsid
    ] {
        le(&mut page, at, value);
    }
    page[0x40..0x48].copy_from_slice(b"_BHRfS_M");
    let mend: Mend = |_, page| {
        let sum = crc32c::crc32c(&page[0x20..]);
        le(page, 0, sum);
    };
    (vec![(16, page)], mend)
}

fn sample(filesystem: Filesystem) -> (Pages, Mend) {
    match filesystem {
        Filesystem::Ext4 => ext4(),
        Filesystem::Xfs => xfs(),
        Filesystem::Btrfs => btrfs(),
    }
}

fn image(pages: &Pages) -> File {
    let image = tempfile::tempfile().unwrap();
    image.set_len(LENGTH.get()).unwrap();
    for (number, page) in pages {
        image.write_all_at(page, number * PAGE).unwrap();
    }
    image
}

fn mended(filesystem: Filesystem) -> Pages {
    let (mut pages, mend) = sample(filesystem);
    pages.iter_mut().for_each(|(number, page)| mend(*number, page));
    pages
}

fn identity() -> Identity {
    Identity { uuid: Uuid::from_bytes([9; 16]), hash_seed: Some(Uuid::from_bytes([8; 16])) }
}

#[test]
fn the_samples_are_whole() {
    for filesystem in Filesystem::ALL {
        let image = image(&mended(filesystem));
        let Contents::Filesystem(found) = probe(&image, LENGTH).unwrap() else { panic!("{filesystem}") };
        assert_eq!((found.filesystem, found.size), (filesystem, LENGTH));
        assert!(found.clean && !found.errors);
        for _ in 0..2 {
            renew(&image, LENGTH, &identity()).unwrap();
            let renewed = Superblock { uuid: identity().uuid, ..found.clone() };
            assert_eq!(probe(&image, LENGTH).unwrap(), Contents::Filesystem(renewed));
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed() {
    for (filesystem, page, summed) in [
        (Filesystem::Ext4, 0, 1024..2048),
        (Filesystem::Xfs, 0, 0..4096),
        (Filesystem::Btrfs, 16, 0x20..4096),
    ] {
        let (first, end) = (summed.start, summed.end);
        for at in (first..end).step_by(7) {
            let mut pages = mended(filesystem);
            let place = pages.iter_mut().find(|(number, _)| *number == page).unwrap();
            place.1[at] ^= 0x10;
            let found = probe(&image(&pages), LENGTH).unwrap();
            assert!(!matches!(found, Contents::Filesystem(_)), "{filesystem}, byte {at}: {found:?}");
        }
    }
}

fn spoiled() -> impl Strategy<Value = (Filesystem, Vec<(usize, usize, u32)>, bool)> {
    let value =
        prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>(), (0_u32..32).prop_map(|bit| 1 << bit)];
    let change = (0_usize..4, 0_usize..2044, value);
    (
        prop::sample::select(&Filesystem::ALL[..]),
        prop::collection::vec(change, 1..4),
        prop::bool::weighted(0.9),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Neither call panics or hangs, an image never changes its length, and a refusal writes nothing.
    #[test]
    fn lies_do_no_harm((filesystem, changes, mends) in spoiled()) {
        let (mut pages, mend) = sample(filesystem);
        for (page, at, value) in changes {
            let count = pages.len();
            let (number, page) = &mut pages[page % count];
            // An ext4 superblock does not start its page.
            let shift = if filesystem == Filesystem::Ext4 && *number == 0 { 1024 } else { 0 };
            le(page, at % 1020 + shift, value);
        }
        if mends {
            pages.iter_mut().for_each(|(number, page)| mend(*number, page));
        }
        let image = image(&pages);
        let read = |image: &File| -> Vec<[u8; 4096]> {
            let page = |number: u64| {
                let mut page = [0; 4096];
                image.read_exact_at(&mut page, number * PAGE).unwrap();
                page
            };
            (0..32).map(page).collect()
        };
        let before = read(&image);
        let found = probe(&image, LENGTH).unwrap();
        match renew(&image, LENGTH, &identity()) {
            Ok(()) => prop_assert!(matches!(found, Contents::Filesystem(_))),
            Err(refused) => {
                prop_assert!(refused.raw_os_error().is_none(), "{}", refused);
                prop_assert!(read(&image) == before);
            }
        }
        prop_assert_eq!(image.metadata().unwrap().len(), LENGTH.get());
    }

    /// Nor does noise behind a magic number.
    #[test]
    fn noise_does_no_harm(seed in any::<[u8; 32]>(), magic in 0_usize..4) {
        let mut noise: Vec<u8> = seed.iter().copied().cycle().take(128 << 10).collect();
        for (at, byte) in noise.iter_mut().enumerate() {
            *byte = byte.wrapping_mul(31).wrapping_add(u8::try_from(at % 251).unwrap());
        }
        match magic {
            0 => noise[..4].copy_from_slice(b"XFSB"),
            1 => noise[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]),
            2 => noise[(64 << 10) + 0x40..(64 << 10) + 0x48].copy_from_slice(b"_BHRfS_M"),
            _ => {}
        }
        let image = tempfile::tempfile().unwrap();
        image.write_all_at(&noise, 0).unwrap();
        let length = Bytes::new(noise.len() as u64);
        prop_assert_eq!(probe(&image, length).unwrap(), Contents::Unknown);
        prop_assert!(renew(&image, length, &identity()).is_err());
    }
}
