//! Waiting for a condition.

use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `is_so`, and fails the test, naming `what`, if that takes more than 20 s.
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
