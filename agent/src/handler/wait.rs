//! A wait for a change: the vault is polled until it holds another version or the time is up.
//!
//! Each of these reads is like any other: the peer is attested, the read counts towards the pod's rate, and the audit
//! trail gets a line with the cloud's id of the call. Between two reads the wait holds nothing but its place among the
//! pod's waits.

use super::Handling;
use crate::error::RequestError;
use crate::request::SecretAsk;
use crate::response::Answer;
use hyper::StatusCode;
use latchkey_client::protocol::{Code, WAIT_LIMIT};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// The minimum time between two reads of a wait.
const PAUSE: Duration = Duration::from_secs(10);

/// Added to a pause, times a random byte, so that pods that began to wait together do not stay in step.
const JITTER: Duration = Duration::from_millis(10);

impl Handling {
    /// Returns the secret once it differs from what the caller has, or 304 when `wait` is over or the connection is
    /// about to close.
    pub(super) async fn wait(
        &self,
        ask: &SecretAsk,
        wait: Duration,
    ) -> Result<Answer, RequestError> {
        let mut place = None;
        let end = Instant::now() + wait;
        loop {
            // Each read has its own start and deadline.
            let read = Self {
                id: self.id,
                services: self.services.clone(),
                connection: self.connection.clone(),
                began: Instant::now(),
            };
            let outcome = read.read_once(ask, &mut place).await;
            if is_settled(&outcome)
                || !pause_until_next(end, &outcome, self.connection.closes()).await
            {
                return outcome;
            }
        }
    }
}

/// Pauses after a read of a wait that lasts until `end`. Returns whether to read again: not if the time is over or the
/// connection closes.
async fn pause_until_next(
    end: Instant,
    outcome: &Result<Answer, RequestError>,
    closes: impl Future<Output = ()>,
) -> bool {
    let next = Instant::now() + pause(outcome);
    tokio::select! {
        () = sleep_until(next.min(end)) => next < end,
        () = closes => false,
    }
}

/// Whether there is no point in reading again: the secret changed, the caller may not have it, or the pod asks too
/// much. A cloud that is unavailable or throttles may recover before the time is over; if not, its last failure is the
/// answer.
fn is_settled(outcome: &Result<Answer, RequestError>) -> bool {
    match outcome {
        Ok(answer) => answer.status() != StatusCode::NOT_MODIFIED,
        Err(error) => !matches!(
            error.code,
            Code::Throttled | Code::Timeout | Code::Unavailable
        ),
    }
}

/// How long to leave the vault alone after this outcome.
fn pause(outcome: &Result<Answer, RequestError>) -> Duration {
    let asked = outcome.as_ref().err().and_then(|error| error.retry_after);
    let [byte, ..] = Uuid::new_v4().into_bytes();
    asked.unwrap_or_default().clamp(PAUSE, WAIT_LIMIT) + JITTER * u32::from(byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use std::collections::BTreeSet;
    use std::future::pending;

    fn answer(status: StatusCode) -> Result<Answer, RequestError> {
        let mut answer = Answer::new(Full::default());
        *answer.status_mut() = status;
        Ok(answer)
    }

    fn failure(code: Code) -> Result<Answer, RequestError> {
        Err(RequestError::new(code, "as the vault says"))
    }

    /// Waits with reads that take no time and have one outcome after the other, then the last one again and again.
    /// Returns when the reads were made, counted from the start, when the wait ended, and its outcome.
    async fn waited<F: Future<Output = ()>>(
        wait: u64,
        closes: impl Fn() -> F,
        outcomes: &[fn() -> Result<Answer, RequestError>],
    ) -> (Vec<Duration>, Duration, Result<StatusCode, Code>) {
        let began = Instant::now();
        let mut reads = Vec::new();
        let end = began + Duration::from_secs(wait);
        let outcome = loop {
            let outcome = outcomes[reads.len().min(outcomes.len() - 1)]();
            reads.push(began.elapsed());
            if is_settled(&outcome) || !pause_until_next(end, &outcome, closes()).await {
                break outcome;
            }
        };
        let said = match outcome {
            Ok(answer) => Ok(answer.status()),
            Err(error) => Err(error.code),
        };
        (reads, began.elapsed(), said)
    }

    const SAME: fn() -> Result<Answer, RequestError> = || answer(StatusCode::NOT_MODIFIED);
    const OTHER: fn() -> Result<Answer, RequestError> = || answer(StatusCode::OK);

    #[tokio::test(start_paused = true)]
    async fn a_wait_asks_at_once_and_then_no_more_often_than_every_ten_seconds() {
        let (reads, ended, said) = waited(60, pending, &[SAME]).await;
        assert_eq!(said, Ok(StatusCode::NOT_MODIFIED));
        assert_eq!(ended.as_secs(), 60);
        assert_eq!(reads[0], Duration::ZERO);
        assert!((5..=6).contains(&reads.len()), "{reads:?}");
        for pair in reads.windows(2) {
            let pause = pair[1] - pair[0];
            assert!(pause >= PAUSE, "{reads:?}");
            assert!(pause <= PAUSE + JITTER * 256, "{reads:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_that_begin_together_do_not_go_on_together() {
        let mut seconds = BTreeSet::new();
        for _ in 0..8 {
            let (reads, _, _) = waited(15, pending, &[SAME]).await;
            seconds.insert(reads[1]);
        }
        assert!(seconds.len() > 1, "{seconds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_ends_a_wait() {
        let (reads, ended, said) = waited(60, pending, &[SAME, SAME, OTHER]).await;
        assert_eq!((reads.len(), said), (3, Ok(StatusCode::OK)));
        assert_eq!(reads[2], ended);
        let (reads, ended, said) = waited(60, pending, &[OTHER]).await;
        assert_eq!((reads.len(), said), (1, Ok(StatusCode::OK)));
        assert_eq!(ended, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_a_wait() {
        let refusals: [fn() -> Result<Answer, RequestError>; 4] = [
            || failure(Code::Denied),
            || failure(Code::NotFound),
            || failure(Code::NotAttested),
            || failure(Code::Busy),
        ];
        for refusal in refusals {
            let (reads, _, said) = waited(60, pending, &[SAME, refusal]).await;
            assert_eq!((reads.len(), said.is_err()), (2, true));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_vault_that_is_away_does_not_end_a_wait_and_is_never_called_unchanged() {
        let away: fn() -> Result<Answer, RequestError> = || failure(Code::Unavailable);
        let (reads, _, said) = waited(60, pending, &[SAME, away, OTHER]).await;
        assert_eq!((reads.len(), said), (3, Ok(StatusCode::OK)));
        let (_, ended, said) = waited(15, pending, &[SAME, away]).await;
        assert_eq!((ended.as_secs(), said), (15, Err(Code::Unavailable)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vault_that_asks_for_more_time_is_given_it() {
        let throttled: fn() -> Result<Answer, RequestError> = || {
            let error = RequestError::new(Code::Throttled, "slower");
            Err(error.retry_after(Some(Duration::from_secs(30))))
        };
        let (reads, _, _) = waited(60, pending, &[throttled, OTHER]).await;
        assert!(reads[1] >= Duration::from_secs(30), "{reads:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_connection_ends_a_wait() {
        let closes = || tokio::time::sleep(Duration::from_secs(3));
        let (_, ended, said) = waited(60, closes, &[SAME]).await;
        assert_eq!((ended.as_secs(), said), (3, Ok(StatusCode::NOT_MODIFIED)));
    }
}
