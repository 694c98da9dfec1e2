//! The composition root: the only place that knows which pools, which kernel and which services there are, and puts
//! them together.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use rustix::{fs::Mode as FileMode, process};

use crate::{
    blocking::blocking,
    config::{Config, Mode, Place, PoolConfig},
    csi::{self, Services, Topology},
    engine::{self, Engine, accountant::Facts, work::Work},
    error::{Chain, Doing, Error, ErrorKind, Result},
    id::{PoolId, PoolName, VolumeId},
    kubelet::Registration,
    node::{self, Node},
    pool::{
        Pool, Role,
        file::{self, FilePool},
        set::{Opener, Pools},
        thin::{self, ThinPool},
    },
    server,
    sys::{
        cmd::{Commands, Tool},
        file::Directory,
        host,
        kernel::Kernel,
        minder::Minder,
        mount::Linux,
    },
    telemetry::{self, Metrics, Sources},
};

mod cluster;

use cluster::Cluster;
pub use cluster::serve_router;

/// The oldest kernel that does all that is needed: `MOUNT_ATTR_NOSYMFOLLOW` is the youngest part.
pub const OLDEST_KERNEL: (u32, u32) = (5, 14);
/// File of hints in the state directory.
const HINTS: &str = "pools.json";

/// Which pool was where when it was last open. Hints can only refuse: they keep another pool, or an empty directory,
/// from being taken for one that is missing.
#[derive(Debug)]
struct Hints {
    directory: PathBuf,
    known: Mutex<BTreeMap<PoolName, PoolId>>,
}

impl Hints {
    fn read(directory: PathBuf) -> Result<Self> {
        let path = directory.join(HINTS);
        let known = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            text => {
                let text = text.doing(|| format!("read {}", path.display()))?;
                serde_json::from_slice(&text).map_err(|error| {
                    let what = format!(
                        "{} is damaged: remove it once every pool is where it should be",
                        path.display()
                    );
                    Error::new(ErrorKind::Unavailable, what).because(error)
                })?
            }
        };
        Ok(Self { directory, known: Mutex::new(known) })
    }

    fn get(&self, name: &PoolName) -> Option<PoolId> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Pools that were open once and that the configuration names no more.
    fn dropped(&self, config: &Config) -> Vec<PoolName> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = |name: &&PoolName| config.pools.iter().any(|pool| pool.name == **name);
        known.keys().filter(|name| !kept(name)).cloned().collect()
    }

    fn note(&self, name: &PoolName, id: PoolId) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.insert(name.clone(), id) == Some(id) {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&*known)
            .map_err(|error| Error::new(ErrorKind::Broken, "encode the hints").because(error))?;
        let what = || format!("write {} in {}", HINTS, self.directory.display());
        Directory::open(&self.directory).and_then(|directory| directory.write_file(HINTS, &text)).doing(what)
    }
}

/// Opens a pool of the configuration, whatever its kind.
struct ConfiguredPool {
    config: PoolConfig,
    machine: String,
    role: Role,
    /// It is the built-in default, made where it does not exist yet.
    built_in: bool,
    hints: Arc<Hints>,
    /// Pools in whose place another one may be.
    forgotten: Vec<PoolId>,
    commands: Arc<Commands>,
    minder: Option<Arc<Minder>>,
}

impl ConfiguredPool {
    async fn open_file(&self, path: PathBuf) -> Result<Arc<dyn Pool>> {
        let expected = self.expected();
        let settings = file::Settings {
            path,
            machine: self.machine.clone(),
            reserve_percent: self.config.reserve_percent,
            overcommit_percent: self.config.overcommit_percent,
            freeze_limit: self.config.freeze_limit,
            templates: usize::try_from(self.config.templates).unwrap_or(usize::MAX),
        };
        let (commands, minder, role) = (Arc::clone(&self.commands), self.minder.clone(), self.role);
        let make = self.built_in && expected.is_none() && role.changes();
        let pool = blocking(move || {
            if make && is_empty_or_missing(&settings.path) {
                let id = file::init(&settings.path, &settings.machine, None, &commands)?;
                tracing::info!(pool = %id, path = %settings.path.display(), "default pool made");
            }
            FilePool::open(settings, role, expected, commands, minder)
        });
        Ok(Arc::new(pool.await?))
    }

