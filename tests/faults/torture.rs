//! Eight callers at once, and SIGKILL without end: at random moments, and at random system calls. What was asked for is asked
//! again until it is done, what was written is read back, a neighbour writes and verifies all the time, and the accountant
//! looks at every round. FOR_SECONDS=n for how long, SEED=n for the same choices; LAGAN=path for another build.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, DeleteSnapshotRequest, ListVolumesRequest,
    VolumeCapability, VolumeContentSource, controller_client::ControllerClient, node_client::NodeClient,
    volume_capability::access_mode::Mode,
};
use rustix::process::{Signal, kill_process};
use tokio::{net::UnixStream, sync::RwLock};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    doubles::{Chance, number},
    memory::{Memory, beside},
    requests::{
        block, create_with, delete, from_snapshot, from_volume, hide_at, publish_with, show_at, snapshot_of,
        stage_at, unpublish_from, unstage_at,
    },
    rig::{Daemon, Ground, Kind, MIB, filesystem, least, random, text},
    table::asks_again,
    tracer::{Act, Place, Shot, Tracer},
    writer::Writer,
};

const CALLERS: u64 = 8;
/// An object on which the same request does not succeed for so long, with a driver that runs, is a wedge.
const WEDGED: Duration = Duration::from_secs(60);

/// What was done so far, by all.
#[derive(Default)]
struct Figures {
    operations: AtomicU64,
    again: AtomicU64,
    lives: AtomicU64,
}

/// One that uses volumes, as an orchestrator would.
struct Caller {
    number: u64,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    chance: Chance,
    targets: String,
    /// Shut while the accountant looks.
    gate: Arc<RwLock<()>>,
    figures: Arc<Figures>,
}

/// A volume on its way.
struct Used {
    id: String,
    how: VolumeCapability,
    raw: bool,
    at: String,
    content: Vec<u8>,
    mib: i64,
}

