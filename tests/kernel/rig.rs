//! A place for a real driver: directories, a pool on a filesystem of its own, daemons, and what is cleaned up after.
//! Whatever a test leaves in the kernel or on disk fails it.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use lagan::proto::{
    Snapshot, Volume, VolumeCapability, VolumeGroupSnapshot, controller_client::ControllerClient,
    group_controller_client::GroupControllerClient, identity_client::IdentityClient, node_client::NodeClient,
    volume_capability::access_mode::Mode,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::requests::{
    create_with, delete, group_of, hide_at, mount_with, publish_with, show_at, snapshot_of, stage_at,
    unpublish_from, unstage_at,
};

/// Loop devices and the table of mounts are one for the whole machine: one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

pub(crate) const MIB: i64 = 1 << 20;
/// An address for health and metrics.
pub(crate) const HTTP: &str = "127.0.0.1:19736";

/// What the pool lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An XFS with reflink in one file, made by Lagan.
    Image,
    /// A filesystem of this type in a file, made and mounted as an administrator would.
    On(&'static str),
    /// A thin pool of LVM, by the names of group and pool: made once, and emptied by each test.
    Lvm(&'static str, &'static str),
    /// A disk of its own, prepared before.
    Block(&'static str),
}

pub(crate) struct Ground {
    pub(crate) root: PathBuf,
    pub(crate) kind: Kind,
    /// The disk that the pool lies on, where it has one of its own.
    pub(crate) disk: Option<Disk>,
    /// Where health and metrics are served.
    pub(crate) http: &'static str,
    /// Lines added to the configuration, and to its pool.
    pub(crate) settings: String,
    pub(crate) pool_settings: String,
    /// The program itself.
    pub(crate) program: String,
    _machine: Option<MutexGuard<'static, ()>>,
}

pub(crate) use crate::disk::{Disk, run, text, try_run};

impl Ground {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::sized(kind, 4096)
    }

    /// A place with a pool of this many MiB.
    pub(crate) fn sized(kind: Kind, mib: u32) -> Self {
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ground = Self::within(Path::new("/var/tmp"), kind, mib);
        ground._machine = Some(machine);
        ground
    }

    /// The same in this directory, beside others: for a test that looks at nothing but what is its own.
    pub(crate) fn within(directory: &Path, kind: Kind, mib: u32) -> Self {
        let root = tempfile::Builder::new().prefix("lagan-test-").tempdir_in(directory).unwrap().keep();
        for directory in ["targets", "state"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        let pool_settings = "overcommit_percent = 10000\n".to_owned();
        let disk = match kind {
            Kind::Image | Kind::Lvm(..) | Kind::Block(_) => None,
            Kind::On(filesystem) => Some(Disk::new(&root, filesystem, mib)),
        };
        let (http, settings) = ("off", String::new());
        // Another build of it may be asked for.
        let built = || env!("CARGO_BIN_EXE_lagan").to_owned();
        let program = std::env::var("LAGAN").unwrap_or_else(|_| built());
        let ground = Self { root, kind, disk, http, settings, pool_settings, program, _machine: None };
        let (pool, size) = (text(&ground.pool()), format!("{mib}MiB"));
        let made = match kind {
            Kind::Image => ground.lagan(&["pool", "init", &pool, "--image", &size]),
            Kind::On(_) => ground.lagan(&["pool", "init", &pool]),
            Kind::Lvm(vg, thin) => ground.lagan(&["pool", "init", "--lvm", &format!("{vg}/{thin}")]),
            Kind::Block(_) => return ground,
        };
        let again =
            matches!(kind, Kind::Lvm(..)) && String::from_utf8_lossy(&made.stderr).contains("one already");
        assert!(made.status.success() || again, "{made:?}");
        ground
    }

    pub(crate) fn pool(&self) -> PathBuf {
        match self.kind {
            Kind::Image | Kind::Lvm(..) | Kind::Block(_) => self.root.join("pool"),
            Kind::On(_) => self.root.join("disk/pool"),
        }
    }

    /// Where the files of volumes are.
    pub(crate) fn volumes(&self) -> PathBuf {
        match self.kind {
            Kind::Image => self.pool().join("fs/volumes"),
            Kind::On(_) | Kind::Lvm(..) | Kind::Block(_) => self.pool().join("volumes"),
        }
    }

    pub(crate) fn file_of(&self, id: &str) -> PathBuf {
        self.volumes().join(format!("{}.raw", id.rsplit('.').next().unwrap()))
    }

    pub(crate) fn path(&self, name: &str) -> String {
        text(&self.root.join("targets").join(name))
    }

    fn write_config(&self) -> PathBuf {
        let root = text(&self.root);
        let place = match self.kind {
            Kind::Lvm(vg, thin) => format!("kind = \"lvm\"\nvg = \"{vg}\"\nthin_pool = \"{thin}\""),
            Kind::Block(device) => format!("kind = \"block\"\ndevice = \"{device}\""),
            _ => format!("kind = \"file\"\npath = \"{}\"", text(&self.pool())),
        };
        let config = format!(
            "node_id = \"n1\"\nstate_dir = \"{root}/state\"\nendpoint = \"{root}/csi.sock\"\nhttp = \"{}\"\n\
             target_roots = [\"{root}/targets\"]\n{}[[pool]]\nname = \"p\"\n{place}\n{}",
            self.http, self.settings, self.pool_settings
        );
        let path = self.root.join("lagan.toml");
        fs::write(&path, config).unwrap();
        path
    }

    /// Runs the tool to its end.
    #[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
    pub(crate) fn lagan(&self, arguments: &[&str]) -> Output {
        let config = text(&self.write_config());
        Command::new(&self.program).args(["--config", &config]).args(arguments).output().unwrap()
    }

    /// Starts a daemon without waiting for it.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.spawn_in("true", arguments)
    }

    /// The same in a mount namespace of its own, once `prelude` has been run there by a shell.
    #[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
    pub(crate) fn spawn_in(&self, prelude: &str, arguments: &[&str]) -> Child {
        let config = text(&self.write_config());
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut lagan = vec![self.program.as_str(), "--config", &config, "serve"];
        if !arguments.contains(&"--log-level") {
            lagan.extend(["--log-level", "debug"]);
        }
        let mut command = if prelude == "true" {
            Command::new(lagan[0])
        } else {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", &format!("{prelude} && exec \"$0\" \"$@\""), lagan[0]]);
            command
        };
        command.args(&lagan[1..]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Starts the driver and waits until it answers.
    pub(crate) async fn start(&self) -> Daemon {
        self.start_as("all", "csi.sock").await
    }

    /// Waits until a driver on the usual socket answers.
    pub(crate) async fn connect(&self, child: Child) -> Daemon {
        Daemon::connect(child, self.root.join("csi.sock"), self.log()).await
    }

    /// Starts the driver with more arguments; the last of a kind wins.
    pub(crate) async fn start_with(&self, arguments: &[&str]) -> Daemon {
        self.connect(self.spawn(arguments)).await
    }

    /// Starts one role on a socket of its own.
    pub(crate) async fn start_as(&self, mode: &str, socket: &str) -> Daemon {
        let socket = self.root.join(socket);
        let child = self.spawn(&["--mode", mode, "--endpoint", &text(&socket)]);
        Daemon::connect(child, socket, self.log()).await
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Every object of ours in the kernel and on disk agrees with the records. What goes by itself with its last user goes a
    /// moment after it.
    #[track_caller]
    pub(crate) fn account(&self) {
        let begun = Instant::now();
        let mut checked = self.lagan(&["doctor", "--check"]);
        while !checked.status.success() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
            checked = self.lagan(&["doctor", "--check"]);
        }
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(
            checked.status.success(),
            "the accountant: {said}{}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }

    /// Mounts below this place, the deepest last.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let root = text(&self.root);
        let table = lagan::sys::mountinfo::read().unwrap();
        let points = table.into_iter().map(|entry| text(&entry.mount_point));
        points.filter(|point| point.starts_with(&root)).collect()
    }

    /// Loop devices on files below this place.
    pub(crate) fn loops(&self) -> Vec<String> {
        let listed = run("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"]);
        // Files of an image pool show paths inside it; others may have such pools as well.
        let inside =
            |line: &str| line.split_whitespace().nth(1)?.strip_prefix("/volumes/").map(str::to_owned);
        let ours = |line: &&str| {
            line.contains(&text(&self.root))
                || inside(line).is_some_and(|name| self.volumes().join(name).exists())
        };
        listed
            .lines()
            .filter(ours)
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }

    /// The loop device of a volume.
    pub(crate) fn device_of(&self, id: &str) -> String {
        let listed = run("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"]);
        let line = listed.lines().find(|line| line.contains(id.rsplit('.').next().unwrap()));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    }

    /// What a reboot leaves: nothing in the kernel.
    pub(crate) fn power_off(&self) {
        let disk = text(&self.root.join("disk"));
        for point in self.mounts().iter().rev().filter(|point| **point != disk) {
            run("umount", &[point]);
        }
        for device in self.loops() {
            if !run("losetup", &["-l", "-n", "-O", "BACK-FILE", &device]).contains("disk.img") {
                run("losetup", &["-d", &device]);
            }
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let disk = text(&self.root.join("disk"));
        let image = text(&self.root.join("pool/fs"));
        let expected = |point: &String| *point == disk || *point == image;
        let left: Vec<_> = self.mounts().into_iter().filter(|point| !expected(point)).collect();
        for _attempt in 0..3 {
            for point in self.mounts().iter().rev() {
                drop(try_run("umount", &[point]));
            }
            for device in self.loops() {
                drop(try_run("losetup", &["-d", &device]));
            }
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let tail: Vec<_> = log.lines().filter(|line| !line.contains("h2::")).rev().take(40).collect();
            tail.iter().rev().for_each(|line| println!("{line}"));
        }
        if self.mounts().is_empty() {
            drop(try_run("rm", &["-rf", "--one-file-system", &text(&self.root)]));
        } else if !std::thread::panicking() {
            panic!("mounts could not be taken away: {:?}", self.mounts());
        }
        assert!(left.is_empty() || std::thread::panicking(), "mounts were left: {left:?}");
    }
}

