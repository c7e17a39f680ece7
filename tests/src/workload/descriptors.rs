//! Descriptors that a pod passes along with what it writes.

use std::fs;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::protocol::Raw;

/// The most descriptors that one message carries (SCM_MAX_FD, unix(7)).
const MAX_DESCRIPTORS: usize = 253;

/// Writes `raw` to `stream`, with its descriptors.
pub(super) async fn send(stream: &UnixStream, raw: &Raw) -> io::Result<()> {
    let passed: OwnedFd = match raw.lingers {
        0 => fs::File::open("/dev/null")?.into(),
        seconds => lingering(seconds)?.into(),
    };
    let descriptors = vec![passed.as_fd(); raw.descriptors.min(MAX_DESCRIPTORS)];
    let urgent = match raw.urgent {
        true => SendFlags::OOB,
        false => SendFlags::empty(),
    };
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(
            stream,
            &[IoSlice::new(&raw.bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL | urgent,
        );
        sent.map_err(io::Error::from)
    };
    let sent = stream.async_io(Interest::WRITABLE, send).await;
    if sent.is_err() {
        // Or this process would wait for its own.
        let _ = set_socket_linger(&passed, None);
    }
    sent.map(drop)
}

/// A TCP socket whose last close waits for as long as it may: for a peer that reads nothing while this process lives.
fn lingering(seconds: u64) -> io::Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    std::mem::forget(peer);
    stream.set_nonblocking(true)?;
    while stream.write(&[0; 64 * 1024]).is_ok() {}
    set_socket_linger(&stream, Some(Duration::from_secs(seconds)))?;
    Ok(stream)
}
