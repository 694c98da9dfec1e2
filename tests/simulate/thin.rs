//! The thin pool by itself: every operation, at every call that it makes, over a model of device-mapper and of the device with
//! its records. A call fails, or it is done and its answer is lost, or from it on nothing works, or the process is killed, or the
//! power is cut. Afterwards the operation is done or it is not, whoever asks again is served, and nothing is left.

use std::{
    collections::BTreeMap, fs::File, os::unix::fs::FileExt, panic::resume_unwind, path::Path, sync::Arc,
};

use lagan::{
    bytes::Bytes,
    capability::AccessMode,
    digest::Digest,
    error::{Chain, Result},
    filesystem::Filesystem,
    id::{GroupId, VolumeId},
    pool::{
        Attach, Detached, Listing, Pool, Progress, Role,
        record::{Content, Grant, Group, Snapshot, Source, Timestamp, Volume},
        thin::{Model, Place, ThinPool},
    },
    sys::{
        cmd::Commands,
        dm::{Door, fake::FakeMapper},
        fate::{Fate, Well},
    },
};

use crate::{
    chance::Chance,
    machine::runtime,
    modelled::thin_settings,
    records,
    script::{FAULTS, Fault, Script, lives},
};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    CreateExt4,
    Grant,
    Grow,
    GrowInUse,
    Snapshot,
    SnapshotInUse,
    Clone,
    CloneInUse,
    Restore,
    Set,
    SetInUse,
    Use,
    Delete,
    DeleteSnapshot,
    DeleteSet,
}

const OPERATIONS: [Operation; 16] = [
    Operation::Create,
    Operation::CreateExt4,
    Operation::Grant,
    Operation::Grow,
    Operation::GrowInUse,
    Operation::Snapshot,
    Operation::SnapshotInUse,
    Operation::Clone,
    Operation::CloneInUse,
    Operation::Restore,
    Operation::Set,
    Operation::SetInUse,
    Operation::Use,
    Operation::Delete,
    Operation::DeleteSnapshot,
    Operation::DeleteSet,
];

impl Operation {
    /// The same request again does no harm where it was done: it names what it changes, not what it makes.
    fn is_repeatable(self) -> bool {
        matches!(
            self,
            Self::Grant
                | Self::Grow
                | Self::GrowInUse
                | Self::Use
                | Self::Delete
                | Self::DeleteSnapshot
                | Self::DeleteSet
        )
    }

    fn in_use(self) -> bool {
        matches!(self, Self::GrowInUse | Self::SnapshotInUse | Self::CloneInUse | Self::SetInUse)
    }
}

/// A start makes about as many calls.
const DEATHS: usize = 40;
const SIZE: Bytes = Bytes::mib(16);
const MARK: u64 = 0x006c_6167_616e;

/// What a listing shows: names with lengths, snapshots, groups with how many members, grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    volumes: BTreeMap<String, (u64, usize)>,
    snapshots: Vec<String>,
    groups: Vec<(String, usize)>,
}

impl Shown {
    fn of(listing: &Listing) -> Self {
        assert!(
            listing.damaged.is_empty() && listing.leftovers.is_empty(),
            "{:?} {:?}",
            listing.damaged,
            listing.leftovers
        );
        let volume = |it: &Volume| (it.name.clone(), (it.size.get(), it.grants.len()));
        let mut shown = Self {
            volumes: listing.volumes.iter().map(volume).collect(),
            snapshots: listing.snapshots.iter().map(|it| it.name.clone()).collect(),
            groups: listing.groups.iter().map(|it| (it.name.clone(), it.members.len())).collect(),
        };
        assert_eq!(shown.volumes.len(), listing.volumes.len(), "no name is there twice");
        shown.snapshots.sort_unstable();
        shown.groups.sort_unstable();
        shown
    }
}

/// A pool with two volumes, a snapshot and a set.
struct Rig {
    mapper: FakeMapper,
    model: Model,
    volumes: [Volume; 2],
    snapshot: Snapshot,
    set: Group,
    /// Programs that have both volumes open.
    users: Vec<File>,
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    runtime().block_on(work)
}

fn progress() -> Arc<Progress> {
    Arc::default()
}

fn open(model: &Model, fate: Arc<dyn Fate>) -> Result<ThinPool> {
    let settings = thin_settings(Place::Model(model.under(fate)));
    ThinPool::open(settings, Role::Both, None, Arc::new(Commands::find()), None)
}

fn use_it() -> Attach {
    Attach { read_only: false, transient: false, label: "block".into() }
}

