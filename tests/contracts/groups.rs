//! What every pool promises of snapshots at one instant.

use lagan::{
    bytes::Bytes,
    digest::Digest,
    error::ErrorKind,
    id::{GroupId, SnapshotId},
    pool::{
        Attach,
        record::{Content, GROUP_LIMIT, Group, Snapshot, Source, Timestamp, Volume},
    },
};

use crate::rig::{EXT4, MODEL, Rig, kinds, progress};

/// A group of these volumes that is to be made.
fn group_of(volumes: &[&Volume], name: &str) -> (Group, Vec<Snapshot>) {
    let id = GroupId::random(volumes[0].id.pool);
    let created = Timestamp::now();
    let member = |volume: &&Volume| Snapshot {
        id: SnapshotId::random(volume.id.pool),
        name: format!("{name}/{}", volume.id.uuid.simple()),
        volume: volume.id,
        size: volume.size,
        content: volume.content,
        block: volume.block,
        used: Bytes::ZERO,
        created,
        group: Some(id),
    };
    let snapshots: Vec<_> = volumes.iter().map(member).collect();
    let members = snapshots.iter().map(|snapshot| snapshot.id.uuid).collect();
    (Group { id, name: name.into(), members, digest: Digest::of([]), created }, snapshots)
}

async fn restored(rig: &Rig, cut: &Snapshot) -> Vec<u8> {
    let copy = Volume { source: Some(Source::Snapshot(cut.id)), ..rig.volume("r", cut.content) };
    rig.pool.create_volume(&copy, &progress()).await.unwrap();
    let content = rig.read(copy.id, 5);
    rig.until_detached(copy.id).await;
    rig.pool.delete_volume(copy.id).await.unwrap();
    content
}

#[tokio::test]
async fn a_group_is_there_as_a_whole_for_ever() {
    for kind in kinds() {
        let mut rig = Rig::new(kind);
        let (a, b) = (rig.create("a", Content::Raw).await, rig.create("b", Content::Raw).await);
        rig.write(a.id, b"first");
        rig.write(b.id, b"other");
        let (group, members) = group_of(&[&a, &b], "\u{1F4A7} ../../etc \"quoted\"");
        let mut cut = rig.pool.create_group(&group, &members, &progress()).await.unwrap();
        assert!(cut.iter().all(|cut| cut.size == a.size && cut.group == Some(group.id)), "{kind}");
        rig.write(a.id, b"later");
        rig.write(b.id, b"later");
        rig.reopen();
        assert_eq!(rig.pool.recover().await.unwrap(), [""; 0], "{kind}");
        let mut listing = rig.pool.list().await.unwrap();
        cut.sort_by_key(|cut| cut.id);
        listing.snapshots.sort_by_key(|snapshot| snapshot.id);
        assert_eq!((&listing.groups, &listing.snapshots), (&vec![group.clone()], &cut), "{kind}");
        assert!(listing.damaged.is_empty() && listing.strangers.is_empty(), "{kind}");
        assert_eq!(rig.pool.find_group(group.id).await.unwrap().as_ref(), Some(&group), "{kind}");
        for cut in &cut {
            assert_eq!(rig.pool.find_snapshot(cut.id).await.unwrap().as_ref(), Some(cut), "{kind}");
            let expected: &[u8] = if cut.volume == a.id { b"first" } else { b"other" };
            assert_eq!(restored(&rig, cut).await, expected, "{kind}");
        }
        for _ in 0..2 {
            rig.pool.delete_group(group.id).await.unwrap();
            assert_eq!(rig.pool.find_group(group.id).await.unwrap(), None, "{kind}");
            assert_eq!(rig.pool.find_snapshot(cut[0].id).await.unwrap(), None, "{kind}");
        }
        rig.reopen();
        assert_eq!(rig.pool.recover().await.unwrap(), [""; 0], "{kind}");
        let listing = rig.pool.list().await.unwrap();
        assert!(listing.groups.is_empty() && listing.snapshots.is_empty(), "{kind}");
        assert_eq!(listing.volumes.len(), 2, "{kind}");
    }
}

#[tokio::test]
async fn where_one_cannot_be_cut_none_is() {
    for kind in kinds() {
        let mut rig = Rig::new(kind);
        let (a, b) = (rig.create("a", EXT4).await, rig.create("b", Content::Raw).await);
        rig.pool.delete_volume(b.id).await.unwrap();
        let (group, members) = group_of(&[&a, &b], "g");
        let error = rig.pool.create_group(&group, &members, &progress()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{kind}: {error:?}");
        for reopened in [false, true] {
            if reopened {
                rig.reopen();
                assert_eq!(rig.pool.recover().await.unwrap(), [""; 0], "{kind}");
            }
            let listing = rig.pool.list().await.unwrap();
            assert!(listing.snapshots.is_empty() && listing.groups.is_empty(), "{kind}");
            assert!(listing.strangers.is_empty(), "{kind}");
            assert_eq!(rig.pool.find_group(group.id).await.unwrap(), None, "{kind}");
        }
    }
}

#[tokio::test]
async fn the_largest_group() {
    for kind in kinds() {
        let rig = Rig::new(kind);
        let mut volumes = Vec::new();
        for n in 0..GROUP_LIMIT {
            volumes.push(rig.create(&n.to_string(), Content::Raw).await);
        }
        let (group, members) = group_of(&volumes.iter().collect::<Vec<_>>(), &"\"".repeat(128));
        let cut = rig.pool.create_group(&group, &members, &progress()).await.unwrap();
        assert_eq!(cut.len(), GROUP_LIMIT, "{kind}");
        assert_eq!(rig.pool.find_group(group.id).await.unwrap(), Some(group.clone()), "{kind}");
        rig.pool.delete_group(group.id).await.unwrap();
        assert!(rig.pool.list().await.unwrap().snapshots.is_empty(), "{kind}");
    }
}

/// Files cannot be made to stand still below a raw device, and nobody is there to end a pause.
#[tokio::test]
async fn a_raw_volume_in_use_is_refused() {
    for kind in kinds().into_iter().filter(|kind| !["fake", MODEL].contains(kind)) {
        let rig = Rig::new(kind);
        let (a, b) = (rig.create("a", Content::Raw).await, rig.create("b", Content::Raw).await);
        let how = Attach { read_only: false, transient: true, label: "block".into() };
        let held = rig.pool.attach(a.id, &how).await.unwrap();
        let (group, members) = group_of(&[&a, &b], "g");
        let error = rig.pool.create_group(&group, &members, &progress()).await.unwrap_err();
        let expected = if kind.starts_with("thin") { ErrorKind::Unavailable } else { ErrorKind::InUse };
        assert_eq!(error.kind(), expected, "{kind}: {error:?}");
        assert!(rig.pool.list().await.unwrap().snapshots.is_empty(), "{kind}");
        drop(held);
        rig.pool.create_group(&group, &members, &progress()).await.unwrap();
        rig.pool.delete_group(group.id).await.unwrap();
    }
}
