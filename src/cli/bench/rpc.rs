//! Empty calls: what the transport costs, beside a server that does nothing, ours and others.

use std::{
    path::{Path, PathBuf},
    process::Child,
    time::Instant,
};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::{
    super::{
        client::{Daemon, refused},
        scratch,
    },
    Bench, at_once, floors,
    life::rate,
    place::ourselves,
    report::{MACHINE, Report, Unit},
};
use crate::{
    error::{Doing, Error, ErrorKind, Result},
    proto::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
        GetPluginInfoResponse, ProbeRequest, ProbeResponse,
        identity_server::{Identity, IdentityServer},
    },
};

const SCENARIO: &str = "rpc";
/// Calls of each kind in a turn.
const CALLS: usize = 2000;
/// So many at a time, where it is more than one.
const AT_ONCE: usize = 16;
/// Name of the rate of calls.
pub(super) const PROBES: &str = "Probe, 16 at a time";

impl Bench<'_> {
    /// Ours, the other drivers, and servers that do nothing, in turns.
    pub(super) async fn empty_calls(&mut self) -> Result<()> {
        let nothing = NullServer::start(&self.root)?;
        let mut all = vec![(MACHINE.to_owned(), scratch::connect(&nothing.socket).await?)];
        all.extend(self.drivers.iter().map(|driver| (driver.name.clone(), driver.daemon.clone())));
        for (name, socket) in &self.args.null {
            all.push((name.clone(), Daemon::connect_to(socket).await?));
        }
        for _ in 0..self.args.rounds {
            for (name, daemon) in &all {
                self.report.watch();
                probes(name, daemon, &mut self.report).await?;
            }
        }
        Ok(())
    }
}

async fn probe(daemon: &Daemon) -> Result<()> {
    daemon.identity().probe(ProbeRequest {}).await.map(drop).map_err(refused)
}

async fn probes(name: &str, daemon: &Daemon, report: &mut Report) -> Result<()> {
    for _ in 0..CALLS / 4 {
        let begun = Instant::now();
        probe(daemon).await?;
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        if name == MACHINE {
            report.floor(floors::RPC, took);
        } else {
            report.time((SCENARIO, "Probe", name), took, Some(floors::RPC));
        }
    }
    let begun = Instant::now();
    at_once(AT_ONCE, CALLS, |_| probe(daemon)).await?;
    report.add((SCENARIO, PROBES, name), Unit::PerSecond, rate(CALLS, begun), None);
    Ok(())
}

/// A process that serves nothing.
struct NullServer {
    child: Child,
    socket: PathBuf,
}

impl NullServer {
    fn start(root: &Path) -> Result<Self> {
        let socket = root.join("null.sock");
        let mut command = ourselves();
        let child = command.args(["bench", "--null-server"]).arg(&socket).spawn();
        Ok(Self { child: child.doing(|| "start a server that does nothing")?, socket })
    }
}

impl Drop for NullServer {
    fn drop(&mut self) {
        // It may have ended by itself, and nothing depends on it.
        self.child.kill().and_then(|()| self.child.wait().map(drop)).unwrap_or_default();
        std::fs::remove_file(&self.socket).unwrap_or_default();
    }
}

/// The server that does nothing: what the transport costs by itself.
struct Null;

#[tonic::async_trait]
impl Identity for Null {
    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }

    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse::default()))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse::default()))
    }
}

/// Serves that until it is killed.
pub(super) async fn serve_nothing(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).doing(|| format!("listen on {}", socket.display()))?;
    let incoming = UnixListenerStream::new(listener);
    let served = Server::builder().add_service(IdentityServer::new(Null)).serve_with_incoming(incoming).await;
    served.map_err(|error| Error::new(ErrorKind::Broken, "serve nothing").because(error))
}
