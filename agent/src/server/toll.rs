//! What the calls on a connection's socket cost the agent's one thread.
//!
//! Each read, write and close wakes whoever waits on the peer's end, and so walks its whole queue of waiters, a read
//! once for each piece that the peer has sent (`sock_wfree` and `sock_def_readable` in net/core/sock.c). A peer can be
//! in that queue as often as it likes: 100,000 watches of epoll(7) take it 20 MB and a fraction of a second. No request
//! is needed for that, so no other limit counts it.
//!
//! Calls that take long arouse suspicion only, and only if they take much of the thread's time, since it may have been
//! suspended meanwhile. From then on the processor time of such calls is known, and what is too much becomes a debt,
//! paid by waiting. While more is owed than may be, each further call that is too much ends its connection; and the
//! permits of connections that end are kept until all is paid, so that new ones are no way out. All connections of a pod
//! owe together.

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tokio::time::Instant;

/// From how long on a call is too much. Any call takes some 5 to 50 µs, also one of 64 KiB.
const COSTLY: Duration = Duration::from_micros(250);

/// How much longer it takes to pay than what is paid for took: costly calls get no more than 1/20 of the thread.
const WAIT: u32 = 20;

/// How much a stranger may owe. A pod may have several of these, and a stranger has not asked for anything yet.
const STRANGERS_CREDIT: Duration = Duration::from_millis(20);

/// How much a pod may owe. Where the time that a hypervisor takes counts as the agent's, any call of an honest peer's may
/// seem to take 10 ms, and with many requests some do in each second.
const CREDIT: Duration = Duration::from_millis(200);

/// How long suspicion lasts after the last call that aroused it. Each call costs half a microsecond more meanwhile.
const SUSPECT: Duration = Duration::from_secs(600);

/// How much time calls that take long may take before that is suspicious, and in which time it is forgotten: a fifth of
/// the thread's time, where the scheduler takes a few hundredths.
const UNSUSPICIOUS: Duration = Duration::from_millis(100);
const FORGOTTEN: u32 = 5;

/// The longest wait, after which a debt is forgotten.
const LONGEST: Duration = Duration::from_secs(600);

/// What a pod owes, or a connection whose peer is no workload.
#[derive(Debug, Default)]
pub(crate) struct Toll {
    /// Until when the processor time of calls is looked at.
    suspect: Mutex<Option<Instant>>,
    /// When the calls that took long will be forgotten.
    slow: Mutex<Option<Instant>>,
    /// When everything will be paid.
    paid: Mutex<Option<Instant>>,
    is_strangers: bool,
}

/// Does it, and measures the processor time that it takes.
pub(super) fn measured<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let before = used();
    let outcome = call();
    (outcome, used().saturating_sub(before))
}

/// The processor time that this thread has used.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

// === impl Toll ===

impl Toll {
    /// A stranger's: nothing is owed, and the first call is suspect already.
    pub(super) fn of_suspect() -> Self {
        Self {
            suspect: Mutex::new(Some(Instant::now() + SUSPECT)),
            is_strangers: true,
            ..Self::default()
        }
    }

    /// Makes a call, and returns whether it [is too much](Self::charge). Costs no more than two looks at the clock unless
    /// the peer is suspect.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> (T, bool) {
        let began = Instant::now();
        let is_suspect = self.suspect.lock().is_some_and(|until| began < until);
        let before = is_suspect.then(used);
        let outcome = call();
        // It has used no more of the processor than that.
        let took = began.elapsed();
        if took < COSTLY {
            return (outcome, false);
        }
        self.note_slow(began, took);
        let is_too_much = before.is_some_and(|before| self.charge(used().saturating_sub(before)));
        (outcome, is_too_much)
    }

    /// Notes a call that took long, for whatever reason.
    fn note_slow(&self, began: Instant, took: Duration) {
        let mut slow = self.slow.lock();
        let known = slow.unwrap_or(began).saturating_duration_since(began);
        let known = known.saturating_add(took * FORGOTTEN).min(LONGEST);
        *slow = Some(began + known);
        if known > UNSUSPICIOUS * FORGOTTEN {
            *self.suspect.lock() = Some(began + SUSPECT);
        }
    }

    /// Notes what a call has cost. Returns whether it is too much: it has cost something, and more is owed than may be.
    pub(super) fn charge(&self, cost: Duration) -> bool {
        if cost < COSTLY {
            return false;
        }
        let now = Instant::now();
        let mut paid = self.paid.lock();
        let owed = paid.unwrap_or(now).saturating_duration_since(now);
        let owed = owed.saturating_add(cost * WAIT);
        *paid = Some(now + owed.min(LONGEST));
        let credit = if self.is_strangers {
            STRANGERS_CREDIT
        } else {
            CREDIT
        };
        owed > credit * WAIT
    }

    /// When everything will be paid, if anything is owed.
    pub(super) fn paid(&self) -> Option<Instant> {
        let now = Instant::now();
        self.paid.lock().filter(|paid| *paid > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const NORMAL: Duration = Duration::from_micros(249);
    /// A twentieth of what a stranger may owe.
    const PART: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn what_calls_cost_is_owed_until_it_is_paid_and_too_much_ends_it() {
        let toll = Toll::of_suspect();
        for _ in 0..1_000_000 {
            assert!(!toll.charge(NORMAL));
        }
        assert_eq!(toll.paid(), None, "calls as they are owe nothing");
        for _ in 0..20 {
            assert!(!toll.charge(PART));
            assert!(!toll.charge(NORMAL));
        }
        assert!(toll.charge(PART));
        assert_eq!(toll.paid(), Some(Instant::now() + 21 * WAIT * PART));
        advance(2 * WAIT * PART).await;
        assert!(!toll.charge(PART));
        assert!(toll.charge(COSTLY));
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_can_be_too_much_and_no_debt_lasts_longer_than_ten_minutes() {
        let toll = Toll::of_suspect();
        assert!(toll.charge(STRANGERS_CREDIT + PART));
        assert!(toll.charge(LONGEST));
        assert_eq!(toll.paid(), Some(Instant::now() + LONGEST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_asks_much_of_a_machine_that_stalls_keeps_its_connections() {
        let toll = Toll::default();
        for _ in 0..20 {
            assert!(!toll.charge(CREDIT / 20));
        }
        assert!(toll.charge(CREDIT / 20));
    }

    #[test]
    fn a_call_that_takes_long_arouses_suspicion_and_is_not_charged_for_time_in_which_it_slept() {
        let toll = Toll::default();
        let sleep = || std::thread::sleep(UNSUSPICIOUS * 6 / 5);
        toll.note_slow(Instant::now(), UNSUSPICIOUS / 5);
        assert!(toll.suspect.lock().is_none(), "that was little");
        assert!(!toll.call(sleep).1);
        assert!(toll.suspect.lock().is_some());
        assert_eq!(toll.paid(), None);
        assert!(!toll.call(sleep).1);
        let spins = || {
            let mut used = Duration::ZERO;
            while used < CREDIT * 6 / 5 {
                used += measured(|| (0..10_000).for_each(|_| std::hint::spin_loop())).1;
            }
        };
        assert!(toll.call(spins).1);
    }
}
