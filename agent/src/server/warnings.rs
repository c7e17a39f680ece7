//! What has been warned about lately: neither peers that connect nor a cloud that is away may fill the log.

use crate::attest::cgroup::PodUid;
use crate::backend::BackendId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long the same warning is not repeated; the metrics count every occurrence.
const QUIET: Duration = Duration::from_secs(60);

/// Reasons, and what each is about if that is known, with the time of the last warning.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Mutex<HashMap<(&'static str, Option<About>), Instant>>);

/// What a warning is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum About {
    Backend(BackendId),
    Pod(PodUid),
}

// === impl Warnings ===

impl Warnings {
    /// Whether it is time to warn about this.
    pub(crate) fn is_due(&self, reason: &'static str, about: Option<About>) -> bool {
        let mut said = self.0.lock();
        let now = Instant::now();
        let last = said.get(&(reason, about));
        if last.is_some_and(|at| now < *at + QUIET) {
            return false;
        }
        said.retain(|_, at| now < *at + QUIET);
        said.insert((reason, about), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_a_minute_and_nothing_else_is_kept_from_being_said() {
        let warnings = Warnings::default();
        let pod = |last| {
            let uid = format!("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f{last}");
            Some(About::Pod(uid.parse().expect("a UID")))
        };
        assert!(warnings.is_due("nested_pod", pod(0)));
        assert!(!warnings.is_due("nested_pod", pod(0)));
        assert!(warnings.is_due("nested_pod", pod(1)));
        assert!(warnings.is_due("recycled_pid", None));
        advance(QUIET).await;
        assert!(warnings.is_due("nested_pod", pod(0)));
        assert!(!warnings.is_due("nested_pod", pod(0)));
        let said = warnings.0.lock().len();
        assert_eq!(said, 1, "what is long past is forgotten");
    }
}
