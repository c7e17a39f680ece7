//! Descriptors that a peer passes along with what it sends (`SCM_RIGHTS`, unix(7)). The agent has no use for any.
//!
//! Whoever takes such a message off a socket's queue lets go of its descriptors: by reading past it, or by closing the
//! socket. If nobody else holds them by then, that is their last close, which may take as long as their sender likes: a
//! TCP socket with `SO_LINGER` waits until its own peer has read everything (`inet_release` in net/ipv4/af_inet.c), and
//! the agent has one thread for all pods. So the kernel is told to refuse them when they are sent (`SO_PASSRIGHTS`,
//! Linux 6.16). An older kernel delivers them; they are received then, and closed on another thread.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, setsockopt,
    shutdown, socket, socketpair,
};
use nix::{libc, setsockopt_impl, sockopt_impl};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg,
    sockopt::{set_socket_linger, set_socket_oobinline, socket_acceptconn, socket_domain},
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;
use tokio::net::UnixListener;

/// The most descriptors that one message has (`SCM_MAX_FD` in include/net/scm.h).
const MOST: usize = 253;

/// How many empty messages a queue may have (`net.unix.max_dgram_qlen` is 10 to 512).
const ENDS: usize = 1024;

/// `SO_PASSRIGHTS` (include/uapi/asm-generic/socket.h), the same for every architecture that the agent is built for.
const SO_PASSRIGHTS: i32 = 83;

sockopt_impl!(PassRights, SetOnly, libc::SOL_SOCKET, SO_PASSRIGHTS, bool);

/// Whether the kernel can refuse descriptors. Distributions backport, so the version says nothing.
static REFUSED: LazyLock<bool> = LazyLock::new(|| {
    let flags = SockFlag::SOCK_CLOEXEC;
    let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags);
    pair.is_ok_and(|(one, _other)| setsockopt(&one, PassRights, &false).is_ok())
});

/// Has the kernel refuse descriptors, if it can, on a socket that is not connected yet, or on all connections to one
/// that does not listen yet: each inherits it at its `connect(2)`.
///
/// # Errors
///
/// If the kernel could, and refuses.
pub(crate) fn refuse(socket: &impl AsFd) -> io::Result<()> {
    match setsockopt(socket, PassRights, &false) {
        Ok(()) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A listener after [`refuse`], which can be closed whatever has been passed to it.
#[derive(Debug)]
pub(crate) struct Listener(Option<UnixListener>);

// === impl Listener ===

impl Listener {
    /// The listener at a socket that listens already, and does not block.
    ///
    /// # Errors
    ///
    /// If the runtime cannot wait for it.
    pub(crate) fn new(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self(Some(UnixListener::from_std(listener)?)))
    }
}

impl Deref for Listener {
    type Target = UnixListener;

    fn deref(&self) -> &UnixListener {
        self.0.as_ref().expect("taken only when it is dropped")
    }
}

impl Drop for Listener {
    /// Closes it. What was passed to connections that nobody has accepted is closed on a thread of its own.
    fn drop(&mut self) {
        if let Some(Ok(listener)) = self.0.take().map(UnixListener::into_std) {
            let_go(listener.into());
        }
    }
}

/// Connects to whoever listens at `path`, without waiting. Nobody knows who that is: the connection must be
/// [let go](let_go).
///
/// # Errors
///
/// As connect(2); `WouldBlock` if the backlog is full.
pub(crate) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    refuse(&socket)?;
    expect(&socket);
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Closes a listener, or a connection that was made and not accepted. If anything may have been passed to it, that
/// happens on a thread of its own, as long as there is one to be had.
pub(crate) fn let_go(socket: OwnedFd) {
    if may_be_left(&socket) {
        let _ = std::thread::Builder::new().spawn(move || close(vec![socket]));
    }
}

/// Whether nothing can be passed over a [`Listener`]'s connections.
pub(crate) fn are_refused() -> bool {
    *REFUSED
}

/// Prepares a connection over which descriptors may come: those that come with an urgent byte (`MSG_OOB`) would be let
/// go as soon as somebody reads past it.
pub(crate) fn expect(connection: &impl AsFd) {
    if !*REFUSED {
        // This cannot fail on a socket.
        let _ = set_socket_oobinline(connection, true);
    }
}

/// What has come over a socket.
pub(crate) struct Received {
    /// How many bytes.
    pub(crate) bytes: usize,
    /// The descriptors that came along with them.
    pub(crate) passed: Vec<OwnedFd>,
    /// Whether descriptors came along at all: the kernel lets go of those for which the agent has no number left.
    pub(crate) any: bool,
}

/// Reads what has come into `into`.
///
/// # Errors
///
/// As recvmsg(2); `WouldBlock` if nothing has come.
pub(crate) fn receive(socket: &impl AsFd, into: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    let mut passed = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    Ok(Received {
        bytes: received.bytes,
        any: !passed.is_empty() || received.flags.contains(ReturnFlags::CTRUNC),
        passed,
    })
}

/// Whether closing this socket may close descriptors that have been passed: something is there that nobody has read.
/// From here on nothing more comes. What a listener has is not known.
pub(crate) fn may_be_left(connection: &impl AsFd) -> bool {
    if *REFUSED {
        return false;
    }
    let connection = connection.as_fd().as_raw_fd();
    let _ = shutdown(connection, Shutdown::Read);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(connection, &mut [0], flags) != Ok(0)
}

/// Takes everything off the queue of a socket, to which nothing more comes from here on. Returns what was passed.
fn empty(socket: &impl AsFd) -> Vec<OwnedFd> {
    let _ = shutdown(socket.as_fd().as_raw_fd(), Shutdown::Read);
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    // An empty message looks like the end.
    let mut ends = 0;
    while ends < ENDS {
        match receive(socket, &mut bytes) {
            Ok(received) => {
                ends += usize::from(received.bytes == 0);
                all.extend(received.passed);
            }
            // The second is what a peer that left with unread answers leaves behind, before what it has sent.
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset => ends += 1,
                _ => break,
            },
        }
    }
    all
}

