//! What one pod may use of the node's agent at once. A pod over its quota is told so; other pods do not notice.

use crate::config;
use crate::error::{RETRY_AFTER, RequestError};
use crate::server::Toll;
use crate::turns::Turnstile;
use governor::{DefaultDirectRateLimiter, Quota as Rate, RateLimiter};
use latchkey_client::protocol::Code;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How many waits for a change one pod may have.
const WAITS: usize = 16;

/// How long a refusal is held back. Each leaves an audit line: without the delay, one pod could write the trail faster
/// than anybody can store it.
pub(crate) const REST: Duration = Duration::from_millis(50);

/// The same for any further refusal in the same second, if a pod keeps asking: as long as it was told to wait.
const LONG_REST: Duration = RETRY_AFTER;

/// How many refusals a second are held back for [`REST`]; each further one for [`LONG_REST`].
const REFUSALS: NonZeroU32 = NonZeroU32::new(20).unwrap();

/// How many seconds' worth of requests may come at once.
const BURST: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// How many of a pod's requests are started before everybody else has a turn.
const REQUESTS_A_TURN: usize = 8;

/// How many bytes of answers the agent holds for a pod that does not read them: more than any single answer.
const UNREAD: usize = 8 << 20;

/// The same for all pods of the node together, beyond each pod's own; well below the agent's memory.
const NODES_UNREAD: usize = 4 * UNREAD;

/// What each pod also has of its own, so that other pods cannot leave it with nothing.
const OWN_UNREAD: usize = 128 << 10;

/// How many calls to vaults may be under way for all pods together, beyond each pod's own. Each takes some 85 KiB of
/// memory, most of that the SDK's, and when a vault is slow all of them wait at once. Of these, one pod has at most as
/// many as it may have requests in flight.
const NODES_CALLS: usize = 256;

/// How many each pod also has of its own, so that pods that wait for a slow vault leave it with some.
const OWN_CALLS: usize = 4;

/// How long a call waits for others to end: short enough that whoever waits can still have an old value instead.
const CALL_WAIT: Duration = Duration::from_secs(2);

/// Shorter answers do not count: all of a pod's connections together hold little of them.
pub(crate) const SHORT: u64 = 16 << 10;

/// A pod's limits: connections, requests in flight, waits, request rate, refusals, unread answers, calls to vaults, and
/// what calls on its sockets cost.
#[derive(Debug)]
pub(crate) struct Quota {
    connections: Arc<Semaphore>,
    in_flight: Semaphore,
    batched: Semaphore,
    waits: Arc<Semaphore>,
    rate: DefaultDirectRateLimiter,
    /// How many requests `rate` ever allows at once.
    burst: NonZeroU32,
    refusals: DefaultDirectRateLimiter,
    unread: Arc<Semaphore>,
    own_unread: Arc<Semaphore>,
    own_calls: Semaphore,
    more_calls: Semaphore,
    shared: Shared,
    pub(crate) turns: Arc<Turnstile>,
    pub(crate) toll: Arc<Toll>,
}

/// What the node's pods share, beyond what each has of its own: unread answers, in bytes, and calls to vaults.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    unread: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

/// Room for an answer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _of_pod: OwnedSemaphorePermit,
    _own_or_of_node: OwnedSemaphorePermit,
}

/// A permit for one call to a vault.
#[derive(Debug)]
pub(crate) struct CallPermit<'a> {
    _of_pod: SemaphorePermit<'a>,
    _of_node: Option<SemaphorePermit<'a>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            unread: Arc::new(Semaphore::new(NODES_UNREAD)),
            calls: Arc::new(Semaphore::new(NODES_CALLS)),
        }
    }
}