/// A running driver and its clients. Dropping it kills it.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
    /// For calls that no client would make.
    pub(crate) channel: Channel,
    pub(crate) identity: IdentityClient<Channel>,
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) groups: GroupControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
}

impl Daemon {
    /// Waits until a driver that was started answers there.
    pub(crate) async fn connect(mut child: Child, socket: PathBuf, log: PathBuf) -> Self {
        // An emulated machine may take its time.
        let deadline = Instant::now() + Duration::from_secs(120);
        let channel = loop {
            let socket = socket.clone();
            let connector = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            match Endpoint::from_static("http://localhost").connect_with_connector(connector).await {
                Ok(channel) => break channel,
                Err(error) => {
                    let ended = child.try_wait().unwrap();
                    let said = || fs::read_to_string(&log).unwrap_or_default();
                    assert!(ended.is_none(), "the daemon ended ({ended:?}):\n{}", said());
                    assert!(Instant::now() < deadline, "no answer: {error}\n{}", said());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        Self {
            child,
            socket,
            log,
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            groups: GroupControllerClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            channel,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends it without warning.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Whether somebody has killed it; a little later it may not be known yet.
    pub(crate) fn was_killed(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if let Some(ended) = self.child.try_wait().unwrap() {
                return ended.signal() == Some(Signal::KILL.as_raw());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Asks it to end, and waits; how it ended.
    pub(crate) fn stop(self) -> std::process::ExitStatus {
        self.end_by(Signal::TERM)
    }

    /// Sends it a signal that ends it, and waits; how it ended.
    pub(crate) fn end_by(mut self, signal: Signal) -> std::process::ExitStatus {
        kill_process(self.pid(), signal).unwrap();
        self.child.wait().unwrap()
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// What it shows over HTTP.
    pub(crate) fn metrics(&self) -> String {
        use std::io::Write;

        let mut stream = std::net::TcpStream::connect(HTTP).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// One number of it.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) async fn create(&mut self, name: &str, mib: i64, capability: &VolumeCapability) -> Volume {
        let request = create_with(name, mib * MIB, capability);
        self.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap()
    }

    /// A volume made from something.
    pub(crate) async fn copy(
        &mut self,
        name: &str,
        source: Option<lagan::proto::VolumeContentSource>,
        capability: &VolumeCapability,
    ) -> Volume {
        let mut request = create_with(name, 0, capability);
        request.volume_content_source = source;
        self.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap()
    }

    pub(crate) async fn snapshot(&mut self, volume: &str, name: &str) -> Result<Snapshot, Status> {
        let answer = self.controller.create_snapshot(snapshot_of(volume, name)).await?;
        Ok(answer.into_inner().snapshot.unwrap())
    }

    /// Snapshots of volumes at one instant.
    pub(crate) async fn group(
        &mut self,
        volumes: &[&str],
        name: &str,
    ) -> Result<VolumeGroupSnapshot, Status> {
        let answer = self.groups.create_volume_group_snapshot(group_of(volumes, name)).await?;
        Ok(answer.into_inner().group_snapshot.unwrap())
    }

    pub(crate) async fn delete(&mut self, id: &str) {
        self.controller.delete_volume(delete(id)).await.unwrap();
    }

    /// Publishes, stages and shows a volume below the target root; where it can be used.
    pub(crate) async fn show(
        &mut self,
        ground: &Ground,
        id: &str,
        name: &str,
        capability: &VolumeCapability,
    ) -> String {
        let (staging, target) = (ground.path(&format!("{name}-staging")), ground.path(name));
        self.controller.controller_publish_volume(publish_with(id, capability)).await.unwrap();
        self.node.node_stage_volume(stage_at(id, &staging, capability)).await.unwrap();
        self.node.node_publish_volume(show_at(id, &staging, &target, capability)).await.unwrap();
        target
    }

    /// The way back.
    pub(crate) async fn hide(&mut self, ground: &Ground, id: &str, name: &str) {
        self.node.node_unpublish_volume(hide_at(id, &ground.path(name))).await.unwrap();
        self.node
            .node_unstage_volume(unstage_at(id, &ground.path(&format!("{name}-staging"))))
            .await
            .unwrap();
        self.controller.controller_unpublish_volume(unpublish_from(id, "")).await.unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn filesystem(name: &str) -> VolumeCapability {
    mount_with(Mode::SingleNodeMultiWriter, name, &[])
}

/// The least length in MiB that each filesystem takes.
pub(crate) fn least(name: &str) -> i64 {
    match name {
        "xfs" => 300,
        "btrfs" => 128,
        _ => 16,
    }
}

/// Bytes that no two calls share.
pub(crate) fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

/// Writes a file and flushes it.
pub(crate) fn write(path: &Path, content: &[u8]) {
    use std::io::Write;

    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
}
