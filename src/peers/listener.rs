//! Where others reach this host: connections that have shown who is at the other end. Whoever cannot show it, or takes too
//! long, never gets as far as a call.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{Credentials, Peer, certs};

/// Connections at a time, those in a handshake included; more wait in the kernel.
const CONNECTIONS: usize = 1024;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long until another try where the system has no connection to give.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection with a known peer.
#[derive(Debug)]
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _slot: OwnedSemaphorePermit,
}

/// The connections that come to a listener, each once its peer is known. They end with the receiver.
#[must_use]
pub fn incoming(listener: TcpListener, credentials: Credentials) -> ReceiverStream<io::Result<PeerStream>> {
    let (sender, receiver) = mpsc::channel(16);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    drop(tokio::spawn(async move {
        loop {
            let accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, from)| (slot, stream, from))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = sender.closed() => return,
            };
            let Ok((slot, stream, from)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (sender, credentials) = (sender.clone(), credentials.clone());
            drop(tokio::spawn(async move {
                let shown = timeout(HANDSHAKE, handshake(stream, &credentials)).await;
                match shown.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())) {
                    // The server may have ended meanwhile.
                    Ok((stream, peer)) => {
                        sender.send(Ok(PeerStream { stream, peer, _slot: slot })).await.unwrap_or_default();
                    }
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

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