    async fn open_thin(&self, place: thin::Place) -> Result<Arc<dyn Pool>> {
        let expected = self.expected();
        let settings = thin::Settings {
            place,
            machine: self.machine.clone(),
            reserve_percent: self.config.reserve_percent,
            overcommit_percent: self.config.overcommit_percent,
            freeze_limit: self.config.freeze_limit,
            templates: usize::try_from(self.config.templates).unwrap_or(usize::MAX),
            extend: self
                .config
                .extend
                .map(|(at_percent, by_percent)| thin::Extend { at_percent, by_percent }),
        };
        let (commands, minder, role) = (Arc::clone(&self.commands), self.minder.clone(), self.role);
        let pool = blocking(move || ThinPool::open(settings, role, expected, commands, minder));
        Ok(Arc::new(pool.await?))
    }
}

#[async_trait]
impl Opener for ConfiguredPool {
    async fn open(&self) -> Result<Arc<dyn Pool>> {
        match thin_place(&self.config.place) {
            Ok(place) => self.open_thin(place).await,
            Err(directory) => self.open_file(directory.to_owned()).await,
        }
    }

    fn accepted(&self, id: PoolId) -> Result<()> {
        if self.role.changes() { self.hints.note(&self.config.name, id) } else { Ok(()) }
    }

    fn expected(&self) -> Option<PoolId> {
        self.hints.get(&self.config.name).filter(|id| !self.forgotten.contains(id))
    }
}

fn is_empty_or_missing(path: &std::path::Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// A configured place as that of a thin pool, or the directory of a file pool.
///
/// # Errors
/// The directory.
pub fn thin_place(place: &Place) -> std::result::Result<thin::Place, &std::path::Path> {
    match place {
        Place::File(directory) => Err(directory),
        Place::Lvm { vg, thin_pool } => {
            Ok(thin::Place::Lvm(thin::VolumeGroup { vg: vg.clone(), thin_pool: thin_pool.clone() }))
        }
        Place::Block(device) => Ok(thin::Place::Disk(device.clone())),
    }
}

/// Everything a process is made of.
pub struct App {
    config: Config,
    mode: Mode,
    work: Work,
    pools: Arc<Pools>,
    engine: Engine,
    node: Node,
    commands: Arc<Commands>,
}

/// The engine asks the node role who uses a volume.
struct LocalUses(Node);

#[async_trait]
impl engine::Uses for LocalUses {
    async fn release(&self, id: VolumeId) -> Result<()> {
        self.0.release(id).await
    }
}

/// Open files that are enough for everybody: connections to the socket and of peers, and what work needs.
const FILES: u64 = 16 << 10;

/// Files and sockets of this process are its owner's, and its memory, through which secrets pass, is nobody's.
fn keep_private() -> Result<()> {
    process::umask(FileMode::RWXG | FileMode::RWXO);
    let no_core = process::Rlimit { current: Some(0), maximum: Some(0) };
    // Lowering a limit is always allowed.
    process::setrlimit(process::Resource::Core, no_core).doing(|| "forbid core files")?;
    // A kernel that hands cores to a program heeds no limit, but this.
    process::set_dumpable_behavior(process::DumpableBehavior::NotDumpable).doing(|| "forbid dumps")
}

/// Lets every connection that we take have its descriptor, and work have some beside. More is not asked for: some programs
/// that we start look at each descriptor that they might have.
fn raise_file_limit() -> Result<()> {
    let limit = process::getrlimit(process::Resource::Nofile);
    let enough = limit.maximum.map_or(FILES, |most| most.min(FILES));
    let raised = process::Rlimit { current: limit.current.map(|now| now.max(enough)), ..limit };
    process::setrlimit(process::Resource::Nofile, raised).doing(|| "raise the limit of open files")
}

/// What must hold before anything is opened; each refusal names its remedy.
fn check_host(config: &Config) -> Result<()> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Unavailable, what));
    if !host::may_mount() {
        return refuse("mounting needs root (CAP_SYS_ADMIN): run this as root".into());
    }
    if !host::kernel_at_least(OLDEST_KERNEL.0, OLDEST_KERNEL.1) {
        let (major, minor) = OLDEST_KERNEL;
        return refuse(format!(
            "kernel {} is too old: {major}.{minor} or later is needed",
            host::kernel_release()
        ));
    }
    if !std::path::Path::new("/dev/loop-control").exists() {
        return refuse(
            "/dev/loop-control is missing: load the kernel module `loop`, and mount the host's /dev".into(),
        );
    }
    let state = &config.state_dir;
    std::fs::create_dir_all(state).doing(|| format!("make state_dir {}", state.display()))?;
    tempfile::tempfile_in(state)
        .doing(|| format!("write to state_dir {} (make it writable, or set another)", state.display()))?;
    Ok(())
}

