//! Lives of volumes, one after the other, by callers that ask again until they are served.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use lagan::proto::{
    CapacityRange, ControllerExpandVolumeRequest, DeleteSnapshotRequest, NodeExpandVolumeRequest,
    VolumeCapability, controller_client::ControllerClient, node_client::NodeClient,
    volume_capability::access_mode::Mode,
};
use tokio::{sync::RwLock, task::spawn_blocking, time::timeout};
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    requests::{
        block, create_with, delete, from_snapshot, hide_at, publish_with, show_at, snapshot_of, stage_at,
        unpublish_from, unstage_at,
    },
    rig::{Daemon, Ground, MIB, filesystem, random},
};

/// How long a call may be asked again, once nothing is wrong any more. After that it is a wedge.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one answer is waited for.
const ONE_CALL: Duration = Duration::from_secs(20);

/// What callers and the one who watches them share.
pub(crate) struct State {
    channel: Channel,
    /// Held by every caller for one life; whoever takes it alone has everything stand still.
    pub(crate) quiet: RwLock<()>,
    stopped: AtomicBool,
    /// Something is wrong on purpose.
    pub(crate) troubled: AtomicBool,
    /// How often the pool was full: what was written then may have failed.
    pub(crate) full: AtomicU64,
    pub(crate) lives: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) again: AtomicU64,
    /// Microseconds of calls in quiet times, since they were taken last.
    pub(crate) took: Mutex<Vec<u64>>,
    broken: Mutex<Option<String>>,
}

impl State {
    pub(crate) fn new(daemon: &Daemon) -> Self {
        Self {
            channel: daemon.channel.clone(),
            quiet: RwLock::default(),
            stopped: AtomicBool::default(),
            troubled: AtomicBool::default(),
            full: AtomicU64::default(),
            lives: AtomicU64::default(),
            calls: AtomicU64::default(),
            again: AtomicU64::default(),
            took: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
    }

    /// Fails if a caller found something that must not be.
    pub(crate) fn check(&self) {
        if let Some(what) = self.broken.lock().unwrap().take() {
            panic!("{what}");
        }
    }
}

/// A life that cannot go on: by a full pool, which is the workload's trouble, or by something that is ours.
enum Ended {
    Full,
    Broken(String),
}

/// What there is of a life, to be taken away at its end.
#[derive(Default)]
struct Held {
    shown: Vec<(String, String)>,
    granted: Vec<String>,
    volumes: Vec<String>,
    snapshots: Vec<String>,
}

pub(crate) struct Caller {
    state: Arc<State>,
    number: u64,
    targets: PathBuf,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Caller {
    pub(crate) fn new(ground: &Ground, state: &Arc<State>, number: u64) -> Self {
        let (controller, node) = (state.channel.clone(), state.channel.clone());
        Self {
            state: Arc::clone(state),
            number,
            targets: ground.root.join("targets"),
            controller: ControllerClient::new(controller),
            node: NodeClient::new(node),
        }
    }

    pub(crate) async fn call_until_stopped(self) {
        for life in 0_u64.. {
            let _loud = self.state.quiet.read().await;
            if self.state.stopped.load(SeqCst) {
                return;
            }
            let (name, before) = (format!("c{}-{life}", self.number), self.state.full.load(SeqCst));
            let mut held = Held::default();
            // Every fourth caller is a workload, the others are an orchestrator's.
            let lived = match self.number % 4 {
                0 => self.mounted(&name, &mut held, before).await,
                _ => self.unmounted(&name, &mut held, before).await,
            };
            // It must come to its end whatever it was.
            let ended = self.end(&held).await;
            let broken = match lived {
                Err(Ended::Broken(what)) => Some(what),
                Ok(()) | Err(Ended::Full) => ended.err(),
            };
            if let Some(what) = broken {
                self.state.broken.lock().unwrap().get_or_insert(format!("{name}: {what}"));
                return;
            }
            self.state.lives.fetch_add(1, SeqCst);
        }
    }

    /// Created, granted, cut, restored, grown.
    async fn unmounted(&self, name: &str, held: &mut Held, full: u64) -> Result<(), Ended> {
        let how = block(Mode::SingleNodeWriter);
        let id = self.create(name, 4, None, &how, held, full).await?;
        self.grant(&id, &how, held, full).await?;
        let snapshot = self.cut(&id, name, held, full).await?;
        self.create(&format!("{name}-r"), 0, Some(&snapshot), &how, held, full).await?;
        self.grow(&id, 8, full).await
    }

    /// The same with a filesystem, and what is written to it.
    async fn mounted(&self, name: &str, held: &mut Held, full: u64) -> Result<(), Ended> {
        let (how, content) = (filesystem("xfs"), random(64 << 10));
        let id = self.create(name, 300, None, &how, held, full).await?;
        let target = self.show(&id, name, &how, held, full).await?;
        let file = target.join("data");
        self.write(&file, &content, full).await?;
        let snapshot = self.cut(&id, name, held, full).await?;
        let restored = format!("{name}-r");
        let copy = self.create(&restored, 0, Some(&snapshot), &how, held, full).await?;
        let shown = self.show(&copy, &restored, &how, held, full).await?;
        self.verify(&shown.join("data"), &content, full).await?;
        self.grow(&id, 320, full).await?;
        let request = NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: target.to_str().unwrap().to_owned(),
            ..NodeExpandVolumeRequest::default()
        };
        self.live("NodeExpandVolume", full, || {
            let (mut node, request) = (self.node.clone(), request.clone());
            async move { node.node_expand_volume(request).await }
        })
        .await?;
        self.verify(&file, &content, full).await
    }

