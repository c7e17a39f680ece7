//! A barrier for calls.

use std::sync::Arc;

use tokio::sync::watch;

/// A barrier at which calls wait until a test lets them go on.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
            waiting: Arc::default(),
        }
    }

    /// Lets all waiting calls, and all later ones, go on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Makes later calls wait again.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Waits until at least `calls` calls have come to the gate since it was made.
    pub async fn reached(&self, calls: usize) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self
            .waiting
            .subscribe()
            .wait_for(|waiting| *waiting >= calls)
            .await;
    }

    pub(crate) async fn pass(&self) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}
