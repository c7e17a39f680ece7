//! A clock that is accurate to a second and costs nothing to read: each request reads it several times.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Counts the ticks that the roll gives it, one a second.
#[derive(Debug)]
pub(super) struct Clock(AtomicU32);

/// A time on that clock, or none.
#[derive(Debug, Default)]
pub(super) struct Mark(AtomicU32);

/// No time: the clock begins at one.
const NONE: u32 = 0;

/// How often the clock must tick.
pub(super) const TICK: Duration = Duration::from_secs(1);

// === impl Clock ===

impl Clock {
    /// Another second has passed.
    pub(super) fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self(AtomicU32::new(NONE + 1))
    }
}

// === impl Mark ===

impl Mark {
    /// The time now.
    pub(super) fn now(clock: &Clock) -> Self {
        Self(AtomicU32::new(clock.now()))
    }

    /// Notes the time.
    pub(super) fn set(&self, clock: &Clock) {
        self.0.store(clock.now(), Ordering::Relaxed);
    }

    /// Notes the time unless one is noted already.
    pub(super) fn begin(&self, clock: &Clock) {
        if !self.is_set() {
            self.set(clock);
        }
    }

    /// Forgets it.
    pub(super) fn clear(&self) {
        self.0.store(NONE, Ordering::Relaxed);
    }

    /// Whether a time is noted.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != NONE
    }

    /// Whether a time is noted and `limit` has certainly passed since, possibly a second more.
    pub(super) fn is_past(&self, limit: Duration, clock: &Clock) -> bool {
        let since = self.0.load(Ordering::Relaxed);
        since != NONE && u64::from(clock.now() - since) > limit.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_past_when_it_has_surely_passed_and_not_before() {
        let clock = Clock::default();
        let (set, never) = (Mark::now(&clock), Mark::default());
        let limit = Duration::from_secs(3);
        for past in [false, false, false, false, true, true] {
            assert_eq!(set.is_past(limit, &clock), past);
            assert!(!never.is_past(limit, &clock));
            clock.tick();
        }
    }

    #[test]
    fn a_time_that_has_begun_is_not_put_off() {
        let clock = Clock::default();
        let mark = Mark::default();
        mark.begin(&clock);
        clock.tick();
        clock.tick();
        mark.begin(&clock);
        assert!(mark.is_past(Duration::from_secs(1), &clock));
        mark.set(&clock);
        assert!(!mark.is_past(Duration::from_secs(1), &clock));
        mark.clear();
        assert!(!mark.is_set());
    }
}
