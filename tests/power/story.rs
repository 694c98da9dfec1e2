//! What is done to a pool while its writes are logged, and what must be there after each step.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt, sync::Arc};

use lagan::{
    capability::AccessMode,
    digest::Digest,
    filesystem::Filesystem,
    id::{GroupId, SnapshotId, VolumeId},
    pool::{
        Attach, Detached, Pool, Progress,
        record::{Content, Grant, Group, Snapshot, Source, Timestamp, Volume},
    },
    sys::superblock::Contents,
};

use crate::{
    ground::SIZE,
    records::{snapshot_of, volume},
};

/// What a user has written, as far as it was acknowledged.
const LENGTH: usize = 1 << 20;

/// What there is, as far as anybody was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    volumes: BTreeMap<VolumeId, (Volume, u8)>,
    snapshots: BTreeMap<SnapshotId, (Snapshot, u8)>,
    groups: BTreeMap<GroupId, Group>,
}

/// A step.
enum Step {
    Create(&'static str, Content, Option<Source>),
    Write(VolumeId, u8),
    Cut(VolumeId),
    /// Of all that are raw.
    Set,
    Grant(VolumeId),
    Grow(VolumeId),
    Delete(VolumeId),
    Remove(SnapshotId),
    Ungroup(GroupId),
}

fn progress() -> Arc<Progress> {
    Arc::default()
}

/// Does something with a volume's blocks.
async fn on<T>(pool: &dyn Pool, id: VolumeId, work: impl FnOnce(&File) -> T) -> T {
    let how = Attach { read_only: false, transient: false, label: "block".into() };
    let held = pool.attach(id, &how).await.unwrap();
    let done = work(&File::options().read(true).write(true).open(&held.attached.device.path).unwrap());
    drop(held);
    assert_eq!(pool.detach(id, None).await.unwrap(), Detached::Done);
    done
}

fn read(device: &File) -> u8 {
    let mut content = vec![0; LENGTH];
    device.read_exact_at(&mut content, 0).unwrap();
    assert!(content.iter().all(|byte| *byte == content[0]), "a synced write is torn");
    content[0]
}

async fn run(pool: &dyn Pool, step: Step, state: &State) -> State {
    let mut after = state.clone();
    match step {
        Step::Create(name, content, source) => {
            let volume = volume(pool.id(), name, SIZE, content, source);
            pool.create_volume(&volume, &progress()).await.unwrap();
            let byte = match source {
                None => 0,
                Some(Source::Volume(id)) => state.volumes[&id].1,
                Some(Source::Snapshot(id)) => state.snapshots[&id].1,
            };
            after.volumes.insert(volume.id, (volume, byte));
        }
        Step::Write(id, byte) => {
            on(pool, id, |device| {
                device.write_all_at(&vec![byte; LENGTH], 0).unwrap();
                device.sync_all().unwrap();
            })
            .await;
            after.volumes.get_mut(&id).unwrap().1 = byte;
        }
        Step::Cut(id) => {
            let (volume, byte) = &state.volumes[&id];
            let snapshot = snapshot_of(volume, "s");
            let cut = pool.create_snapshot(&snapshot, &progress()).await.unwrap();
            after.snapshots.insert(cut.id, (cut, *byte));
        }
        Step::Set => set(pool, &mut after).await,
        Step::Grant(id) => {
            let volume = &mut after.volumes.get_mut(&id).unwrap().0;
            let (node, mode) = ("n1".parse().unwrap(), AccessMode::SingleNodeWriter);
            volume.grants.push(Grant { node, read_only: false, mode });
            pool.update_volume(volume).await.unwrap();
        }
        Step::Grow(id) => {
            let volume = &mut after.volumes.get_mut(&id).unwrap().0;
            volume.size = volume.size.plus(SIZE);
            pool.grow_volume(volume).await.unwrap();
        }
        Step::Delete(id) => {
            pool.delete_volume(id).await.unwrap();
            after.volumes.remove(&id);
        }
        Step::Remove(id) => {
            pool.delete_snapshot(id).await.unwrap();
            after.snapshots.remove(&id);
        }
        Step::Ungroup(id) => {
            pool.delete_group(id).await.unwrap();
            after.groups.remove(&id);
            after.snapshots.retain(|_, (cut, _)| cut.group != Some(id));
        }
    }
    after
}

async fn set(pool: &dyn Pool, state: &mut State) {
    let (id, created) = (GroupId::random(pool.id()), Timestamp::now());
    let raw: Vec<_> = state.volumes.values().filter(|(volume, _)| volume.content == Content::Raw).collect();
    let member = |volume: &Volume| Snapshot { group: Some(id), created, ..snapshot_of(volume, "set") };
    let members: Vec<_> = raw.iter().map(|(volume, _)| member(volume)).collect();
    let uuids = members.iter().map(|cut| cut.id.uuid).collect();
    let group = Group { id, name: "set".into(), members: uuids, digest: Digest::of([]), created };
    let cuts = pool.create_group(&group, &members, &progress()).await.unwrap();
    let bytes = cuts.iter().map(|cut| state.volumes[&cut.volume].1);
    state.snapshots.extend(cuts.iter().zip(bytes).map(|(cut, byte)| (cut.id, (cut.clone(), byte))));
    state.groups.insert(id, group);
}

/// Tells the story; `told` is called after each step. What there was after each, nothing at first.
pub(crate) async fn tell(pool: &dyn Pool, told: impl Fn(usize)) -> Vec<State> {
    let mut states = vec![State::default()];
    let mut step = async |step| {
        let state = run(pool, step, states.last().unwrap()).await;
        states.push(state.clone());
        told(states.len() - 1);
        state
    };
    let state = step(Step::Create("a", Content::Raw, None)).await;
    let a = *state.volumes.keys().next().unwrap();
    step(Step::Write(a, 1)).await;
    let state = step(Step::Cut(a)).await;
    let s = *state.snapshots.keys().next().unwrap();
    step(Step::Write(a, 2)).await;
    step(Step::Create("restored", Content::Raw, Some(Source::Snapshot(s)))).await;
    step(Step::Create("cloned", Content::Raw, Some(Source::Volume(a)))).await;
    let state = step(Step::Create("fs", Content::Filesystem(Filesystem::Ext4), None)).await;
    let fs = state.volumes.values().find(|(volume, _)| volume.name == "fs").unwrap().0.id;
    step(Step::Grant(fs)).await;
    step(Step::Grow(a)).await;
    let state = step(Step::Set).await;
    step(Step::Write(a, 3)).await;
    step(Step::Remove(s)).await;
    step(Step::Ungroup(*state.groups.keys().next().unwrap())).await;
    step(Step::Delete(a)).await;
    states
}

/// Compares a pool with what there was before and after the step in which the power was cut.
pub(crate) async fn check(pool: &dyn Pool, before: &State, after: &State, moment: &str) {
    pool.recover().await.unwrap();
    let listing = pool.list().await.unwrap();
    assert!(listing.damaged.is_empty() && listing.strangers.is_empty(), "{moment}: {listing:?}");
    let volumes: BTreeMap<_, _> = listing.volumes.into_iter().map(|volume| (volume.id, volume)).collect();
    let snapshots: BTreeMap<_, _> = listing.snapshots.into_iter().map(|cut| (cut.id, cut)).collect();
    for (id, (volume, byte)) in &before.volumes {
        let Some((later, later_byte)) = after.volumes.get(id) else { continue };
        let found = volumes.get(id).unwrap_or_else(|| panic!("{moment}: volume {} is lost", volume.name));
        assert!(found == volume || found == later, "{moment}: {found:?}");
        if volume.content == Content::Raw {
            let read = on(pool, *id, read).await;
            assert!(read == *byte || read == *later_byte, "{moment}: {} holds {read}", volume.name);
        } else {
            let found = pool.probe(*id).await.unwrap();
            assert!(matches!(found, Contents::Filesystem(_)), "{moment}: {found:?}");
        }
    }
    let groups: BTreeMap<_, _> = listing.groups.into_iter().map(|group| (group.id, group)).collect();
    for (id, group) in &groups {
        let known = before.groups.get(id).or_else(|| after.groups.get(id));
        assert_eq!(known, Some(group), "{moment}: a group that was deleted is back");
    }
    for id in before.groups.keys().filter(|id| after.groups.contains_key(id)) {
        assert!(groups.contains_key(id), "{moment}: a group is lost");
    }
    let whole = |cut: &Snapshot| cut.group.is_none_or(|group| groups.contains_key(&group));
    assert!(snapshots.values().all(whole), "{moment}: part of a group");
    for group in groups.values() {
        let members = snapshots.values().filter(|cut| cut.group == Some(group.id)).count();
        assert_eq!(members, group.members.len(), "{moment}: part of a group");
    }
    for (id, (cut, byte)) in &before.snapshots {
        if !after.snapshots.contains_key(id) {
            continue;
        }
        assert_eq!(snapshots.get(id), Some(cut), "{moment}");
        let copy = volume(pool.id(), "copy", cut.size, Content::Raw, Some(Source::Snapshot(*id)));
        pool.create_volume(&copy, &progress()).await.unwrap();
        assert_eq!(on(pool, copy.id, read).await, *byte, "{moment}: the snapshot");
    }
    let known = |id: &VolumeId| before.volumes.contains_key(id) || after.volumes.contains_key(id);
    assert!(volumes.keys().all(known), "{moment}: a volume that was deleted is back");
    let known = |id: &SnapshotId| before.snapshots.contains_key(id) || after.snapshots.contains_key(id);
    assert!(snapshots.keys().all(known), "{moment}: a snapshot that was deleted is back");
}
