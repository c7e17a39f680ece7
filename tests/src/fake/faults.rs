//! Faults that are in force until a test is done with them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Attempt, Behaviour, Fault, Special};

/// The faults in force.
#[derive(Debug)]
pub(super) struct Faults<C: Attempt, S> {
    active: Mutex<Vec<(u64, Fault<C, S>)>>,
    next_id: AtomicU64,
    /// The length of `active`, so that calls of a fake without faults take no lock.
    count: AtomicUsize,
}

/// A fault that is in force until this is dropped.
#[must_use = "the fault ends when this is dropped"]
#[derive(Debug)]
pub struct FaultGuard<C: Attempt, S: Special> {
    faults: Arc<Faults<C, S>>,
    id: u64,
}

impl<C: Attempt, S: Special> Drop for FaultGuard<C, S> {
    fn drop(&mut self) {
        self.faults
            .change(|active| active.retain(|(id, _)| *id != self.id));
    }
}

impl<C: Attempt, S> Default for Faults<C, S> {
    fn default() -> Self {
        Self {
            active: Mutex::default(),
            next_id: AtomicU64::default(),
            count: AtomicUsize::default(),
        }
    }
}

impl<C: Attempt, S: Special> Faults<C, S> {
    pub(super) fn add(self: &Arc<Self>, fault: Fault<C, S>) -> FaultGuard<C, S> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.change(|active| active.push((id, fault)));
        FaultGuard {
            faults: Arc::clone(self),
            id,
        }
    }

    /// What goes wrong with this call, if anything; counts it against the fault's times.
    pub(super) fn strike(&self, call: &C) -> Option<Behaviour<S>> {
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
            struck = Some(fault.behaviour.clone());
            if let Some(times) = &mut fault.times {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    active.remove(at);
                }
            }
        });
        struck
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(u64, Fault<C, S>)>)) {
        let mut active: MutexGuard<'_, _> =
            self.active.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut active);
        self.count.store(active.len(), Ordering::Release);
    }
}
