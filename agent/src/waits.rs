//! How long to wait before the next attempt or look: each time twice as long as before.

use std::time::Duration;

/// Waits that begin with `next` and never get longer than `longest`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    pub(crate) next: Duration,
    pub(crate) longest: Duration,
}

impl Waits {
    /// Returns how long to wait now, and doubles the next wait.
    pub(crate) fn take(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_the_longest() {
        let mut waits = Waits {
            next: Duration::from_millis(2),
            longest: Duration::from_millis(7),
        };
        let taken = [(); 4].map(|()| waits.take().as_millis());
        assert_eq!(taken, [2, 4, 7, 7]);
    }
}
