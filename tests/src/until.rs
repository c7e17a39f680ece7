//! Waiting for a condition.

use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long whatever has no bound of its own may take before a test gives up on it: longer than anything does on a slow
/// and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so`, and fails the test, naming `what`, if that takes longer than [`PATIENCE`].
///
/// # Panics
///
/// If it takes longer.
pub async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is_so().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("it never came to this: {what}"));
}
