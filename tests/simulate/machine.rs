//! The processes of a simulation: a host's driver over a disk and a kernel that outlive it, and routers. Each has a runtime of
//! its own, with which all that it was doing ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lagan::{
    bytes::Bytes,
    csi::{self, Gate, Member, PeerFacts, Services, Topology},
    engine::{self, Engine, work::Work},
    error::Result,
    id::{NodeId, PoolId, VolumeId},
    node::{self, Node},
    peers::Peer,
    pool::{
        Pool,
        fake::{FakeDisk, FakePool},
        set::{Opener, Pools},
    },
    router::{Observation, Placing, Router, Settings, View, remote},
    sys::{fake::FakeKernel, fate::Fate},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::AbortHandle,
};
use tonic::service::Routes;
use tower::ServiceExt;

use crate::shared::{Answer, Conductor, Life, Packet, Place, Shared, Way};

pub(crate) const DRIVER: &str = "lagan.csi";

/// A thread's worth of time that stands still until it is told to pass.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Runs a process until nothing in it can go on.
pub(crate) fn run(runtime: &Runtime) {
    // The runtime's time goes on only when there is nothing else to do.
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
}

/// Opens the pool of a host under the fate of one process.
struct Opens {
    fate: Arc<dyn Fate>,
    disk: FakeDisk,
    kernel: FakeKernel,
}

#[async_trait]
impl Opener for Opens {
    async fn open(&self) -> Result<Arc<dyn Pool>> {
        Ok(Arc::new(FakePool::under(Arc::clone(&self.fate), self.disk.clone(), self.kernel.clone())))
    }

    fn expected(&self) -> Option<PoolId> {
        Some(self.disk.pool())
    }
}

/// A program that runs.
pub(crate) struct Process {
    pub(crate) life: Life,
    pub(crate) runtime: Runtime,
    local: Routes,
    peers: Option<Routes>,
    ready: Arc<AtomicBool>,
    handlers: BTreeMap<u32, AbortHandle>,
    /// Of a host.
    pub(crate) pools: Option<Arc<Pools>>,
    facts: Option<PeerFacts>,
    /// Of a router.
    view: Option<watch::Sender<Arc<View>>>,
    seen: Vec<Observation>,
}

impl Process {
    /// It has read its pools and answers calls.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// A flush has failed: it says so to whoever probes it, and is started anew.
    pub(crate) fn is_broken(&self) -> bool {
        self.pools.as_ref().is_some_and(|pools| !pools.broken().is_empty())
    }

    /// Takes a call in.
    pub(crate) fn serve(&mut self, shared: &Shared, packet: Packet) {
        let mut request = packet.request;
        let routes = match packet.to {
            Place::Peers(_) => {
                request.extensions_mut().insert(Peer::Router);
                self.peers.clone().unwrap()
            }
            Place::Host(_) | Place::Router(_) => self.local.clone(),
        };
        let (number, from, back) = (packet.number, packet.from, packet.back);
        let (shared, life) = (shared.clone(), self.life);
        let handler = self.runtime.spawn(async move {
            let response = routes.oneshot(request).await.unwrap_or_else(|never| match never {});
            let mut state = shared.lock();
            if !state.died.contains(&life) {
                // Who of several is woken first, the runtime draws by a lot of its own.
                let at = state.answers.partition_point(|other| other.number < number);
                state.answers.insert(at, Answer { number, reply: Ok(response), back, from });
            }
        });
        self.handlers.insert(number, handler.abort_handle());
        run(&self.runtime);
    }

    /// The caller has gone away: what only answered it ends.
    pub(crate) fn hang_up(&mut self, number: u32) {
        if let Some(handler) = self.handlers.remove(&number) {
            handler.abort();
            run(&self.runtime);
        }
    }
}

/// A machine: what lasts longer than a process.
pub(crate) struct Machine {
    pub(crate) number: usize,
    pub(crate) node: NodeId,
    pub(crate) disk: FakeDisk,
    pub(crate) kernel: FakeKernel,
    pub(crate) process: Option<Process>,
}

impl Machine {
    pub(crate) fn new(number: usize) -> Self {
        let kernel = FakeKernel::new(&["/t"]);
        kernel.make_directory("/t/pods");
        let node = format!("n{number}").parse().unwrap();
        Self { number, node, disk: FakeDisk::new(Bytes::gib(64)), kernel, process: None }
    }

