//! The bytes of a connection: notes when they come, and limits those that nobody reads.

use super::Connection;
use super::intake::PART;
use crate::passed;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::UnixStream;

/// How many bytes of answers the kernel may hold for a peer that does not read them. By its own count it allows twice
/// this, so that 64 KiB still fit. By default it is some 200 KiB, and 64 connections of one pod could hold 20 MiB.
const QUEUED: usize = 40 * 1024;

/// The longest first write that needs no limit yet: many connections end after one short answer.
const FIRST: usize = 8 * 1024;

/// The most bytes of heads that are read at a time where descriptors may come with them.
const HEADS: usize = 2 * 1024;

/// A stream that tells its connection when bytes have come in, and when the peer reads none.
pub(super) struct Metered {
    stream: TokioIo<UnixStream>,
    connection: Arc<Connection>,
    /// Whether the last write found no room.
    stuck: bool,
    /// Whether others have had a turn since the last part of a body was read.
    yielded: bool,
    queue: Queue,
    /// What the peer has passed along, which ended the connection.
    passed: Vec<OwnedFd>,
}

/// What the kernel holds for a peer that does not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Queue {
    Empty,
    /// One write of at most [`FIRST`].
    Short,
    /// At most [`QUEUED`].
    Bounded,
}

impl Metered {
    pub(super) fn new(stream: UnixStream, connection: Arc<Connection>) -> Self {
        Self {
            stream: TokioIo::new(stream),
            connection,
            stuck: false,
            yielded: false,
            queue: Queue::Empty,
            passed: Vec::new(),
        }
    }

    /// The stream itself, and the descriptors that came over it.
    pub(super) fn into_inner(self) -> (UnixStream, Vec<OwnedFd>) {
        (self.stream.into_inner(), self.passed)
    }

    /// Reads what has come into `part`, and ends the connection if descriptors came along.
    fn poll_part(&mut self, cx: &mut Context<'_>, part: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if passed::are_refused() {
            return self.call(|mut stream| Pin::new(stream.inner_mut()).poll_read(cx, part));
        }
        let stream = self.stream.inner();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let room = part.initialize_unfilled();
            // Kept at once: what a call returns that is too much is dropped, and with it they would be closed here.
            let passed = &mut self.passed;
            let receive = || {
                let received = passed::receive(stream, room)?;
                passed.extend(received.passed);
                Ok((received.bytes, received.any))
            };
            let receive = || stream.try_io(Interest::READABLE, receive);
            match self.connection.call(receive)? {
                Ok((bytes, false)) => {
                    part.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Ok((_, true)) => {
                    return Poll::Ready(Err(io::Error::other("the peer passes descriptors")));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_heads(
        &mut self,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if passed::are_refused() {
            return self.call(|stream| stream.poll_read(cx, buf));
        }
        let mut part = [0; HEADS];
        let room = buf.remaining().min(HEADS);
        let mut part = ReadBuf::new(&mut part[..room]);
        ready!(self.poll_part(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }

    /// Sets the limit, if needed, before `bytes` bytes are written.
    fn bound(&mut self, bytes: usize) {
        self.queue = match self.queue {
            Queue::Empty if bytes <= FIRST => Queue::Short,
            Queue::Bounded => return,
            Queue::Empty | Queue::Short => {
                // This cannot fail on a socket.
                let _ = setsockopt(self.stream.inner(), SndBuf, &QUEUED);
                Queue::Bounded
            }
        };
    }

    /// Reads a part of a request's body into `buf`, after others have had a turn.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.yielded {
            self.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut part = [0; PART];
        let room = buf.remaining().min(PART);
        let mut part = ReadBuf::new(&mut part[..room]);
        ready!(self.poll_part(cx, &mut part))?;
        self.yielded = false;
        if !self.connection.intake.read(part.filled().len()) {
            return Poll::Ready(Err(io::Error::other("more framing than body")));
        }
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }

    /// Makes a call on the socket, which fails if that is the one that costs too much.
    fn call<T>(
        &mut self,
        call: impl FnOnce(Pin<&mut TokioIo<UnixStream>>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let stream = Pin::new(&mut self.stream);
        self.connection.call(|| call(stream))?
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
        if self.connection.intake.is_on() {
            return self.poll_body(cx, buf);
        }
        let room = buf.remaining();
        let outcome = self.poll_heads(cx, buf);
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
        self.bound(buf.len());
        let outcome = self.call(|stream| stream.poll_write(cx, buf));
        self.wrote(&outcome);
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Does nothing: whatever ends a connection goes on to close it, or to wait for the peer.
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
        self.bound(bufs.iter().map(|buf| buf.len()).sum());
        let outcome = self.call(|stream| stream.poll_write_vectored(cx, bufs));
        self.wrote(&outcome);
        outcome
    }
}
