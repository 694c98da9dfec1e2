//! Hosts with modelled pools behind real TLS on this machine's loopback, and routers that know them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use lagan::{
    bytes::Bytes,
    csi::{self, Gate, Member, PeerFacts, Services, Topology},
    engine::{self, Engine, work::Work},
    error::Result,
    id::{NodeId, PoolId, VolumeId},
    node::{self, Node},
    peers::{self, Credentials, HostName, Role, certs},
    pool::{fake::FakeDisk, set::Pools},
    proto::{
        CreateVolumeRequest, TopologyRequirement, Volume, VolumeCapability, controller_server::Controller,
        volume_capability::access_mode::Mode,
    },
    router::{Local, Placing, Router, Settings, Watching},
    sys::fake::FakeKernel,
};
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Builder,
    sync::oneshot,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Status, transport::Server};

use crate::{
    fakes::{FakeOpener, LocalUses},
    requests::{create_with, mount_with},
};

pub(crate) const DRIVER: &str = "lagan.csi";
pub(crate) const GIB: i64 = 1 << 30;
/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Certificates of one authority.
pub(crate) struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn of(&self, role: Role) -> Credentials {
        certs::make(self.path(), std::slice::from_ref(&role)).unwrap();
        Credentials::read(self.path(), role).unwrap()
    }

    pub(crate) fn of_host(&self, name: &str) -> Credentials {
        self.of(Role::Host(HostName::of(&name.parse().unwrap())))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// A host that can be stopped and started again, over the same disk and at the same address.
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    /// Where an orchestrator on the host itself would call.
    pub(crate) socket: PathBuf,
    directory: tempfile::TempDir,
    pub(crate) disk: FakeDisk,
    callers: BTreeSet<HostName>,
    /// A thread of its own, with which its connections end.
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Host {
    pub(crate) async fn start(name: &str, credentials: Credentials, size: Bytes, callers: &[&str]) -> Self {
        let callers = callers.iter().map(|name| HostName::of(&name.parse().unwrap())).collect();
        let (node, address) = (name.parse().unwrap(), "127.0.0.1:0".parse().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let (socket, disk) = (directory.path().join("csi.sock"), FakeDisk::new(size));
        let mut host = Self { node, address, socket, directory, disk, callers, running: None };
        host.restart(credentials).await;
        host
    }

    pub(crate) async fn restart(&mut self, credentials: Credentials) {
        self.stop();
        let (services, facts) = modelled(&self.node, &self.disk).await;
        let routes = csi::routes_for_peers(&services, facts, Gate::new(self.callers.clone()));
        let local = csi::routes(&services, services.own());
        self.socket = self.directory.path().join(format!("{}.sock", uuid::Uuid::new_v4().simple()));
        let socket = self.socket.clone();
        let (told, hears) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let address = self.address;
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = listen(address).await;
                told.send(listener.local_addr().unwrap()).unwrap();
                let incoming = peers::incoming(listener, credentials);
                let calls = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
                tokio::select! {
                    ended = Server::builder().add_routes(routes).serve_with_incoming(incoming) => ended.unwrap(),
                    ended = Server::builder().add_routes(local).serve_with_incoming(calls) => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        self.address = hears.await.unwrap();
        self.running = Some((stop, thread));
    }

    /// As when its machine is cut off: connections end, nobody listens.
    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A host over a modelled disk, and what it says of itself.
pub(crate) async fn modelled(node: &NodeId, disk: &FakeDisk) -> (Services, PeerFacts) {
    let kernel = FakeKernel::new(&["/t"]);
    kernel.make_directory("/t/pods");
    let mut pools = Pools::new();
    let opener = FakeOpener { disk: disk.clone(), kernel: kernel.clone() };
    pools.add("p".parse().unwrap(), Box::new(opener));
    let pools = Arc::new(pools);
    let settings = node::Settings { id: node.clone(), allow_suid: false, max_volumes: 0 };
    let node_role = Node::new(Arc::clone(&pools), Arc::new(kernel), settings);
    let settings = engine::Settings { node: node.clone(), max_volumes: 0 };
    let engine = Engine::new(Arc::clone(&pools), Arc::new(LocalUses(node_role.clone())), settings);
    assert!(engine.start().await.unwrap().is_empty());
    let services = services(Topology::new(DRIVER, node), &pools, engine.clone(), Some(node_role));
    (services, PeerFacts::new(node.clone(), pools, Some(engine)))
}

/// The port of a server that has just ended may be taken a moment longer.
async fn listen(address: SocketAddr) -> TcpListener {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn services(topology: Topology, pools: &Arc<Pools>, engine: Engine, node: Option<Node>) -> Services {
    let (driver_name, work) = (DRIVER.to_owned(), Work::new(256));
    Services { driver_name, pools: Arc::clone(pools), topology, work, engine: Some(engine), node }
}

struct NoUses;

#[async_trait]
impl engine::Uses for NoUses {
    async fn release(&self, _id: VolumeId) -> Result<()> {
        Ok(())
    }
}

/// What a router is told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) placing: Placing,
    pub(crate) forgotten_hosts: BTreeSet<NodeId>,
    pub(crate) forgotten_pools: BTreeSet<PoolId>,
}

/// A router, and the watch that it goes by.
pub(crate) struct Routed {
    pub(crate) router: Router,
    _watching: Watching,
}

impl Routed {
    pub(crate) async fn over(credentials: Credentials, hosts: &[(&str, SocketAddr)], told: Told) -> Self {
        Self::watching(credentials, &listed(hosts), None, told).await
    }

    /// Those behind a name, among which these are expected.
    pub(crate) async fn behind(credentials: Credentials, name: &str, expected: &[&str]) -> Self {
        let list = expected.iter().map(|node| (node.parse().unwrap(), String::new())).collect();
        Self::watching(credentials, &list, Some(name), Told::default()).await
    }

    async fn watching(
        credentials: Credentials,
        list: &BTreeMap<NodeId, String>,
        dns: Option<&str>,
        told: Told,
    ) -> Self {
        let mut pools = Pools::new();
        told.forgotten_pools.iter().for_each(|id| pools.forget(*id));
        let pools = Arc::new(pools);
        let settings = engine::Settings { node: "router".parse().unwrap(), max_volumes: 0 };
        let engine = Engine::new(Arc::clone(&pools), Arc::new(NoUses), settings);
        let own = services(Topology::anywhere(DRIVER), &pools, engine, None).own().map(Member::new).unwrap();
        let settings = Settings {
            driver_name: DRIVER.to_owned(),
            forgotten_hosts: told.forgotten_hosts,
            forgotten_pools: told.forgotten_pools,
        };
        let watching = Watching::start(settings, credentials, list, dns, None);
        watching.first_look(PATIENCE).await;
        let router = Router::new(watching.view(), own, DRIVER, told.placing);
        Self { router, _watching: watching }
    }

    /// A host that passes on what is not its own.
    pub(crate) async fn from_host(
        host: &Host,
        credentials: Credentials,
        hosts: &[(&str, SocketAddr)],
    ) -> Self {
        let (services, facts) = modelled(&host.node, &host.disk).await;
        let own = Member::new(services.own().unwrap());
        let settings = Settings { driver_name: DRIVER.to_owned(), ..Settings::default() };
        let list = listed(hosts);
        let local = Local { member: own.clone(), facts };
        let watching = Watching::start(settings, credentials, &list, None, Some(local));
        watching.first_look(PATIENCE).await;
        Self { router: Router::new(watching.view(), own, DRIVER, Placing::default()), _watching: watching }
    }

    /// Waits until a host is seen as up, or as down.
    pub(crate) async fn sees(&self, node: &NodeId, up: bool) {
        let until = Instant::now() + PATIENCE;
        while !self.router.view().hosts().iter().any(|host| host.node == *node && host.is_up() == up) {
            assert!(Instant::now() < until, "{node} is not seen as {}", if up { "up" } else { "down" });
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn create(&self, request: CreateVolumeRequest) -> std::result::Result<Volume, Status> {
        let answer = self.router.create_volume(Request::new(request)).await?;
        Ok(answer.into_inner().volume.unwrap())
    }
}

fn listed(hosts: &[(&str, SocketAddr)]) -> BTreeMap<NodeId, String> {
    hosts.iter().map(|(name, address)| (name.parse().unwrap(), address.to_string())).collect()
}

/// Two hosts, n1 and n2, and their authority.
pub(crate) async fn two() -> (Authority, [Host; 2]) {
    let authority = Authority::new();
    let mut hosts = Vec::new();
    for name in ["n1", "n2"] {
        hosts.push(Host::start(name, authority.of_host(name), Bytes::gib(100), &[]).await);
    }
    (authority, hosts.try_into().ok().unwrap())
}

pub(crate) fn addresses(hosts: &[Host]) -> Vec<(&str, SocketAddr)> {
    hosts.iter().map(|host| (host.node.as_str(), host.address)).collect()
}

pub(crate) fn filesystem() -> VolumeCapability {
    mount_with(Mode::SingleNodeWriter, "", &[])
}

/// A volume anywhere.
pub(crate) fn new(name: &str) -> CreateVolumeRequest {
    create_with(name, GIB, &filesystem())
}

/// A volume on one of these hosts, the first if possible.
pub(crate) fn new_on(name: &str, nodes: &[&str]) -> CreateVolumeRequest {
    let place = |node: &&str| Topology::new(DRIVER, &node.parse().unwrap()).accessible();
    let places: Vec<_> = nodes.iter().map(place).collect();
    let requirement = TopologyRequirement { requisite: places.clone(), preferred: places };
    CreateVolumeRequest { accessibility_requirements: Some(requirement), ..new(name) }
}

pub(crate) fn pool_of(volume: &Volume) -> PoolId {
    volume.volume_id.parse::<VolumeId>().unwrap().pool
}

/// Where a volume says that it is.
pub(crate) fn host_of(volume: &Volume) -> String {
    let segments = &volume.accessible_topology[0].segments;
    segments[&format!("{DRIVER}/host")].clone()
}
