//! Sockets, and the life of a server on one: how it begins to listen, how each call is seen, how it ends.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures_util::stream::{Stream, unfold};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{service::Routes, transport::Server};

use crate::{
    engine::work::Work,
    error::{Doing, Error, ErrorKind, Result},
    peers::{self, Admitted, Credentials, PAUSE, PeerStream},
    telemetry::{Metrics, RpcLayer},
};

/// Longest path of a socket, less its closing zero (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;
/// Calls of one connection that are worked on at a time; more wait.
const CALLS_PER_CONNECTION: usize = 512;

/// Connections to a socket at a time; more are refused. Orchestrators need a handful.
const CONNECTIONS: usize = 4096;

/// A connection of another host from which nothing comes for so long is asked whether it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
/// After so long a connection of another host is made anew: its certificate may no longer be good.
const CONNECTION_AGE: Duration = Duration::from_secs(60 * 60);

/// How long the last answers may take once all work is done.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A unix socket. Orchestrators write it as `unix:///path`, `unix:/path` or the bare path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

/// Text that names no unix socket.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadEndpoint {
    /// Not one of the three forms.
    #[error("{0:?} is no unix socket: expected unix:///path, unix:/path or /path")]
    Form(String),
    /// Longer than the kernel takes.
    #[error(
        "the socket path {0:?} has {1} bytes, more than the {SOCKET_PATH_LIMIT} that the kernel takes: choose a shorter one"
    )]
    TooLong(String, usize),
}

impl Endpoint {
    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let path = match text.strip_prefix("unix:") {
            Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
            None => text,
        };
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(BadEndpoint::Form(text.to_owned()));
        }
        if path.len() > SOCKET_PATH_LIMIT {
            return Err(BadEndpoint::TooLong(path.to_owned(), path.len()));
        }
        Ok(Self(path.into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    file: SocketFile,
}

impl Listener {
    /// Its connections, and the file that they come by.
    pub fn incoming(self) -> (impl Stream<Item = io::Result<LocalStream>>, SocketFile) {
        let begin = (self.listener, Arc::new(Semaphore::new(CONNECTIONS)));
        (unfold(begin, |state| async { Some((Ok(accept(&state).await), state)) }), self.file)
    }
}

/// The next connection there is room for.
async fn accept((listener, slots): &(UnixListener, Arc<Semaphore>)) -> LocalStream {
    loop {
        match (listener.accept().await, Arc::clone(slots).try_acquire_owned()) {
            (Ok((stream, _)), Ok(slot)) => return Admitted::new(stream, (), slot),
            (Ok(_), Err(_full)) => {}
            (Err(error), _) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A connection to a socket: whoever may open the file.
pub type LocalStream = Admitted<UnixStream, ()>;

/// The file of a socket; it goes with this value, unless a successor has put its own there.
#[derive(Debug)]
pub struct SocketFile {
    endpoint: Endpoint,
    inode: u64,
}

impl SocketFile {
    /// Whether it is still where it was made.
    #[must_use]
    pub fn is_there(&self) -> bool {
        std::fs::symlink_metadata(self.endpoint.path()).is_ok_and(|found| found.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = std::fs::remove_file(self.endpoint.path())
        {
            tracing::warn!(%error, endpoint = %self.endpoint, "socket not removed");
        }
    }
}

/// Begins to listen. The file is for its owner only; a socket that nobody listens on is replaced.
///
/// # Errors
/// `InUse` where somebody listens there or the path is no socket; those of the system otherwise.
pub async fn listen(endpoint: &Endpoint) -> Result<Listener> {
    let path = endpoint.path();
    let what = || format!("listen on {endpoint}");
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory).doing(what)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(what(), error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("{}: the path exists and is no socket", what()),
            ));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            let what = format!(
                "{}: another process serves there: stop it first, or choose another endpoint",
                what()
            );
            return Err(Error::new(ErrorKind::InUse, what));
        }
        Ok(_) => std::fs::remove_file(path).doing(what)?,
    }
    // The mask of this process (077, set at the start) makes the socket private from its first moment.
    let listener = UnixListener::bind(path).doing(what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).doing(what)?;
    let inode = std::fs::metadata(path).doing(what)?.ino();
    Ok(Listener { listener, file: SocketFile { endpoint: endpoint.clone(), inode } })
}

/// Other processes of the cluster: how they come, and what they reach.
pub struct Peers {
    incoming: ReceiverStream<io::Result<PeerStream>>,
    routes: Routes,
}

impl Peers {
    /// Begins to listen for them.
    ///
    /// # Errors
    /// Those of bind(2).
    pub async fn listen(address: SocketAddr, credentials: Credentials, routes: Routes) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.doing(|| format!("listen for other hosts on {address}"))?;
        Ok(Self { incoming: peers::incoming(listener, credentials), routes })
    }
}

