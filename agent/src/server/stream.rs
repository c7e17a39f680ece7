//! The bytes of a connection, with a note of when they come.

use super::Connection;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::UnixStream;

/// A stream that tells its connection when bytes have come in, and when the peer takes none. It reads with plain
/// `read(2)`: descriptors that a peer sends along are closed by the kernel.
pub(super) struct Metered {
    stream: TokioIo<UnixStream>,
    connection: Arc<Connection>,
    /// Whether the last write found no room.
    stuck: bool,
}

impl Metered {
    pub(super) fn new(stream: UnixStream, connection: Arc<Connection>) -> Self {
        Self {
            stream: TokioIo::new(stream),
            connection,
            stuck: false,
        }
    }

    /// The stream itself.
    pub(super) fn into_inner(self) -> UnixStream {
        self.stream.into_inner()
    }

    fn wrote(&mut self, outcome: &Poll<io::Result<usize>>) {
        if self.stuck != outcome.is_pending() {
            self.stuck = !self.stuck;
            self.connection.times.write_is_stuck(self.stuck);
        }
    }
}

impl Read for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        if outcome.is_ready() && room > 0 {
            self.connection.times.bytes_came();
        }
        outcome
    }
}

impl Write for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&outcome);
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Nothing: what ends a connection goes on to close it, or to wait for the peer.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&outcome);
        outcome
    }
}
