//! The timeouts of a connection.

use super::clock::{Clock, Mark};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection that is not attested may stay open.
const WAITING_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a request's head may take from its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a write may find no room for more of an answer. Answers of up to 4 MiB are kept for the peer meanwhile. The
/// kernel reports room only when most of what it holds has been read, so a very slow reader times out too.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The same in an agent that leaves: a peer that connects and sends nothing must not delay that.
const LAST_IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// When bytes came and requests began and ended.
#[derive(Debug)]
pub(super) struct Times {
    clock: Arc<Clock>,
    opened: Mark,
    /// When the head that is being read began.
    head: Mark,
    /// When the request that is being answered began; HTTP/1 answers one at a time.
    answering: Mark,
    /// When the last request was answered.
    quiet: Mark,
    /// Since when the peer has read nothing of an answer.
    stuck: Mark,
}

/// What must become of a connection after a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// End at once, with everything in flight.
    End,
    /// Go on.
    GoOn,
    /// It is idle: stop reading, but still answer what was sent before.
    StopReading,
}

// === impl Times ===

impl Times {
    /// The times of a connection that opens now.
    pub(super) fn new(clock: Arc<Clock>) -> Self {
        Self {
            opened: Mark::now(&clock),
            head: Mark::default(),
            answering: Mark::default(),
            quiet: Mark::now(&clock),
            stuck: Mark::default(),
            clock,
        }
    }

    /// What must become of the connection now, in an agent that is `leaving` or stays.
    pub(super) fn look(&self, is_attested: bool, leaving: bool) -> Verdict {
        let clock = &*self.clock;
        let idle = if leaving {
            LAST_IDLE_TIMEOUT
        } else {
            IDLE_TIMEOUT
        };
        let waits_too_long = !is_attested && self.opened.is_past(WAITING_TIMEOUT, clock);
        if waits_too_long && self.head.is_set()
            || self.head.is_past(HEAD_TIMEOUT, clock)
            || self.stuck.is_past(WRITE_TIMEOUT, clock)
        {
            Verdict::End
        } else if self.is_idle() && (waits_too_long || self.quiet.is_past(idle, clock)) {
            Verdict::StopReading
        } else {
            Verdict::GoOn
        }
    }

    /// Whether it is between requests: none is being answered, and the next one has not begun.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_answering() && !self.head.is_set()
    }

    /// Whether a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.is_set()
    }

    /// Notes that bytes have come in.
    pub(super) fn bytes_came(&self) {
        if !self.answering.is_set() {
            self.head.begin(&self.clock);
        }
    }

    /// Notes that a request's head is complete.
    pub(super) fn request_began(&self) {
        self.head.clear();
        self.answering.set(&self.clock);
    }

    /// Notes that a request is answered.
    pub(super) fn request_ended(&self) {
        self.answering.clear();
        self.quiet.set(&self.clock);
    }

    /// Notes that the peer reads nothing of an answer, or reads again.
    pub(super) fn write_is_stuck(&self, stuck: bool) {
        if stuck {
            self.stuck.set(&self.clock);
        } else {
            self.stuck.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many seconds pass until it must not go on, and what the verdict is then.
    fn lasts(is_attested: bool, begin: impl FnOnce(&Times)) -> (u32, Verdict) {
        lasts_in(false, is_attested, begin)
    }

    fn lasts_in(leaving: bool, is_attested: bool, begin: impl FnOnce(&Times)) -> (u32, Verdict) {
        let clock = Arc::new(Clock::default());
        let times = Times::new(clock.clone());
        begin(&times);
        for seconds in 0..200 {
            let verdict = times.look(is_attested, leaving);
            if verdict != Verdict::GoOn {
                return (seconds, verdict);
            }
            clock.tick();
        }
        (200, Verdict::GoOn)
    }

    // By this clock, a limit has certainly passed only a second later.
    #[test]
    fn what_keeps_a_connection_waiting_has_its_limit_and_an_answer_in_the_making_has_none_here() {
        assert_eq!(lasts(true, |_| {}), (91, Verdict::StopReading));
        assert_eq!(lasts(false, |_| {}), (16, Verdict::StopReading));
        assert_eq!(lasts(true, Times::bytes_came), (6, Verdict::End));
        let stuck = |times: &Times| {
            times.request_began();
            times.write_is_stuck(true);
        };
        assert_eq!(lasts(true, stuck), (11, Verdict::End));
        for is_attested in [true, false] {
            let answers = |times: &Times| {
                times.bytes_came();
                times.request_began();
                // Of the next request, which hyper reads ahead.
                times.bytes_came();
            };
            assert_eq!(lasts(is_attested, answers), (200, Verdict::GoOn));
        }
        let answered = |times: &Times| {
            stuck(times);
            times.write_is_stuck(false);
            times.request_ended();
        };
        assert_eq!(lasts(true, answered), (91, Verdict::StopReading));
    }

    #[test]
    fn who_says_nothing_to_an_agent_that_leaves_is_not_waited_for_and_who_has_begun_to_is() {
        for is_attested in [true, false] {
            assert_eq!(
                lasts_in(true, is_attested, |_| {}),
                (2, Verdict::StopReading)
            );
        }
        assert_eq!(lasts_in(true, true, Times::bytes_came), (6, Verdict::End));
        assert_eq!(
            lasts_in(true, true, Times::request_began),
            (200, Verdict::GoOn)
        );
    }

    #[test]
    fn an_answer_that_nobody_takes_has_its_limit_though_nothing_more_is_asked() {
        for (is_attested, leaving) in [(true, true), (false, false)] {
            let clock = Arc::new(Clock::default());
            let times = Times::new(clock.clone());
            for _ in 0..20 {
                clock.tick();
            }
            times.write_is_stuck(true);
            for _ in 0..11 {
                assert_eq!(times.look(is_attested, leaving), Verdict::StopReading);
                clock.tick();
            }
            assert_eq!(times.look(is_attested, leaving), Verdict::End);
        }
    }
}
