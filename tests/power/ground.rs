//! A disk whose writes are logged, with a pool on it, and the same disk as it was at an earlier moment.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lagan::{
    bytes::Bytes,
    pool::{
        Pool, Role,
        file::{self, FilePool},
        thin::{self, Place, ThinPool},
    },
    sys::{
        cmd::Commands,
        dm::{Line, Mapper},
    },
};

use crate::disk::{run, text};

const LENGTH: u64 = 1 << 30;
const NAME: &str = "lagan-test-cut";

/// The kinds of pool, by what lies on the disk.
pub(crate) const KINDS: [&str; 4] = ["block", "ext4", "xfs", "btrfs"];

pub(crate) struct Ground {
    kind: &'static str,
    root: PathBuf,
    commands: Arc<Commands>,
}

/// A pool on a device, and what is to be taken away after it.
pub(crate) struct Served {
    pub(crate) pool: Arc<dyn Pool>,
    node: String,
    ground: Arc<Ground>,
}

impl Served {
    pub(crate) fn stop(self) {
        let Self { pool, node, ground } = self;
        assert_eq!(Arc::strong_count(&pool), 1, "somebody still uses the pool");
        drop(pool);
        if ground.kind == "block" {
            thin::stop(&Place::Disk(node.into()), &ground.commands).unwrap();
        } else {
            run("umount", &[&text(&ground.point())]);
        }
    }
}

fn plug(file: &Path) -> String {
    run("losetup", &["--find", "--show", &text(file)]).trim().to_owned()
}

pub(crate) fn unplug(node: &str) {
    run("losetup", &["-d", node]);
}

impl Ground {
    pub(crate) fn new(kind: &'static str) -> Arc<Self> {
        let root = tempfile::Builder::new().prefix("lagan-test-").tempdir_in("/var/tmp").unwrap().keep();
        run("modprobe", &["dm_log_writes"]);
        let ground = Arc::new(Self { kind, root, commands: Arc::new(Commands::find()) });
        fs::create_dir(ground.point()).unwrap();
        for name in ["disk", "log"] {
            File::create(ground.file(name)).unwrap().set_len(LENGTH).unwrap();
        }
        let node = plug(&ground.file("disk"));
        ground.make_pool(&node);
        unplug(&node);
        ground.copy("disk", "replayed");
        ground
    }

    fn point(&self) -> PathBuf {
        self.root.join("point")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn copy(&self, from: &str, to: &str) {
        run("cp", &["--sparse=always", &text(&self.file(from)), &text(&self.file(to))]);
    }

    fn make_pool(&self, node: &str) {
        if self.kind == "block" {
            let place = Place::Disk(node.into());
            thin::init(&place, "machine", None, &self.commands).unwrap();
            thin::stop(&place, &self.commands).unwrap();
            return;
        }
        let force = if self.kind == "ext4" { "-F" } else { "-f" };
        run(&format!("mkfs.{}", self.kind), &["-q", force, node]);
        run("mount", &[node, &text(&self.point())]);
        file::init(&self.point().join("pool"), "machine", None, &self.commands).unwrap();
        run("umount", &[&text(&self.point())]);
    }

    /// Serves the pool on a device.
    pub(crate) fn serve(self: &Arc<Self>, node: &str) -> Served {
        let (reserve_percent, overcommit_percent, freeze_limit) = (1, 1000, Duration::from_secs(30));
        let pool: Arc<dyn Pool> = if self.kind == "block" {
            let settings = thin::Settings {
                place: Place::Disk(node.into()),
                machine: "machine".into(),
                reserve_percent,
                overcommit_percent,
                freeze_limit,
                templates: 0,
                extend: None,
            };
            Arc::new(ThinPool::open(settings, Role::Both, None, Arc::clone(&self.commands), None).unwrap())
        } else {
            run("mount", &[node, &text(&self.point())]);
            let settings = file::Settings {
                path: self.point().join("pool"),
                machine: "machine".into(),
                reserve_percent,
                overcommit_percent,
                freeze_limit,
                templates: 0,
            };
            Arc::new(FilePool::open(settings, Role::Both, None, Arc::clone(&self.commands), None).unwrap())
        };
        Served { pool, node: node.to_owned(), ground: Arc::clone(self) }
    }

    /// The disk at an earlier moment, as another disk.
    pub(crate) fn plug(&self, name: &str) -> String {
        plug(&self.file(name))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        run("rm", &["-rf", "--one-file-system", &text(&self.root)]);
    }
}

/// The disk while its writes are logged.
pub(crate) struct Logged {
    mapper: Mapper,
    loops: [String; 2],
    pub(crate) node: String,
}

impl Logged {
    pub(crate) fn new(ground: &Ground) -> Self {
        let loops = ["disk", "log"].map(|name| plug(&ground.file(name)));
        let mapper = Mapper::open().unwrap();
        mapper.create(NAME, NAME).unwrap();
        let text = loops.join(" ");
        let line = Line { start: 0, length: LENGTH / 512, target: "log-writes".into(), text };
        mapper.load(NAME, &[line], false).unwrap();
        mapper.resume(NAME).unwrap();
        let node = format!("/dev/dm-{}", mapper.info(NAME).unwrap().unwrap().number.minor());
        Self { mapper, loops, node }
    }

    /// Notes that all until now was acknowledged.
    pub(crate) fn mark(&self, text: &str) {
        self.mapper.message(NAME, &format!("mark {text}")).unwrap();
    }

    pub(crate) fn end(self) {
        assert!(self.mapper.remove(NAME).unwrap());
        self.loops.iter().for_each(|node| unplug(node));
    }
}

pub(crate) const SIZE: Bytes = Bytes::mib(64);
