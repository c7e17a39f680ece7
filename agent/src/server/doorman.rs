//! Who may be at the door: peers that are not attested, limited in total and for each pod or cgroup.

use super::tally::{Tallied, Tally};
use crate::attest::cgroup::PodUid;
use crate::attest::{Entrance, Location};
use crate::peer::Peer;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections of one pod, or of one cgroup outside of pods, may wait to be attested.
const WAITING_PER_CGROUP: usize = 4;

/// Lets unattested peers in, limited in total and for each pod or cgroup.
#[derive(Debug)]
pub(crate) struct Doorman {
    all: Arc<Semaphore>,
    /// Places for those that are only told why they are not served: somebody could make any number of cgroups, or use
    /// up what many pods may have.
    decided: Arc<Semaphore>,
    waiting: Arc<Tally<Origin>>,
}

/// Where a waiting peer comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Origin {
    Pod(PodUid),
    /// A cgroup that is not known to be a pod's, by a hash of its text.
    Cgroup(u64),
}

/// A place at the door, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    origin: Tallied<Origin>,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

// === impl Origin ===

impl Origin {
    /// The origin of a peer that came in by `entrance` and is at `location`, if that is known.
    pub(super) fn of(peer: &Peer, entrance: Entrance, location: Option<Location>) -> Self {
        match (location, entrance) {
            (Some(Location::Pod(in_pod)), _) => Self::Pod(in_pod.pod),
            (_, Entrance::Pod(pod)) => Self::Pod(pod),
            (_, Entrance::Shared) => Self::Cgroup(cgroup_of(peer)),
        }
    }
}

/// A hash of the peer's cgroup file. Peers that cannot be read share one origin.
fn cgroup_of(peer: &Peer) -> u64 {
    let mut text = Vec::new();
    let _ = peer.read_cgroup(&mut text);
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

// === impl Doorman ===

impl Doorman {
    /// A doorman with `places` places, half of them open to peers about which all is decided.
    pub(super) fn new(places: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(places)),
            decided: Arc::new(Semaphore::new(places.div_ceil(2))),
            waiting: Arc::default(),
        }
    }

    /// A place for one more peer of `origin`, if there is one. A peer that `may_be_served` yet can have any place.
    pub(super) fn let_in(&self, origin: Origin, may_be_served: bool) -> Option<Waiting> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let decided = match may_be_served {
            true => None,
            false => Some(self.decided.clone().try_acquire_owned().ok()?),
        };
        if self.waiting.count(&origin) >= WAITING_PER_CGROUP {
            return None;
        }
        Some(Waiting {
            origin: self.waiting.enter(origin),
            _permits: (permit, decided),
        })
    }
}

impl Waiting {
    /// The pod that the peer is in, if it is in one.
    pub(super) fn pod(&self) -> Option<PodUid> {
        match self.origin.kind {
            Origin::Pod(pod) => Some(pod),
            Origin::Cgroup(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_half_of_the_places_to_pods_however_many_cgroups_they_make() {
        let doorman = Doorman::new(8);
        let mut strangers: Vec<_> = (0..8)
            .map(|cgroup| doorman.let_in(Origin::Cgroup(cgroup), false))
            .collect();
        assert_eq!(strangers.iter().flatten().count(), 4);
        let busy = Origin::Pod(PodUid::synthetic(1));
        assert!(
            doorman.let_in(busy, false).is_none(),
            "it is served already"
        );
        let pod = Origin::Pod(PodUid::synthetic(2));
        let pods: Vec<_> = (0..5).map(|_| doorman.let_in(pod, true)).collect();
        assert_eq!(pods.iter().flatten().count(), WAITING_PER_CGROUP);
        strangers.clear();
        assert!(doorman.let_in(busy, false).is_some());
    }
}
