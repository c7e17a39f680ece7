//! This node's pods by UID, as the API server last reported them.
//!
//! A [`Pod`] owns everything that is done on its behalf: quota, sessions, reads in flight, cached values. Deleting it
//! is one drop, and no key spans pods, so none can be got wrong. Pods are known by UID only: a name can be reused for
//! another pod, a UID cannot.

mod facts;
mod listed;

pub(crate) use facts::{ContainerKind, Facts};
pub(crate) use listed::Listed;

use super::cgroup::PodUid;
use crate::account::Principal;
use crate::cache::{NodesValues, Values};
use crate::config;
use crate::error::chain;
use crate::quota::{Quota, Shared};
use crate::session::Sessions;
use crate::token::KubeletTokens;
use crate::waits::Waits;
use futures::StreamExt;
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, SetOnce};
use tokio::time::{Instant, sleep, timeout};

/// The timeout of a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the server lets one watch run, in seconds. A dead connection is noticed a few seconds after that: a shorter
/// watch means fewer minutes on stale data, and resuming a watch costs little.
pub(crate) const WATCH_SECONDS: u32 = 120;

/// The waits after a failed watch.
const RETRY_WAITS: Waits = Waits {
    next: Duration::from_millis(200),
    longest: Duration::from_secs(3),
};

/// How many pods are read at a time when a watch begins. One can be well over a megabyte (annotations, environment), and
/// a page is in memory twice while it is read.
const PAGE: u32 = 20;

/// One pod of this node, and all that is done on its behalf. Outside of Kubernetes, a principal has such an entry too.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Absent outside of Kubernetes.
    pub(crate) uid: Option<PodUid>,
    facts: RwLock<Arc<Facts>>,
    /// The `resourceVersion` of the facts.
    version: AtomicU64,
    /// Whether a look brought them, which may be ahead of the watch.
    looked_up: AtomicBool,
    gone: AtomicBool,
    since: Instant,
    /// The pod's service account, which the API server lets nobody change.
    pub(crate) principal: OnceLock<Arc<Principal>>,
    pub(crate) quota: Quota,
    pub(crate) sessions: Sessions,
    pub(crate) values: Values,
    /// What the kubelet has delivered by CSI.
    pub(crate) tokens: KubeletTokens,
}

/// The settings for every new pod entry.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) limits: config::Limits,
    pub(crate) cache: Arc<config::Cache>,
    pub(crate) shared: Shared,
    pub(crate) values: NodesValues,
}

/// The pods of this node. Lock order: `by_uid`, then `deleted`.
#[derive(Debug)]
pub(crate) struct Pods {
    api: Api<Listed>,
    selector: String,
    settings: Settings,
    by_uid: RwLock<HashMap<PodUid, Arc<Pod>>>,
    /// The recently deleted pods: a look of the agent's own that is under way may still name them.
    deleted: Mutex<HashMap<PodUid, Instant>>,
    changed: Notify,
    synced: SetOnce<()>,
    looks: Looks,
    /// Lists and watches that failed.
    failures: IntCounter,
}

/// Who reported a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    /// A look of the agent's own, which may be older than what the watch has reported meanwhile.
    Look,
    /// The watch, which reports in order, but late.
    Watch,
    /// The list that a watch begins with: how things are, whatever the version numbers say. After a restored backup
    /// these are lower.
    List,
}

/// Counts the looks, so that every caller gets one that began after its call, with no more looks than that takes.
#[derive(Debug, Default)]
struct Looks {
    begun: AtomicU64,
    last: tokio::sync::Mutex<(u64, Option<Listing>)>,
}

/// The pods that a complete list named.
type Listing = Arc<HashSet<PodUid>>;

/// A look failed: the API server gave no usable answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the API server cannot be asked")]
pub(crate) struct LookError;

// === impl Pod ===

impl Pod {
    /// An entry on whose behalf nothing has been done yet.
    pub(crate) fn new(uid: Option<PodUid>, facts: Facts, settings: &Settings) -> Self {
        Self {
            uid,
            facts: RwLock::new(Arc::new(facts)),
            version: AtomicU64::new(0),
            looked_up: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            since: Instant::now(),
            principal: OnceLock::new(),
            quota: Quota::new(&settings.limits, &settings.shared),
            sessions: Sessions::default(),
            values: Values::new(settings.cache.clone(), &settings.values),
            tokens: KubeletTokens::default(),
        }
    }

    /// What the API server last said.
    pub(crate) fn facts(&self) -> Arc<Facts> {
        self.facts.read().clone()
    }

    /// Whether `facts` are what the API server said last.
    pub(crate) fn is_told(&self, facts: &Arc<Facts>) -> bool {
        let told = self.facts.read();
        Arc::ptr_eq(&told, facts)
    }

