//! The workload socket: accepts connections, pins their peers, and serves HTTP/1.1 on them until they end or must end.
//!
//! The accept loop never waits for attestation. A peer of a known pod is attested at once and takes a permit of its
//! pod; every other peer takes one of a small separate pool, half of which is for those that may yet be attested. So no
//! pod and no stranger can starve the rest.

mod admission;
mod connection;
mod door;
mod doorman;
mod intake;
mod remains;
mod roll;
mod stream;
mod tally;
mod times;
mod toll;
mod warnings;

pub(crate) use connection::Connection;
pub(crate) use toll::Toll;

use crate::attest::{AttestError, Entrance};
use crate::config;
use crate::handler::{Services, handle};
use crate::handover::Phase;
use crate::passed::{self, Listener};
use crate::peer::{Named, Peer, PeerError, Pinning, is_exhausted};
use crate::waits::Waits;
use admission::Admission;
use door::Door;
use doorman::Doorman;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{Shutdown, setsockopt, shutdown};
use parking_lot::Mutex;
use remains::{Orphans, Remains};
use roll::Roll;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use stream::Metered;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
pub(crate) use warnings::{About, Warnings};

/// The largest block of headers, in bytes; hyper answers 431 beyond it.
const HEAD_LIMIT: usize = 16 * 1024;

/// How many socket tables may be read at the same time (see [`Pinning::ByNumber`]), each up to 4 MiB.
const TABLES: usize = 4;

/// How many connections over which descriptors were passed are closed at the same time.
const CLOSINGS: usize = 16;

/// The waits between checks whether a peer has read its last answer.
const TAKEN_CHECKS: Waits = Waits {
    next: Duration::from_millis(1),
    longest: Duration::from_secs(1),
};

/// How often a connection that has ended and still has to pay looks whether its pod is still there.
const PAID_CHECK: Duration = Duration::from_secs(1);

/// How long an accept loop rests when the machine has run out of descriptors or memory.
pub(crate) const EXHAUSTED_REST: Duration = Duration::from_millis(50);

/// Serves workloads.
pub(crate) struct Server {
    pub(crate) services: Arc<Services>,
    admission: Arc<Admission>,
    pinning: Pinning,
    /// Permits for connections on the shared socket.
    connections: Arc<Semaphore>,
    /// Permits for connections on the pods' own sockets, all together.
    own_connections: Arc<Semaphore>,
    connections_per_pod: usize,
    pub(crate) roll: Arc<Roll>,
    /// Limits how many socket tables are read at the same time, where the kernel has no pidfd for peers.
    tables: Semaphore,
    /// Limits how many sockets are closed on another thread at the same time.
    aside: Semaphore,
    /// Limits how many connections are closed with what was passed over them at the same time.
    closings: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
    pub(crate) tasks: TaskTracker,
    /// The agent's own PID.
    own: u32,
    last_accept: Mutex<Instant>,
}

// === impl Server ===

impl Server {
    /// A server with the limits in `limits`. The pods' own sockets together get as many connections as the shared
    /// socket, and each of them somewhat more than a pod may have.
    ///
    /// # Errors
    ///
    /// If no descriptor is left.
    pub(crate) fn new(
        services: Arc<Services>,
        pinning: Pinning,
        limits: &config::Limits,
        phase: watch::Receiver<Phase>,
    ) -> io::Result<Self> {
        let admission = Admission {
            attestor: services.attestor.clone(),
            metrics: services.metrics.clone(),
            doorman: Doorman::new(limits.unattested),
            orphans: Orphans::new(limits.connections_per_pod),
            warnings: Warnings::default(),
        };
        Ok(Self {
            services,
            admission: Arc::new(admission),
            pinning,
            connections: Arc::new(Semaphore::new(limits.connections)),
            own_connections: Arc::new(Semaphore::new(limits.connections)),
            connections_per_pod: limits.connections_per_pod,
            roll: Arc::new(Roll::new()?),
            tables: Semaphore::new(TABLES),
            aside: Semaphore::new(1),
            closings: Arc::new(Semaphore::new(CLOSINGS)),
            phase,
            tasks: TaskTracker::new(),
            own: std::process::id(),
            last_accept: Mutex::new(Instant::now()),
        })
    }