impl Quota {
    /// A quota of connections, requests in flight and requests a second as `limits` sets for a pod, with a burst of
    /// twice the last.
    pub(crate) fn new(limits: &config::Limits, shared: &Shared) -> Self {
        let (connections, in_flight) = (limits.connections_per_pod, limits.in_flight_per_pod);
        let per_second = limits.requests_per_second_per_pod;
        let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        let burst = per_second.saturating_mul(BURST);
        let rate = Rate::per_second(per_second).allow_burst(burst);
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            in_flight: Semaphore::new(in_flight),
            batched: Semaphore::new(in_flight),
            waits: Arc::new(Semaphore::new(WAITS)),
            rate: RateLimiter::direct(rate),
            burst,
            refusals: RateLimiter::direct(Rate::per_second(REFUSALS)),
            unread: Arc::new(Semaphore::new(UNREAD)),
            own_unread: Arc::new(Semaphore::new(OWN_UNREAD)),
            own_calls: Semaphore::new(OWN_CALLS),
            more_calls: Semaphore::new(in_flight),
            shared: shared.clone(),
            turns: Turnstile::new(REQUESTS_A_TURN),
            toll: Arc::default(),
        }
    }

    /// A permit for one more connection.
    pub(crate) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        self.connections.clone().try_acquire_owned().ok()
    }

    /// A permit for one request.
    ///
    /// # Errors
    ///
    /// `busy` if the pod sends too many at once or too fast.
    pub(crate) fn request(&self) -> Result<SemaphorePermit<'_>, RequestError> {
        let permit = self.in_flight.try_acquire().map_err(|_| {
            RequestError::new(
                Code::Busy,
                "this pod has too many requests in flight; wait for answers",
            )
        })?;
        self.spend()?;
        Ok(permit)
    }

    /// Waits for a permit to read one name of a batch or one secret of a volume. All of a pod's batches and volumes
    /// together read no more at once than the pod may have requests in flight: each read takes memory for a whole
    /// value.
    ///
    /// # Errors
    ///
    /// `internal` if no permit can ever come, which is a fault in the agent.
    pub(crate) async fn batched(&self) -> Result<SemaphorePermit<'_>, RequestError> {
        let permit = self.batched.acquire().await;
        permit.map_err(|closed| RequestError::internal(&closed))
    }

    /// A permit for one wait for a change. It is not one for a request in flight: each look of a wait takes one of
    /// those for as long as the look lasts, so waits do not starve the pod's reads.
    ///
    /// # Errors
    ///
    /// `busy` if the pod already has as many as it may.
    pub(crate) fn wait(&self) -> Result<OwnedSemaphorePermit, RequestError> {
        self.waits.clone().try_acquire_owned().map_err(|_| {
            RequestError::new(
                Code::Busy,
                format!("this pod has {WAITS} waits for a change already; end one first"),
            )
        })
    }

    /// Room for an answer of `size` bytes, to be dropped when the kernel has taken all of it.
    ///
    /// # Errors
    ///
    /// `busy` if too much is unread, by this pod or by all pods.
    pub(crate) fn answer(&self, size: u64) -> Result<Room, RequestError> {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let room = |of: &Arc<Semaphore>| of.clone().try_acquire_many_owned(size).ok();
        let full = |text: &'static str| move || RequestError::new(Code::Busy, text);
        Ok(Room {
            _of_pod: room(&self.unread).ok_or_else(full(
                "this pod has not read the answers to its other requests yet; read them first",
            ))?,
            _own_or_of_node: room(&self.own_unread)
                .or_else(|| room(&self.shared.unread))
                .ok_or_else(full(
                    "the pods of this node have left too many answers unread; try again",
                ))?,
        })
    }

    /// Waits for a permit for one call to a vault; none if too many others are under way for too long.
    pub(crate) async fn call(&self) -> Option<CallPermit<'_>> {
        let shared = async {
            Some(CallPermit {
                _of_pod: self.more_calls.acquire().await.ok()?,
                _of_node: Some(self.shared.calls.acquire().await.ok()?),
            })
        };
        let own = async {
            Some(CallPermit {
                _of_pod: self.own_calls.acquire().await.ok()?,
                _of_node: None,
            })
        };
        let permit = async {
            tokio::select! {
                biased;
                permit = own => permit,
                permit = shared => permit,
            }
        };
        timeout(CALL_WAIT, permit).await.ok()?
    }

    /// How long to hold back the refusal that the pod is about to get.
    pub(crate) fn rest(&self) -> Duration {
        match self.refusals.check() {
            Ok(()) => REST,
            Err(_) => LONG_REST,
        }
    }

    /// Takes one request from the pod's rate.
    ///
    /// # Errors
    ///
    /// `busy` if none is left.
    pub(crate) fn spend(&self) -> Result<(), RequestError> {
        self.rate.check().map_err(|_| too_fast())
    }

    /// Takes what a batch of `names` costs beyond the one request that it has cost already.
    ///
    /// # Errors
    ///
    /// `busy` if less than that is left.
    pub(crate) fn batch(&self, names: usize) -> Result<(), RequestError> {
        // More than the rate ever allows at once, with that one request: waiting is pointless.
        let never = || RequestError {
            retry_after: None,
            ..too_fast()
        };
        let names = u32::try_from(names).map_err(|_| never())?;
        if names > self.burst.get() {
            return Err(never());
        }
        match NonZeroU32::new(names.saturating_sub(1)) {
            Some(more) if !matches!(self.rate.check_n(more), Ok(Ok(()))) => Err(too_fast()),
            _ => Ok(()),
        }
    }
}

