//! The wall clock, which only this module reads.
//!
//! Waiting, ages and deadlines use tokio's clock, which tests can pause and nobody can set back.

use std::{cell::Cell, fmt, time::SystemTime};

use jiff::Timestamp;

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

/// The wall clock's time in RFC 3339 format, in UTC and to the microsecond.
///
/// Every audited request needs one, so the text for the current second is kept between calls.
pub(crate) fn now_rfc3339() -> Rfc3339 {
    Rfc3339::of(now())
}

/// `2026-11-23T23:51:00.123456Z`, without an allocation.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Rfc3339([u8; LENGTH]);

/// The length of the text, in bytes.
const LENGTH: usize = 27;

/// Where the microseconds are in the text.
const MICROSECONDS: std::ops::Range<usize> = 20..26;

// === impl Rfc3339 ===

impl Rfc3339 {
    fn of(time: Timestamp) -> Self {
        thread_local! {
            static LAST: Cell<(i64, [u8; LENGTH])> =
                const { Cell::new((0, *b"1970-01-01T00:00:00.000000Z")) };
        }
        // Rounds toward the past, so that the fraction counts forward before 1970 too.
        let nanosecond = time.as_nanosecond();
        let second = i64::try_from(nanosecond.div_euclid(1_000_000_000)).unwrap_or_default();
        let mut microsecond = nanosecond.rem_euclid(1_000_000_000) / 1000;
        let (last, mut text) = LAST.get();
        if second != last {
            let whole = Timestamp::from_second(second).unwrap_or_default();
            let written = format!("{whole:.6}");
            // jiff has no years of more than four digits, but it has years before 0.
            text = written
                .as_bytes()
                .try_into()
                .unwrap_or(*b"0000-01-01T00:00:00.000000Z");
            LAST.set((second, text));
        }
        for digit in text[MICROSECONDS].iter_mut().rev() {
            *digit = b"0123456789"[usize::try_from(microsecond % 10).unwrap_or_default()];
            microsecond /= 10;
        }
        Self(text)
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_time_is_written_in_utc_to_the_microsecond() {
        let time = "2026-11-24T01:02:03.000456789+01:00"
            .parse()
            .expect("a time");
        assert_eq!(Rfc3339::of(time).as_str(), "2026-11-24T00:02:03.000456Z");
    }

    #[test]
    fn the_text_of_one_second_does_not_stay_for_the_next() {
        let texts = [
            "2026-11-24T00:00:00.9Z",
            "2026-11-24T00:00:01Z",
            "2026-11-24T00:00:00.1Z",
        ]
        .map(|text| Rfc3339::of(text.parse().expect("a time")));
        let expected = ["00.900000Z", "01.000000Z", "00.100000Z"];
        for (text, end) in texts.iter().zip(expected) {
            assert_eq!(text.as_str(), format!("2026-11-24T00:00:{end}"));
        }
    }

    #[test]
    fn now_lies_between_the_times_before_and_after() {
        let before = now();
        let text = now_rfc3339();
        let written: Timestamp = text.as_str().parse().expect("RFC 3339");
        assert!(before.as_microsecond() <= written.as_microsecond());
        assert!(written <= now());
    }

    proptest! {
        #[test]
        fn every_time_of_four_digit_years_is_what_jiff_writes(
            microsecond in -62_167_219_200_000_000_i64..253_402_207_200_000_000,
        ) {
            let time = Timestamp::from_microsecond(microsecond).expect("in range");
            let text = Rfc3339::of(time);
            prop_assert_eq!(text.as_str(), format!("{time:.6}"));
        }
    }
}
