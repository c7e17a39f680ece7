//! Watches: events from a revision on, as objects enter and leave the selection, with bookmarks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::Answer;
use super::faults::Nudge;
use super::list::ListOptions;
use super::selector::Selector;
use super::status::Status;
use super::store::{Change, Kind};
use super::{Cluster, State};

/// How long a watch without `timeoutSeconds` runs: the real server's `--min-request-timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// One open watch.
struct Watch {
    cluster: Arc<Cluster>,
    kind: Kind,
    namespace: String,
    selector: Selector,
    /// The last revision that this watch has handled.
    cursor: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    nudges_seen: usize,
    lines: VecDeque<Bytes>,
    ended: bool,
    changed: tokio::sync::watch::Receiver<()>,
}

/// Begins a watch.
pub(super) fn watch(
    cluster: &Arc<Cluster>,
    kind: Kind,
    namespace: String,
    options: ListOptions,
) -> Result<Answer, Status> {
    let timeout = options
        .timeout_seconds
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let mut watch = Watch {
        cluster: Arc::clone(cluster),
        kind,
        namespace,
        selector: options.selector,
        cursor: 0,
        bookmarks: options.bookmarks,
        next_bookmark: Instant::now() + cluster.config.bookmark_interval,
        deadline: Instant::now() + timeout,
        nudges_seen: 0,
        lines: VecDeque::new(),
        ended: false,
        changed: cluster.changed.subscribe(),
    };
    let begun = cluster.change(|state| {
        state.watches += 1;
        watch.nudges_seen = state.faults.nudges.len();
        watch.begin(state, options.revision, options.initial_events)
    });
    if let Err(gone) = begun {
        if cluster.config.gone_as_status {
            return Err(gone);
        }
        watch.end_with(&gone);
    }
    let frames = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), watch))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(answer)
}

/// What a watch does next.
enum Step {
    Send,
    Wait(Instant),
}

impl Watch {
    /// Sets the starting point, and queues the existing objects if the client asked for them.
    fn begin(
        &mut self,
        state: &State,
        revision: Option<u64>,
        initial_events: bool,
    ) -> Result<(), Status> {
        let from_now = matches!(revision, None | Some(0));
        if let (Some(asked), false) = (revision, from_now || initial_events) {
            if asked < state.store.compacted() {
                let compacted = state.store.compacted();
                return Err(Status::expired(&format!(
                    "too old resource version: {asked} ({compacted})"
                )));
            }
            self.cursor = asked;
            return Ok(());
        }
        let current = state.readable(revision.is_none());
        if let Some(asked) = revision.filter(|asked| *asked > current) {
            return Err(Status::revision_too_large(asked, current));
        }
        self.cursor = current;
        for (key, object) in state.store.rewound(current) {
            if key.kind == self.kind
                && self.watches_in(&key.namespace)
                && self.selector.selects(&object)
            {
                self.push("ADDED", &object);
            }
        }
        if initial_events && self.bookmarks {
            self.push_bookmark(true);
        }
        Ok(())
    }

    /// The next line; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changed.borrow_and_update();
            let cluster = Arc::clone(&self.cluster);
            let step = self.advance(&cluster.lock());
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            if let Step::Wait(until) = step {
                tokio::select! {
                    changed = self.changed.changed() => changed.ok()?,
                    () = tokio::time::sleep_until(until) => {}
                }
            }
        }
    }

    fn advance(&mut self, state: &State) -> Step {
        if self.ended || !self.lines.is_empty() {
            return Step::Send;
        }
        if state.store.has_forgotten(self.cursor) {
            self.nudged(Nudge::Expire);
            return Step::Send;
        }
        let (now, stand) = (Instant::now(), state.faults.watches_stand());
        let visible = state
            .faults
            .stale
            .map_or(u64::MAX, |(revision, _)| revision);
        let next = state.store.next_change(self.cursor);
        let next = next.filter(|change| change.revision <= visible && !stand);
        if let Some(change) = next.filter(|change| change.due <= now) {
            self.cursor = change.revision;
            self.see(change);
            return Step::Send;
        }
        if next.is_none() && !stand {
            self.cursor = self.cursor.max(state.store.revision().min(visible));
        }
        if let Some(nudge) = state.faults.nudges.get(self.nudges_seen) {
            self.nudges_seen += 1;
            self.nudged(*nudge);
            return Step::Send;
        }
        if now >= self.deadline {
            self.ended = true;
            return Step::Send;
        }
        let bookmark = self.bookmarks && !stand && next.is_none();
        if bookmark && now >= self.next_bookmark {
            self.next_bookmark = now + self.cluster.config.bookmark_interval;
            self.push_bookmark(false);
            return Step::Send;
        }
        let due = next.map(|change| change.due);
        let wake = due
            .or(bookmark.then_some(self.next_bookmark))
            .unwrap_or(self.deadline);
        Step::Wait(wake.min(self.deadline))
    }

    /// Turns a change into this selection's event: an object that leaves the selection counts as deleted.
    fn see(&mut self, change: &Change) {
        if change.unseen || change.key.kind != self.kind || !self.watches_in(&change.key.namespace)
        {
            return;
        }
        let was = change
            .before
            .as_ref()
            .is_some_and(|before| self.selector.selects(before));
        let is = !change.deleted && self.selector.selects(&change.object);
        match (was, is) {
            (false, true) => self.push("ADDED", &change.object),
            (true, true) => self.push("MODIFIED", &change.object),
            (true, false) => {
                // The last state that matched, at the revision at which it stopped matching.
                let mut last = change.before.as_deref().cloned().unwrap_or_default();
                last["metadata"]["resourceVersion"] = change.revision.to_string().into();
                self.push("DELETED", &last);
            }
            (false, false) => {}
        }
    }

    fn nudged(&mut self, nudge: Nudge) {
        match nudge {
            Nudge::Bookmark if self.bookmarks => self.push_bookmark(false),
            Nudge::Bookmark => {}
            Nudge::Close => self.ended = true,
            Nudge::Expire => self.end_with(&Status::expired(
                "The resourceVersion for the provided watch is too old.",
            )),
            Nudge::Garbage => self
                .lines
                .push_back(Bytes::from_static(b"{\"type\":\"ADDED\",\"obj\n")),
        }
    }

    fn watches_in(&self, namespace: &str) -> bool {
        self.namespace.is_empty() || self.namespace == namespace
    }

    fn end_with(&mut self, status: &Status) {
        self.push("ERROR", &status.body);
        self.ended = true;
    }

    fn push_bookmark(&mut self, initial_events_end: bool) {
        let mut metadata =
            json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object =
            json!({"kind": self.kind.name(), "apiVersion": "v1", "metadata": metadata});
        if self.kind == Kind::Pod {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        self.push("BOOKMARK", &object);
    }

    fn push(&mut self, event: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": event, "object": object}));
        self.lines.push_back(line.into());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cluster.change(|state| state.watches -= 1);
    }
}
