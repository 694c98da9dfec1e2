//! What every pool promises.

use lagan::{
    bytes::Bytes,
    capability::AccessMode,
    error::ErrorKind,
    pool::{
        Attach, Detached,
        record::{Content, Grant, Source, Volume},
    },
    sys::superblock::Contents,
};

use crate::records::snapshot_of;
use crate::rig::{EXT4, Rig, kinds, nowhere, progress};

fn raw_device() -> Attach {
    Attach { read_only: false, transient: false, label: "block".into() }
}

#[tokio::test]
async fn what_is_made_is_there_for_ever() {
    for kind in kinds() {
        let mut rig = Rig::new(kind);
        let name = "\u{1F4A7} ../../etc \"quoted\"";
        let mut volume = rig.create(name, Content::Raw).await;
        rig.write(volume.id, b"content");
        let cut = rig.pool.create_snapshot(&snapshot_of(&volume, "s"), &progress()).await.unwrap();
        assert_eq!(cut.size, volume.size, "{kind}");
        volume.grants.push(Grant {
            node: "n1".parse().unwrap(),
            read_only: true,
            mode: AccessMode::SingleNodeWriter,
        });
        rig.pool.update_volume(&volume).await.unwrap();
        volume.size = Bytes::mib(400);
        rig.pool.grow_volume(&volume).await.unwrap();
        rig.pool.grow_volume(&volume).await.unwrap();
        let id = rig.pool.id();
        rig.reopen();
        assert_eq!(rig.pool.id(), id, "{kind}");
        assert!(rig.pool.recover().await.unwrap().is_empty(), "{kind}");
        assert_eq!(rig.pool.find_volume(volume.id).await.unwrap(), Some(volume.clone()), "{kind}");
        let listing = rig.pool.list().await.unwrap();
        assert_eq!((listing.volumes, listing.snapshots), (vec![volume.clone()], vec![cut]), "{kind}");
        assert!(listing.damaged.is_empty() && listing.strangers.is_empty(), "{kind}");
        assert_eq!(rig.read(volume.id, 7), b"content", "{kind}");
    }
}

/// A process may be killed between a change and its flush. The next one finds the change, takes it for done, and would never
/// flush it.
#[tokio::test]
async fn a_start_makes_durable_what_an_earlier_process_left() {
    for kind in kinds() {
        let mut rig = Rig::new(kind);
        rig.create("a", Content::Raw).await;
        rig.reopen();
        let before = rig.pool.flushes();
        rig.pool.recover().await.unwrap();
        assert!(rig.pool.flushes() > before, "{kind}");
    }
}

#[tokio::test]
async fn gone_is_gone_and_gone_twice_is_fine() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let volume = rig.create("a", EXT4).await;
        let cut = rig.pool.create_snapshot(&snapshot_of(&volume, "s"), &progress()).await.unwrap();
        for _ in 0..2 {
            rig.pool.delete_volume(volume.id).await.unwrap();
            assert_eq!(rig.pool.find_volume(volume.id).await.unwrap(), None, "{kind}");
        }
        for _ in 0..2 {
            rig.pool.delete_snapshot(cut.id).await.unwrap();
        }
        let listing = rig.pool.list().await.unwrap();
        assert!(listing.volumes.is_empty() && listing.snapshots.is_empty(), "{kind}");
        for error in [
            rig.pool.update_volume(&volume).await.unwrap_err(),
            rig.pool.grow_volume(&volume).await.unwrap_err(),
            rig.pool.create_snapshot(&snapshot_of(&volume, "t"), &progress()).await.unwrap_err(),
            rig.pool.attach(volume.id, &raw_device()).await.map(drop).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{kind}: {error:?}");
        }
        assert!(rig.pool.attached(volume.id).await.unwrap().is_empty(), "{kind}");
        assert_eq!(rig.pool.detach(volume.id, None).await.unwrap(), Detached::Done, "{kind}");
    }
}

#[tokio::test]
async fn copies_hold_what_was_there_and_stand_alone() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let source = rig.create("a", Content::Raw).await;
        rig.write(source.id, b"first");
        let cut = rig.pool.create_snapshot(&snapshot_of(&source, "s"), &progress()).await.unwrap();
        rig.write(source.id, b"other");
        let restored = Volume { source: Some(Source::Snapshot(cut.id)), ..rig.volume("r", Content::Raw) };
        let larger = Volume {
            source: Some(Source::Volume(source.id)),
            size: Bytes::mib(500),
            ..rig.volume("c", Content::Raw)
        };
        for copy in [&restored, &larger] {
            rig.pool.create_volume(copy, &progress()).await.unwrap();
        }
        rig.pool.delete_volume(source.id).await.unwrap();
        rig.pool.delete_snapshot(cut.id).await.unwrap();
        assert_eq!(rig.read(restored.id, 5), b"first", "{kind}");
        assert_eq!(rig.read(larger.id, 5), b"other", "{kind}");
        rig.write(restored.id, b"third");
        assert_eq!(rig.read(larger.id, 5), b"other", "{kind}");
        for source in [Source::Snapshot(cut.id), Source::Volume(source.id), Source::Volume(nowhere())] {
            let copy = Volume { source: Some(source), ..rig.volume("x", Content::Raw) };
            let error = rig.pool.create_volume(&copy, &progress()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{kind}: {error:?}");
            assert_eq!(rig.pool.find_volume(copy.id).await.unwrap(), None, "{kind}: nothing is left of it");
        }
    }
}