    /// Starts the driver. It is ready once it has read its pool.
    pub(crate) fn start(&mut self, shared: &Shared, life: Life) {
        let fate: Arc<dyn Fate> = Arc::new(Conductor { shared: shared.clone(), life });
        let kernel = self.kernel.under(Arc::clone(&fate));
        let mut pools = Pools::new();
        let opens = Opens { fate, disk: self.disk.clone(), kernel: kernel.clone() };
        pools.add("p".parse().unwrap(), Box::new(opens));
        let pools = Arc::new(pools);
        let settings = node::Settings { id: self.node.clone(), allow_suid: false, max_volumes: 0 };
        let node = Node::new(Arc::clone(&pools), Arc::new(kernel), settings);
        let settings = engine::Settings { node: self.node.clone(), max_volumes: 0 };
        let engine = Engine::new(Arc::clone(&pools), Arc::new(LocalUses(node.clone())), settings);
        let services = Services {
            driver_name: DRIVER.into(),
            topology: Topology::new(DRIVER, &self.node),
            work: Work::new(64),
            pools: Arc::clone(&pools),
            engine: Some(engine.clone()),
            node: Some(node),
        };
        let facts = PeerFacts::new(self.node.clone(), Arc::clone(&pools), Some(engine.clone()));
        let peers = csi::routes_for_peers(&services, facts.clone(), Gate::new(BTreeSet::new()));
        let (runtime, ready) = (runtime(), Arc::new(AtomicBool::new(false)));
        let started = Arc::clone(&ready);
        runtime.spawn(async move {
            drop(engine.start().await);
            started.store(true, Ordering::Relaxed);
        });
        run(&runtime);
        self.process = Some(Process {
            life,
            runtime,
            local: csi::routes(&services, services.own()),
            peers: Some(peers),
            ready,
            handlers: BTreeMap::new(),
            pools: Some(pools),
            facts: Some(facts),
            view: None,
            seen: Vec::new(),
        });
    }

    /// The token that a volume holds; zero is nothing.
    pub(crate) fn read(&self, id: &str) -> Option<u64> {
        self.disk.read(id.parse().unwrap()).map(|data| token_of(&data))
    }

    pub(crate) fn read_snapshot(&self, id: &str) -> Option<u64> {
        self.disk.read_snapshot(id.parse().unwrap()).map(|data| token_of(&data))
    }

    pub(crate) fn volume_id(id: &str) -> VolumeId {
        id.parse().unwrap()
    }
}

fn token_of(data: &[u8]) -> u64 {
    data.try_into().map_or(0, u64::from_le_bytes)
}

/// The node of the same host is asked who uses a volume.
struct LocalUses(Node);

#[async_trait]
impl engine::Uses for LocalUses {
    async fn release(&self, id: VolumeId) -> Result<()> {
        self.0.release(id).await
    }
}

struct NoUses;

#[async_trait]
impl engine::Uses for NoUses {
    async fn release(&self, _id: VolumeId) -> Result<()> {
        Ok(())
    }
}

fn settings() -> Settings {
    Settings { driver_name: DRIVER.to_owned(), ..Settings::default() }
}

/// A router, which has met nobody yet.
pub(crate) fn router(shared: &Shared, life: Life, machines: &[Machine]) -> Process {
    let pools = Arc::new(Pools::new());
    let to_nobody = engine::Settings { node: "router".parse().unwrap(), max_volumes: 0 };
    let engine = Engine::new(Arc::clone(&pools), Arc::new(NoUses), to_nobody);
    let services = Services {
        driver_name: DRIVER.into(),
        pools,
        topology: Topology::anywhere(DRIVER),
        work: Work::new(64),
        engine: Some(engine),
        node: None,
    };
    let own = Member::new(services.own().unwrap());
    let observe = |machine: &Machine| {
        let way =
            Way { shared: shared.clone(), to: Place::Peers(machine.number), call: None, from: Some(life) };
        Observation {
            address: machine.node.to_string(),
            expected: Some(machine.node.clone()),
            said: None,
            reach: Err("not asked yet".into()),
            expires: None,
            member: remote(machine.node.as_str(), way),
        }
    };
    let seen: Vec<_> = machines.iter().map(observe).collect();
    let (view, watched) = watch::channel(Arc::new(View::of(&seen, &settings(), None)));
    let router = Router::new(watched, own, DRIVER, Placing::default());
    let local = csi::routes(&services, Some((router.clone(), router)));
    let (runtime, ready) = (runtime(), Arc::new(AtomicBool::new(true)));
    let (handlers, view) = (BTreeMap::new(), Some(view));
    Process { life, runtime, local, peers: None, ready, handlers, pools: None, facts: None, view, seen }
}

/// A router looks at a host, which answers or does not.
pub(crate) fn look(router: &mut Process, machine: &Machine, cut_off: bool) -> bool {
    let facts = machine.process.as_ref().filter(|process| process.is_ready() && !cut_off);
    let facts = facts.and_then(|process| process.facts.as_ref());
    let Some(seen) = router.seen.get_mut(machine.number) else { return false };
    match facts {
        Some(facts) => {
            seen.said = Some((facts.manifest(), "1".into(), std::time::Instant::now()));
            seen.reach = Ok(());
        }
        None => seen.reach = Err("it does not answer".into()),
    }
    let view = Arc::new(View::of(&router.seen, &settings(), None));
    if let Some(watched) = &router.view {
        drop(watched.send(view));
    }
    run(&router.runtime);
    facts.is_some()
}