    async fn create(
        &self,
        name: &str,
        mib: i64,
        source: Option<&str>,
        how: &VolumeCapability,
        held: &mut Held,
        full: u64,
    ) -> Result<String, Ended> {
        let mut request = create_with(name, mib * MIB, how);
        request.volume_content_source = source.and_then(from_snapshot);
        let answer = self.live("CreateVolume", full, || {
            let (mut controller, request) = (self.controller.clone(), request.clone());
            async move { controller.create_volume(request).await }
        });
        let id = answer.await?.volume.unwrap().volume_id;
        held.volumes.push(id.clone());
        Ok(id)
    }

    async fn grant(&self, id: &str, how: &VolumeCapability, held: &mut Held, full: u64) -> Result<(), Ended> {
        held.granted.push(id.to_owned());
        let answer = self.live("ControllerPublishVolume", full, || {
            let (mut controller, request) = (self.controller.clone(), publish_with(id, how));
            async move { controller.controller_publish_volume(request).await }
        });
        answer.await.map(drop)
    }

    async fn show(
        &self,
        id: &str,
        name: &str,
        how: &VolumeCapability,
        held: &mut Held,
        full: u64,
    ) -> Result<PathBuf, Ended> {
        self.grant(id, how, held, full).await?;
        held.shown.push((id.to_owned(), name.to_owned()));
        let (staging, target) = self.paths(name);
        let answer = self.live("NodeStageVolume", full, || {
            let (mut node, request) = (self.node.clone(), stage_at(id, &staging, how));
            async move { node.node_stage_volume(request).await }
        });
        answer.await?;
        let answer = self.live("NodePublishVolume", full, || {
            let (mut node, request) = (self.node.clone(), show_at(id, &staging, &target, how));
            async move { node.node_publish_volume(request).await }
        });
        answer.await?;
        Ok(target.into())
    }

    fn paths(&self, name: &str) -> (String, String) {
        let path = |name: String| self.targets.join(name).to_str().unwrap().to_owned();
        (path(format!("{name}-staging")), path(name.to_owned()))
    }

    async fn cut(&self, id: &str, name: &str, held: &mut Held, full: u64) -> Result<String, Ended> {
        let answer = self.live("CreateSnapshot", full, || {
            let (mut controller, request) = (self.controller.clone(), snapshot_of(id, name));
            async move { controller.create_snapshot(request).await }
        });
        let snapshot = answer.await?.snapshot.unwrap().snapshot_id;
        held.snapshots.push(snapshot.clone());
        Ok(snapshot)
    }

    async fn grow(&self, id: &str, mib: i64, full: u64) -> Result<(), Ended> {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: mib * MIB, limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        let answer = self.live("ControllerExpandVolume", full, || {
            let (mut controller, request) = (self.controller.clone(), request.clone());
            async move { controller.controller_expand_volume(request).await }
        });
        answer.await.map(drop)
    }

