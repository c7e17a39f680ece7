//! Counts of each kind, kept while what is counted is held.

use parking_lot::Mutex;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Counts of each kind; most kinds have none.
#[derive(Debug)]
pub(super) struct Tally<K>(Mutex<HashMap<K, usize>>);

/// One that counts until it is dropped.
#[derive(Debug)]
pub(super) struct Tallied<K: Eq + Hash> {
    tally: Arc<Tally<K>>,
    pub(super) kind: K,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Tally<K> {
    /// Counts one more of `kind`.
    pub(super) fn enter(self: &Arc<Self>, kind: K) -> Tallied<K> {
        *self.0.lock().entry(kind.clone()).or_default() += 1;
        Tallied {
            tally: self.clone(),
            kind,
        }
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// How many of `kind` there are.
    pub(super) fn count<Q: Eq + Hash + ?Sized>(&self, kind: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.0.lock().get(kind).copied().unwrap_or_default()
    }
}

impl<K: Eq + Hash> Drop for Tallied<K> {
    fn drop(&mut self) {
        let mut counts = self.tally.0.lock();
        if let Some(count) = counts.get_mut(&self.kind) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_among_its_kind_until_it_is_dropped_and_of_none_nothing_is_kept() {
        let tally = Arc::new(Tally::default());
        let (one, two, other) = (tally.enter("a"), tally.enter("a"), tally.enter("b"));
        assert_eq!(["a", "b", "c"].map(|kind| tally.count(kind)), [2, 1, 0]);
        drop((one, other));
        assert_eq!(["a", "b"].map(|kind| tally.count(kind)), [1, 0]);
        drop(two);
        assert!(tally.0.lock().is_empty());
    }
}
