//! What still counts for a connection that has ended while its last answer is unread.
//!
//! Whoever was passed the peer's end (`SCM_RIGHTS`, unix(7)) may keep it for longer than its process or its pod lives,
//! and what is queued there is charged to the agent until then. So it goes on counting: for its pod while that exists,
//! then for its namespace, where each later pod would otherwise begin with a fresh quota.

use super::doorman::Waiting;
use super::tally::{Tallied, Tally};
use crate::attest::Attestor;
use crate::attest::pods::Pod;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// How long a peer that was not attested counts at the door if its pod is still not known by then: the pod is gone, and
/// what was sent to it is a short error.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// How many connections of deleted pods are still unread, by namespace.
#[derive(Debug)]
pub(super) struct Orphans {
    count: Arc<Tally<Arc<str>>>,
    /// How many a namespace may have; from then on its pods get no more connections.
    limit: usize,
}

/// What a connection leaves behind.
#[derive(Debug)]
pub(super) enum Remains {
    /// A connection of its pod.
    OfPod {
        pod: Arc<Pod>,
        _permit: OwnedSemaphorePermit,
    },
    /// A place at the door, since that time.
    AtTheDoor(Waiting, Instant),
    /// One orphan of its namespace.
    Orphan { _count: Tallied<Arc<str>> },
}

// === impl Orphans ===

impl Orphans {
    /// No orphans yet; each namespace may have `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            count: Arc::default(),
            limit,
        }
    }

    /// Whether the namespace has reached its limit.
    pub(super) fn are_many(&self, namespace: &str) -> bool {
        self.count.count(namespace) >= self.limit
    }
}

// === impl Remains ===

impl Remains {
    /// Whether the pod is gone, and with it what it owed.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::OfPod { pod, .. } => pod.is_gone(),
            Self::Orphan { .. } => true,
            Self::AtTheDoor(..) => false,
        }
    }

    /// What is left of it now; none if it no longer counts.
    pub(super) fn now(self, attestor: &Attestor, orphans: &Orphans) -> Option<Self> {
        match self {
            Self::OfPod { pod, .. } if pod.is_gone() => {
                let namespace = pod.facts().namespace.clone();
                tracing::warn!(
                    pod_uid = pod.uid.map(tracing::field::display),
                    %namespace,
                    "a pod is gone, and somebody still holds one of its connections with an unread answer"
                );
                Some(Self::Orphan {
                    _count: orphans.count.enter(namespace),
                })
            }
            Self::AtTheDoor(place, since)
                if since.elapsed() >= UNKNOWN_FOR
                    && place.pod().is_some_and(|pod| !attestor.knows(pod)) =>
            {
                None
            }
            same => Some(same),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::cgroup::PodUid;
    use crate::attest::pods::{Facts, Settings};
    use crate::server::doorman::{Doorman, Origin};

    #[tokio::test(start_paused = true)]
    async fn whose_pod_does_not_come_to_be_known_counts_at_the_door_for_a_minute() {
        let (pod, facts) = (
            PodUid::synthetic(1),
            Facts::of_principal("test", "app", "web"),
        );
        // An attestor that knows no pod by its UID.
        let own = Pod::new(None, facts, &Settings::default());
        let (attestor, orphans) = (Attestor::Sidecar(Arc::new(own)), Orphans::new(1));
        let doorman = Doorman::new(2);
        let at_the_door = |origin| {
            let place = doorman.let_in(origin, true).expect("a place");
            Remains::AtTheDoor(place, Instant::now())
        };
        let of_pod = at_the_door(Origin::Pod(pod));
        let of_stranger = at_the_door(Origin::Cgroup(1));
        tokio::time::advance(UNKNOWN_FOR - Duration::from_millis(1)).await;
        let of_pod = of_pod.now(&attestor, &orphans);
        let of_pod = of_pod.expect("it may come to be known");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(of_pod.now(&attestor, &orphans).is_none());
        assert!(of_stranger.now(&attestor, &orphans).is_some());
    }

    #[test]
    fn orphans_count_in_their_own_namespace_until_they_are_gone() {
        let orphans = Orphans::new(2);
        let one = orphans.count.enter("test".into());
        assert!(!orphans.are_many("test"));
        let two = orphans.count.enter("test".into());
        assert!(orphans.are_many("test") && !orphans.are_many("prod"));
        drop(one);
        assert!(!orphans.are_many("test"));
        drop(two);
        assert_eq!(orphans.count.count("test"), 0);
    }
}
