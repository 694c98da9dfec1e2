//! A thin pool in a model of device-mapper, which is ill at will.

use std::{path::Path, sync::Arc};

use lagan::{
    bytes::Bytes,
    error::ErrorKind,
    pool::{
        Attach, Pool, Role,
        record::{Content, Volume},
        thin::{Model, Place, Settings, ThinPool},
    },
    sys::{
        cmd::Commands,
        dm::{Door, Suspend, fake::FakeMapper},
    },
};

use crate::{
    modelled::thin_settings,
    records::{self, snapshot_of},
    rig::progress,
};

/// The first number of ours that is not the keeper's.
const FIRST: u32 = (1 << 20) + 1;

struct Ill {
    mapper: FakeMapper,
    settings: Settings,
}

impl Ill {
    fn new(data: Bytes) -> Self {
        let mapper = FakeMapper::new(Path::new("/var/tmp"), data).unwrap();
        let settings = thin_settings(Place::Model(Model::new(mapper.clone(), "machine").unwrap()));
        Self { mapper, settings }
    }

    fn open(&self) -> ThinPool {
        let commands = Arc::new(Commands::find());
        ThinPool::open(self.settings.clone(), Role::Both, None, commands, None).unwrap()
    }
}

fn volume(pool: &ThinPool, size: Bytes) -> Volume {
    records::volume(pool.id(), "v", size, Content::Raw, None)
}

async fn create(pool: &ThinPool) -> Volume {
    let volume = volume(pool, Bytes::mib(64));
    pool.create_volume(&volume, &progress()).await.unwrap();
    volume
}

#[tokio::test]
async fn a_number_of_somebody_else_is_neither_taken_nor_removed() {
    let ill = Ill::new(Bytes::gib(4));
    ill.mapper.intrude(FIRST).unwrap();
    let pool = ill.open();
    let volume = create(&pool).await;
    pool.delete_volume(volume.id).await.unwrap();
    drop(pool);
    assert!(ill.open().recover().await.unwrap().is_empty());
    let again = ill.mapper.intrude(FIRST).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists, "it is still there");
}

#[tokio::test]
async fn a_pool_that_takes_no_changes_is_seen_and_left_as_it_is() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    let kept = create(&pool).await;
    ill.mapper.set_read_only(true);
    // The guardian tells of it.
    assert_eq!(pool.tend().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let refused = pool.create_volume(&volume(&pool, Bytes::mib(64)), &progress()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let refused = pool.create_snapshot(&snapshot_of(&kept, "s"), &progress()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert_eq!(pool.delete_volume(kept.id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(pool.list().await.unwrap().volumes, std::slice::from_ref(&kept));
    assert_eq!(pool.examine(&kept).await.unwrap()[0].reason, "PoolNeedsRepair");
    ill.mapper.set_read_only(false);
    pool.delete_volume(kept.id).await.unwrap();
    assert!(pool.list().await.unwrap().volumes.is_empty());
}

/// The kernel says that a message was well even where it did not come to the disk.
#[tokio::test]
async fn what_never_came_to_the_disk_is_not_acknowledged() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    let kept = create(&pool).await;
    let (new, cut) = (volume(&pool, Bytes::mib(64)), snapshot_of(&kept, "s"));
    for which in ["create", "snapshot", "delete"] {
        ill.mapper.lose_next();
        let answer = match which {
            "create" => pool.create_volume(&new, &progress()).await,
            "snapshot" => pool.create_snapshot(&cut, &progress()).await.map(drop),
            _ => pool.delete_volume(kept.id).await,
        };
        let kind = answer.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Unavailable | ErrorKind::Unsettled), "{which}: {kind:?}");
        // As it is once it is repaired.
        ill.mapper.set_read_only(false);
    }
    drop(pool);
    let pool = ill.open();
    pool.recover().await.unwrap();
    let listing = pool.list().await.unwrap();
    assert!(listing.volumes.is_empty() && listing.snapshots.is_empty(), "{listing:?}");
    for number in FIRST..FIRST + 4 {
        ill.mapper.intrude(number).unwrap_or_else(|_| panic!("{number} was left"));
    }
}

#[tokio::test]
async fn a_full_pool_says_so() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    let kept = create(&pool).await;
    let held = pool.attach(kept.id, &raw()).await.unwrap();
    std::fs::write(&held.attached.device.path, vec![1; 8 << 20]).unwrap();
    ill.mapper.set_data(Bytes::mib(8));
    assert_eq!(pool.capacity().await.unwrap().free, Bytes::ZERO);
    let told: Vec<_> = pool.fills().await.unwrap().iter().map(lagan::pool::fill::Fill::level).collect();
    assert_eq!(told, [95, 0]);
    assert_eq!(pool.examine(&kept).await.unwrap()[0].reason, "PoolNearlyFull");
}