/// The tools that a configuration needs.
pub fn needed(config: &Config) -> impl Iterator<Item = Tool> {
    let has = |kind| config.pools.iter().any(|pool| pool.place.kind() == kind);
    let (lvm, block) = (has("lvm"), has("block"));
    Tool::ALL.into_iter().filter(move |tool| match tool {
        Tool::Lvm => lvm,
        Tool::ThinCheck | Tool::ThinRepair | Tool::Wipefs => block,
        _ => true,
    })
}

impl App {
    /// Puts the parts together; nothing is opened yet.
    ///
    /// # Errors
    /// Where this host or its state directory does not do.
    pub fn new(config: Config, mode: Mode, minder: Option<Arc<Minder>>) -> Result<Self> {
        keep_private()?;
        host::share_heap();
        raise_file_limit()?;
        check_host(&config)?;
        let commands = Arc::new(Commands::find());
        for tool in needed(&config).filter(|tool| commands.path(*tool).is_none()) {
            tracing::warn!(tool = tool.name(), package = tool.package(), "a tool is missing");
        }
        let role = match mode {
            Mode::All => Role::Both,
            Mode::Controller => Role::Controller,
            Mode::Node => Role::Node,
            Mode::Router => {
                let what = "a router has no pools: it is served by itself";
                return Err(Error::new(ErrorKind::Broken, what));
            }
        };
        let pools = Arc::new(open_lazily(&config, role, &commands, minder.as_ref())?);
        let kernel: Arc<dyn Kernel> = Arc::new(Linux::new(&config.target_roots, Arc::clone(&commands)));
        let node = Node::new(Arc::clone(&pools), kernel, node_settings(&config));
        let settings =
            engine::Settings { node: config.node_id.clone(), max_volumes: config.max_volumes_per_node };
        let engine = Engine::new(Arc::clone(&pools), Arc::new(LocalUses(node.clone())), settings);
        let work = Work::new(usize::try_from(config.max_operations).unwrap_or(usize::MAX));
        Ok(Self { config, mode, work, pools, engine, node, commands })
    }

    /// Recovers, listens, serves until asked to stop.
    ///
    /// # Errors
    /// Where another process serves a pool or the socket, or an address cannot be had.
    pub async fn serve(self) -> Result<()> {
        if self.mode.controller() {
            for closed in self.engine.start().await? {
                tracing::error!(error = %Chain(&closed), "a pool cannot be used; its volumes are UNAVAILABLE");
            }
        } else {
            self.node.check_pools().await?;
        }
        let engine = Some(self.engine).filter(|_| self.mode.controller());
        engine.iter().for_each(Engine::guard);
        let services = Services {
            driver_name: self.config.driver_name.clone(),
            topology: Topology::new(&self.config.driver_name, &self.config.node_id),
            work: self.work.clone(),
            pools: self.pools,
            engine,
            node: Some(self.node).filter(|_| self.mode.node()),
        };
        let cluster = Cluster::of_host(&self.config, &services).await?;
        serve(&self.config, self.mode, services, cluster, self.commands).await
    }
}

/// Serves until asked to stop.
async fn serve(
    config: &Config,
    mode: Mode,
    services: Services,
    mut cluster: Cluster,
    commands: Arc<Commands>,
) -> Result<()> {
    let metrics = Metrics::default();
    let signals = server::Signals::listen()?;
    let listener = server::listen(&config.endpoint).await?;
    if let Some(address) = config.http {
        let (metrics, work, engine) = (metrics.clone(), services.work.clone(), services.engine.clone());
        let sources = Sources { metrics, work, engine, commands, more: cluster.figures() };
        telemetry::serve_http(address, sources).await?;
    }
    let registration = config.kubelet.clone().filter(|_| mode.node()).map(|(directory, endpoint)| {
        let driver_name = config.driver_name.clone();
        tokio::spawn(Registration { directory, driver_name, endpoint }.keep())
    });
    tracing::info!(endpoint = %config.endpoint, ?mode, node = %config.node_id, "ready");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "the service manager was not told that we are ready");
    }
    let routes = match cluster.router() {
        Some(router) => csi::routes(&services, Some((router.clone(), router))),
        None => csi::routes(&services, services.own()),
    };
    let served =
        server::serve(listener, signals, routes, cluster.take_peers(), &services.work, &metrics).await;
    if let Some(registration) = registration {
        registration.abort();
        // Its socket is gone when it has ended.
        registration.await.unwrap_or_default();
    }
    served
}

