//! A connection that was given a place among those there may be.

use std::{
    any::Any,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// A connection, who is at its other end, and what it holds while it lasts.
#[derive(Debug)]
pub struct Admitted<S, W> {
    stream: S,
    who: W,
    _place: Box<dyn Any + Send + Sync>,
}

impl<S, W> Admitted<S, W> {
    /// One that keeps `place` until it ends.
    pub fn new(stream: S, who: W, place: impl Any + Send + Sync) -> Self {
        Self { stream, who, _place: Box::new(place) }
    }
}

impl<S, W: Clone + Send + Sync + 'static> Connected for Admitted<S, W> {
    type ConnectInfo = W;

    fn connect_info(&self) -> W {
        self.who.clone()
    }
}

impl<S: AsyncRead + Unpin, W: Unpin> AsyncRead for Admitted<S, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin, W: Unpin> AsyncWrite for Admitted<S, W> {
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