/// Serves until SIGTERM or SIGINT, then takes no new calls and finishes those that run, detached work included.
/// A second signal leaves at once: what runs then is finished or undone at the next start.
///
/// # Errors
/// Those of the transport.
pub async fn serve(
    listener: Listener,
    mut signals: Signals,
    routes: Routes,
    peers: Option<Peers>,
    work: &Work,
    metrics: &Metrics,
) -> Result<()> {
    let (incoming, file) = listener.incoming();
    let (stop, stopped) = watch::channel(false);
    let until_stopped = || {
        let mut stopped = stopped.clone();
        // The sender lives as long as this function.
        async move { stopped.wait_for(|stop| *stop).await.map(drop).unwrap_or_default() }
    };
    let builder = || {
        Server::builder()
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
            .layer(RpcLayer::new(metrics.clone()))
    };
    let local = builder().add_routes(routes).serve_with_incoming_shutdown(incoming, until_stopped());
    let remote = async {
        let Some(Peers { incoming, routes }) = peers else { return Ok(()) };
        builder()
            .http2_keepalive_interval(Some(SIGN_OF_LIFE))
            .max_connection_age(CONNECTION_AGE)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, until_stopped())
            .await
    };
    // Long, and begun once.
    let server = Box::pin(async { tokio::try_join!(local, remote).map(drop) });
    tokio::pin!(server);
    let ended = tokio::select! {
        ended = &mut server => ended,
        () = signals.next() => {
            tracing::info!("asked to stop: finishing what runs");
            stop.send_replace(true);
            let drained = async {
                work.drain().await;
                // Answers still go out; a caller that only keeps its connection open is not waited for.
                tokio::time::timeout(LAST_ANSWERS, server).await.unwrap_or(Ok(()))
            };
            tokio::select! {
                ended = drained => ended,
                () = signals.next() => {
                    tracing::warn!(running = work.running().len(), "asked to stop again: leaving at once");
                    Ok(())
                }
            }
        }
    };
    let what = format!("serve on {}", file.endpoint);
    ended.map_err(|error| Error::new(ErrorKind::Broken, what).because(error))
}

/// The signals that ask us to stop: heard from when this is made on, which is before anybody can find us.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Begins to listen for them.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn listen() -> Result<Self> {
        let on = |kind| signal(kind).doing(|| "listen for signals");
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_an_endpoint() {
        for text in ["unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().path(), Path::new("/run/x.sock"), "{text}");
        }
        for text in ["", "x.sock", "unix://x.sock", "tcp://1.2.3.4:5", "unix:///", "http:///x"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        let long = format!("/{}", "x".repeat(107));
        assert!(matches!(long.parse::<Endpoint>(), Err(BadEndpoint::TooLong(..))));
        assert!(long[..107].parse::<Endpoint>().is_ok());
    }

    #[test]
    fn hostile_input() {
        crate::hostile::feed("endpoints", &[b"unix:///run/x.sock", b"unix:/x", b"/run/x.sock"], |input| {
            if let Ok(endpoint) = String::from_utf8_lossy(input).parse::<Endpoint>() {
                assert!(endpoint.path().is_absolute(), "{endpoint}");
                assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        });
    }
}