fn raw() -> Attach {
    Attach { read_only: false, transient: false, label: "block".into() }
}

#[tokio::test]
async fn what_stands_still_at_the_start_goes_on() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    let volume = create(&pool).await;
    drop(pool.attach(volume.id, &raw()).await.unwrap());
    // In use: the model takes a snapshot of it only while it stands still.
    pool.create_snapshot(&snapshot_of(&volume, "s"), &progress()).await.unwrap();
    let name = format!("lagan-{}", volume.id.uuid.simple());
    ill.mapper.suspend(&name, Suspend::Clean).unwrap();
    drop(pool);
    let pool = ill.open();
    assert_eq!(pool.recover().await.unwrap(), [format!("let device {name} go on")]);
    assert!(!ill.mapper.info(&name).unwrap().unwrap().suspended);
    pool.detach(volume.id, None).await.unwrap();
    pool.delete_volume(volume.id).await.unwrap();
}

#[tokio::test]
async fn the_accountant_names_what_was_left() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    let volume = create(&pool).await;
    drop(pool.attach(volume.id, &raw()).await.unwrap());
    let looker = ThinPool::open(ill.settings.clone(), Role::Observer, None, Arc::new(Commands::find()), None);
    let looker = looker.unwrap();
    let leftovers = async || looker.list().await.unwrap().leftovers;
    assert!(leftovers().await.is_empty());
    let name = format!("lagan-{}", volume.id.uuid.simple());
    let uuid = ill.mapper.info(&name).unwrap().unwrap().uuid;
    ill.mapper.suspend(&name, Suspend::Clean).unwrap();
    // What somebody is about to look at, and was killed over.
    let prefix = uuid.rsplit_once('-').unwrap().0;
    ill.mapper.create("lagan-left", &format!("{prefix}-work-1-1")).unwrap();
    let left = leftovers().await;
    assert!(left.len() == 2 && left[0].contains(&name) && left[1].contains("lagan-left"), "{left:?}");
    ill.mapper.resume(&name).unwrap();
    ill.mapper.remove("lagan-left").unwrap();
    assert!(leftovers().await.is_empty());
    pool.detach(volume.id, None).await.unwrap();
    pool.delete_volume(volume.id).await.unwrap();
}

#[tokio::test]
async fn what_was_never_started_is_taken_away() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    let volume = create(&pool).await;
    drop(pool.attach(volume.id, &raw()).await.unwrap());
    let name = format!("lagan-{}", volume.id.uuid.simple());
    let (table, known) = (ill.mapper.table(&name).unwrap(), ill.mapper.info(&name).unwrap().unwrap());
    pool.detach(volume.id, None).await.unwrap();
    // As a process leaves it that is killed between two calls.
    ill.mapper.create(&name, &known.uuid).unwrap();
    ill.mapper.load(&name, &table, false).unwrap();
    assert!(pool.attached(volume.id).await.unwrap().is_empty(), "nobody can use it");
    drop(pool);
    let pool = ill.open();
    assert_eq!(pool.recover().await.unwrap(), [format!("removed device {name}, which was never started")]);
    pool.delete_volume(volume.id).await.unwrap();
}

#[tokio::test]
async fn more_than_the_metadata_could_ever_hold_is_refused() {
    let ill = Ill::new(Bytes::gib(4));
    let pool = ill.open();
    // 64 MiB of metadata are worth 16,384 blocks, and a GiB may take 165 of them.
    let fits = volume(&pool, Bytes::gib(90));
    pool.create_volume(&fits, &progress()).await.unwrap();
    let refused = pool.create_volume(&volume(&pool, Bytes::gib(10)), &progress()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused:?}");
    assert_eq!(pool.list().await.unwrap().volumes.len(), 1, "nothing is left of it");
    let longer = Volume { size: Bytes::gib(100), ..fits.clone() };
    assert_eq!(pool.grow_volume(&longer).await.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(pool.find_volume(fits.id).await.unwrap(), Some(fits));
}
