//! When a request is retried: only where the contract says that this helps, and only until its deadline.

use crate::error::ClientError;
use crate::protocol::Code;
use backon::{ExponentialBuilder, Retryable};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::time::Instant;

/// The first and the longest wait between two attempts, unless the agent asks for a longer one; up to as much is added
/// at random.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long to retry a socket on which nobody listens, or a connection that breaks, from the first such failure on.
/// Agents hand the socket over without a gap; one that is restarted without a successor is back in that time, or stays
/// away for a reason.
const SOCKET_PATIENCE: Duration = Duration::from_secs(3);

/// How long a request has to wait, all its waits together, before it is worth saying what for.
const WORTH_SAYING: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// Who is told that a request has to wait. Only the command has somebody to tell: in a program that uses the
    /// library, nobody reads stderr at that moment.
    static WAITING: fn(&ClientError);
}

/// Does the work, and tells once of each request that has to wait, with its latest failure.
#[cfg(any(test, feature = "cli"))]
pub(crate) async fn telling<T>(tell: fn(&ClientError), work: impl Future<Output = T>) -> T {
    WAITING.scope(tell, work).await
}

/// Makes a request until it succeeds, a retry is no use, or the deadline is too near for one.
pub(crate) async fn until<T, F>(
    deadline: Instant,
    request: impl FnMut() -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut broken = None;
    let began = Instant::now();
    let mut told = false;
    let waits = ExponentialBuilder::new()
        .with_min_delay(WAITS.0)
        .with_max_delay(WAITS.1)
        .with_jitter()
        .without_max_times();
    let mut last = None;
    let outcome = request
        .retry(waits)
        .when(|error| {
            let now = Instant::now();
            let since = if is_there(error) {
                broken = None;
                now
            } else {
                *broken.get_or_insert(now)
            };
            may_help(error, since)
        })
        .adjust(|error, wait| {
            last = error.refusal().cloned().or(last.take());
            let asked = error.refusal().and_then(|refusal| refusal.retry_after);
            let wait = asked.unwrap_or_default().max(wait?);
            let left = deadline.saturating_duration_since(Instant::now());
            if wait >= left {
                return None;
            }
            if !told && began.elapsed().saturating_add(wait) >= WORTH_SAYING {
                told = true;
                // Without anybody to tell, nothing is said.
                let _ = WAITING.try_with(|tell| tell(error));
            }
            Some(wait)
        })
        .await;
    match (outcome, last) {
        // An earlier refusal says more than that the last attempt had no time.
        (Err(ClientError::TimedOut), Some(refusal)) => Err(ClientError::Refused(refusal)),
        (outcome, _) => outcome,
    }
}

/// Whether an agent is behind the socket: it has answered, or its queue of connections is full.
fn is_there(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(_) => true,
        ClientError::Unreachable { reason, .. } => reason.kind() == ErrorKind::WouldBlock,
        _ => false,
    }
}

