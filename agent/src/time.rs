//! The wall clock, which only this module reads.
//!
//! Waiting, ages and deadlines use tokio's clock, which tests can pause and nobody can set back.

use jiff::Timestamp;
use std::time::SystemTime;

/// The wall clock's time.
pub(crate) fn now() -> Timestamp {
    // A clock beyond the year 9999 is as good as none.
    Timestamp::try_from(system_now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The wall clock's time, in the standard library's type.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the wall clock"
)]
pub(crate) fn system_now() -> SystemTime {
    SystemTime::now()
}

/// The wall clock's time in RFC 3339 format, in UTC and to the microsecond, such as `2026-11-23T23:51:00.123456Z`.
pub(crate) fn now_rfc3339() -> String {
    rfc3339(now())
}

fn rfc3339(time: Timestamp) -> String {
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_to_the_microsecond() {
        let time = "2026-11-24T01:02:03.000456789+01:00"
            .parse()
            .expect("a time");
        assert_eq!(rfc3339(time), "2026-11-24T00:02:03.000456Z");
    }

    #[test]
    fn now_lies_between_the_times_before_and_after() {
        let before = now();
        let text = now_rfc3339();
        let written: Timestamp = text.parse().expect("RFC 3339");
        assert!(before.as_microsecond() <= written.as_microsecond());
        assert!(written <= now());
    }
}
