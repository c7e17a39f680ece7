//! One call for all requests that ask for the same thing at the same time.

use crate::request::RequestId;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Calls in flight, by what they fetch. Each call is its own task, so the request that began it may leave without harm
/// to those that joined; the call is cancelled when nobody waits for it any more.
pub(crate) struct Flights<K, T: Clone>(Mutex<Board<K, T>>);

/// How many flights there may be before the finished ones are removed.
const SWEEP: usize = 64;

struct Board<K, T: Clone> {
    flights: HashMap<K, Flight<T>>,
    next: u64,
}

struct Flight<T: Clone> {
    leader: RequestId,
    number: u64,
    /// The highest number of this key's flights that have landed. What was forgotten counts as landed.
    landed: u64,
    began: Instant,
    result: WeakShared<Landing<T>>,
}

/// The end of a flight: its result, or nothing if its task died.
type Landing<T> = BoxFuture<'static, Option<T>>;

/// A seat on a flight.
pub(crate) struct Seat<T: Clone> {
    /// The request that began the flight, if it is not this one.
    pub(crate) leader: Option<RequestId>,
    /// Which flight it is: a later one has a higher number.
    pub(crate) number: u64,
    /// When the flight began; for a request that joined it, that is before its own ask.
    pub(crate) began: Instant,
    /// The result, or nothing if the task died.
    pub(crate) result: Shared<Landing<T>>,
}

impl<K: Clone + Eq + Hash + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the flight for `key` if that is younger than `oldest`, or begins one with `start`, which later requests
    /// join.
    pub(crate) fn join<F>(&self, key: &K, oldest: Duration, asker: RequestId, start: F) -> Seat<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut board = self.0.lock();
        let Board { flights, next } = &mut *board;
        if let Some(flight) = flights.get(key)
            && flight.began.elapsed() < oldest
            && let Some(result) = flight.result.upgrade()
            && result.peek().is_none()
        {
            return Seat {
                leader: Some(flight.leader),
                number: flight.number,
                began: flight.began,
                result,
            };
        }
        let landed = flights.get(key).map_or(*next, |before| before.landed);
        if flights.len() >= SWEEP {
            flights.retain(|_, flight| flight.result.upgrade().is_some());
        }
        *next += 1;
        let (number, began) = (*next, Instant::now());
        let task = AbortOnDropHandle::new(tokio::spawn(start));
        let result = async move { task.await.ok() }.boxed().shared();
        if let Some(weak) = result.downgrade() {
            flights.insert(
                key.clone(),
                Flight {
                    leader: asker,
                    number,
                    landed,
                    began,
                    result: weak,
                },
            );
        }
        Seat {
            leader: None,
            number,
            began,
            result,
        }
    }

    /// Notes that the flight for `key` with this number has landed. Returns whether none that began later has landed
    /// before it; false if that is no longer known.
    pub(crate) fn lands(&self, key: &K, number: u64) -> bool {
        let mut board = self.0.lock();
        let Some(flight) = board.flights.get_mut(key) else {
            return false;
        };
        flight.landed = flight.landed.max(number);
        flight.landed == number
    }
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::new(Board {
            flights: HashMap::new(),
            next: 0,
        }))
    }
}

