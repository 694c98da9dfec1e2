//! The controller of many hosts: it owns no storage, finds whose a call is, and passes the same call on. What it knows of
//! the hosts is what they say of themselves, watched and thrown away with the process; it stores nothing.
//!
//! It speaks for hosts (`lagan serve --mode router`), or for this host and others in one. Whatever it cannot pass on, it
//! answers by the services of its own process, which in a router have no pool: so what is malformed, unknown or given up is
//! answered as any host would.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;
use tonic::{Request, Status};

use crate::{
    csi::{Member, Topology, status::status},
    error::{Error, ErrorKind},
    id::PoolId,
};

mod controller;
mod create;
mod group;
mod lists;
mod order;
mod remote;
mod view;
mod watching;

pub use order::Placing;
pub use remote::{Way, remote};
pub use view::{Host, Observation, Settings, View};
pub use watching::{Local, Watching};

/// Passes calls on. Clones share it.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    view: watch::Receiver<Arc<View>>,
    own: Member,
    /// Under the driver's name, of no host: for reading requests that another will carry out.
    anywhere: Topology,
    placing: Placing,
    doubled: AtomicU64,
}

impl Router {
    /// A router over what `view` shows; `own` answers what is nobody's.
    #[must_use]
    pub fn new(view: watch::Receiver<Arc<View>>, own: Member, driver_name: &str, placing: Placing) -> Self {
        let anywhere = Topology::anywhere(driver_name);
        Self { inner: Arc::new(Inner { view, own, anywhere, placing, doubled: AtomicU64::new(0) }) }
    }

    /// The hosts as they were seen last.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.inner.view.borrow())
    }

    /// How often one name was met on two hosts since the start.
    #[must_use]
    pub fn doubled(&self) -> u64 {
        self.inner.doubled.load(Ordering::Relaxed)
    }

    /// Who answers for what is in a pool; we ourselves where nobody is known to, or no pool is meant.
    fn owner(&self, pool: Option<PoolId>) -> Result<Member, Status> {
        let view = self.view();
        match pool.map(|pool| view.owner(pool)) {
            None | Some(Ok(None)) => Ok(self.inner.own.clone()),
            Some(Ok(Some(host))) => host.reach().cloned().map_err(status),
            Some(Err(two)) => Err(status(two)),
        }
    }
}

/// What comes beside a message, its deadline and trace, and the message.
fn split<T>(request: Request<T>) -> (Request<()>, T) {
    let (metadata, extensions, message) = request.into_parts();
    (Request::from_parts(metadata, extensions, ()), message)
}

/// A request with what came beside another one.
fn again<T>(beside: &Request<()>, message: T) -> Request<T> {
    Request::from_parts(beside.metadata().clone(), beside.extensions().clone(), message)
}

fn unavailable(what: String) -> Error {
    Error::new(ErrorKind::Unavailable, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Credentials, Role, Seen, certs, connect};

    /// A way to nobody.
    pub(super) fn nobody() -> Member {
        let directory = tempfile::tempdir().unwrap();
        certs::make(directory.path(), &[Role::Router]).unwrap();
        let credentials = Credentials::read(directory.path(), Role::Router).unwrap();
        remote("nobody", connect("127.0.0.1:1", &credentials, &Seen::default()))
    }
}
