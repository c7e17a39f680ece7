//! Who may wait at the door: peers that are not attested, limited in total and for each pod or cgroup.

use super::tally::{Tallied, Tally};
use crate::attest::cgroup::PodUid;
use crate::attest::{AttestError, Entrance, Location};
use crate::peer::Peer;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections of one pod, or of one cgroup outside of pods, may wait to be attested.
const WAITING_PER_CGROUP: usize = 4;

/// Lets unattested peers wait, limited in total and for each pod or cgroup.
#[derive(Debug)]
pub(crate) struct Doorman {
    all: Arc<Semaphore>,
    /// Places for those in no pod: somebody could make any number of cgroups.
    strangers: Arc<Semaphore>,
    waiting: Arc<Tally<Origin>>,
}

/// Where a waiting peer comes from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Origin {
    Pod(PodUid),
    /// A cgroup that may yet prove to be a pod's, by a hash of its text.
    Untold(u64),
    /// A cgroup that is not a pod's, by a hash of its text.
    Elsewhere(u64),
}

/// A place at the door, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    origin: Tallied<Origin>,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

// === impl Origin ===

impl Origin {
    /// The origin of a peer whose location is known.
    pub(super) fn of(peer: &Peer, location: Location) -> Self {
        match location {
            Location::Pod(in_pod) => Self::Pod(in_pod.pod),
            Location::Local(_) | Location::OwnPod | Location::Volume => {
                Self::Elsewhere(cgroup_of(peer))
            }
        }
    }

    /// The origin of a peer that came in by `entrance` and is in no known pod.
    pub(super) fn of_unknown(peer: &Peer, entrance: Entrance, error: &AttestError) -> Self {
        match (entrance, error) {
            (Entrance::Pod(pod), _) => Self::Pod(pod),
            (Entrance::Shared, AttestError::NotYet(_)) => Self::Untold(cgroup_of(peer)),
            (Entrance::Shared, _) => Self::Elsewhere(cgroup_of(peer)),
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
    /// A doorman with `places` places, half of them open to peers in no pod.
    pub(super) fn new(places: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(places)),
            strangers: Arc::new(Semaphore::new(places.div_ceil(2))),
            waiting: Arc::default(),
        }
    }

    /// A place for one more peer of `origin`, if there is one.
    pub(super) fn let_in(&self, origin: Origin) -> Option<Waiting> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let strangers = match origin {
            Origin::Pod(_) | Origin::Untold(_) => None,
            Origin::Elsewhere(_) => Some(self.strangers.clone().try_acquire_owned().ok()?),
        };
        if self.waiting.count(&origin) >= WAITING_PER_CGROUP {
            return None;
        }
        Some(Waiting {
            origin: self.waiting.enter(origin),
            _permits: (permit, strangers),
        })
    }
}

impl Waiting {
    /// The pod that the peer is in, if it is in one.
    pub(super) fn pod(&self) -> Option<PodUid> {
        match self.origin.kind {
            Origin::Pod(pod) => Some(pod),
            Origin::Untold(_) | Origin::Elsewhere(_) => None,
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
            .map(|cgroup| doorman.let_in(Origin::Elsewhere(cgroup)))
            .collect();
        assert_eq!(strangers.iter().flatten().count(), 4);
        let pod = Origin::Pod(
            "3b5d4f1c-0a9e-8d7c-6b5a-493827160f5e"
                .parse()
                .expect("a UID"),
        );
        let pods: Vec<_> = (0..5).map(|_| doorman.let_in(pod)).collect();
        assert_eq!(pods.iter().flatten().count(), WAITING_PER_CGROUP);
        strangers.clear();
        assert!(doorman.let_in(Origin::Elsewhere(9)).is_some());
    }
}
