//! How much of a request's body is read, and how fast.
//!
//! hyper reads ahead of the service, and goes on for as long as what it reads holds no data: it limits neither the
//! zeros before a chunk's size nor the blanks after it (RFC 9112, 7.1). So a body is limited where its bytes come in,
//! whether or not anybody reads it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes of a body may be read before any of its data is taken.
const AHEAD: usize = 8 * 1024;

/// The framing allowed on top of the data that is taken: 1/8 of it, enough for chunks of 64 bytes.
const FRAMING_PART: usize = 8;

/// How many bytes of a body are read at once. Parsing takes some 15 ns per byte, while others wait.
pub(super) const PART: usize = 512;

/// The value while no body is being read.
const NONE: usize = usize::MAX;

/// How many more bytes of the body may be read.
#[derive(Debug)]
pub(super) struct Intake(AtomicUsize);

// === impl Intake ===

impl Intake {
    /// The state while no body is being read.
    pub(super) fn none() -> Self {
        Self(AtomicUsize::new(NONE))
    }

    /// Notes that a body follows.
    pub(super) fn begin(&self) {
        self.0.store(AHEAD, Ordering::Relaxed);
    }

    /// Notes that `bytes` bytes of its data were taken, so as many more may come.
    pub(super) fn took(&self, bytes: usize) {
        let more = bytes + bytes / FRAMING_PART;
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Notes that it was read to its end.
    pub(super) fn end(&self) {
        self.0.store(NONE, Ordering::Relaxed);
    }

    /// Whether incoming bytes belong to a body.
    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) != NONE
    }

    /// Notes that `bytes` bytes came in; returns whether there was room for them.
    pub(super) fn read(&self, bytes: usize) -> bool {
        let room = self.0.load(Ordering::Relaxed);
        let left = room.checked_sub(bytes);
        self.0.store(left.unwrap_or(0), Ordering::Relaxed);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_come_as_fast_as_it_is_taken_with_an_eighth_of_framing() {
        let intake = Intake::none();
        assert!(!intake.is_on());
        intake.begin();
        assert!(intake.is_on());
        assert!(intake.read(AHEAD));
        assert!(!intake.read(1), "nobody has taken anything");
        intake.took(64);
        assert!(intake.read(72));
        assert!(!intake.read(1));
        intake.end();
        assert!(!intake.is_on());
    }
}
