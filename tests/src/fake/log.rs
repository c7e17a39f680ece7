//! The log of every call, as a cloud's own audit trail would have it, for tests to count and inspect.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

/// How many calls are remembered.
const KEPT: usize = 100_000;

/// The calls so far; the oldest are forgotten when there are too many.
#[derive(Debug)]
pub(super) struct CallLog<T> {
    calls: Mutex<VecDeque<T>>,
    echo: bool,
    total: watch::Sender<u64>,
}

impl<T: Clone + Serialize> CallLog<T> {
    pub(super) fn new(echo: bool) -> Self {
        Self {
            calls: Mutex::default(),
            echo,
            total: watch::Sender::new(0),
        }
    }

    pub(super) fn push(&self, call: T) {
        if self.echo
            && let Ok(line) = serde_json::to_string(&call)
        {
            // If nobody reads the log any more, the calls are still kept.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        let mut calls = self.lock();
        if calls.len() >= KEPT {
            calls.pop_front();
        }
        calls.push_back(call);
        drop(calls);
        self.total.send_modify(|total| *total += 1);
    }

    pub(super) fn matching(&self, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        self.lock()
            .iter()
            .filter(|call| wanted(call))
            .cloned()
            .collect()
    }

    pub(super) fn count(&self, wanted: impl Fn(&T) -> bool) -> usize {
        self.lock().iter().filter(|call| wanted(call)).count()
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Changes with every call.
    pub(super) fn total(&self) -> watch::Receiver<u64> {
        self.total.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
