use super::*;
use crate::attest::cgroup::PodUid;
use crate::attest::pods::{Facts, Pod, Settings};
use crate::attest::{Attestor, Entrance};
use crate::error::RETRY_AFTER;
use crate::metrics::Metrics;
use crate::peer::Pinning;
use crate::peer::tests::{connected_child, pinned};
use crate::server::doorman::Doorman;
use crate::server::remains::Orphans;
use crate::server::warnings::Warnings;
use crate::turns::Turnstile;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

fn pod() -> Pod {
    let facts = Facts::of_principal("test", "app", "web");
    Pod::new(Some(PodUid::synthetic(1)), facts, &Settings::default())
}

/// The connection of the peer of `stream`, which is a workload.
fn connection(stream: &UnixStream) -> Connection {
    connection_to(stream, pod())
}

/// The same for a given pod.
fn connection_to(stream: &UnixStream, pod: Pod) -> Connection {
    let peer = pinned(stream, Pinning::ByPidfd);
    let door = Door {
        entrance: Entrance::Shared,
        permits: Arc::new(Semaphore::new(1)),
        shares: None,
        tables: Semaphore::new(1),
        turns: Turnstile::new(1),
    };
    let admission = Admission {
        attestor: Arc::new(Attestor::Sidecar(Arc::new(pod))),
        metrics: Arc::new(Metrics::new().expect("metrics")),
        doorman: Doorman::new(1),
        orphans: Orphans::new(1),
        warnings: Warnings::default(),
    };
    let (door, fd) = (Arc::new(door), stream.as_raw_fd());
    let connection = Connection::open(peer, door, fd, &Arc::new(admission));
    connection.expect("it is let in")
}

/// Otherwise whoever holds its end of the socket now could go on in its name.
#[tokio::test]
async fn a_request_of_a_peer_that_has_exited_is_nobodys_on_a_connection_that_was_attested() {
    let (stream, mut child) = connected_child();
    let connection = connection(&stream);
    let asks = || connection.workload(Instant::now());
    asks().await.expect("it lives");
    child.kill();
    let pidfd = connection.peer.pidfd().expect("it is pinned");
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(5000_u16)).expect("it exits");
    let error = asks().await.expect_err("it has exited");
    let told = (error.code, error.reason);
    assert_eq!(told, (Code::NotAttested, Some("peer_gone")));
    assert!(connection.is_closing());
}

/// Otherwise peers that leave before their refusal could fill the trail, which has a line for each.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_held_back_though_whoever_asked_does_not_wait_for_it() {
    let (stream, _child) = connected_child();
    let connection = connection(&stream);
    let began = Instant::now();
    connection.rested().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    let left = timeout(Duration::from_millis(1), connection.rest()).await;
    left.expect_err("it is held back");
    connection.rested().await;
    assert_eq!(began.elapsed(), quota::REST);
}

#[tokio::test(start_paused = true)]
async fn who_has_too_many_connections_and_goes_on_asking_waits_as_long_as_told() {
    let (stream, _child) = connected_child();
    let pod = pod();
    let _all: Vec<_> = std::iter::from_fn(|| pod.quota.connection()).collect();
    let connection = connection_to(&stream, pod);
    let error = connection.workload(Instant::now()).await;
    assert_eq!(error.expect_err("one too many").code, Code::Busy);
    let began = Instant::now();
    for _ in 0..40 {
        connection.rest().await;
    }
    assert!(began.elapsed() > 10 * RETRY_AFTER, "{:?}", began.elapsed());
}

/// Otherwise what its calls cost would be owed by nobody once it has ended.
#[tokio::test]
async fn what_a_connection_too_many_costs_is_owed_by_its_pod_though_that_was_not_known_at_first() {
    let (stream, _child) = connected_child();
    let pod = pod();
    let _all: Vec<_> = std::iter::from_fn(|| pod.quota.connection()).collect();
    let mut connection = connection_to(&stream, pod);
    connection.toll = OnceLock::new();
    if let Standing::AtTheDoor { found, .. } = &mut *connection.standing.lock() {
        *found = Found::Unknown;
    }
    let error = connection.workload(Instant::now()).await;
    assert_eq!(error.expect_err("one too many").code, Code::Busy);
    let workload = connection.busy().expect("its pod is known");
    assert!(Arc::ptr_eq(connection.toll(), &toll_of(&workload)));
}
