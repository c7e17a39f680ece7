//! One way in: the socket that all pods share, or that of one pod's volume.

use crate::attest::Entrance;
use crate::turns::Turnstile;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a way in says of those who come by it, and how many may be inside.
#[derive(Debug)]
pub(crate) struct Door {
    pub(super) entrance: Entrance,
    pub(super) permits: Arc<Semaphore>,
    /// Of those, what it has for itself, and what all such doors have together.
    pub(super) shares: Option<(Arc<Semaphore>, Arc<Semaphore>)>,
    /// How many of its peers may be looked up in whole tables of sockets at the same time.
    pub(super) tables: Semaphore,
    /// For its peers, and for the requests of those of them who are not attested.
    pub(super) turns: Arc<Turnstile>,
}

impl Door {
    /// The connection's share, as soon as there is one.
    pub(super) async fn share(&self) -> Option<OwnedSemaphorePermit> {
        let (own, all) = self.shares.as_ref()?;
        match own.clone().try_acquire_owned() {
            Ok(own) => Some(own),
            Err(_) => all.clone().acquire_owned().await.ok(),
        }
    }
}
