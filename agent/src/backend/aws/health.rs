//! Which regions answer, so that one that does not is not waited for by everybody.

use crate::backend::{BackendError, Fault};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a region that could not be reached is asked after the others.
const DOWN_FOR: Duration = Duration::from_secs(10);

/// The regions that could not be reached lately.
#[derive(Debug, Default)]
pub(super) struct Health(pub(super) Mutex<Vec<(Arc<str>, Instant)>>);

// === impl Health ===

impl Health {
    /// `regions` in their order, those not reached lately last.
    pub(super) fn ordered<'a>(&self, regions: &'a [Arc<str>]) -> Vec<&'a Arc<str>> {
        let mut down = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        down.retain(|(_, since)| since.elapsed() < DOWN_FOR);
        let mut ordered: Vec<_> = regions.iter().collect();
        ordered.sort_by_key(|region| down.iter().any(|(other, _)| other == *region));
        ordered
    }

    /// Notes how a call to `region` ended; whether the next region is to be asked.
    pub(super) fn note<T>(&self, region: &Arc<str>, outcome: &Result<T, BackendError>) -> bool {
        let unreachable = matches!(outcome, Err(error) if error.fault == Fault::Unreachable);
        let mut down = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        down.retain(|(other, _)| other != region);
        if unreachable {
            down.push((region.clone(), Instant::now()));
        }
        unreachable
    }
}
