//! A pool that writers fill: no filesystem is damaged, what was flushed stays, and all goes on once there is room. Its
//! metadata, which must never fill, does not, whatever writers do to what was admitted.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lagan::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::{
    disks::Disk,
    group::{POOL, Small, lvm},
    requests::{block, create_with, from_volume},
    rig::{Daemon, Ground, Kind, MIB, filesystem, random, run, write},
};

/// How long the kernel lets writers wait for room before it fails them, in seconds.
const TIMEOUT: &str = "/sys/module/dm_thin_pool/parameters/no_space_timeout";

/// What is written at a time.
const PIECE_MIB: i64 = 4;

/// A pool that two writers fill.
struct Pool<'p> {
    ground: &'p Ground,
    /// Name of the thin pool's device.
    device: String,
    /// How much each of them writes.
    writes_mib: i64,
    extend: &'p dyn Fn(),
}

/// What the kernel says of a thin pool.
fn status(device: &str) -> String {
    run("dmsetup", &["status", "--noflush", device])
}

impl Pool<'_> {
    fn status(&self) -> String {
        status(&self.device)
    }

    fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !is(&self.status()) {
            assert!(begun.elapsed() < Duration::from_secs(120), "never {what}: {}", self.status());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// One of LVM, and more room for it.
fn on_lvm() -> (Ground, String) {
    (Ground::new(Kind::Lvm(Small::VG, POOL)), format!("{}-{POOL}-tpool", Small::VG))
}

fn extend_lvm() {
    lvm(&["lvextend", "-y", "-L", "+256m", &format!("{}/{POOL}", Small::VG)]);
}

/// A volume with something on it that was flushed, and its thin device as a table.
struct Tenant {
    id: String,
    name: &'static str,
    shown: String,
    kept: Vec<u8>,
    table: String,
}

impl Tenant {
    async fn new(daemon: &mut Daemon, pool: &Pool<'_>, name: &'static str) -> Self {
        let how = filesystem("ext4");
        let id = daemon.create(name, pool.writes_mib + 48, &how).await.volume_id;
        let shown = daemon.show(pool.ground, &id, name, &how).await;
        let kept = random(8 << 20);
        write(&Path::new(&shown).join("kept"), &kept);
        let device = format!("lagan-{}", id.rsplit('.').next().unwrap());
        let table = run("dmsetup", &["table", &device]).trim().to_owned();
        Self { id, name, shown, kept, table }
    }

    /// Writes more than there is room for; what came of it.
    fn fill(&self, mib: i64) -> JoinHandle<io::Result<()>> {
        let path = Path::new(&self.shown).join("filler");
        std::thread::spawn(move || {
            let piece = vec![0x5a; usize::try_from(PIECE_MIB * MIB).unwrap()];
            let mut file = File::create(path).unwrap();
            (0..mib / PIECE_MIB).try_for_each(|_| file.write_all(&piece).and_then(|()| file.sync_data()))
        })
    }

    /// Mounts it anew, reads what was kept, and checks the filesystem with its own checker.
    async fn check(&self, daemon: &mut Daemon, ground: &Ground) {
        let how = filesystem("ext4");
        daemon.hide(ground, &self.id, self.name).await;
        daemon.show(ground, &self.id, self.name, &how).await;
        assert!(fs::read(Path::new(&self.shown).join("kept")).unwrap() == self.kept, "{}", self.name);
        daemon.hide(ground, &self.id, self.name).await;
        run(
            "dmsetup",
            &["create", "lagan-test-check", "--noudevsync", "--verifyudev", "--table", &self.table],
        );
        run("e2fsck", &["-fn", "/dev/mapper/lagan-test-check"]);
        run("dmsetup", &["remove", "--retry", "--noudevsync", "--verifyudev", "lagan-test-check"]);
        daemon.delete(&self.id).await;
    }
}

async fn filled_and_extended_in_time(pool: &Pool<'_>) {
    let mut daemon = pool.ground.start().await;
    let tenants = [Tenant::new(&mut daemon, pool, "a").await, Tenant::new(&mut daemon, pool, "b").await];
    let fillers: Vec<_> = tenants.iter().map(|tenant| tenant.fill(pool.writes_mib)).collect();
    pool.wait_until("full", |status| status.contains("out_of_data_space"));
    (pool.extend)();
    for filler in fillers {
        filler.join().unwrap().unwrap_or_else(|error| panic!("a writer was failed: {error}"));
    }
    for tenant in &tenants {
        tenant.check(&mut daemon, pool.ground).await;
    }
    pool.ground.account();
    daemon.kill();
}

#[tokio::test]
async fn a_pool_that_is_extended_in_time() {
    let _group = Small::new(160, 4);
    let (ground, device) = on_lvm();
    let pool = Pool { ground: &ground, device, writes_mib: 112, extend: &extend_lvm };
    filled_and_extended_in_time(&pool).await;
}

#[tokio::test]
async fn a_disk_that_is_extended_in_time() {
    // 830 MiB of it are for data.
    let (disk, ground) = Disk::with_pool(1024);
    let device = run("dmsetup", &["ls"]);
    let device = device.split_whitespace().find(|word| word.starts_with("lagan-pool-")).unwrap().to_owned();
    let extend = || {
        disk.lengthen(1536);
        let extended = ground.lagan(&["pool", "extend", "--device", disk.node]);
        assert!(extended.status.success(), "{extended:?}");
    };
    let pool = Pool { ground: &ground, device, writes_mib: 480, extend: &extend };
    filled_and_extended_in_time(&pool).await;
    disk.retire(&ground);
}

#[tokio::test]
async fn a_pool_that_is_extended_too_late() {
    let _group = Small::new(160, 4);
    let (ground, device) = on_lvm();
    let pool = Pool { ground: &ground, device, writes_mib: 112, extend: &extend_lvm };
    let mut daemon = ground.start().await;
    let tenants = [Tenant::new(&mut daemon, &pool, "a").await, Tenant::new(&mut daemon, &pool, "b").await];
    let usual = fs::read_to_string(TIMEOUT).unwrap();
    fs::write(TIMEOUT, "2").unwrap();
    let fillers: Vec<_> = tenants.iter().map(|tenant| tenant.fill(pool.writes_mib)).collect();
    let failed = fillers.into_iter().map(|filler| filler.join().unwrap());
    assert!(failed.filter(io::Result::is_err).count() > 0, "there was room for all: {}", pool.status());
    fs::write(TIMEOUT, usual.trim()).unwrap();
    extend_lvm();
    pool.wait_until("writable again", |status| status.contains(" rw "));
    for tenant in &tenants {
        tenant.check(&mut daemon, &ground).await;
    }
    ground.account();
    daemon.kill();
}

/// Length of the volume that is cloned, and what one leaf of the metadata covers at the least.
const SOURCE_MIB: u64 = 256;
const LEAF_MIB: u64 = 4;

/// Writes a little every so often; each write makes blocks of metadata that were shared the volume's own.
fn unshare(path: &str, every: u64) {
    let device = File::options().write(true).open(path).unwrap();
    for offset in (0..SOURCE_MIB << 20).step_by(usize::try_from(every).unwrap()) {
        device.write_all_at(&[0x77; 4096], offset).unwrap();
    }
    device.sync_all().unwrap();
}

#[tokio::test]
async fn metadata_never_fills() {
    let _group = Small::new(1024, 2);
    let (ground, device) = on_lvm();
    let mut daemon = ground.start().await;
    let how = block(Mode::SingleNodeWriter);
    let length = i64::try_from(SOURCE_MIB).unwrap();
    let source = daemon.create("source", length, &how).await.volume_id;
    let shown = daemon.show(&ground, &source, "source", &how).await;
    unshare(&shown, 64 << 10);
    daemon.hide(&ground, &source, "source").await;
    // Up to what is admitted.
    let mut clones = Vec::new();
    while clones.len() < 40 {
        let mut request = create_with(&format!("c{}", clones.len()), length * MIB, &how);
        request.volume_content_source = from_volume(&source);
        match daemon.controller.create_volume(request).await {
            Ok(answer) => clones.push(answer.into_inner().volume.unwrap().volume_id),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
                assert!(status.message().contains("metadata"), "{}", status.message());
                break;
            }
        }
    }
    assert!(clones.len() < 40, "all were admitted");
    println!("{} clones were admitted: {}", clones.len(), status(&device).trim());
    assert!(!clones.is_empty(), "none was admitted");
    // From here on writers alone.
    for (number, id) in clones.iter().enumerate() {
        let name = format!("c{number}");
        let shown = daemon.show(&ground, id, &name, &how).await;
        unshare(&shown, LEAF_MIB << 20);
        daemon.hide(&ground, id, &name).await;
    }
    let status = status(&device);
    println!("and written to: {}", status.trim());
    assert!(status.contains(" rw ") && !status.contains("needs_check"), "{status}");
    for id in clones.iter().chain([&source]) {
        daemon.delete(id).await;
    }
    ground.account();
    daemon.kill();
}