#[tokio::test]
async fn a_filesystem_is_made_and_copied_with_an_identity_of_its_own() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let raw = rig.create("raw", Content::Raw).await;
        assert_eq!(rig.pool.probe(raw.id).await.unwrap(), Contents::Blank, "{kind}");
        let source = rig.create("a", EXT4).await;
        let clone = Volume { source: Some(Source::Volume(source.id)), ..rig.volume("c", EXT4) };
        rig.pool.create_volume(&clone, &progress()).await.unwrap();
        let mut uuids = Vec::new();
        for id in [source.id, clone.id] {
            match rig.pool.probe(id).await.unwrap() {
                Contents::Filesystem(found) => {
                    assert_eq!(Content::Filesystem(found.filesystem), EXT4, "{kind}");
                    uuids.push(found.uuid);
                }
                other => panic!("{kind}: {other:?}"),
            }
        }
        assert_ne!(uuids[0], uuids[1], "{kind}");
    }
}

#[tokio::test]
async fn devices_are_what_they_are_said_to_be() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let volume = rig.create("a", Content::Raw).await;
        let held = rig.pool.attach(volume.id, &raw_device()).await.unwrap();
        assert_eq!(
            (held.attached.device.size, held.attached.device.read_only),
            (volume.size, false),
            "{kind}"
        );
        drop(held.guard);
        let face = Attach { read_only: true, label: "ro".into(), ..raw_device() };
        drop(rig.pool.attach(volume.id, &face).await.unwrap());
        let attached = rig.pool.attached(volume.id).await.unwrap();
        let mut seen: Vec<_> = attached.iter().map(|a| (a.label.as_str(), a.device.read_only)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [("block", false), ("ro", true)], "{kind}");
        assert_eq!(rig.pool.devices().await.unwrap().len(), 2, "{kind}");
        let error = rig.pool.delete_volume(volume.id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{kind}");
        let grown = Volume { size: Bytes::mib(400), ..volume.clone() };
        rig.pool.grow_volume(&grown).await.unwrap();
        rig.pool.refresh(volume.id).await.unwrap();
        for attached in rig.pool.attached(volume.id).await.unwrap() {
            assert_eq!(attached.device.size, grown.size, "{kind}");
        }
        let face = attached.iter().find(|attached| attached.label == "ro").unwrap().device.number;
        assert_eq!(rig.pool.detach(volume.id, Some(face)).await.unwrap(), Detached::Done, "{kind}");
        assert_eq!(rig.pool.attached(volume.id).await.unwrap().len(), 1, "{kind}");
        assert_eq!(rig.pool.detach(volume.id, None).await.unwrap(), Detached::Done, "{kind}");
        // One that is transient lives as long as somebody has it.
        let transient = Attach { transient: true, label: "fs:x".into(), ..raw_device() };
        let held = rig.pool.attach(volume.id, &transient).await.unwrap();
        assert_eq!(rig.pool.attached(volume.id).await.unwrap()[0].label, "fs:x", "{kind}");
        assert_eq!(rig.pool.detach(volume.id, None).await.unwrap(), Detached::StillUsed, "{kind}");
        drop(held);
        rig.until_detached(volume.id).await;
        rig.pool.delete_volume(volume.id).await.unwrap();
    }
}

#[tokio::test]
async fn capacity_adds_up() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let room = rig.pool.capacity().await.unwrap();
        assert!(
            room.free <= room.total && room.reserve < room.free && room.foreign < room.total,
            "{kind}: {room:?}"
        );
        assert!(room.maximum >= Bytes::gib(1), "{kind}");
    }
}

/// The guard against costs that creep in: each change is one flush, however it is stored; what a kernel message makes is
/// recorded before and after.
#[tokio::test]
async fn a_change_costs_one_flush() {
    for kind in kinds().into_iter().filter(|kind| *kind != "fake") {
        let rig = Rig::new(kind);
        // The third of a kind: a template is at hand.
        for name in ["a", "b"] {
            rig.create(name, EXT4).await;
        }
        let making = if kind.starts_with("thin") { 2 } else { 1 };
        let mut before = rig.pool.flushes();
        let mut cost = |rig: &Rig| {
            let now = rig.pool.flushes();
            now - std::mem::replace(&mut before, now)
        };
        let mut volume = rig.create("c", EXT4).await;
        assert_eq!(cost(&rig), making, "{kind}: create");
        rig.create("raw", Content::Raw).await;
        assert_eq!(cost(&rig), making, "{kind}: create raw");
        let cut = rig.pool.create_snapshot(&snapshot_of(&volume, "s"), &progress()).await.unwrap();
        assert_eq!(cost(&rig), making, "{kind}: snapshot");
        let copy = Volume { source: Some(Source::Snapshot(cut.id)), ..rig.volume("r", EXT4) };
        rig.pool.create_volume(&copy, &progress()).await.unwrap();
        assert_eq!(cost(&rig), making, "{kind}: restore");
        rig.pool.update_volume(&volume).await.unwrap();
        assert_eq!(cost(&rig), 1, "{kind}: record");
        volume.size = Bytes::mib(400);
        rig.pool.grow_volume(&volume).await.unwrap();
        assert_eq!(cost(&rig), 1, "{kind}: growth");
        rig.pool.delete_volume(volume.id).await.unwrap();
        assert_eq!(cost(&rig), 1, "{kind}: delete");
        drop(rig.pool.list().await.unwrap());
        rig.pool.capacity().await.unwrap();
        assert_eq!(cost(&rig), 0, "{kind}: looking");
    }
}
