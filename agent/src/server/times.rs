//! The timeouts of a connection.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

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
    opened: Instant,
    marks: Mutex<Marks>,
}

#[derive(Debug)]
struct Marks {
    /// When the head that is being read began.
    head: Option<Instant>,
    /// Whether a request is being answered; HTTP/1 answers one at a time.
    answering: bool,
    /// When the last request was answered.
    quiet: Instant,
    /// Since when the peer has read nothing of an answer.
    stuck: Option<Instant>,
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
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            opened: now,
            marks: Mutex::new(Marks {
                head: None,
                answering: false,
                quiet: now,
                stuck: None,
            }),
        }
    }

    /// What must become of the connection at `now`, in an agent that is `leaving` or stays.
    pub(super) fn look(&self, now: Instant, is_attested: bool, leaving: bool) -> Verdict {
        let is_past = |since: Instant, limit| now - since >= limit;
        let idle = if leaving {
            LAST_IDLE_TIMEOUT
        } else {
            IDLE_TIMEOUT
        };
        let marks = self.marks.lock();
        let waits_too_long = !is_attested && is_past(self.opened, WAITING_TIMEOUT);
        if waits_too_long && marks.head.is_some()
            || marks.head.is_some_and(|head| is_past(head, HEAD_TIMEOUT))
            || marks
                .stuck
                .is_some_and(|stuck| is_past(stuck, WRITE_TIMEOUT))
        {
            Verdict::End
        } else if marks.is_idle() && (waits_too_long || is_past(marks.quiet, idle)) {
            Verdict::StopReading
        } else {
            Verdict::GoOn
        }
    }

    /// Whether it is between requests: none is being answered, and the next one has not begun.
    pub(super) fn is_idle(&self) -> bool {
        self.marks.lock().is_idle()
    }

    /// Whether a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.marks.lock().answering
    }

    /// Notes that bytes have come in.
    pub(super) fn bytes_came(&self) {
        let mut marks = self.marks.lock();
        if !marks.answering {
            marks.head.get_or_insert_with(Instant::now);
        }
    }

    /// Notes that a request's head is complete.
    pub(super) fn request_began(&self) {
        let mut marks = self.marks.lock();
        marks.head = None;
        marks.answering = true;
    }

    /// Notes that a request is answered.
    pub(super) fn request_ended(&self) {
        let mut marks = self.marks.lock();
        marks.answering = false;
        marks.quiet = Instant::now();
    }

    /// Notes that the peer reads nothing of an answer, or reads again.
    pub(super) fn write_is_stuck(&self, stuck: bool) {
        self.marks.lock().stuck = stuck.then(Instant::now);
    }
}

impl Marks {
    fn is_idle(&self) -> bool {
        !self.answering && self.head.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    /// How many seconds pass until it must not go on, and what the verdict is then.
    async fn lasts(is_attested: bool, begin: impl FnOnce(&Times)) -> (u32, Verdict) {
        lasts_in(false, is_attested, begin).await
    }

    async fn lasts_in(
        leaving: bool,
        is_attested: bool,
        begin: impl FnOnce(&Times),
    ) -> (u32, Verdict) {
        let times = Times::new();
        begin(&times);
        for seconds in 0..200 {
            let verdict = times.look(Instant::now(), is_attested, leaving);
            if verdict != Verdict::GoOn {
                return (seconds, verdict);
            }
            advance(Duration::from_secs(1)).await;
        }
        (200, Verdict::GoOn)
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_a_connection_waiting_has_its_limit_and_an_answer_in_the_making_has_none_here()
     {
        assert_eq!(lasts(true, |_| {}).await, (90, Verdict::StopReading));
        assert_eq!(lasts(false, |_| {}).await, (15, Verdict::StopReading));
        assert_eq!(lasts(true, Times::bytes_came).await, (5, Verdict::End));
        let stuck = |times: &Times| {
            times.request_began();
            times.write_is_stuck(true);
        };
        assert_eq!(lasts(true, stuck).await, (10, Verdict::End));
        for is_attested in [true, false] {
            let answers = |times: &Times| {
                times.bytes_came();
                times.request_began();
                // Of the next request, which hyper reads ahead.
                times.bytes_came();
            };
            assert_eq!(lasts(is_attested, answers).await, (200, Verdict::GoOn));
        }
        let answered = |times: &Times| {
            stuck(times);
            times.write_is_stuck(false);
            times.request_ended();
        };
        assert_eq!(lasts(true, answered).await, (90, Verdict::StopReading));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_is_not_put_off_by_more_of_it() {
        let times = Times::new();
        for _ in 0..5 {
            times.bytes_came();
            assert_eq!(times.look(Instant::now(), true, false), Verdict::GoOn);
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(times.look(Instant::now(), true, false), Verdict::End);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_to_an_agent_that_leaves_is_not_waited_for_and_who_has_begun_to_is() {
        for is_attested in [true, false] {
            assert_eq!(
                lasts_in(true, is_attested, |_| {}).await,
                (1, Verdict::StopReading)
            );
        }
        let begun = lasts_in(true, true, Times::bytes_came).await;
        assert_eq!(begun, (5, Verdict::End));
        let asked = lasts_in(true, true, Times::request_began).await;
        assert_eq!(asked, (200, Verdict::GoOn));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_has_its_limit_though_nothing_more_is_asked() {
        for (is_attested, leaving) in [(true, true), (false, false)] {
            let times = Times::new();
            let look = || times.look(Instant::now(), is_attested, leaving);
            advance(Duration::from_secs(20)).await;
            times.write_is_stuck(true);
            for _ in 0..10 {
                assert_eq!(look(), Verdict::StopReading);
                advance(Duration::from_secs(1)).await;
            }
            assert_eq!(look(), Verdict::End);
        }
    }
}
