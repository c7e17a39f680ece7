//! The objects, and each change to them: a small etcd with snapshots, history and compaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// The least number of changes kept; like a real watch cache, it does not know older ones.
const HISTORY: usize = 4096;

/// The kinds of object in the fake.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Namespace,
    Node,
    Pod,
    ServiceAccount,
}

/// An object's key: its kind, its namespace (empty for a namespace and a node) and its name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

/// One step of the history.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) key: Key,
    /// The object before the change; `None` if that created it.
    pub(super) before: Option<Arc<Value>>,
    /// The object after the change; for a deletion the deleted object, at the deletion's revision.
    pub(super) object: Arc<Value>,
    pub(super) deleted: bool,
    /// Whether no watch sees it.
    pub(super) unseen: bool,
    /// When watches see it.
    pub(super) due: Instant,
}

#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    compacted: u64,
    objects: Objects,
    history: Vec<Change>,
    /// The revision up to which the history itself has been dropped.
    forgotten: u64,
    /// How long after a change its watch event is due.
    pub(super) event_delay: Duration,
}

/// The error that a revision is from before the last compaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compacted;

impl Kind {
    /// The plural in URLs and in RBAC.
    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::ServiceAccount => "serviceaccounts",
        }
    }

    /// The `kind` of one such object.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ServiceAccount => "ServiceAccount",
        }
    }

    /// Whether such an object is in a namespace.
    pub(super) fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    pub(super) fn of_resource(resource: &str) -> Option<Self> {
        [Self::Namespace, Self::Node, Self::Pod, Self::ServiceAccount]
            .into_iter()
            .find(|kind| kind.resource() == resource)
    }
}

impl Key {
    pub(super) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        // A real cluster is never at revision 1 when the first client comes.
        Self {
            revision: 1000,
            compacted: 0,
            objects: Objects::new(),
            history: Vec::new(),
            forgotten: 0,
            event_delay: Duration::ZERO,
        }
    }
}

impl Store {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Whether a watch that is at `revision` has missed changes that are no longer kept.
    pub(super) fn has_forgotten(&self, revision: u64) -> bool {
        revision < self.forgotten
    }

    pub(super) fn object(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Creates or replaces an object, at a new revision.
    pub(super) fn put(&mut self, key: Key, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), Arc::clone(&object));
        self.record(key, before, object, false, false);
    }

    /// Removes an object; if `unseen`, its event is lost.
    pub(super) fn remove(&mut self, key: &Key, unseen: bool) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut last = Value::clone(&before);
        last["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.record(
            key.clone(),
            Some(Arc::clone(&before)),
            Arc::new(last),
            true,
            unseen,
        );
        Some(before)
    }

    /// Forgets the past: requests for revisions before now get "gone".
    pub(super) fn compact(&mut self) {
        // An empty change first, so that even the newest revision that anyone can have seen is old.
        self.revision += 1;
        self.compacted = self.revision;
    }

    /// The objects as they were at `revision`.
    pub(super) fn snapshot(&self, revision: u64) -> Result<Objects, Compacted> {
        if revision < self.compacted {
            return Err(Compacted);
        }
        Ok(self.rewound(revision))
    }

    /// The objects as they were at `revision`, compacted or not: a cache remembers what the store has forgotten.
    pub(super) fn rewound(&self, revision: u64) -> Objects {
        let mut objects = self.objects.clone();
        for change in self
            .history
            .iter()
            .rev()
            .take_while(|change| change.revision > revision)
        {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    /// The first change after `revision`.
    pub(super) fn next_change(&self, revision: u64) -> Option<&Change> {
        let index = self
            .history
            .partition_point(|change| change.revision <= revision);
        self.history.get(index)
    }

    fn record(
        &mut self,
        key: Key,
        before: Option<Arc<Value>>,
        object: Arc<Value>,
        deleted: bool,
        unseen: bool,
    ) {
        let (revision, due) = (self.revision, Instant::now() + self.event_delay);
        self.history.push(Change {
            revision,
            key,
            before,
            object,
            deleted,
            unseen,
            due,
        });
        if self.history.len() >= 2 * HISTORY {
            let mut dropped = self.history.drain(..HISTORY);
            self.forgotten = dropped
                .next_back()
                .map_or(self.forgotten, |change| change.revision);
            self.compacted = self.compacted.max(self.forgotten);
        }
    }
}
