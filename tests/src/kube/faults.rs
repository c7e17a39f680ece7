//! The server made slow, stale, wrong or silent.

use std::time::Duration;

use http::StatusCode;

use super::{FakeKube, State};

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// This HTTP code at once, with this `Retry-After` in seconds.
    Answer(u16, Option<u64>),
    /// The right answer, this much later.
    Delay(Duration),
    /// 200 with a body that is not JSON.
    Garbage,
    /// No answer until the fault is lifted, then the right one.
    Hang,
}

/// Which reads are answered from an old snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StaleReads {
    /// All: an etcd restored from a backup, which no client can notice.
    All,
    /// Those that allow it (`resourceVersion=0`), and watches: a watch cache that lags behind.
    Cached,
}

/// Something done once to every open watch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Nudge {
    Bookmark,
    Close,
    Expire,
    Garbage,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<FaultRule>,
    pub(super) silent: bool,
    pub(super) watches_held: bool,
    /// The revision at which reads are frozen.
    pub(super) stale: Option<(u64, StaleReads)>,
    pub(super) nudges: Vec<Nudge>,
}

#[derive(Debug)]
struct FaultRule {
    verb: String,
    resource: String,
    fault: Fault,
    /// How many requests it still hits; `None`: all.
    left: Option<usize>,
}

impl Faults {
    /// The fault that hits this request, counted as used.
    pub(super) fn strike(&mut self, verb: &str, resource: &str) -> Option<Fault> {
        if self.silent {
            return Some(Fault::Hang);
        }
        let matches = |word: &str, pattern: &str| pattern == "*" || pattern == word;
        let rule = self.rules.iter_mut().find(|rule| {
            rule.left != Some(0) && matches(verb, &rule.verb) && matches(resource, &rule.resource)
        })?;
        // A request that hangs asks repeatedly, but is still one request.
        if rule.fault != Fault::Hang {
            rule.left = rule.left.map(|left| left - 1);
        }
        Some(rule.fault)
    }

    /// Whether watches currently get no events.
    pub(super) fn watches_stand(&self) -> bool {
        self.silent || self.watches_held
    }
}

impl State {
    /// The revision that a read sees if it allows stale answers or, with `consistent`, if it does not.
    pub(super) fn readable(&self, consistent: bool) -> u64 {
        match self.faults.stale {
            Some((revision, StaleReads::All)) => revision,
            Some((revision, StaleReads::Cached)) if !consistent => revision,
            _ => self.store.revision(),
        }
    }
}

impl FakeKube {
    /// Makes all requests with this verb on this resource (`*`: any) go wrong until [`heal`](Self::heal).
    pub fn fail(&self, verb: &str, resource: &str, fault: Fault) {
        self.add_fault(verb, resource, fault, None);
    }

    /// Makes the next `times` such requests go wrong; a [`Fault::Hang`] is not counted.
    pub fn fail_times(&self, verb: &str, resource: &str, fault: Fault, times: usize) {
        self.add_fault(verb, resource, fault, Some(times));
    }

    /// Lifts all faults; hanging requests are answered.
    pub fn heal(&self) {
        self.cluster.change(|state| {
            state.faults.rules.clear();
            state.faults.silent = false;
        });
    }

    /// Accepts connections and requests but answers none, and sends no watch events, until [`heal`](Self::heal).
    pub fn hang(&self) {
        self.cluster.change(|state| state.faults.silent = true);
    }

    /// Holds back all watch events and bookmarks until [`watch_release`](Self::watch_release).
    pub fn watch_hold(&self) {
        self.cluster
            .change(|state| state.faults.watches_held = true);
    }

    /// Releases held events, in order.
    pub fn watch_release(&self) {
        self.cluster
            .change(|state| state.faults.watches_held = false);
    }

    /// Delivers the events of later changes this long after the change.
    pub fn watch_delay(&self, delay: Duration) {
        self.cluster.change(|state| state.store.event_delay = delay);
    }

    /// Sends every open watch that allows them a bookmark now.
    pub fn watch_bookmark(&self) {
        self.nudge(Nudge::Bookmark);
    }

    /// Ends every open watch properly, as the real server does after some minutes.
    pub fn watch_close(&self) {
        self.nudge(Nudge::Close);
    }

    /// Ends every open watch with an `ERROR` event of code 410.
    pub fn watch_expire(&self) {
        self.nudge(Nudge::Expire);
    }

    /// Sends every open watch a line that is not JSON.
    pub fn watch_garbage(&self) {
        self.nudge(Nudge::Garbage);
    }

    /// How many watches are being served now.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.cluster.lock().watches
    }

    /// Compacts the history: watches, pages and exact lists from before now get 410.
    pub fn compact(&self) {
        self.cluster.change(|state| state.store.compact());
    }

    /// Freezes reads at the present until [`stale_end`](Self::stale_end), while the cluster goes on.
    pub fn stale(&self, reads: StaleReads) {
        self.cluster.change(|state| {
            state.faults.stale = Some((state.store.revision(), reads));
        });
    }

    /// Lets reads see the present again.
    pub fn stale_end(&self) {
        self.cluster.change(|state| state.faults.stale = None);
    }

    fn add_fault(&self, verb: &str, resource: &str, fault: Fault, left: Option<usize>) {
        debug_assert!(
            !matches!(fault, Fault::Answer(code, _) if StatusCode::from_u16(code).is_err())
        );
        let (verb, resource) = (verb.to_owned(), resource.to_owned());
        self.cluster.change(|state| {
            state.faults.rules.push(FaultRule {
                verb,
                resource,
                fault,
                left,
            });
        });
    }

    fn nudge(&self, nudge: Nudge) {
        self.cluster.change(|state| state.faults.nudges.push(nudge));
    }
}