/// Closes connections, listeners and what was passed, with all that was passed over them in turn, without waiting for
/// what its sender has asked to be waited for.
pub(crate) fn close(mut all: Vec<OwnedFd>) {
    while let Some(descriptor) = all.pop() {
        // Not every one is a socket.
        let _ = set_socket_linger(&descriptor, None);
        if socket_domain(&descriptor) != Ok(rustix::net::AddressFamily::UNIX) {
            continue;
        }
        if socket_acceptconn(&descriptor) == Ok(true) {
            let listener = std::os::unix::net::UnixListener::from(descriptor);
            let _ = listener.set_nonblocking(true);
            // From here on nobody can connect.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
            while let Ok((stream, _)) = listener.accept() {
                all.push(stream.into());
            }
        } else {
            all.extend(empty(&descriptor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::{IoSlice, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::sync::mpsc;
    use std::time::Duration;

    /// A TCP socket whose last close takes a minute, for as long as its peer is there and reads nothing.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut stream = TcpStream::connect(address).expect("a connection");
        let (peer, _) = listener.accept().expect("its peer");
        stream.set_nonblocking(true).expect("a mode");
        while stream.write(&[0; 64 * 1024]).is_ok() {}
        set_socket_linger(&stream, Some(Duration::from_secs(60))).expect("a socket");
        (stream, peer)
    }

    /// Passes it on, and keeps nothing of it. Returns whether the kernel allows that.
    fn pass(to: &impl AsFd, descriptor: impl AsFd) -> bool {
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = [IoSlice::new(b"x")];
        match sendmsg(to, &bytes, &mut control, SendFlags::empty()) {
            Err(rustix::io::Errno::PERM) => {
                // Or this process would wait for its own.
                let _ = set_socket_linger(&descriptor, None);
                false
            }
            sent => sent.expect("it is sent") == 1,
        }
    }

    fn takes_no_time(what: impl FnOnce() + Send + 'static) {
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            what();
            let _ = done.send(());
        });
        let waited = is_done.recv_timeout(Duration::from_secs(20));
        waited.expect("it waits for its peer");
    }

    #[test]
    fn closing_waits_for_no_peer_of_what_was_passed() {
        let (stream, _peer) = lingering();
        takes_no_time(|| close(vec![stream.into()]));
    }

    #[test]
    fn nor_of_what_was_passed_over_what_was_passed() {
        let (stream, _peer) = lingering();
        let (inner, queued) = UnixStream::pair().expect("a pair");
        assert!(pass(&inner, stream));
        let (message, datagrams) = UnixDatagram::pair().expect("a pair");
        assert!(pass(&message, queued));
        drop((inner, message));
        takes_no_time(|| close(vec![datagrams.into()]));
    }

    #[test]
    fn what_was_passed_before_anybody_accepted_is_closed_with_the_listener() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
        let connection = UnixStream::connect(&path).expect("a connection");
        let (stream, _peer) = lingering();
        assert!(pass(&connection, stream));
        takes_no_time(move || close(vec![listener.into()]));
        UnixStream::connect(&path).expect_err("nobody listens");
    }

    #[test]
    fn whoever_the_agent_connects_to_passes_nothing_that_it_waits_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
        let dialled = dial(&path).expect("a connection");
        let (accepted, _) = listener.accept().expect("its other end");
        let (stream, _peer) = lingering();
        assert_eq!(pass(&accepted, stream), !are_refused());
        takes_no_time(move || let_go(dialled));
        drop(listener);
        let nobody = dial(&path).expect_err("nobody listens");
        assert_eq!(nobody.kind(), io::ErrorKind::ConnectionRefused);
    }
}
