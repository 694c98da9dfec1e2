//! Whoever is called: the real services over modelled pools and kernels, without a socket between; only a router reaches its
//! hosts over the network of this machine, as it always does.

use std::convert::Infallible;

use hyper::{Request, Response};
use lagan::{
    bytes::Bytes,
    csi::{self, Gate, Services},
    engine::work::Work,
    kubelet::Registration,
    peers::{HostName, Peer, Role},
    pool::fake::FakeDisk,
    telemetry::{Metrics, RpcLayer},
};
use tonic::{body::Body, service::Routes};
use tower::{Layer, Service, ServiceExt, util::BoxCloneService};

use crate::{
    calls::{Answer, Call},
    cluster::{Authority, Host, Routed, Told, addresses, modelled},
    hostile::Random,
};

/// Small, so that a list of all that fits stays short.
const DISK: Bytes = Bytes::gib(4);

/// What is called in one story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A host, by its orchestrator.
    Host,
    /// A host, by others of its cluster.
    Peers,
    /// A router over two hosts.
    Router,
    /// What kubelet registers.
    Kubelet,
}

impl Kind {
    /// The services that are reached there.
    pub(crate) const fn services(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["Identity", "Controller", "GroupController", "Node"],
            Self::Peers | Self::Router => &["Identity", "Controller", "GroupController"],
            Self::Kubelet => &["Registration"],
        }
    }
}

/// Somebody who can be called.
pub(crate) struct Town {
    kind: Kind,
    service: BoxCloneService<Request<Body>, Response<Body>, Infallible>,
    work: Option<(Work, FakeDisk)>,
    _behind: Option<(Routed, Vec<Host>, Authority)>,
}

impl Town {
    pub(crate) async fn new(kind: Kind) -> Self {
        let (node, disk) = ("n1".parse().unwrap(), FakeDisk::new(DISK));
        let (services, facts) = modelled(&node, &disk).await;
        let work = Some((services.work.clone(), disk));
        match kind {
            Kind::Host => Self::of(kind, csi::routes(&services, services.own()), work, None),
            Kind::Peers => {
                let gate = Gate::new([host("n2")].into());
                Self::of(kind, csi::routes_for_peers(&services, facts, gate), work, None)
            }
            Kind::Router => {
                let authority = Authority::new();
                let mut hosts = Vec::new();
                for name in ["n1", "n2"] {
                    hosts.push(Host::start(name, authority.of_host(name), DISK, &[]).await);
                }
                let routed =
                    Routed::over(authority.of(Role::Router), &addresses(&hosts), Told::default()).await;
                let services = Services { node: None, ..services };
                let routes = csi::routes(&services, Some((routed.router.clone(), routed.router.clone())));
                Self::of(kind, routes, None, Some((routed, hosts, authority)))
            }
            Kind::Kubelet => {
                let registration = Registration {
                    directory: "/registry".into(),
                    driver_name: "lagan.csi".into(),
                    endpoint: "/csi.sock".into(),
                };
                Self::of(kind, Routes::new(registration.service()), None, None)
            }
        }
    }

    fn of(
        kind: Kind,
        routes: Routes,
        work: Option<(Work, FakeDisk)>,
        behind: Option<(Routed, Vec<Host>, Authority)>,
    ) -> Self {
        let service = BoxCloneService::new(RpcLayer::new(Metrics::default()).layer(routes));
        Self { kind, service, work, _behind: behind }
    }

    /// Makes a call.
    pub(crate) async fn call(&self, call: Call, random: &mut Random) -> Answer {
        let mut request = call.into_request();
        if random.chance(5)
            && let Ok(trace) = random.text().try_into()
        {
            request.headers_mut().insert("traceparent", trace);
        }
        if self.kind == Kind::Peers {
            let peers =
                [None, Some(Peer::Host(host("n3"))), Some(Peer::Host(host("n2"))), Some(Peer::Router)];
            if let Some(peer) = &peers[random.below(40).min(3)] {
                request.extensions_mut().insert(peer.clone());
            }
        }
        let answer = self.service.clone().ready().await.unwrap().call(request).await.unwrap();
        Answer::read(answer).await
    }

    /// Nothing is left running, and another process finds all of it in order.
    pub(crate) async fn check(self) -> Result<(), String> {
        let Some((work, disk)) = self.work else { return Ok(()) };
        work.drain().await;
        if !work.running().is_empty() {
            return Err(format!("work is left: {:?}", work.running()));
        }
        let (_services, _facts) = modelled(&"n1".parse().unwrap(), &disk).await;
        Ok(())
    }
}

fn host(name: &str) -> HostName {
    HostName::of(&name.parse().unwrap())
}