impl<K, T: Clone> std::fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::sleep;

    type Reads = Flights<&'static str, usize>;

    /// However old a flight is, it is joined.
    const ANY: Duration = Duration::MAX;

    fn asker(number: u64) -> RequestId {
        RequestId::new("00000000", number)
    }

    /// A call that takes a second and returns its number.
    fn call(calls: &Arc<AtomicUsize>) -> impl Future<Output = usize> + Send + use<> {
        let calls = calls.clone();
        async move {
            let number = calls.fetch_add(1, Ordering::SeqCst) + 1;
            sleep(Duration::from_secs(1)).await;
            number
        }
    }

    #[tokio::test(start_paused = true)]
    async fn equal_asks_at_the_same_time_share_one_call_and_know_whose() {
        let (reads, calls) = (Reads::default(), Arc::default());
        let first = reads.join(&"a", ANY, asker(1), call(&calls));
        let second = reads.join(&"a", ANY, asker(2), call(&calls));
        let other = reads.join(&"b", ANY, asker(3), call(&calls));
        assert_eq!(first.leader, None);
        assert_eq!(second.leader, Some(asker(1)));
        assert_eq!(other.leader, None);
        assert_eq!(first.result.await, Some(1));
        assert_eq!(second.result.await, Some(1));
        assert_eq!(other.result.await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ask_for_the_latest_joins_nothing_older_and_is_joined_itself() {
        let (reads, calls) = (Reads::default(), Arc::default());
        let old = reads.join(&"a", ANY, asker(1), call(&calls));
        let fresh = reads.join(&"a", Duration::ZERO, asker(2), call(&calls));
        let later = reads.join(&"a", ANY, asker(3), call(&calls));
        assert_eq!(fresh.leader, None);
        assert_eq!(later.leader, Some(asker(2)));
        assert_eq!((old.result.await, fresh.result.await), (Some(1), Some(2)));
        assert_eq!(later.result.await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_began_too_long_ago_is_not_joined() {
        let (reads, calls) = (Reads::default(), Arc::default());
        let oldest = Duration::from_millis(500);
        let first = reads.join(&"a", oldest, asker(1), call(&calls));
        sleep(oldest - Duration::from_millis(1)).await;
        let second = reads.join(&"a", oldest, asker(2), call(&calls));
        sleep(Duration::from_millis(1)).await;
        let third = reads.join(&"a", oldest, asker(3), call(&calls));
        assert_eq!(second.leader, Some(asker(1)));
        assert_eq!(third.leader, None);
        assert_eq!((first.result.await, third.result.await), (Some(1), Some(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_has_ended_is_not_joined() {
        let (reads, calls) = (Reads::default(), Arc::default());
        let first = reads.join(&"a", ANY, asker(1), call(&calls));
        assert_eq!(first.result.clone().await, Some(1));
        let second = reads.join(&"a", ANY, asker(2), call(&calls));
        assert_eq!(second.leader, None);
        assert_eq!(second.result.await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_began_a_call_may_leave_without_harm_to_the_others() {
        let (reads, calls) = (Reads::default(), Arc::default());
        let first = reads.join(&"a", ANY, asker(1), call(&calls));
        let second = reads.join(&"a", ANY, asker(2), call(&calls));
        drop(first);
        assert_eq!(second.result.await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_is_cancelled() {
        let (reads, ended) = (Reads::default(), Arc::new(AtomicUsize::new(0)));
        let counted = ended.clone();
        let seat = reads.join(&"a", ANY, asker(1), async move {
            sleep(Duration::from_secs(1)).await;
            counted.fetch_add(1, Ordering::SeqCst)
        });
        tokio::task::yield_now().await;
        drop(seat);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(ended.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_a_later_one_has_overtaken_does_not_land_even_if_that_is_forgotten() {
        for others in [0, SWEEP] {
            let (reads, calls) = (Flights::<usize, usize>::default(), Arc::default());
            let old = reads.join(&0, ANY, asker(1), call(&calls));
            let later = reads.join(&0, Duration::ZERO, asker(2), call(&calls));
            assert!(reads.lands(&0, later.number));
            drop(later);
            for key in 1..=others {
                drop(reads.join(&key, ANY, asker(3), call(&calls)));
            }
            let last = reads.join(&0, Duration::ZERO, asker(4), call(&calls));
            assert!(!reads.lands(&0, old.number), "{others}");
            assert!(reads.lands(&0, last.number), "{others}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_does_not_pile_up() {
        let (reads, calls) = (Flights::<usize, usize>::default(), Arc::default());
        for key in 0..10 * SWEEP {
            reads.join(&key, ANY, asker(1), call(&calls)).result.await;
        }
        assert!(reads.0.lock().flights.len() <= SWEEP);
    }
}
