//! One call for all who ask for the same thing at the same time.

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::task::AbortOnDropHandle;

/// Calls in flight by what they fetch. A call is a task of its own, so whoever began it may leave without
/// harm to those who joined; when nobody waits any more it is cancelled.
pub(crate) struct Flights<K, T: Clone>(Mutex<HashMap<K, Flight<T>>>);

/// How many finished flights may lie about before they are swept.
const SWEEP: usize = 64;

struct Flight<T: Clone> {
    leader: Arc<str>,
    result: WeakShared<Landing<T>>,
}

/// The end of a flight: its result, or nothing if its task died.
type Landing<T> = BoxFuture<'static, Option<T>>;

/// A seat on a flight.
pub(crate) struct Seat<T: Clone> {
    /// The request that began the flight, if it is another one.
    pub(crate) leader: Option<Arc<str>>,
    /// The result, or nothing if the task died.
    pub(crate) result: Shared<Landing<T>>,
}

impl<K: Clone + Eq + Hash + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the flight for `key`, or begins one with `start`. With `fresh`, what began before is not
    /// good enough: a new flight begins, which later askers join.
    pub(crate) fn join<F>(&self, key: &K, fresh: bool, asker: &Arc<str>, start: F) -> Seat<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !fresh
            && let Some(flight) = flights.get(key)
            && let Some(result) = flight.result.upgrade()
            && result.peek().is_none()
        {
            return Seat {
                leader: Some(flight.leader.clone()),
                result,
            };
        }
        if flights.len() >= SWEEP {
            flights.retain(|_, flight| flight.result.upgrade().is_some());
        }
        let task = AbortOnDropHandle::new(tokio::spawn(start));
        let result = async move { task.await.ok() }.boxed().shared();
        if let Some(weak) = result.downgrade() {
            flights.insert(
                key.clone(),
                Flight {
                    leader: asker.clone(),
                    result: weak,
                },
            );
        }
        Seat {
            leader: None,
            result,
        }
    }
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, T: Clone> std::fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}
