//! One entrance: the socket that all pods share, or that of one pod's volume.

use super::{Server, TABLES};
use crate::attest::Entrance;
use crate::attest::cgroup::PodUid;
use crate::turns::Turnstile;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections a pod's own socket accepts beyond the pod's limit, so that they get an answer.
const TOLD_BUSY: usize = 4;

/// How many connections on a pod's own socket do not count against the total of all such sockets.
const OF_ITS_OWN: usize = 4;

/// How many peers a door lets in, or how many requests of unattested peers it starts, before everybody else has a turn.
const PEERS_A_TURN: usize = 4;

/// What an entrance says about its peers, and how many may be connected.
#[derive(Debug)]
pub(crate) struct Door {
    pub(super) entrance: Entrance,
    pub(super) permits: Arc<Semaphore>,
    /// Each connection also takes a share: one of the door's own, or else one from the total of all such doors.
    pub(super) shares: Option<(Arc<Semaphore>, Arc<Semaphore>)>,
    /// How many of its peers may have socket tables read for them at the same time.
    pub(super) tables: Semaphore,
    /// For its peers, and for the requests of those that are not attested.
    pub(super) turns: Arc<Turnstile>,
}

// === impl Server ===

impl Server {
    /// The door of the socket that all pods share.
    pub(crate) fn shared_door(&self) -> Arc<Door> {
        Arc::new(Door {
            entrance: Entrance::Shared,
            permits: self.connections.clone(),
            shares: None,
            // One is left for the pods' own doors.
            tables: Semaphore::new(TABLES - 1),
            turns: Turnstile::new(PEERS_A_TURN),
        })
    }

    /// The door of one pod's own socket. Its connections use none of the shared socket's permits; all but the first few
    /// draw on the total of all such doors.
    pub(crate) fn door_of(&self, pod: PodUid) -> Arc<Door> {
        Arc::new(Door {
            entrance: Entrance::Pod(pod),
            // A few more than the pod's limit, so that the pod is told that it is over it, and not left waiting.
            permits: Arc::new(Semaphore::new(self.connections_per_pod + TOLD_BUSY)),
            shares: Some((
                Arc::new(Semaphore::new(OF_ITS_OWN)),
                self.own_connections.clone(),
            )),
            tables: Semaphore::new(1),
            turns: Turnstile::new(PEERS_A_TURN),
        })
    }
}

// === impl Door ===

impl Door {
    /// The connection's share, once there is one.
    pub(super) async fn share(&self) -> Option<OwnedSemaphorePermit> {
        let (own, all) = self.shares.as_ref()?;
        match own.clone().try_acquire_owned() {
            Ok(own) => Some(own),
            Err(_) => all.clone().acquire_owned().await.ok(),
        }
    }
}
