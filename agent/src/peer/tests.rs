//! Who connected, by both pinnings.

use super::*;
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// The variable that gives the child the socket's path.
const CHILD: &str = "LATCHKEY_TEST_CHILD";

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "this is how the parent tells the child"
)]
fn connects_and_waits_where_it_is_the_child() {
    if let Some(path) = std::env::var_os(CHILD) {
        let _connected = UnixStream::connect(path).expect("the parent listens");
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// A process that ends with the test, whatever the outcome.
pub(crate) struct Connected(Child);

impl Connected {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kills it; it stays a zombie until it is dropped.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it lives");
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// The same process, had it connected as another user.
    pub(crate) fn connected_by(self, uid: u32) -> Self {
        Self { uid, ..self }
    }
}

/// What this kernel can pin a peer by: before Linux 6.5 its number alone.
fn pinnings() -> &'static [Pinning] {
    match Pinning::probe().expect("a pinning") {
        Pinning::ByPidfd => &[Pinning::ByPidfd, Pinning::ByNumber],
        Pinning::ByNumber => &[Pinning::ByNumber],
    }
}

/// The peer of `stream` as if pinned so on any kernel: it is this test's child, so its number says who it is.
pub(crate) fn pinned(stream: &UnixStream, pinning: Pinning) -> Peer {
    let able = pinnings().contains(&pinning);
    let able = if able { pinning } else { Pinning::ByNumber };
    let peer = Peer::of(stream, able).expect("it lives");
    Peer { pinning, ..peer }
}

/// A listener's end of a connection, and the child at the other end.
pub(crate) fn connected_child() -> (UnixStream, Connected) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a listener");
    // This very test program, in the child's role.
    let child = Command::new(std::env::current_exe().expect("it runs"))
        .args([
            "--exact",
            "peer::tests::connects_and_waits_where_it_is_the_child",
        ])
        .env(CHILD, &path)
        .spawn()
        .expect("a child");
    let child = Connected(child);
    let (stream, _) = listener.accept().expect("a connection");
    (stream, child)
}

#[test]
fn the_peer_is_the_process_that_connected() {
    for &pinning in pinnings() {
        let (stream, child) = connected_child();
        let peer = Peer::of(&stream, pinning).expect("it lives");
        assert_eq!(u32::try_from(peer.pid()), Ok(child.id()));
        assert_eq!(peer.uid(), nix::unistd::getuid().as_raw());
        assert_eq!(peer.pinning(), pinning);
        assert!(peer.is_alive());
        let mut text = Vec::new();
        peer.read_cgroup(&mut text).expect("it can be read");
        let own = std::fs::read(format!("/proc/{}/cgroup", child.id())).expect("it lives");
        assert_eq!(text, own);
    }
}

#[test]
fn a_peer_that_has_exited_is_gone_even_before_it_is_reaped() {
    let (stream, mut child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    child.kill();
    let pidfd = peer.pidfd().expect("it is pinned");
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(5000_u16)).expect("it exits");
    // A zombie: its cgroup file is still readable, but must not count.
    assert!(!peer.is_alive());
    assert!(matches!(
        peer.read_cgroup(&mut Vec::new()),
        Err(PeerError::Gone)
    ));
    let anew = |pinning| Peer::of(&stream, pinning)?.read_cgroup(&mut Vec::new());
    let is_gone = || match anew(Pinning::ByPidfd) {
        Err(PeerError::Io(_)) => !pinnings().contains(&Pinning::ByPidfd),
        other => matches!(other, Err(PeerError::Gone)),
    };
    assert!(is_gone());
    assert!(anew(Pinning::ByNumber).is_err());
    drop(child);
    assert!(is_gone());
    assert!(matches!(
        peer.read_cgroup(&mut Vec::new()),
        Err(PeerError::Gone)
    ));
}

#[tokio::test]
async fn a_signal_to_the_agent_does_not_make_a_peer_look_as_if_it_had_exited() {
    // Handled, so that it interrupts.
    let _signals = signal(SignalKind::user_defined2()).expect("a handler");
    let (stream, _child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    let (asks, is_over) = (pthread_self(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                pthread_kill(asks, Signal::SIGUSR2).expect("it lives");
            }
        });
        // In half a second, four times in five one comes in the middle of a call.
        let until = Instant::now() + Duration::from_secs(2);
        while peer.is_alive() && Instant::now() < until {}
        is_over.store(true, Ordering::Relaxed);
        assert!(Instant::now() >= until, "it lives");
    });
}

#[test]
fn by_number_the_connection_must_be_listed_in_the_peers_network_namespace() {
    let (stream, _child) = connected_child();
    let claim = || match Peer::named(&stream, Pinning::ByNumber) {
        Ok(Named::ByNumber(claim)) => claim,
        other => panic!("{other:?}"),
    };
    let peer = claim().prove(&stream).expect("the connection is its own");
    // This test and the first process share it.
    assert!(peer.is_on_nodes_network());
    // A socket that is not listed, since it is not a Unix socket.
    let foreign = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let outcome = claim().prove(&foreign);
    assert!(matches!(outcome, Err(PeerError::Recycled)), "{outcome:?}");
}

#[test]
fn a_file_that_is_too_long_is_not_read_in_part() {
    let (stream, _child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    let mut text = Vec::new();
    assert!(matches!(
        peer.read("cgroup", 4, &mut text),
        Err(PeerError::Io(_))
    ));
}

/// As in a `/proc` that hides other users' processes (`hidepid=2`, proc(5)).
#[test]
fn a_peer_that_cannot_be_seen_is_gone_only_if_it_has_exited() {
    let (stream, mut child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    let outcomes = || {
        let read = peer.read("hidden", CGROUP_LIMIT, &mut Vec::new());
        [read, peer.read_link("hidden").map(drop)]
    };
    for outcome in outcomes() {
        assert!(matches!(outcome, Err(PeerError::Io(_))), "{outcome:?}");
    }
    child.kill();
    drop(child);
    for outcome in outcomes() {
        assert!(matches!(outcome, Err(PeerError::Gone)), "{outcome:?}");
    }
}

#[test]
fn what_the_machine_has_no_more_of_is_told_from_a_failed_listener() {
    let is_so = |errno: Errno| is_exhausted(&errno.into());
    for errno in [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOBUFS,
        Errno::ENOMEM,
        Errno::ENOSPC,
    ] {
        assert!(is_so(errno), "{errno}");
    }
    for errno in [Errno::EACCES, Errno::EBADF, Errno::EINVAL] {
        assert!(!is_so(errno), "{errno}");
    }
}