/// Makes a call until it succeeds.
macro_rules! done {
    ($caller:expr, $client:ident . $call:ident ($request:expr)) => {{
        let (request, begun) = ($request, Instant::now());
        loop {
            let open = Arc::clone(&$caller.gate).read_owned().await;
            let answer = $caller.$client.$call(request.clone()).await;
            drop(open);
            match $caller.judge(stringify!($call), answer, begun) {
                Some(answer) => break answer,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }};
}

impl Caller {
    fn new(
        number: u64,
        seed: u64,
        ground: &Ground,
        socket: &Path,
        (gate, figures): (&Arc<RwLock<()>>, &Arc<Figures>),
    ) -> Self {
        let channel = channel(socket);
        Self {
            number,
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            chance: Chance::new(seed * 100 + number),
            targets: text(&ground.root.join("targets")),
            gate: Arc::clone(gate),
            figures: Arc::clone(figures),
        }
    }

    /// Lives one life after the other.
    async fn live_until(mut self, until: Instant) {
        for life in 0.. {
            if Instant::now() >= until {
                break;
            }
            self.live(life).await;
        }
    }

    /// The answer, or nothing where the same is to be asked again.
    fn judge<T>(&self, call: &str, answer: Result<Response<T>, Status>, begun: Instant) -> Option<T> {
        let status = match answer {
            Ok(answer) => {
                self.figures.operations.fetch_add(1, Relaxed);
                return Some(answer.into_inner());
            }
            Err(status) => status,
        };
        // The driver is gone, or says that it does not know: it is asked again. A volume may be in use for a moment by
        // whoever looks at devices.
        let lost = std::error::Error::source(&status).is_some()
            || matches!(status.code(), Code::Unknown | Code::Cancelled);
        assert!(
            lost || asks_again(status.code()) || status.code() == Code::FailedPrecondition,
            "{call}: {status:?}"
        );
        assert!(begun.elapsed() < WEDGED, "wedged: {call}: {status:?}");
        self.figures.again.fetch_add(1, Relaxed);
        None
    }

    async fn make(
        &mut self,
        name: &str,
        mib: i64,
        how: &VolumeCapability,
        source: Option<VolumeContentSource>,
    ) -> String {
        let mut request = create_with(name, mib * MIB, how);
        request.volume_content_source = source;
        done!(self, controller.create_volume(request)).volume.unwrap().volume_id
    }

    async fn show(&mut self, used: &Used) {
        let staging = format!("{}-staging", used.at);
        done!(self, controller.controller_publish_volume(publish_with(&used.id, &used.how)));
        done!(self, node.node_stage_volume(stage_at(&used.id, &staging, &used.how)));
        done!(self, node.node_publish_volume(show_at(&used.id, &staging, &used.at, &used.how)));
    }

    async fn hide(&mut self, used: &Used) {
        done!(self, node.node_unpublish_volume(hide_at(&used.id, &used.at)));
        done!(self, node.node_unstage_volume(unstage_at(&used.id, &format!("{}-staging", used.at))));
        done!(self, controller.controller_unpublish_volume(unpublish_from(&used.id, "")));
    }

    /// A life from its beginning to its end, with what chance adds.
    async fn live(&mut self, life: u64) {
        let name = format!("t{}-{life}", self.number);
        let kind = self.chance.of(&["raw", "ext4", "xfs"]);
        let raw = kind == "raw";
        let how = if raw { block(Mode::SingleNodeMultiWriter) } else { filesystem(kind) };
        let mib = if raw { 4 } else { least(kind) };
        let id = self.make(&name, mib, &how, None).await;
        let at = format!("{}/{name}", self.targets);
        let mut used = Used { id, how, raw, at, content: random(64 << 10), mib };
        self.show(&used).await;
        used.write();
        // The kernel grows a mounted ext4 only for who may.
        if self.chance.below(2) == 0 && (kind != "ext4" || lagan::sys::host::may_grow_ext4()) {
            self.grow(&mut used).await;
        }
        if self.chance.below(3) == 0 {
            self.hide(&used).await;
            self.show(&used).await;
        }
        used.check();
        match self.chance.below(3) {
            0 => self.copy(&used, &format!("{name}-clone"), from_volume(&used.id)).await,
            1 => {
                let cut =
                    done!(self, controller.create_snapshot(snapshot_of(&used.id, &format!("{name}-cut"))));
                let snapshot_id = cut.snapshot.unwrap().snapshot_id;
                self.copy(&used, &format!("{name}-restored"), from_snapshot(&snapshot_id)).await;
                let request = DeleteSnapshotRequest { snapshot_id, ..DeleteSnapshotRequest::default() };
                done!(self, controller.delete_snapshot(request));
            }
            _ => {}
        }
        self.hide(&used).await;
        done!(self, controller.delete_volume(delete(&used.id)));
        assert!(!Path::new(&used.at).exists(), "a target was left: {}", used.at);
        self.figures.lives.fetch_add(1, Relaxed);
    }

    async fn grow(&mut self, used: &mut Used) {
        used.mib += 16;
        let request = ControllerExpandVolumeRequest {
            volume_id: used.id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: used.mib * MIB, limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        done!(self, controller.controller_expand_volume(request));
    }

    /// A copy holds what its source held.
    async fn copy(&mut self, source: &Used, name: &str, from: Option<VolumeContentSource>) {
        let id = self.make(name, source.mib, &source.how, from).await;
        let at = format!("{}/{name}", self.targets);
        let copy = Used { id, how: source.how.clone(), at, content: source.content.clone(), ..*source };
        self.show(&copy).await;
        copy.check();
        self.hide(&copy).await;
        done!(self, controller.delete_volume(delete(&copy.id)));
    }
}

impl Used {
    fn file(&self) -> String {
        if self.raw { self.at.clone() } else { format!("{}/data", self.at) }
    }

    fn write(&self) {
        let mut file =
            File::options().write(true).create(!self.raw).truncate(false).open(self.file()).unwrap();
        file.write_all(&self.content).unwrap();
        file.sync_all().unwrap();
    }

    /// What was written and flushed is there.
    fn check(&self) {
        let mut read = vec![0; self.content.len()];
        File::open(self.file()).unwrap().read_exact(&mut read).unwrap();
        assert!(read == self.content, "lost: what was written to {}", self.at);
    }
}

/// Connects whenever it is asked, to whoever listens there then.
fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// A program that writes at random places and verifies what it wrote.
#[expect(clippy::disallowed_methods, reason = "tests do what an administrator would")]
fn verifier(directory: &str, seconds: u64) -> Option<Child> {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=neighbour",
        "--rw=randwrite",
        "--bs=4k",
        "--size=8m",
        "--direct=1",
        "--ioengine=psync",
    ]);
    fio.args([
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=256",
        "--rate_iops=200",
        "--time_based",
    ]);
    // It ends with the file verified as a whole.
    fio.args([
        "--do_verify=1",
        "--verify_state_save=0",
        &format!("--runtime={seconds}"),
        &format!("--directory={directory}"),
    ]);
    fio.stdin(Stdio::null()).stdout(Stdio::null()).spawn().ok()
}

/// Kills the driver now, or at a system call that it will make.
async fn strike(chance: &mut Chance, daemon: &Daemon, at_calls: &mut u64) {
    tokio::time::sleep(Duration::from_millis(20 + chance.below(400) as u64)).await;
    if chance.below(2) == 0 {
        let tracer = Tracer::attach(daemon.pid().as_raw_nonzero().get());
        let later = u32::try_from(1 + chance.below(300)).unwrap();
        tracer.begin(&[Shot {
            place: Place::Later(later),
            act: chance.of(&[Act::KillBefore, Act::KillAfter]),
        }]);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            if !tracer.follows() {
                *at_calls += 1;
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    kill_process(daemon.pid(), Signal::KILL).unwrap();
}

/// Every volume that was made is gone, but for the neighbour, which is to go now.
async fn nothing_is_left(ground: &Ground, daemon: &mut Daemon, beside: &str) {
    let listed =
        daemon.controller.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(listed.len(), 1, "leaked volumes");
    daemon.hide(ground, beside, "beside").await;
    daemon.delete(beside).await;
    ground.account();
    for directory in ["volumes", "snapshots"] {
        let files = fs::read_dir(ground.volumes().parent().unwrap().join(directory)).unwrap().count();
        assert_eq!(files, 0, "leaked files in {directory}");
    }
}

#[tokio::test]
async fn killed_without_end_under_eight_callers() {
    let (seconds, seed) = (number("FOR_SECONDS", 20), number("SEED", 1));
    let _apart = beside();
    // A long run is made on a real disk.
    let memory = if seconds <= 60 { Some(Memory::new()) } else { None };
    let place = memory.as_ref().map_or(Path::new("/var/tmp"), Memory::path);
    let ground = Ground::within(place, Kind::Image, 4096);
    let mut daemon = ground.start().await;
    let how = filesystem("ext4");
    let beside = daemon.create("beside", 64, &how).await.volume_id;
    let shown = daemon.show(&ground, &beside, "beside", &how).await;
    let (writer, verifier) = (Writer::on(&shown), verifier(&shown, seconds));
    let (gate, figures) = (Arc::new(RwLock::new(())), Arc::<Figures>::default());
    let until = Instant::now() + Duration::from_secs(seconds);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| Caller::new(number, seed, &ground, &daemon.socket, (&gate, &figures)).live_until(until))
        .map(tokio::spawn)
        .collect();
    let mut chance = Chance::new(seed);
    let (mut kills, mut at_calls, mut rounds, mut longest) = (0_u64, 0, 0_u64, Duration::ZERO);
    while Instant::now() < until {
        for _ in 0..5 {
            strike(&mut chance, &daemon, &mut at_calls).await;
            assert!(daemon.was_killed(), "the driver ended otherwise");
            let begun = Instant::now();
            daemon.kill();
            daemon = ground.start().await;
            longest = longest.max(begun.elapsed());
            kills += 1;
        }
        let shut = gate.write().await;
        ground.account();
        writer.resumes();
        drop(shut);
        rounds += 1;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let stall = writer.longest();
    let lines = writer.end();
    let verified = verifier.map(|mut fio| fio.wait().unwrap());
    assert!(verified.is_none_or(|ended| ended.success()), "fio: {verified:?}");
    nothing_is_left(&ground, &mut daemon, &beside).await;
    println!(
        "torture: {seconds} s, seed {seed}: {kills} kills ({at_calls} at a system call), {} operations in {} lives, {} asked \
         again; losses 0, leaks 0 in {rounds} rounds, wedges 0; longest restart {longest:.0?}; the neighbour wrote {lines} lines, \
         one took {stall:?}{}",
        figures.operations.load(Relaxed),
        figures.lives.load(Relaxed),
        figures.again.load(Relaxed),
        if verified.is_some() { "; fio verified all of its own" } else { "" },
    );
}