impl Rig {
    fn new(in_use: bool) -> Self {
        let mapper = FakeMapper::new(Path::new("/dev/shm"), Bytes::gib(4)).unwrap();
        let model = Model::new(mapper.clone(), "machine").unwrap();
        let pool = open(&model, Arc::new(Well)).unwrap();
        let volumes = ["a", "b"].map(|name| records::volume(pool.id(), name, SIZE, Content::Raw, None));
        let snapshot = records::snapshot_of(&volumes[0], "s");
        let (set, members) = set_of(&volumes, "g");
        let mut users = Vec::new();
        wait(async {
            for volume in &volumes {
                pool.create_volume(volume, &progress()).await.unwrap();
                let held = pool.attach(volume.id, &use_it()).await.unwrap();
                let path = &held.attached.device.path;
                let file = File::options().read(true).write(true).open(path).unwrap();
                file.write_all_at(&MARK.to_le_bytes(), 4096).unwrap();
                if in_use {
                    users.push(file);
                }
            }
            pool.create_snapshot(&snapshot, &progress()).await.unwrap();
            pool.create_group(&set, &members, &progress()).await.unwrap();
            if !in_use {
                for volume in &volumes {
                    assert_eq!(pool.detach(volume.id, None).await.unwrap(), Detached::Done);
                }
            }
        });
        Self { mapper, model, volumes, snapshot, set, users }
    }

    /// The next process, which has cleared away what the one before has left.
    fn start(&self) -> ThinPool {
        let pool = open(&self.model, Arc::new(Well)).unwrap();
        wait(pool.recover()).unwrap();
        pool
    }

    /// A process that is killed while it clears away.
    fn start_and_die(&self, at: usize) {
        let script = Script::new(Fault::Kill, at);
        script.count(true);
        lives(|| open(&self.model, script.clone()).and_then(|pool| wait(pool.recover())).map(drop));
    }

    /// Does it. What is made has a new id each time, as the engine gives it.
    fn attempt(&self, pool: &ThinPool, operation: Operation) -> Result<()> {
        let [a, b] = &self.volumes;
        let new = |content, source| records::volume(pool.id(), "new", SIZE, content, source);
        wait(async {
            let create = async |content, source| pool.create_volume(&new(content, source), &progress()).await;
            match operation {
                Operation::Create => create(Content::Raw, None).await,
                Operation::CreateExt4 => create(Content::Filesystem(Filesystem::Ext4), None).await,
                Operation::Clone | Operation::CloneInUse => {
                    create(Content::Raw, Some(Source::Volume(a.id))).await
                }
                Operation::Restore => create(Content::Raw, Some(Source::Snapshot(self.snapshot.id))).await,
                Operation::Grant => pool.update_volume(&Volume { grants: vec![grant()], ..a.clone() }).await,
                Operation::Grow | Operation::GrowInUse => {
                    pool.grow_volume(&Volume { size: Bytes::mib(32), ..a.clone() }).await
                }
                Operation::Snapshot | Operation::SnapshotInUse => {
                    pool.create_snapshot(&records::snapshot_of(a, "new"), &progress()).await.map(drop)
                }
                Operation::Set | Operation::SetInUse => {
                    let (set, members) = set_of(&self.volumes, "new");
                    pool.create_group(&set, &members, &progress()).await.map(drop)
                }
                Operation::Use => {
                    // As a node does, which looks first.
                    drop(match pool.attached(b.id).await?.first() {
                        Some(attached) => pool.hold(b.id, attached.device.number).await?,
                        None => pool.attach(b.id, &use_it()).await?,
                    });
                    pool.detach(b.id, None).await.map(drop)
                }
                Operation::Delete => pool.delete_volume(b.id).await,
                Operation::DeleteSnapshot => pool.delete_snapshot(self.snapshot.id).await,
                Operation::DeleteSet => pool.delete_group(self.set.id).await,
            }
        })
    }

    fn shown(pool: &ThinPool) -> Shown {
        Shown::of(&wait(pool.list()).unwrap())
    }

    /// Nothing stands still, and whoever wrote goes on.
    fn check_users(&self, what: &str) {
        for (name, _) in self.mapper.list().unwrap() {
            assert!(!self.mapper.info(&name).unwrap().unwrap().suspended, "{what}: {name} stands still");
        }
        for user in &self.users {
            let mut read = [0; 8];
            user.read_exact_at(&mut read, 4096).unwrap();
            assert_eq!(u64::from_le_bytes(read), MARK, "{what}: a program reads something else");
        }
    }

    /// What is there is what is recorded, nothing stands still, and whoever wrote goes on writing.
    fn check(&self, pool: &ThinPool, what: &str) {
        let listing = wait(pool.list()).unwrap();
        let thins = self.mapper.thins().len();
        assert_eq!(thins, 1 + listing.volumes.len() + listing.snapshots.len(), "{what}: thin devices");
        for (name, _) in self.mapper.list().unwrap() {
            let info = self.mapper.info(&name).unwrap().unwrap();
            assert!(info.active && !info.pending, "{what}: {info:?}");
            assert!(!name.contains("work") && !name.contains("look"), "{what}: {name} is left");
        }
        self.check_users(what);
        for volume in listing.volumes.iter().filter(|it| it.content == Content::Raw) {
            let expected = if volume.source.is_none() && volume.name == "new" { 0 } else { MARK };
            assert_eq!(read(pool, volume.id), expected, "{what}: what is in {}", volume.name);
        }
    }
}