/// Whether a retry may help, if nobody has answered since `broken`. Every request of a client is a read, so it is safe
/// to repeat.
fn may_help(error: &ClientError, broken: Instant) -> bool {
    match error {
        ClientError::Refused(refusal) => match refusal.code {
            // Without a time to retry at, retrying is no use, as for a batch of more names than the pod's rate.
            Code::Unavailable | Code::Busy | Code::Throttled => refusal.retry_after.is_some(),
            _ => false,
        },
        ClientError::Interrupted(_) => broken.elapsed() < SOCKET_PATIENCE,
        ClientError::Unreachable { socket, reason } => match reason.kind() {
            ErrorKind::WouldBlock => true,
            ErrorKind::ConnectionRefused => broken.elapsed() < SOCKET_PATIENCE,
            // If the directory is not mounted, no socket will appear.
            ErrorKind::NotFound => {
                socket.parent().is_some_and(|directory| directory.is_dir())
                    && broken.elapsed() < SOCKET_PATIENCE
            }
            _ => false,
        },
        ClientError::TimedOut | ClientError::Unreadable(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusal;
    use std::cell::Cell;
    use std::io;

    fn refused(status: u16, code: Code, retry_after: Option<u64>) -> ClientError {
        let body = format!(r#"{{"error":"x","code":"{code}"}}"#);
        let retry_after = retry_after.map(Duration::from_secs);
        let refusal = Refusal::of(status, retry_after, body.as_bytes());
        ClientError::Refused(refusal.expect("a refusal"))
    }

    fn unreachable(kind: ErrorKind) -> ClientError {
        ClientError::Unreachable {
            socket: "/run/agent.sock".into(),
            reason: io::Error::from(kind),
        }
    }

    /// How often a request that always fails with this error is made in ten seconds, and how long that takes.
    async fn tries(error: impl Fn() -> ClientError) -> (usize, Duration) {
        let began = Instant::now();
        let count = Cell::new(0);
        let outcome = until(began + Duration::from_secs(10), async || {
            count.set(count.get() + 1);
            Err::<(), _>(error())
        })
        .await;
        assert_eq!(
            outcome.expect_err("it failed").to_string(),
            error().to_string()
        );
        (count.get(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_until_the_deadline_and_no_longer() {
        let (count, took) = tries(|| refused(503, Code::Unavailable, Some(1))).await;
        assert!(count > 5, "{count}");
        // The clock counts in milliseconds, and the last wait is rounded up.
        assert!(took <= Duration::from_secs(10), "{took:?}");
        let (count, _) = tries(|| refused(429, Code::Busy, Some(3))).await;
        assert_eq!(count, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_the_deadline_is_not_begun() {
        let (count, took) = tries(|| refused(429, Code::Throttled, Some(60))).await;
        assert_eq!((count, took), (1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_without_time_does_not_hide_what_was_said_before() {
        let count = Cell::new(0);
        let outcome = until(Instant::now() + Duration::from_secs(10), async || {
            count.set(count.get() + 1);
            Err::<(), _>(match count.get() {
                1 => refused(503, Code::Unavailable, Some(1)),
                _ => ClientError::TimedOut,
            })
        })
        .await;
        let error = outcome.expect_err("it failed");
        assert_eq!((count.get(), error.code()), (2, Some(Code::Unavailable)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_told_once_where_somebody_listens() {
        thread_local! {
            static TOLD: Cell<usize> = const { Cell::new(0) };
        }
        let tell = |_: &ClientError| TOLD.set(TOLD.get() + 1);
        telling(tell, tries(|| refused(503, Code::Unavailable, Some(1)))).await;
        assert_eq!(TOLD.get(), 1);
        telling(tell, tries(|| unreachable(ErrorKind::ConnectionRefused))).await;
        assert_eq!(TOLD.get(), 2);
        // Failures that pass at once, that are not waited for, and that nobody wants to hear of.
        let first = Cell::new(true);
        let soon = until(
            Instant::now() + Duration::from_secs(10),
            async || match first.replace(false) {
                true => Err(unreachable(ErrorKind::ConnectionRefused)),
                false => Ok(()),
            },
        );
        telling(tell, soon).await.expect("it is there again");
        telling(tell, tries(|| refused(429, Code::Throttled, Some(60)))).await;
        tries(|| refused(503, Code::Unavailable, Some(1))).await;
        assert_eq!(TOLD.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_is_asked_once() {
        for code in [Code::Denied, Code::NotFound, Code::Internal, Code::Timeout] {
            let (count, _) = tries(|| refused(code.status(), code, None)).await;
            assert_eq!(count, 1, "{code}");
        }
        assert_eq!(tries(|| refused(429, Code::Busy, None)).await.0, 1);
        // A locked key stays locked until somebody unlocks it.
        let (count, took) = tries(|| refused(503, Code::Unavailable, None)).await;
        assert_eq!((count, took), (1, Duration::ZERO));
        assert_eq!(
            tries(|| unreachable(ErrorKind::PermissionDenied)).await.0,
            1
        );
        assert_eq!(tries(|| ClientError::Unreadable(String::new())).await.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_socket_begins_when_it_breaks_and_ends_when_somebody_answers() {
        let began = Instant::now();
        let count = Cell::new(0);
        let outcome = until(began + Duration::from_secs(30), async || {
            count.set(count.get() + 1);
            match count.get() {
                // The vault took four seconds, and then the agent was killed.
                1 => {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    Err(ClientError::Interrupted(ErrorKind::BrokenPipe.into()))
                }
                2 => Err(unreachable(ErrorKind::ConnectionRefused)),
                // The next agent takes a while to become ready.
                3..10 => Err(refused(503, Code::Unavailable, Some(1))),
                10 => Err(unreachable(ErrorKind::ConnectionRefused)),
                _ => Ok(()),
            }
        })
        .await;
        outcome.expect("it is there again");
        assert_eq!(count.get(), 11);
        assert!(began.elapsed() > Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_socket_does_not_begin_with_a_refusal_before_it() {
        let count = Cell::new(0);
        let (began, broke) = (Instant::now(), Cell::new(None));
        let outcome = until(began + Duration::from_secs(60), async || {
            count.set(count.get() + 1);
            match count.get() {
                1 => Err::<(), _>(refused(503, Code::Unavailable, Some(1))),
                // The vault took longer than `SOCKET_PATIENCE`, and then the agent was killed.
                2 => {
                    tokio::time::sleep(SOCKET_PATIENCE + Duration::from_secs(1)).await;
                    broke.set(Some(Instant::now()));
                    Err(ClientError::Interrupted(ErrorKind::BrokenPipe.into()))
                }
                _ => Err(unreachable(ErrorKind::ConnectionRefused)),
            }
        })
        .await;
        outcome.expect_err("nobody came back");
        assert!(count.get() > 4, "{}", count.get());
        let took = broke.get().expect("it broke").elapsed();
        let long_enough = SOCKET_PATIENCE..SOCKET_PATIENCE + 2 * WAITS.1;
        assert!(long_enough.contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_socket_does_not_begin_while_its_queue_is_full() {
        let count = Cell::new(0);
        let began = Instant::now();
        let outcome = until(began + Duration::from_secs(30), async || {
            count.set(count.get() + 1);
            match count.get() {
                1..10 => Err(unreachable(ErrorKind::WouldBlock)),
                // The agent is replaced at last.
                10 => Err(unreachable(ErrorKind::ConnectionRefused)),
                _ => Ok(()),
            }
        })
        .await;
        outcome.expect("it is there again");
        assert!(began.elapsed() > SOCKET_PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_being_replaced_is_tried_again_for_a_short_time() {
        let (count, took) = tries(|| unreachable(ErrorKind::ConnectionRefused)).await;
        assert!(count > 3, "{count}");
        assert!(took < SOCKET_PATIENCE + 2 * WAITS.1, "{took:?}");
        // The directory is there, so the socket may come.
        let (count, _) = tries(|| unreachable(ErrorKind::NotFound)).await;
        assert!(count > 3, "{count}");
        let nowhere = || ClientError::Unreachable {
            socket: "/nowhere/at/all/agent.sock".into(),
            reason: io::Error::from(ErrorKind::NotFound),
        };
        assert_eq!(tries(nowhere).await.0, 1);
    }
}