    /// How many connections are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.tasks.len()
    }

    /// How long ago the last connection was accepted.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.last_accept.lock().elapsed()
    }

    /// Accepts from `listener` forever. A permit comes first: a connection that could not be served stays in the
    /// backlog.
    ///
    /// # Errors
    ///
    /// If the listener itself has failed.
    pub(crate) async fn accept(
        self: Arc<Self>,
        listener: Arc<Listener>,
        door: Arc<Door>,
    ) -> io::Result<()> {
        loop {
            let Ok(permit) = door.permits.clone().acquire_owned().await else {
                return Ok(());
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    *self.last_accept.lock() = Instant::now();
                    // Only after accepting, so that a door without connections holds no share.
                    let share = door.share().await;
                    let (server, by) = (self.clone(), door.clone());
                    self.tasks.spawn(async move {
                        server.connection(stream, by).await;
                        drop((permit, share));
                    });
                    // However fast one pod connects, every other listener gets a turn before its next connection.
                    if door.entrance != Entrance::Shared {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if is_exhausted(&error) => {
                    if self.admission.warnings.is_due("cannot_accept", None) {
                        tracing::error!(%error, "cannot accept a connection now");
                    }
                    tokio::time::sleep(EXHAUSTED_REST).await;
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Serves one connection until its peer, its pod, or the agent ends it.
    async fn connection(self: &Arc<Self>, stream: UnixStream, door: Arc<Door>) {
        passed::expect(&stream);
        let (stream, peer) = self.pin(stream, &door).await;
        let (stream, passed, remains) = match peer {
            Ok(peer) => self.serve(stream, peer, door).await,
            Err(error) => {
                self.refuse(&stream, &error);
                (stream, Vec::new(), None)
            }
        };
        // The runtime must not wake up for changes on this socket.
        let Ok(stream) = stream.into_std() else {
            return self.close_elsewhere(passed, &Toll::default()).await;
        };
        let Some((remains, toll)) = remains else {
            let left = close(stream, passed);
            return self.close_elsewhere(left, &Toll::default()).await;
        };
        let (stream, remains) = self.until_taken(stream, remains, &toll).await;
        // What still counts does so until the connection is closed, and until its calls are paid for.
        let left = self.aside(&toll, || close(stream, passed)).await;
        self.close_elsewhere(left, &toll).await;
        if let (Some(until), Some(remains)) = (toll.paid(), remains) {
            self.until_paid(until, remains).await;
        }
    }

    /// Serves the requests of `peer`. Returns the connection, with the descriptors that came over it, and what still
    /// counts for it.
    async fn serve(
        self: &Arc<Self>,
        stream: UnixStream,
        peer: Peer,
        door: Arc<Door>,
    ) -> (UnixStream, Vec<OwnedFd>, Option<(Remains, Arc<Toll>)>) {
        // The agent connects to its own path to see who answers there, and sends nothing.
        if u32::try_from(peer.pid()) == Ok(self.own) {
            return (stream, Vec::new(), None);
        }
        door.turns.pass().await;
        let fd = stream.as_raw_fd();
        let Some(connection) = Connection::open(peer, door, fd, &self.admission) else {
            return (stream, Vec::new(), None);
        };
        let connection = Arc::new(connection);
        let entry = self.roll.enter(&connection);
        if *self.phase.borrow() != Phase::Serving {
            connection.close_after_answer();
        }
        let service = {
            let (services, connection) = (self.services.clone(), connection.clone());
            service_fn(move |request| handle(services.clone(), connection.clone(), request))
        };
        let mut http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .half_close(true)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(Metered::new(stream, connection.clone()), service);
        // The read side is shut at most once; what was sent before that is still read and answered.
        let mut reading = true;
        loop {
            let served = poll_fn(|context| {
                let ended = Pin::new(&mut http).poll(context);
                // A request that is answered at once is done before its peer's exit could matter.
                if ended.is_pending() && connection.is_working() {
                    entry.watch();
                }
                ended
            });
            tokio::select! {
                biased;
                () = connection.woken() => {
                    // Ends the work in flight too: nobody is left to read the answer.
                    if connection.must_end() {
                        break;
                    }
                    if std::mem::take(&mut reading) {
                        // If it costs too much, the connection has been told to end.
                        let _told = connection.call(|| shut(fd, Shutdown::Read));
                    }
                }
                // An error here is the peer's doing: it left, or sent something that is not HTTP.
                ended = served => {
                    if let Err(error) = ended {
                        tracing::debug!(pid = connection.pid(), %error, "a connection ended");
                    }
                    break;
                }
            }
        }
        drop(entry);
        let (stream, passed) = http.into_parts().io.into_inner();
        connection.rested().await;
        // Nobody else holds it now: all of it is dropped except what still counts.
        let remains = Arc::into_inner(connection).map(Connection::remains);
        (stream, passed, remains)
    }

    /// Waits until the peer has read what was sent to it, or no longer can. Until then the data is in kernel memory
    /// charged to the agent, even after a close (`unix_stream_sendmsg` in net/unix/af_unix.c allocates from the
    /// sender's account), so it goes on counting, as [`Remains`] says. A draining agent does not wait: nobody uses the
    /// count any more.
    async fn until_taken(
        &self,
        stream: StdStream,
        mut remains: Remains,
        toll: &Toll,
    ) -> (StdStream, Option<Remains>) {
        // The least that the kernel allows: from now on the socket is writable only when less than some 1,200 bytes are
        // queued, including what the kernel adds to each write (`unix_writable` there, SOCK_MIN_SNDBUF).
        let _ = setsockopt(&stream, SndBuf, &1);
        if is_writable(&stream) {
            return (stream, Some(remains));
        }
        let shuts = || {
            shut(stream.as_raw_fd(), Shutdown::Both);
            stream
        };
        let stream = self.aside(toll, shuts).await;
        let mut phase = self.phase.clone();
        let mut checks = TAKEN_CHECKS;
        while !is_writable(&stream) && *phase.borrow_and_update() != Phase::Draining {
            match remains.now(&self.admission.attestor, &self.admission.orphans) {
                Some(now) => remains = now,
                None => return (stream, None),
            }
            tokio::select! {
                () = tokio::time::sleep(checks.take()) => {}
                _ = phase.changed() => {}
            }
        }
        (stream, Some(remains))
    }

    /// Keeps what counts until the connection has paid for its calls. A draining agent does not wait here either.
    async fn until_paid(&self, until: Instant, remains: Remains) {
        let mut phase = self.phase.clone();
        while Instant::now() < until
            && !remains.is_gone()
            && *phase.borrow_and_update() != Phase::Draining
        {
            tokio::select! {
                () = tokio::time::sleep_until(until.min(Instant::now() + PAID_CHECK)) => {}
                _ = phase.changed() => {}
            }
        }
    }

    /// Makes a last call on the socket of a connection. If earlier ones cost too much, it is made on another thread,
    /// and only one at a time: there too it takes the agent's share of the processor.
    async fn aside<T: Send + 'static>(
        &self,
        toll: &Toll,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if toll.paid().is_none() {
            return toll.call(call).0;
        }
        let _one = self.aside.acquire().await;
        match tokio::task::spawn_blocking(|| toll::measured(call)).await {
            Ok((outcome, cost)) => {
                toll.charge(cost);
                outcome
            }
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        }
    }

    /// Closes what a peer has passed, which can take long, and the connection: on another thread, and only a few at a
    /// time, so that threads are left for everything else. A draining agent does not wait for it.
    async fn close_elsewhere(&self, left: Vec<OwnedFd>, toll: &Toll) {
        if left.is_empty() {
            return;
        }
        let places = self.closings.clone();
        // A task of its own: if nobody waits for it any more, it must still not happen here.
        let closing = tokio::spawn(async move {
            let place = places.acquire_owned().await;
            let close = || passed::close(left);
            let closed = tokio::task::spawn_blocking(|| toll::measured(close).1).await;
            drop(place);
            closed
        });
        let mut phase = self.phase.clone();
        tokio::select! {
            closed = closing => {
                if let Ok(Ok(cost)) = closed {
                    toll.charge(cost);
                }
            }
            _ = phase.wait_for(|phase| *phase == Phase::Draining) => {}
        }
    }

    /// Pins the peer of `stream`. The fallback may read megabytes to prove it, hence on a thread of its own and only for
    /// a few peers at a time.
    async fn pin(&self, stream: UnixStream, door: &Door) -> (UnixStream, Result<Peer, PeerError>) {
        let claim = match self.admission.attestor.named(&stream, self.pinning) {
            Ok(Named::Pinned(peer)) => return (stream, Ok(peer)),
            Ok(Named::ByNumber(claim)) => claim,
            Err(error) => return (stream, Err(error)),
        };
        // The door's permit first, so that one pod's connections do not block others.
        let _of_door = door.tables.acquire().await;
        let _table = self.tables.acquire().await;
        let proof = move || {
            let peer = claim.prove(&stream);
            (stream, peer)
        };
        match tokio::task::spawn_blocking(proof).await {
            Ok(proven) => proven,
            Err(died) => std::panic::resume_unwind(died.into_panic()),
        }
    }

    fn refuse(&self, stream: &UnixStream, error: &PeerError) {
        let reason = AttestError::from(error).reason();
        self.admission.metrics.refused(reason);
        match error {
            PeerError::Gone => tracing::debug!(%error, "a connection was refused"),
            _ if !self.admission.warnings.is_due(reason, None) => {}
            _ => {
                let (pid, pod) = self.admission.attestor.guess(stream);
                let pod_uid = pod.map(tracing::field::display);
                tracing::warn!(%error, reason, pid, pod_uid, "a connection was refused");
            }
        }
    }
}

/// Closes a connection, unless its peer has passed descriptors over it, or may have: then it is returned with them.
fn close(stream: StdStream, mut passed: Vec<OwnedFd>) -> Vec<OwnedFd> {
    if !passed.is_empty() || passed::may_be_left(&stream) {
        passed.push(stream.into());
    }
    passed
}

/// Tells the peer that nothing more will be read, or sent either. What it has sent stays readable, and its next write
/// fails at once, so no request is accepted and then lost (unix(7), shutdown(2)).
fn shut(fd: std::os::fd::RawFd, how: Shutdown) {
    if let Err(error) = shutdown(fd, how) {
        tracing::debug!(%error, "cannot shut a connection");
    }
}

/// Whether there is room to write; true if the kernel does not say.
fn is_writable(stream: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    let told = poll(&mut asked, PollTimeout::ZERO);
    let [asked] = asked;
    told.is_err()
        || asked
            .revents()
            .is_none_or(|told| told.contains(PollFlags::POLLOUT))
}