fn grant() -> Grant {
    Grant { node: "n1".parse().unwrap(), read_only: false, mode: AccessMode::SingleNodeWriter }
}

fn set_of(volumes: &[Volume], name: &str) -> (Group, Vec<Snapshot>) {
    let id = GroupId::random(volumes[0].id.pool);
    let member = |volume: &Volume| {
        let mut member = records::snapshot_of(volume, &format!("{name}-{}", volume.name));
        member.group = Some(id);
        member
    };
    let members: Vec<_> = volumes.iter().map(member).collect();
    let uuids = members.iter().map(|member| member.id.uuid).collect();
    let group =
        Group { id, name: name.into(), members: uuids, digest: Digest::of([]), created: Timestamp::now() };
    (group, members)
}

fn read(pool: &ThinPool, id: VolumeId) -> u64 {
    wait(async {
        let attached = pool.attached(id).await.unwrap();
        let path = match attached.first() {
            Some(attached) => attached.device.path.clone(),
            None => pool.attach(id, &use_it()).await.unwrap().attached.device.path,
        };
        let mut token = [0; 8];
        File::open(path).unwrap().read_exact_at(&mut token, 4096).unwrap();
        if attached.is_empty() {
            assert_eq!(pool.detach(id, None).await.unwrap(), Detached::Done);
        }
        u64::from_le_bytes(token)
    })
}

/// One operation with one fault at its call of a number; the call, where there is one.
fn trial(operation: Operation, fault: Fault, at: usize, after: &Shown) -> Option<&'static str> {
    let mut rig = Rig::new(operation.in_use());
    let script = Script::new(fault, at);
    let mut pool = open(&rig.model, script.clone()).unwrap();
    let before = Rig::shown(&pool);
    script.count(true);
    let outcome = lives(|| rig.attempt(&pool, operation));
    script.count(false);
    let call = script.met()?;
    let what = format!("{operation:?}, {fault:?} of call {at}, {call}");
    // Where nothing works any more it is the next process that tidies up.
    if outcome.is_none() || pool.is_broken() || fault == Fault::AllFail {
        lives(|| drop(pool));
        if let Fault::Power(which) = fault {
            rig.lose_power(which, at);
        }
        rig.start_and_die(at % DEATHS);
        pool = rig.start();
    }
    let shown = Rig::shown(&pool);
    rig.check_users(&what);
    if fault == Fault::Kill {
        // What is seen by now is there.
        drop(pool);
        rig.lose_power(0, at);
        pool = rig.start();
        assert_eq!(Rig::shown(&pool), shown, "{what}: seen, and lost");
    }
    match outcome {
        Some(Ok(())) => assert_eq!(shown, *after, "{what}: said to be done"),
        _ => assert!(shown == before || shown == *after, "{what}: neither done nor not: {shown:?}"),
    }
    if shown == before || operation.is_repeatable() {
        rig.attempt(&pool, operation).unwrap_or_else(|error| panic!("{what}: again: {}", Chain(&error)));
    }
    assert_eq!(Rig::shown(&pool), *after, "{what}: again");
    drop(pool);
    let pool = rig.start();
    rig.check(&pool, &what);
    drop(pool);
    rig.lose_power(0, at);
    let pool = rig.start();
    assert_eq!(Rig::shown(&pool), *after, "{what}: acknowledged, and lost with the power");
    rig.check(&pool, &what);
    Some(call)
}

impl Rig {
    fn lose_power(&mut self, which: usize, at: usize) {
        self.users.clear();
        let mut chance = Chance::new(at as u64);
        self.model.power_cut(|ways| if which < 2 { which } else { chance.below(ways) }).unwrap();
    }
}

/// Every fault at every call of an operation; how many.
fn trials(operation: Operation) -> usize {
    let _together = lagan::blocking::together();
    let after = {
        let rig = Rig::new(operation.in_use());
        let pool = rig.start();
        rig.attempt(&pool, operation).unwrap();
        rig.check(&pool, "without a fault");
        Rig::shown(&pool)
    };
    let calls = |fault| {
        let calls = (0..).map_while(|at| trial(operation, fault, at, &after)).count();
        assert!(calls > 1, "{operation:?}, {fault:?}: {calls} calls");
        calls
    };
    FAULTS.into_iter().map(calls).sum()
}

#[test]
fn each_call_of_each_operation_of_a_thin_pool() {
    let trials: usize = std::thread::scope(|scope| {
        let half =
            |odd: usize| move || OPERATIONS.iter().skip(odd).step_by(2).map(|it| trials(*it)).sum::<usize>();
        let halves = [scope.spawn(half(0)), scope.spawn(half(1))];
        halves.into_iter().map(|it| it.join().unwrap_or_else(|why| resume_unwind(why))).sum()
    });
    eprintln!("{trials} faults in {} operations of a thin pool, nothing lost or left", OPERATIONS.len());
}
