//! This process among others: where they reach it, how it reaches them, what is told of it.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{keep_private, raise_file_limit, serve};
use crate::{
    config::{self, Config, Mode},
    csi::{self, Gate, Member, PeerFacts, Services, Topology},
    engine::{self, Engine, work::Work},
    error::{Error, ErrorKind, Result},
    id::VolumeId,
    peers::{self, Credentials, HostName},
    pool::set::Pools,
    router::{Local, Placing, Router, Settings, Watching},
    server::Peers,
    sys::cmd::Commands,
    telemetry::Figures,
};

/// How long a router that starts waits for its hosts before it takes calls.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// What there is of a cluster; nothing where this host is alone.
#[derive(Default)]
pub(super) struct Cluster {
    credentials: Option<Credentials>,
    peers: Option<Peers>,
    router: Option<Router>,
    /// Ends with this value.
    _watching: Option<Watching>,
}

impl Cluster {
    /// That of a host: others reach its pools, and it reaches theirs, each where the configuration says so.
    pub(super) async fn of_host(config: &Config, services: &Services) -> Result<Self> {
        let Some(cluster) = config.cluster.as_ref().filter(|_| services.engine.is_some()) else {
            return Ok(Self::default());
        };
        let role = peers::Role::Host(HostName::of(&config.node_id));
        let credentials = Credentials::read(&cluster.certificates, role)?;
        let facts =
            PeerFacts::new(config.node_id.clone(), Arc::clone(&services.pools), services.engine.clone());
        let mut made = Self { credentials: Some(credentials.clone()), ..Self::default() };
        if let Some(address) = cluster.listen {
            let gate = Gate::new(cluster.callers.iter().map(HostName::of).collect());
            let routes = csi::routes_for_peers(services, facts.clone(), gate);
            made.peers = Some(Peers::listen(address, credentials.clone(), routes).await?);
        }
        if let Some(own) = services.own().map(Member::new).filter(|_| cluster.passes_on()) {
            let local = Local { member: own.clone(), facts };
            made.watch(config, cluster, credentials, own, Some(local)).await;
        }
        Ok(made)
    }

    async fn watch(
        &mut self,
        config: &Config,
        cluster: &config::Cluster,
        credentials: Credentials,
        own: Member,
        local: Option<Local>,
    ) {
        let settings = Settings {
            driver_name: config.driver_name.clone(),
            forgotten_hosts: cluster.forgotten_hosts.clone(),
            forgotten_pools: config.forgotten_pools.iter().copied().collect(),
        };
        let mut list = cluster.hosts.clone();
        if local.is_some() {
            // The same list may serve every host.
            list.remove(&config.node_id);
        }
        let watching = Watching::start(settings, credentials, &list, cluster.dns.as_deref(), local);
        watching.first_look(FIRST_LOOK).await;
        let placing = Placing { default_host: cluster.default_host.clone(), first_only: cluster.first_only };
        self.router = Some(Router::new(watching.view(), own, &config.driver_name, placing));
        self._watching = Some(watching);
    }

    pub(super) fn router(&self) -> Option<Router> {
        self.router.clone()
    }

    pub(super) fn take_peers(&mut self) -> Option<Peers> {
        self.peers.take()
    }

    /// What the metrics say of it.
    pub(super) fn figures(&self) -> Option<Figures> {
        let (credentials, router) = (self.credentials.clone()?, self.router.clone());
        Some(Arc::new(move |registry: &mut Registry| {
            let expiry = Gauge::<i64>::default();
            let end = credentials.expires().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            expiry.set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
            let help = "When the certificate of this process ends to be good";
            registry.register("certificate_expiry_timestamp_seconds", help, expiry);
            router.iter().for_each(|router| register_hosts(router, registry));
        }))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabel {
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostPoolLabels {
    host: String,
    pool: String,
    id: String,
}

fn register_hosts(router: &Router, registry: &mut Registry) {
    let (up, seen) = (Family::<HostLabel, Gauge>::default(), Family::<HostLabel, Gauge>::default());
    let held: [Family<HostPoolLabels, Gauge>; 3] = std::array::from_fn(|_| Family::default());
    for host in router.view().hosts() {
        let label = HostLabel { host: host.node.to_string() };
        up.get_or_create(&label).set(i64::from(host.is_up()));
        let since = host.since_seen().map_or(-1, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        seen.get_or_create(&label).set(since);
        for (id, held_there) in host.said.iter().flat_map(|(manifest, ..)| &manifest.pools) {
            let (host, pool) = (host.node.to_string(), held_there.name.clone());
            let labels = HostPoolLabels { host, pool, id: id.to_string() };
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let counts = held_there.counts.map_or([-1; 3], |(volumes, snapshots, space)| {
                [count(volumes), count(snapshots), space.signed()]
            });
            for (family, count) in held.iter().zip(counts) {
                family.get_or_create(&labels).set(count);
            }
        }
    }
    let [volumes, snapshots, bytes] = held;
    registry.register("host_up", "1 where the host answers", up);
    registry.register("host_seconds_since_seen", "How long ago the host answered; -1 for never", seen);
    registry.register(
        "host_pool_volumes",
        "Volumes in a pool, as its host said last; -1 where it cannot be used",
        volumes,
    );
    registry.register(
        "host_pool_snapshots",
        "Snapshots in a pool, as its host said last; -1 where it cannot be used",
        snapshots,
    );
    registry.register(
        "host_pool_bytes_committed",
        "Space promised in a pool, as its host said last; -1 where it cannot be used",
        bytes,
    );
    let doubled = Counter::<u64, AtomicU64>::default();
    doubled.inc_by(router.doubled());
    registry.register("volumes_doubled", "How often a volume's name was met on two hosts", doubled);
}

/// Nothing is used here: there are no pools.
struct NoUses;

#[async_trait]
impl engine::Uses for NoUses {
    async fn release(&self, id: VolumeId) -> Result<()> {
        Err(Error::new(ErrorKind::NotFound, format!("volume {id} is not here")))
    }
}

/// Serves as a router until asked to stop: it needs no root, and nothing of this machine but its network.
///
/// # Errors
/// Where the certificates cannot be used, or the socket or an address cannot be had.
pub async fn serve_router(config: &Config) -> Result<()> {
    keep_private()?;
    raise_file_limit()?;
    let cluster = config.cluster.as_ref();
    let cluster = cluster.ok_or_else(|| Error::new(ErrorKind::Invalid, "a router needs a [cluster]"))?;
    let mut pools = Pools::new();
    config.forgotten_pools.iter().for_each(|id| pools.forget(*id));
    let pools = Arc::new(pools);
    let settings = engine::Settings { node: config.node_id.clone(), max_volumes: 0 };
    let services = Services {
        driver_name: config.driver_name.clone(),
        topology: Topology::anywhere(&config.driver_name),
        work: Work::new(usize::try_from(config.max_operations).unwrap_or(usize::MAX)),
        engine: Some(Engine::new(Arc::clone(&pools), Arc::new(NoUses), settings)),
        pools,
        node: None,
    };
    let credentials = Credentials::read(&cluster.certificates, peers::Role::Router)?;
    let mut made = Cluster { credentials: Some(credentials.clone()), ..Cluster::default() };
    if let Some(own) = services.own().map(Member::new) {
        made.watch(config, cluster, credentials, own, None).await;
    }
    serve(config, Mode::Router, services, made, Arc::new(Commands::find())).await
}
