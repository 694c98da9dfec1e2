//! Where others reach this host: connections that have shown who is at the other end. Whoever cannot show it, or takes too
//! long, never gets as far as a call; and nobody has so many that others get none.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::{Admitted, Credentials, Peer, certs};

/// Connections at a time whose peer is known; more are refused.
const CONNECTIONS: usize = 1024;
/// Those of one peer: routers share a name, and each needs one or two.
const OF_ONE_PEER: usize = 64;
/// Handshakes at a time; more wait in the kernel.
const HANDSHAKES: usize = 256;
/// Those from one address; more are refused, or a single one would keep all others waiting.
const FROM_ONE_ADDRESS: usize = 64;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long until another try where the system has no connection to give.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// A connection with a known peer.
pub type PeerStream = Admitted<TlsStream<TcpStream>, Peer>;

/// How many each one has, of what nobody may have many of.
#[derive(Debug)]
struct Shares<K> {
    most: usize,
    taken: Mutex<HashMap<K, usize>>,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// One more; `None` where `key` has enough.
    fn take(self: &Arc<Self>, key: K) -> Option<Share<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), key })
    }
}

/// One of what its owner has; given back with this value.
#[derive(Debug)]
struct Share<K: Clone + Eq + Hash> {
    shares: Arc<Shares<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

/// What there is room for.
#[derive(Clone)]
struct Room {
    connections: Arc<Semaphore>,
    peers: Arc<Shares<Peer>>,
    handshakes: Arc<Semaphore>,
    addresses: Arc<Shares<IpAddr>>,
}

impl Room {
    fn new() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            peers: Shares::of(OF_ONE_PEER),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            addresses: Shares::of(FROM_ONE_ADDRESS),
        }
    }

    /// Finds out who is at the other end, and gives it a place.
    async fn admit(&self, stream: TcpStream, credentials: &Credentials) -> io::Result<PeerStream> {
        let shown = timeout(HANDSHAKE, handshake(stream, credentials)).await;
        let (stream, peer) = shown.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))?;
        let enough = || io::Error::other(format!("{peer} has {OF_ONE_PEER} connections already"));
        let share = self.peers.take(peer.clone()).ok_or_else(enough)?;
        let slot = Arc::clone(&self.connections).try_acquire_owned().map_err(io::Error::other)?;
        Ok(Admitted::new(stream, peer, (slot, share)))
    }
}

/// The connections that come to a listener, each once its peer is known. They end with the receiver.
#[must_use]
pub fn incoming(listener: TcpListener, credentials: Credentials) -> ReceiverStream<io::Result<PeerStream>> {
    let (sender, receiver) = mpsc::channel(16);
    let room = Room::new();
    drop(tokio::spawn(async move {
        loop {
            let accepted = async {
                let turn = Arc::clone(&room.handshakes).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, from)| (turn, stream, from))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = sender.closed() => return,
            };
            let Ok((turn, stream, from)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let Some(share) = room.addresses.take(from.ip()) else { continue };
            let (room, sender, credentials) = (room.clone(), sender.clone(), credentials.clone());
            drop(tokio::spawn(async move {
                let admitted = room.admit(stream, &credentials).await;
                drop((turn, share));
                match admitted {
                    // The server may have ended meanwhile.
                    Ok(stream) => sender.send(Ok(stream)).await.unwrap_or_default(),
                    Err(error) => tracing::info!(%from, %error, "a connection is refused"),
                }
            }));
        }
    }));
    ReceiverStream::new(receiver)
}

async fn handshake(stream: TcpStream, credentials: &Credentials) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(credentials.current().server).accept(stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let shown = shown.ok_or_else(|| io::Error::other("no certificate was shown"))?;
    let peer = certs::facts(shown).map_err(io::Error::other)?.peer;
    Ok((stream, peer))
}
