//! The gRPC edge: requests become typed values, values become answers, and nothing is decided here. Handlers all look
//! alike: parse, run the engine or the node with the locks that the call needs, answer.

use std::sync::Arc;

use prost::Message;
use tonic::{Status, service::Routes};
use tracing::Span;

use crate::{
    digest::Digest,
    engine::{
        Engine,
        locks::{Key, Mode},
        work::{Task, Work},
    },
    error::{Error, ErrorKind, Result},
    node::Node,
    pool::{Progress, set::Pools},
    proto::{
        controller_server::{Controller, ControllerServer},
        group_controller_server::{GroupController, GroupControllerServer},
        identity_server::IdentityServer,
        node_server::NodeServer,
    },
};

mod answers;
mod controller;
pub(crate) mod fields;
mod gate;
mod group;
mod identity;
mod import;
mod manifest;
mod node;
pub(crate) mod requests;
pub mod status;
mod topology;

pub use gate::Gate;
pub use manifest::{Holdings, Manifest, PeerFacts};
pub use topology::Topology;

use controller::ControllerService;
use group::GroupService;
use identity::IdentityService;
use node::NodeService;
use status::status;

/// Longest question about who we are, which asks nothing in particular: any peer may put it, and as many as it likes at once.
const QUESTION_LIMIT: usize = 1 << 10;

/// What the services stand on. A role that is not served here is `None`.
#[derive(Clone)]
pub struct Services {
    /// Name of the driver, by which orchestrators know it.
    pub driver_name: String,
    /// What both roles stand on.
    pub pools: Arc<Pools>,
    /// Where this host's volumes can be reached.
    pub topology: Topology,
    /// Everything that runs.
    pub work: Work,
    /// The controller role.
    pub engine: Option<Engine>,
    /// The node role.
    pub node: Option<Node>,
}

/// Whoever does the controller's work: we ourselves, another host, or a router that knows whose it is. All of them are
/// asked the same calls of CSI.
#[derive(Clone)]
pub struct Member {
    /// Its Controller service.
    pub controller: Arc<dyn Controller>,
    /// Its GroupController service.
    pub groups: Arc<dyn GroupController>,
}

impl Member {
    /// One that is at hand.
    #[must_use]
    pub fn new((controller, groups): (impl Controller, impl GroupController)) -> Self {
        Self { controller: Arc::new(controller), groups: Arc::new(groups) }
    }
}

impl Services {
    /// The Controller and GroupController services over our own pools.
    #[must_use]
    pub fn own(&self) -> Option<(impl Controller + use<>, impl GroupController + use<>)> {
        let engine = self.engine.clone()?;
        let controller = ControllerService { engine: engine.clone(), edge: self.edge() };
        Some((controller, GroupService { engine, edge: self.edge() }))
    }

    fn edge(&self) -> Edge {
        Edge { work: self.work.clone(), topology: self.topology.clone() }
    }

    fn identity(&self, peers: Option<PeerFacts>) -> Routes {
        let (driver_name, pools) = (self.driver_name.clone(), Arc::clone(&self.pools));
        let service = IdentityServer::new(IdentityService { driver_name, pools, peers });
        Routes::new(service.max_decoding_message_size(QUESTION_LIMIT))
    }
}

/// The services that an orchestrator on this host reaches: those of the roles that are served, with these two for the
/// controller's. Calls of any other service are UNIMPLEMENTED.
#[must_use]
pub fn routes(services: &Services, controller: Option<(impl Controller, impl GroupController)>) -> Routes {
    let routes = with_controller(services.identity(None), controller);
    match services.node.clone() {
        Some(node) => routes.add_service(NodeServer::new(NodeService { node, edge: services.edge() })),
        None => routes,
    }
}

/// The services that other processes of the cluster reach, each as far as the gate lets it: what this one does itself. So a
/// call that was passed on is not passed on again.
#[must_use]
pub fn routes_for_peers(services: &Services, facts: PeerFacts, gate: Gate) -> Routes {
    let routes = with_controller(services.identity(Some(facts)), services.own());
    Routes::from(routes.prepare().into_axum_router().layer(gate))
}

fn with_controller(routes: Routes, services: Option<(impl Controller, impl GroupController)>) -> Routes {
    let Some((controller, groups)) = services else { return routes };
    routes.add_service(ControllerServer::new(controller)).add_service(GroupControllerServer::new(groups))
}

/// What the controller and the node service share.
#[derive(Clone)]
struct Edge {
    work: Work,
    topology: Topology,
}

/// A request, reduced to what it is compared by and what the log shows of it.
struct Call {
    name: &'static str,
    fingerprint: Digest,
}

impl Call {
    fn new(name: &'static str, request: &impl Message) -> Self {
        Self { name, fingerprint: Digest::of([name.as_bytes(), &request.encode_to_vec()]) }
    }

    /// The same with something that came beside the request.
    fn with(self, beside: &impl ToString) -> Self {
        let parts = [self.fingerprint.to_string(), beside.to_string()];
        Self { fingerprint: Digest::of(parts.iter().map(|part| part.as_bytes())), ..self }
    }

    /// The task that this call is, on `subject`.
    fn on(self, subject: impl ToString, locks: Vec<(Key, Mode)>) -> Task {
        Task { call: self.name, subject: subject.to_string(), fingerprint: self.fingerprint, locks }
    }
}

impl Edge {
    /// Runs a changing call apart from its caller.
    async fn run<T, F>(
        &self,
        task: Task,
        work: impl FnOnce(Arc<Progress>) -> F,
    ) -> std::result::Result<T, Status>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.work.run(task, work).await.map_err(status)
    }
}

/// Notes in the call's span what it is about, under the field names that every log line shares.
fn note(field: &'static str, value: &impl std::fmt::Display) {
    Span::current().record(field, tracing::field::display(value));
}

fn not_offered(call: &str) -> Status {
    status(Error::new(ErrorKind::NotOffered, format!("{call} is not offered")))
}