    /// Whether this entry has been dropped, as when its pod no longer exists.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn learn(&self, facts: Facts) {
        let mut current = self.facts.write();
        // The same facts again are no change: a status update must not make every connection attest again.
        if **current != facts {
            *current = Arc::new(facts);
        }
    }
}

// === impl Pods ===

impl Pods {
    /// The pods of `node`, none known yet. Each list or watch that fails is counted in `failures`.
    pub(crate) fn new(
        client: kube::Client,
        node: &str,
        settings: Settings,
        failures: IntCounter,
    ) -> Self {
        Self {
            api: Api::all(client),
            selector: format!("spec.nodeName={node}"),
            settings,
            by_uid: RwLock::default(),
            deleted: Mutex::default(),
            changed: Notify::new(),
            synced: SetOnce::new(),
            looks: Looks::default(),
            failures,
        }
    }

    /// The pod with that UID, if it is known.
    pub(crate) fn by_uid(&self, uid: PodUid) -> Option<Arc<Pod>> {
        self.by_uid.read().get(&uid).cloned()
    }

    /// Every known pod.
    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.by_uid.read().values().cloned().collect()
    }

    /// Whether the first list is complete.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced.initialized()
    }

    /// Resolves when the first list is complete.
    pub(crate) async fn synced(&self) {
        self.synced.wait().await;
    }

    /// Resolves at the next change after the call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Lists this node's pods in a list that begins after the call, adds those that the watch has not reported yet, and
    /// returns which pods the list named. All callers that come while a list is under way share the next one.
    ///
    /// # Errors
    ///
    /// If the API server did not give such a list.
    pub(crate) async fn look(&self) -> Result<Listing, LookError> {
        let before = self.looks.begun.load(Ordering::SeqCst);
        let mut last = self.looks.last.lock().await;
        if last.0 <= before {
            let number = self.looks.begun.fetch_add(1, Ordering::SeqCst) + 1;
            let parameters = ListParams::default().fields(&self.selector);
            let answer = timeout(LOOK_TIMEOUT, self.api.list(&parameters)).await;
            let found = match answer {
                Ok(Ok(list)) => {
                    let pods = list.items.into_iter();
                    let named = pods.filter_map(|pod| self.learn(pod, Source::Look));
                    let named = Arc::new(named.collect());
                    self.changed.notify_waiters();
                    Some(named)
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "cannot list this node's pods");
                    None
                }
                Err(_) => {
                    tracing::warn!("the API server does not answer a list of this node's pods");
                    None
                }
            };
            if found.is_none() {
                self.failures.inc();
            }
            *last = (number, found);
        }
        last.1.clone().ok_or(LookError)
    }

    /// The pod with this UID: as known, or as the API server now reports it under its name. The kubelet tells the agent
    /// before the pod's containers start, so that none of them waits for the watch.
    ///
    /// # Errors
    ///
    /// If the API server did not answer.
    pub(crate) async fn know(
        &self,
        uid: PodUid,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Pod>>, LookError> {
        if let Some(pod) = self.by_uid(uid) {
            return Ok(Some(pod));
        }
        let api = Api::<Listed>::namespaced(self.api.clone().into_client(), namespace);
        match timeout(LOOK_TIMEOUT, api.get_opt(name)).await {
            Ok(Ok(Some(pod))) if uid_of(&pod) == Some(uid) => {
                self.learn(pod, Source::Look);
                self.changed.notify_waiters();
                Ok(self.by_uid(uid))
            }
            // There is no pod of that name, or it is another pod by now.
            Ok(Ok(_)) => Ok(None),
            Ok(Err(error)) => {
                tracing::warn!(
                    error = chain(&error),
                    namespace,
                    name,
                    "cannot look at a pod"
                );
                Err(LookError)
            }
            Err(_) => Err(LookError),
        }
    }

    /// Follows the API server until the task is dropped. While the server is away, the pods stay as last reported.
    pub(crate) async fn follow(&self) {
        let mut waits = RETRY_WAITS;
        let mut failed = false;
        loop {
            let began = Instant::now();
            self.follow_until_gone(&mut failed).await;
            if began.elapsed() > RETRY_WAITS.longest {
                waits = RETRY_WAITS;
            }
            // Not at once: a server that forgets each version once sent would get requests without end.
            sleep(waits.take()).await;
        }
    }

    /// Follows until the server answers a watch's start with 410 Gone, and does not wait then. The watcher itself would
    /// request the same, forgotten version again and again; a new watcher begins with a list. `failed` is whether
    /// nothing was reported since a failure; a watch that has begun again shows only with its first report.
    async fn follow_until_gone(&self, failed: &mut bool) {
        let config = watcher::Config::default()
            .fields(&self.selector)
            .timeout(WATCH_SECONDS)
            .page_size(PAGE);
        let mut events = std::pin::pin!(watcher(self.api.clone(), config));
        let mut listed = HashSet::new();
        let mut listing_since = Instant::now();
        let mut waits = RETRY_WAITS;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    match event {
                        // Comes before the list is requested: the server has said nothing yet.
                        Event::Init => {
                            listed.clear();
                            listing_since = Instant::now();
                            continue;
                        }
                        Event::InitApply(pod) => listed.extend(self.learn(pod, Source::List)),
                        Event::InitDone => {
                            let doubted = self.keep(&listed, listing_since);
                            let _again = self.synced.set(());
                            self.confirm(doubted).await;
                        }
                        Event::Apply(pod) => {
                            self.learn(pod, Source::Watch);
                        }
                        Event::Delete(pod) => self.forget(&pod),
                    }
                    waits = RETRY_WAITS;
                    if std::mem::take(failed) {
                        tracing::info!("the API server reports this node's pods again");
                    }
                    self.changed.notify_waiters();
                }
                Err(error) => {
                    *failed = true;
                    self.failures.inc();
                    tracing::warn!(
                        error = chain(&error),
                        "the watch of this node's pods failed; trying again"
                    );
                    if is_gone(&error) {
                        return;
                    }
                    sleep(waits.take()).await;
                }
            }
        }
    }

    fn learn(&self, pod: Listed, source: Source) -> Option<PodUid> {
        let version = pod.metadata.resource_version.as_ref();
        let version = version.and_then(|text| text.parse().ok()).unwrap_or(0);
        let (uid, facts) = Facts::of(pod)?;
        let mut by_uid = self.by_uid.write();
        let known = by_uid.get(&uid);
        let is_overtaken = match source {
            // What the watch has reported since is newer.
            Source::Look => {
                self.deleted.lock().contains_key(&uid)
                    || known.is_some_and(|pod| version <= pod.version.load(Ordering::Relaxed))
            }
            // It has still to come to what a look has seen, such as a first ephemeral container.
            Source::Watch => known.is_some_and(|pod| {
                pod.looked_up.load(Ordering::Relaxed)
                    && version < pod.version.load(Ordering::Relaxed)
            }),
            Source::List => false,
        };
        if is_overtaken {
            return Some(uid);
        }
        let pod = if let Some(pod) = known {
            pod.learn(facts);
            pod
        } else {
            let pod = Pod::new(Some(uid), facts, &self.settings);
            by_uid.entry(uid).or_insert(Arc::new(pod))
        };
        pod.version.store(version, Ordering::Relaxed);
        let looked_up = source == Source::Look;
        pod.looked_up.store(looked_up, Ordering::Relaxed);
        Some(uid)
    }

    fn forget(&self, pod: &Listed) {
        if let Some(uid) = uid_of(pod) {
            self.drop_entry(uid, true);
        }
    }

    /// Drops a pod's entry and all that was done on its behalf. If it is deleted, a look that is under way cannot bring
    /// it back.
    fn drop_entry(&self, uid: PodUid, is_deleted: bool) {
        let mut by_uid = self.by_uid.write();
        if is_deleted {
            self.note_deleted(uid);
        }
        if let Some(pod) = by_uid.remove(&uid) {
            pod.gone.store(true, Ordering::Relaxed);
        }
    }

    fn note_deleted(&self, uid: PodUid) {
        let mut deleted = self.deleted.lock();
        deleted.retain(|_, at| at.elapsed() < LOOK_TIMEOUT * 2);
        deleted.insert(uid, Instant::now());
    }

    /// Drops every pod that a complete list did not name, so that an unreported deletion is noticed. Returns the
    /// doubtful ones, added by a look of the agent's own after that list began: either newer than the list, or deleted
    /// before the watch could report it.
    fn keep(&self, listed: &HashSet<PodUid>, listing_since: Instant) -> Vec<PodUid> {
        let mut doubted = Vec::new();
        self.by_uid.write().retain(|uid, pod| {
            if listed.contains(uid) {
                return true;
            }
            let is_young = pod.since > listing_since;
            if is_young {
                doubted.push(*uid);
            } else {
                self.note_deleted(*uid);
                pod.gone.store(true, Ordering::Relaxed);
            }
            is_young
        });
        doubted
    }

    /// Drops those in `doubted` that a new list does not name. Without such a list, drops them all: a pod that exists
    /// is found again at its next request.
    async fn confirm(&self, doubted: Vec<PodUid>) {
        if doubted.is_empty() {
            return;
        }
        let named = self.look().await;
        for uid in doubted {
            match &named {
                Ok(named) if named.contains(&uid) => {}
                outcome => self.drop_entry(uid, outcome.is_ok()),
            }
        }
    }
}

/// Whether the server has forgotten the version to watch from. It says so with a status, or with an event in the stream.
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 410,
        _ => false,
    }
}

fn uid_of(pod: &Listed) -> Option<PodUid> {
    pod.metadata.uid.as_ref()?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests;
