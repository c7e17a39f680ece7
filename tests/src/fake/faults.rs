//! Faults that are in force until a test is done with them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A fault of some calls of one cloud.
pub trait Matches: Clone {
    /// What the cloud knows of a call.
    type Call;

    /// Whether it affects that call.
    fn matches(&self, call: &Self::Call) -> bool;

    /// How many more calls it affects; `None`: all until it is cleared.
    fn times(&mut self) -> &mut Option<u32>;
}

/// The faults in force.
#[derive(Debug)]
pub(crate) struct Faults<F> {
    active: Mutex<Vec<(u64, F)>>,
    next_id: AtomicU64,
    /// The length of `active`, so that calls of a fake without faults take no lock.
    count: AtomicUsize,
}

/// A fault that is in force until it is cleared or this is dropped.
#[must_use = "the fault is cleared when this is dropped"]
#[derive(Debug)]
pub struct FaultGuard<F: Matches> {
    faults: Arc<Faults<F>>,
    id: u64,
    kept: bool,
}

impl<F: Matches> FaultGuard<F> {
    /// Leaves the fault in force for as long as the fake lives.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl<F: Matches> Drop for FaultGuard<F> {
    fn drop(&mut self) {
        if !self.kept {
            self.faults
                .change(|active| active.retain(|(id, _)| *id != self.id));
        }
    }
}

impl<F> Default for Faults<F> {
    fn default() -> Self {
        Self {
            active: Mutex::default(),
            next_id: AtomicU64::default(),
            count: AtomicUsize::default(),
        }
    }
}

impl<F: Matches> Faults<F> {
    pub(crate) fn add(self: &Arc<Self>, fault: F) -> FaultGuard<F> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.change(|active| active.push((id, fault)));
        FaultGuard {
            faults: Arc::clone(self),
            id,
            kept: false,
        }
    }

    /// The fault that affects this call, if any; counts it against the fault's times.
    pub(crate) fn strike(&self, call: &F::Call) -> Option<F> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut struck = None;
        self.change(|active| {
            // The latest fault wins, so that a test can put a special one on top of a general one.
            let Some(at) = active.iter().rposition(|(_, fault)| fault.matches(call)) else {
                return;
            };
            let fault = &mut active[at].1;
            struck = Some(fault.clone());
            if let Some(times) = fault.times() {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    active.remove(at);
                }
            }
        });
        struck
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(u64, F)>)) {
        let mut active: MutexGuard<'_, _> =
            self.active.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut active);
        self.count.store(active.len(), Ordering::Release);
    }
}
