//! A request's id: in the answer, in the log, and in the audit lines of requests that shared its call to the vault.

use std::fmt;

/// `1f0c77aa-0000002a`: the run of the agent, and the request's number in it.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct RequestId {
    text: [u8; LONGEST],
    length: usize,
}

/// How many digits identify the run of the agent.
const RUN: usize = 8;

/// The minimum number of digits for the request's number.
const FEWEST: usize = 8;

/// The maximum number of digits for the request's number.
const MOST: usize = 16;

const LONGEST: usize = RUN + 1 + MOST;

// === impl RequestId ===

impl RequestId {
    /// Returns the id of the request with this number in the run of the agent that `boot_id` names.
    pub(crate) fn new(boot_id: &str, number: u64) -> Self {
        let digits = MOST - (number.leading_zeros() / 4) as usize;
        let digits = digits.max(FEWEST);
        let mut text = [b'0'; LONGEST];
        for (place, digit) in text.iter_mut().zip(boot_id.bytes().take(RUN)) {
            *place = digit;
        }
        text[RUN] = b'-';
        let mut rest = number;
        for place in text[RUN + 1..][..digits].iter_mut().rev() {
            *place = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
        }
        Self {
            text,
            length: RUN + 1 + digits,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_run_and_the_number_in_eight_digits_or_more() {
        for number in [0, 1, 0x2a, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            let id = RequestId::new("1f0c77aa-1111-4111-8111-111111111111", number);
            assert_eq!(id.as_str(), format!("1f0c77aa-{number:08x}"));
        }
    }
}
