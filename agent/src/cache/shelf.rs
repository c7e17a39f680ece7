//! Values kept for a limited time and within limits in bytes, one for each pod and one for all pods of the node. Over a
//! limit, the pod's own oldest reads are dropped first.

use super::ReadKey;
use crate::backend::Secret;
use crate::role::Role;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::Instant;

/// What an entry costs in addition to its value, in bytes: key, bookkeeping and its places in both maps, rounded up.
pub(super) const ENTRY_COST: usize = 512;

/// All pods of the node together may keep this many times what one pod may; beyond that, a pod still has [`OWN_ROOM`].
const PODS_WITH_ALL: usize = 4;

/// What each pod may keep whatever the others do, in bytes: dozens of short values, or one of up to 32 KiB, which is
/// kept together with its answer.
pub(super) const OWN_ROOM: usize = 64 << 10;

/// How many bytes all pods of the node keep.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodesValues(Arc<AtomicUsize>);

/// The values of one pod. A dropped value is wiped when its last reader drops it too.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    by_key: HashMap<Arc<ReadKey>, Kept>,
    by_age: BTreeMap<Age, Arc<ReadKey>>,
    bytes: usize,
    /// How many bytes it may have.
    limit: usize,
    /// The bytes of all pods, including this one's.
    all: NodesValues,
    /// Distinguishes values that were read at the same time.
    next: u64,
    /// When a role was last refused: a value from a read that began before is not kept.
    refused: Option<Instant>,
}

type Age = (Instant, u64);

#[derive(Debug)]
struct Kept {
    secret: Arc<Secret>,
    age: Age,
    bytes: usize,
}

// === impl Shelf ===

impl Shelf {
    /// Creates an empty one for `limit` bytes, on a node whose pods together keep `all`.
    pub(super) fn new(limit: usize, all: NodesValues) -> Self {
        let mut shelf = Self::default();
        shelf.limit = limit;
        shelf.all = all;
        shelf
    }

    /// Returns the value for `key`, and when it was read.
    pub(super) fn get(&self, key: &ReadKey) -> Option<(&Arc<Secret>, Instant)> {
        let kept = self.by_key.get(key)?;
        Some((&kept.secret, kept.age.0))
    }

    /// Keeps a value that was read at `read_at`, unless a role was refused since, or there is no room.
    pub(super) fn put(&mut self, key: &ReadKey, secret: &Arc<Secret>, read_at: Instant) {
        self.remove(key);
        if self.refused.is_some_and(|refused| read_at <= refused) {
            return;
        }
        let bytes = ENTRY_COST + 2 * key.name.as_str().len() + secret.footprint();
        // Nothing is dropped for a value that could not stay either.
        if !self.could_hold(bytes) {
            return;
        }
        let (key, age) = (Arc::new(key.clone()), (read_at, self.next));
        self.next += 1;
        self.grow(bytes);
        self.by_age.insert(age, key.clone());
        let secret = secret.clone();
        self.by_key.insert(key, Kept { secret, age, bytes });
        while !self.could_hold(self.bytes) {
            self.remove_oldest();
        }
    }

    /// Drops the value for `key`.
    pub(super) fn remove(&mut self, key: &ReadKey) {
        if let Some(kept) = self.by_key.remove(key) {
            self.by_age.remove(&kept.age);
            self.shrink(kept.bytes);
        }
    }

    /// Drops the values that were read before `since`.
    pub(super) fn expire(&mut self, since: Instant) {
        while self
            .by_age
            .first_key_value()
            .is_some_and(|(age, _)| age.0 < since)
        {
            self.remove_oldest();
        }
    }

    /// Drops the values that were read as `role`, wherever that was, and keeps none that are being read now.
    pub(super) fn refuse(&mut self, role: &Role, now: Instant) {
        let refused: Vec<_> = self
            .by_key
            .keys()
            .filter(|key| key.session.role.is_same_to_cloud(role))
            .cloned()
            .collect();
        for key in refused {
            self.remove(&key);
        }
        self.refused = Some(now);
    }

    /// Returns how many values there are, and their bytes.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        assert_eq!(self.by_key.len(), self.by_age.len());
        (self.by_key.len(), self.bytes)
    }

    fn remove_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_first()
            && let Some(kept) = self.by_key.remove(&*key)
        {
            self.shrink(kept.bytes);
        }
    }

    /// Whether there is room for this many bytes in place of everything that is here.
    fn could_hold(&self, bytes: usize) -> bool {
        let others = self
            .all
            .0
            .load(Ordering::Relaxed)
            .saturating_sub(self.bytes);
        let of_node = self.limit.saturating_mul(PODS_WITH_ALL);
        bytes <= self.limit && (bytes <= OWN_ROOM || others + bytes <= of_node)
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrink(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}
