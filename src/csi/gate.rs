//! What a peer may ask of this host. A router may make controller calls; another host only where it is listed, so that
//! one host that has fallen cannot delete the volumes of the others. Node calls are nobody's but the orchestrator's on this
//! very host, and so is an import, which names devices of it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use hyper::{Request, Response};
use tower::{Layer, Service};

use super::status::status;
use crate::{
    error::{Error, ErrorKind, Result},
    peers::{HostName, Peer},
    proto::IMPORT,
};

/// The rule, as a layer around the services that peers reach.
#[derive(Clone, Debug)]
pub struct Gate {
    callers: Arc<BTreeSet<HostName>>,
}

impl Gate {
    /// Besides routers, these hosts may make controller calls.
    #[must_use]
    pub fn new(callers: BTreeSet<HostName>) -> Self {
        Self { callers: Arc::new(callers) }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<()> {
        let denied = |what: String| Err(Error::new(ErrorKind::Denied, what));
        let Some(peer) = request.extensions().get::<Peer>() else {
            return denied("nobody is known to be calling".to_owned());
        };
        if request.headers().contains_key(IMPORT) {
            return denied("an import can only be asked for on the host itself".to_owned());
        }
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
        let allowed = match (service, peer) {
            ("csi.v1.Identity", _) | ("csi.v1.Controller" | "csi.v1.GroupController", Peer::Router) => true,
            ("csi.v1.Controller" | "csi.v1.GroupController", Peer::Host(name)) => self.callers.contains(name),
            _ => false,
        };
        if allowed { Ok(()) } else { denied(format!("{peer} may not call {service} here (see `callers`)")) }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S, B, R: Default> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.gate.check(&request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(error) => Either::Right(ready(Ok(status(error).into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of who may call what, each cell.
    #[test]
    fn who_may_call_what() {
        let gate = Gate::new(BTreeSet::from(["n2".parse().unwrap()]));
        let host = |name: &str| Peer::Host(name.parse().unwrap());
        let services =
            ["csi.v1.Identity", "csi.v1.Controller", "csi.v1.GroupController", "csi.v1.Node", "else"];
        for (peer, expected) in [
            (Peer::Router, [true, true, true, false, false]),
            (host("n2"), [true, true, true, false, false]),
            (host("n3"), [true, false, false, false, false]),
            // Called like a router, and none.
            (host("router"), [true, false, false, false, false]),
        ] {
            for (service, expected) in services.into_iter().zip(expected) {
                let mut request =
                    Request::builder().uri(format!("http://x/{service}/Call")).body(()).unwrap();
                assert!(gate.check(&request).is_err(), "{service} by nobody");
                request.extensions_mut().insert(peer.clone());
                assert_eq!(gate.check(&request).is_ok(), expected, "{service} by {peer}");
                request.headers_mut().insert(IMPORT, "x".parse().unwrap());
                assert!(gate.check(&request).is_err(), "import in {service} by {peer}");
            }
        }
    }
}