    async fn write(&self, file: &Path, content: &[u8], full: u64) -> Result<(), Ended> {
        let (path, content) = (file.to_owned(), content.to_vec());
        let write = move || {
            let mut file = fs::File::create(path)?;
            file.write_all(&content).and_then(|()| file.sync_all())
        };
        let written = spawn_blocking(write).await.unwrap();
        written.map_err(|error| self.ended(full, format!("write {}: {error}", file.display())))
    }

    async fn verify(&self, file: &Path, content: &[u8], full: u64) -> Result<(), Ended> {
        let path = file.to_owned();
        match spawn_blocking(move || fs::read(path)).await.unwrap() {
            Ok(found) if found == content => Ok(()),
            // What was flushed is never anything else, pool full or not.
            Ok(found) => Err(Ended::Broken(format!("{}: {} other bytes", file.display(), found.len()))),
            Err(error) => Err(self.ended(full, format!("read {}: {error}", file.display()))),
        }
    }

    fn ended(&self, full: u64, what: String) -> Ended {
        let was_full = self.state.full.load(SeqCst) > full;
        if was_full { Ended::Full } else { Ended::Broken(what) }
    }

    /// A call of a life, which a full pool may end.
    async fn live<T, F>(&self, what: &str, full: u64, call: impl Fn() -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.persist(what, Some(full), call).await.map_err(|what| self.ended(full, what))
    }

    /// Takes away what there is, which always succeeds.
    async fn end(&self, held: &Held) -> Result<(), String> {
        for (id, name) in &held.shown {
            let (staging, target) = self.paths(name);
            self.persist("NodeUnpublishVolume", None, || {
                let (mut node, request) = (self.node.clone(), hide_at(id, &target));
                async move { node.node_unpublish_volume(request).await }
            })
            .await?;
            self.persist("NodeUnstageVolume", None, || {
                let (mut node, request) = (self.node.clone(), unstage_at(id, &staging));
                async move { node.node_unstage_volume(request).await }
            })
            .await?;
            // The orchestrator's own.
            fs::remove_dir(&staging).or_else(|error| {
                let gone = error.kind() == std::io::ErrorKind::NotFound;
                if gone { Ok(()) } else { Err(format!("remove {staging}: {error}")) }
            })?;
        }
        for id in &held.granted {
            self.persist("ControllerUnpublishVolume", None, || {
                let (mut controller, request) = (self.controller.clone(), unpublish_from(id, ""));
                async move { controller.controller_unpublish_volume(request).await }
            })
            .await?;
        }
        for id in &held.volumes {
            self.persist("DeleteVolume", None, || {
                let (mut controller, request) = (self.controller.clone(), delete(id));
                async move { controller.delete_volume(request).await }
            })
            .await?;
        }
        for id in &held.snapshots {
            let request = DeleteSnapshotRequest { snapshot_id: id.clone(), ..Default::default() };
            self.persist("DeleteSnapshot", None, || {
                let (mut controller, request) = (self.controller.clone(), request.clone());
                async move { controller.delete_snapshot(request).await }
            })
            .await?;
        }
        Ok(())
    }

    /// Asks until it is done. Nothing that is asked here may be refused for good, but by a volume whose pool was full since
    /// the count of `full`: its filesystem may have been shut down.
    async fn persist<T, F>(&self, what: &str, full: Option<u64>, call: impl Fn() -> F) -> Result<T, String>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut calm = Instant::now();
        loop {
            let (begun, troubled) = (Instant::now(), self.state.troubled.load(SeqCst));
            self.state.calls.fetch_add(1, SeqCst);
            let answer = timeout(ONE_CALL, call()).await;
            let troubled = troubled || self.state.troubled.load(SeqCst);
            let last = match answer {
                Ok(Ok(answer)) => {
                    if !troubled {
                        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap();
                        self.state.took.lock().unwrap().push(micros);
                    }
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) if is_final(status.code()) => return Err(format!("{what}: {status:?}")),
                Ok(Err(status)) => format!("{status:?}"),
                Err(_late) => "no answer".to_owned(),
            };
            if troubled {
                calm = Instant::now();
            }
            let shut = !troubled && full.is_some_and(|full| self.state.full.load(SeqCst) > full);
            if calm.elapsed() > PATIENCE || shut {
                return Err(format!("{what} is stuck: {last}"));
            }
            self.state.again.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What an orchestrator would not ask again after.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unimplemented
    )
}
