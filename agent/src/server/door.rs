//! One entrance: the socket that all pods share, or that of one pod's volume.

use crate::attest::Entrance;
use crate::turns::Turnstile;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
