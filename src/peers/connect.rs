//! The way to another host: one connection for all calls, made when it is needed and again when it is lost, each time with
//! the same host at the other end or not at all.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Credentials, HostName, Peer, certs};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// A connection on which nothing comes back for two of these is lost.
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);

/// Which host is at the other end: known from the start, or learnt from its certificate the first time.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Shown>);

#[derive(Debug, Default)]
struct Shown {
    name: OnceLock<HostName>,
    /// Until when the certificate that it showed last is good.
    expires: Mutex<Option<SystemTime>>,
}

impl Seen {
    /// Only this host will do.
    #[must_use]
    pub fn only(name: HostName) -> Self {
        Self(Arc::new(Shown { name: OnceLock::from(name), expires: Mutex::default() }))
    }

    /// The host, once it is known.
    #[must_use]
    pub fn name(&self) -> Option<&HostName> {
        self.0.name.get()
    }

    /// Until when its certificate is good, once it has shown one.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        *self.0.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel to the host at an address, which is not looked for until the first call.
#[must_use]
pub fn connect(address: &str, credentials: &Credentials, seen: &Seen) -> Channel {
    let (address, credentials, seen) = (Arc::<str>::from(address), credentials.clone(), seen.clone());
    let connector = service_fn(move |_| {
        let (address, credentials, seen) = (Arc::clone(&address), credentials.clone(), seen.clone());
        async move {
            let made = timeout(CONNECT, handshake(&address, &credentials, &seen)).await;
            let made = made.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()));
            made.map(TokioIo::new)
        }
    });
    // Never looked up: the connector decides where calls go.
    Endpoint::from_static("http://host.lagan")
        .http2_keep_alive_interval(SIGN_OF_LIFE)
        .keep_alive_timeout(SIGN_OF_LIFE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

async fn handshake(
    address: &str,
    credentials: &Credentials,
    seen: &Seen,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(credentials.current().client);
    // What the verifier makes of it: nothing. It takes any host, and here it is held against the expected one.
    let name = ServerName::try_from("host.lagan").map_err(io::Error::other)?;
    let stream = connector.connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let shown = shown.ok_or_else(|| io::Error::other("no certificate was shown"))?;
    let facts = certs::facts(shown).map_err(io::Error::other)?;
    match facts.peer {
        Peer::Host(name) if *seen.0.name.get_or_init(|| name.clone()) == name => {
            *seen.0.expires.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts.expires);
            Ok(stream)
        }
        other => {
            let expected = seen.name().map_or("a host", HostName::as_str);
            Err(io::Error::other(format!("{other} answers at {address} where {expected} was expected")))
        }
    }
}
