use super::*;
use crate::attest::cgroup::PodUid;
use crate::attest::pods::{Facts, Pod, Settings};
use crate::peer::Pinning;
use crate::peer::tests::connected_child;
use std::os::fd::AsRawFd;
use tokio::time::timeout;

/// Whoever could leave before a refusal is given could fill the trail, in which each of them is.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_held_back_though_whoever_asked_does_not_wait_for_it() {
    let (stream, _child) = connected_child();
    let facts = Facts::of_principal("test", "app", "web");
    let pod = Pod::new(Some(PodUid::synthetic(1)), facts, &Settings::default());
    let arrival = Arrival {
        peer: Peer::of(&stream, Pinning::ByPidfd).expect("it lives"),
        entrance: Entrance::Shared,
        turns: Turnstile::new(1),
        fd: stream.as_raw_fd(),
    };
    let connection = Connection::open(
        arrival,
        Arc::new(Attestor::Sidecar(Arc::new(pod))),
        &Arc::new(Metrics::new().expect("metrics")),
        &Arc::new(Doorman::new(1)),
        &Orphans::new(1),
        &Arc::default(),
        &Warnings::default(),
    );
    let connection = connection.expect("it is let in");
    let began = Instant::now();
    connection.rested().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    let left = timeout(Duration::from_millis(1), connection.rest()).await;
    left.expect_err("it is held back");
    connection.rested().await;
    assert_eq!(began.elapsed(), quota::REST);
}