fn too_fast() -> RequestError {
    RequestError::new(
        Code::Busy,
        "this pod asks faster than its limit allows; ask less often",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[test]
    fn who_goes_on_asking_while_refused_waits_as_long_as_told() {
        let quota = Quota::new(&config::Limits::default(), &Shared::default());
        let rests: Vec<Duration> = (0..100).map(|_| quota.rest()).collect();
        assert_eq!(rests.first(), Some(&REST));
        assert_eq!(rests.last(), Some(&LONG_REST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_makes_some_calls_whatever_the_others_have_under_way() {
        let limits = config::Limits::default();
        let node = Shared::default();
        let busy: Vec<_> = (0..NODES_CALLS / limits.in_flight_per_pod)
            .map(|_| Quota::new(&limits, &node))
            .collect();
        let mut taken = Vec::new();
        for quota in &busy {
            for _ in 0..OWN_CALLS + limits.in_flight_per_pod {
                taken.push(quota.call().await.expect("a permit"));
            }
            assert!(quota.call().await.is_none(), "that is all it may have");
        }
        let other = Quota::new(&limits, &node);
        let mut own = Vec::new();
        for _ in 0..OWN_CALLS {
            own.push(other.call().await.expect("its own"));
        }
        let began = Instant::now();
        assert!(other.call().await.is_none());
        assert_eq!(began.elapsed(), CALL_WAIT);
        let (nodes, ()) = tokio::join!(other.call(), async {
            sleep(CALL_WAIT / 2).await;
            taken.pop();
        });
        assert!(nodes.is_some(), "one of the node's comes to whoever waits");
        assert!(other.call().await.is_none());
        own.pop();
        assert!(other.call().await.is_some());
    }

    #[test]
    fn what_pods_leave_unread_has_a_bound_for_each_and_one_for_all() {
        let node = Shared::default();
        let quotas: Vec<_> = (0..5)
            .map(|_| Quota::new(&config::Limits::default(), &node))
            .collect();
        let whole = u64::try_from(UNREAD).expect("it fits");
        let mut rooms: Vec<_> = quotas.iter().map(|quota| quota.answer(whole)).collect();
        assert_eq!(rooms.iter().filter(|room| room.is_ok()).count(), 4);
        assert!(quotas[0].answer(1).is_err());
        let own = u64::try_from(OWN_UNREAD).expect("it fits");
        assert!(quotas[4].answer(own + 1).is_err());
        assert!(quotas[4].answer(own).is_ok(), "that much is its own");
        rooms.swap_remove(0).expect("room");
        assert!(quotas[1].answer(1).is_err(), "its own is still full");
        assert!(
            quotas[4].answer(whole).is_ok(),
            "of the node's there is some"
        );
    }
}