fn node_settings(config: &Config) -> node::Settings {
    node::Settings {
        id: config.node_id.clone(),
        allow_suid: config.allow_suid,
        max_volumes: config.max_volumes_per_node,
    }
}

/// The pools of the configuration, none of them open yet.
fn open_lazily(
    config: &Config,
    role: Role,
    commands: &Arc<Commands>,
    minder: Option<&Arc<Minder>>,
) -> Result<Pools> {
    let hints = Arc::new(Hints::read(config.state_dir.clone())?);
    for name in hints.dropped(config) {
        let hint = "add it to the configuration again, or remove its line from pools.json";
        tracing::warn!(pool = %name, hint, "a pool that was served before is not configured; its volumes are UNAVAILABLE");
    }
    let mut pools = Pools::new();
    for pool in &config.pools {
        let opener = ConfiguredPool {
            config: pool.clone(),
            machine: config.machine_id.clone(),
            role,
            built_in: config.default_pool,
            hints: Arc::clone(&hints),
            forgotten: config.forgotten_pools.clone(),
            commands: Arc::clone(commands),
            minder: minder.cloned(),
        };
        pools.add(pool.name.clone(), Box::new(opener));
    }
    config.forgotten_pools.iter().for_each(|id| pools.forget(*id));
    Ok(pools)
}

/// What there is of each pool, on disk and in the kernel, for the accountant. Nothing is changed, no lock is taken.
///
/// # Errors
/// Where the hints cannot be read. A pool that cannot be looked at comes back with its reason.
pub async fn facts(config: &Config) -> Result<Vec<(PoolName, Result<Facts>)>> {
    let commands = Arc::new(Commands::find());
    let pools = open_lazily(config, Role::Observer, &commands, None)?;
    let kernel = Linux::new(&config.target_roots, commands);
    let mut all = Vec::new();
    for (name, pool) in pools.all().await {
        let facts = match pool {
            Ok(pool) => facts_of(&*pool, &kernel).await,
            Err(error) => Err(error),
        };
        all.push((name, facts));
    }
    Ok(all)
}

async fn facts_of(pool: &dyn Pool, kernel: &dyn Kernel) -> Result<Facts> {
    let listing = pool.list().await?;
    let mut devices = Vec::new();
    for (uuid, attached) in pool.devices().await? {
        let mounts = kernel.mounts_of(&[attached.device.number]).doing(|| "read the table of mounts")?;
        devices.push((uuid, attached, mounts.len()));
    }
    let mut troubles = Vec::new();
    for volume in &listing.volumes {
        // Fullness is a matter of the pool, not of its books.
        let found =
            pool.examine(volume).await?.into_iter().filter(|trouble| !trouble.reason.ends_with("NearlyFull"));
        troubles.extend(found.map(|trouble| (volume.id.to_string(), trouble.message)));
    }
    Ok(Facts { listing, devices, troubles })
}

/// The mount points of a volume on this host, for a tool that works on them.
///
/// # Errors
/// `NotFound` where no pool of the configuration has the volume; otherwise those of looking.
pub async fn mounts_of(config: &Config, id: VolumeId) -> Result<Vec<PathBuf>> {
    let commands = Arc::new(Commands::find());
    let pools = open_lazily(config, Role::Observer, &commands, None)?;
    let kernel = Linux::new(&config.target_roots, commands);
    let pool = pools.get(id.pool).await?;
    if pool.find_volume(id).await?.is_none() {
        return Err(Error::new(ErrorKind::NotFound, format!("volume {id} does not exist")));
    }
    let devices: Vec<_> = pool.attached(id).await?.iter().map(|attached| attached.device.number).collect();
    let mounts = kernel.mounts_of(&devices).doing(|| "read the table of mounts")?;
    Ok(mounts.into_iter().filter(|mount| !mount.block).map(|mount| mount.at.path()).collect())
}
