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
        controller_server::ControllerServer, group_controller_server::GroupControllerServer,
        identity_server::IdentityServer, node_server::NodeServer,
    },
};

mod answers;
mod controller;
mod fields;
mod group;
mod identity;
mod import;
mod node;
mod requests;
pub mod status;
mod topology;

pub use topology::Topology;

use controller::ControllerService;
use group::GroupService;
use identity::IdentityService;
use node::NodeService;
use status::status;

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

/// The services of the roles that are served. Calls of any other service are UNIMPLEMENTED.
#[must_use]
pub fn routes(services: &Services) -> Routes {
    let (driver_name, pools) = (services.driver_name.clone(), Arc::clone(&services.pools));
    let mut routes = Routes::new(IdentityServer::new(IdentityService { driver_name, pools }));
    let edge = Edge { work: services.work.clone(), topology: services.topology.clone() };
    if let Some(engine) = services.engine.clone() {
        let (groups, its) = (engine.clone(), edge.clone());
        routes = routes
            .add_service(ControllerServer::new(ControllerService { engine, edge: edge.clone() }))
            .add_service(GroupControllerServer::new(GroupService { engine: groups, edge: its }));
    }
    if let Some(node) = services.node.clone() {
        routes = routes.add_service(NodeServer::new(NodeService { node, edge }));
    }
    routes
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
