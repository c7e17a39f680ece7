//! Peer → workload: which pod of this node is the process at the other end?
//!
//! The kernel names the process ([`crate::peer`]), its cgroup names a pod UID ([`cgroup`]), and the API server's
//! word says what that UID is ([`pods`]). Only all three together make a [`Workload`], which nothing else can make.
//! Outside of Kubernetes a uid takes the place of the pod ([`local`]), and in a sidecar the socket itself is the proof.

pub mod cgroup;
pub(crate) mod local;
pub(crate) mod pods;

use crate::peer::{Peer, PeerError, Pinning};
use cgroup::{Anchor, CgroupDenial, ContainerId, PodCgroup, PodUid};
use local::Local;
use pods::{ContainerKind, Facts, Pod, Pods};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// An attested pod: the proof that the peer of a connection is a process of one of its containers, or that the kubelet
/// has a volume for it. Outside of Kubernetes a principal of the machine stands for the pod.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pod: Arc<Pod>,
    facts: Arc<Facts>,
    place: Place,
}

/// Where a peer came in, and what that alone says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entrance {
    /// By the socket that all pods share: nothing.
    Shared,
    /// By a socket that was mounted into this pod and no other.
    Pod(PodUid),
}

/// The pod that a peer is in, as its cgroup and its entrance agree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Located {
    pub(crate) pod: PodUid,
    /// Absent where the cgroup does not say: in some sandboxes ([`Node::new`]).
    pub(crate) container: Option<ContainerId>,
    /// Whether a cgroup below the container is named like a pod.
    pub(crate) nested_pod: bool,
    entrance: Entrance,
}

/// Where a peer is, and so whose it can be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// On this machine, under this uid.
    Local(u32),
    /// In the pod that the agent itself is in.
    OwnPod,
    /// In a pod of this node.
    Pod(Located),
    /// No process: the pod's volume, which the kubelet publishes before there is one.
    Volume,
}

/// Says which pod a peer is, by what the agent was told to go by (`identity.mode`).
#[derive(Debug)]
pub(crate) enum Attestor {
    /// The node's cgroups and the API server's word.
    Kubernetes(Node),
    /// The peer's uid.
    Local(Local),
    /// The socket: only the agent's own pod can reach it.
    Sidecar(Arc<Pod>),
}

/// Says which pod of a node a peer is.
#[derive(Debug)]
pub(crate) struct Node {
    anchor: OnceLock<Anchor>,
    pods: Arc<Pods>,
    node: String,
    own_pod: Option<PodUid>,
    wait: Duration,
    /// The RuntimeClasses whose pods are taken for what their own socket says.
    csi_only_runtimes: Vec<String>,
}

/// Why a peer is no workload. The caller learns nothing of it but the code.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum AttestError {
    /// It is no pod that may ask here; the word says why.
    #[error("denied: {0}")]
    Denied(&'static str),
    /// The process has exited.
    #[error("the peer has exited")]
    Gone,
    /// It cannot be said yet; the word says what is missing.
    #[error("cannot be said yet: {0}")]
    NotYet(&'static str),
}

// === impl Workload ===

impl Workload {
    /// The pod's entry, which owns everything that is done in the pod's name.
    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// What the API server last said about the pod.
    pub(crate) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Whether it is a pod's volume, which all of its containers may mount.
    pub(crate) fn is_volume(&self) -> bool {
        self.place == Place::Volume
    }

    /// The container of the peer, by its cgroup, if a cgroup was looked at.
    pub(crate) fn container(&self) -> Option<ContainerId> {
        self.place.container()
    }

    /// Whether the API server has named the container too. One that has just started is not named yet.
    pub(crate) fn container_confirmed(&self) -> bool {
        self.container()
            .is_some_and(|container| self.facts.containers.contains_key(&container))
    }

    /// Whether the API server has said nothing else of the pod since.
    pub(crate) fn is_current(&self) -> bool {
        !self.pod.is_gone() && self.pod.is_told(&self.facts)
    }

    /// Whether both are the same container of the same pod entry.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pod, &other.pod) && self.container() == other.container()
    }

    /// Whether both are the same container of the same pod, be it known under the same entry or not.
    pub(crate) fn is_where(&self, other: &Self) -> bool {
        let (uid, container) = (self.pod.uid, self.container());
        uid.is_some() && uid == other.pod.uid && container == other.container()
    }
}

impl fmt::Display for Workload {
    /// As namespace, pod and container.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.facts.namespace, self.facts.name)?;
        match self.container() {
            Some(container) => write!(f, "/{container}"),
            None => Ok(()),
        }
    }
}

// === impl Place ===

impl Place {
    fn container(&self) -> Option<ContainerId> {
        match self {
            Self::Pod(located) => located.container,
            Self::Local(_) | Self::OwnPod | Self::Volume => None,
        }
    }
}

// === impl Attestor ===

impl Attestor {
    /// The peer of `stream`, pinned as far as this attestor needs it.
    ///
    /// # Errors
    ///
    /// As [`Peer::of`].
    pub(crate) fn peer(&self, stream: &impl AsFd, pinning: Pinning) -> Result<Peer, PeerError> {
        match self {
            // The containers of a pod mostly do not see each other's processes.
            Self::Sidecar(_) => Peer::unseen(stream, pinning),
            Self::Kubernetes(_) | Self::Local(_) => Peer::of(stream, pinning),
        }
    }

    /// Where the peer is now that came in by `entrance`.
    ///
    /// # Errors
    ///
    /// If nobody who may ask is there, or the peer has exited.
    pub(crate) fn locate(&self, peer: &Peer, entrance: Entrance) -> Result<Place, AttestError> {
        match self {
            Self::Kubernetes(node) => node.locate(peer, entrance).map(Place::Pod),
            Self::Local(local) => local.locate(peer),
            Self::Sidecar(_) => Ok(Place::OwnPod),
        }
    }

    /// The workload at `place`, if it is known already.
    ///
    /// # Errors
    ///
    /// If it is known and may not ask.
    pub(crate) fn known(&self, peer: &Peer, place: Place) -> Result<Option<Workload>, AttestError> {
        let pod = match (self, place) {
            (Self::Kubernetes(node), Place::Pod(located)) => return node.known(peer, located),
            (Self::Local(local), Place::Local(uid)) => local.principal(uid),
            (Self::Sidecar(pod), Place::OwnPod) => Some(pod),
            _ => None,
        };
        Ok(pod.map(|pod| Workload {
            pod: pod.clone(),
            facts: pod.facts(),
            place,
        }))
    }

    /// The workload that the peer is.
    ///
    /// # Errors
    ///
    /// If it is none, or that cannot be said yet.
    pub(crate) async fn attest(
        &self,
        peer: &Peer,
        entrance: Entrance,
    ) -> Result<Workload, AttestError> {
        match self {
            Self::Kubernetes(node) => node.attest(peer, entrance).await,
            Self::Local(_) | Self::Sidecar(_) => {
                let place = self.locate(peer, entrance)?;
                let workload = self.known(peer, place)?;
                workload.ok_or(AttestError::Denied("unknown_principal"))
            }
        }
    }

    /// The pod whose volume is published, as [`Node::of_volume`] has it.
    ///
    /// # Errors
    ///
    /// If the pod may not ask, or is not known.
    pub(crate) fn of_volume(&self, pod: PodUid) -> Result<Workload, AttestError> {
        match self {
            Self::Kubernetes(node) => node.of_volume(pod),
            Self::Local(_) | Self::Sidecar(_) => Err(AttestError::Denied("no_volumes")),
        }
    }

    /// Whether the peer is an agent's own, as [`Node::must_be_own`] has it.
    ///
    /// # Errors
    ///
    /// If it is not, or that cannot be said yet.
    pub(crate) fn must_be_own(&self, peer: &Peer) -> Result<(), AttestError> {
        match self {
            Self::Kubernetes(node) => node.must_be_own(peer),
            Self::Local(_) | Self::Sidecar(_) => Err(AttestError::Denied("another_account")),
        }
    }

    /// Whether the pods of that node are attested.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        matches!(self, Self::Kubernetes(node) if node.node == name)
    }

    /// Whether anybody can be attested: on a node, whether its kubepods root is known.
    pub(crate) fn is_anchored(&self) -> bool {
        match self {
            Self::Kubernetes(node) => node.is_anchored(),
            Self::Local(_) | Self::Sidecar(_) => true,
        }
    }

    /// The entries of all that are known.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        match self {
            Self::Kubernetes(node) => node.pods.all(),
            Self::Local(local) => local.principals().cloned().collect(),
            Self::Sidecar(pod) => vec![pod.clone()],
        }
    }
}

// === impl Node ===

impl Node {
    /// An attestor for the pods of `node`. It denies everybody until it is [anchored](Self::anchor). A peer whose
    /// cgroup is no pod's is taken for the pod whose own socket it came in by if that pod's RuntimeClass is one of
    /// `csi_only_runtimes`.
    pub(crate) fn new(
        pods: Arc<Pods>,
        node: String,
        own_pod: Option<PodUid>,
        wait: Duration,
        csi_only_runtimes: Vec<String>,
    ) -> Self {
        Self {
            anchor: OnceLock::new(),
            pods,
            node,
            own_pod,
            wait,
            csi_only_runtimes,
        }
    }

    /// Ties the attestor to the node's kubepods root; the first word counts.
    pub(crate) fn anchor(&self, anchor: Anchor) {
        let _ = self.anchor.set(anchor);
    }

    /// Whether the kubepods root is known.
    pub(crate) fn is_anchored(&self) -> bool {
        self.anchor.get().is_some()
    }

    /// Which pod the peer is in now: its cgroup says it, and its entrance must say the same.
    ///
    /// # Errors
    ///
    /// If its cgroup is no pod's or another pod's, or it has exited.
    pub(crate) fn locate(&self, peer: &Peer, entrance: Entrance) -> Result<Located, AttestError> {
        let anchor = self
            .anchor
            .get()
            .ok_or(AttestError::NotYet("kubepods_root"))?;
        let mut text = Vec::with_capacity(512);
        peer.read_cgroup(&mut text)?;
        self.located(anchor.parse(&text), entrance)
    }

    /// Where a peer is whose cgroup says `cgroup` and who came in by `entrance`.
    fn located(
        &self,
        cgroup: Result<PodCgroup, CgroupDenial>,
        entrance: Entrance,
    ) -> Result<Located, AttestError> {
        match (cgroup, entrance) {
            (Ok(place), _) if self.own_pod == Some(place.pod) => {
                Err(AttestError::Denied("own_pod"))
            }
            (Ok(place), Entrance::Pod(uid)) if place.pod != uid => {
                Err(AttestError::Denied("listener_mismatch"))
            }
            (Ok(place), _) => Ok(Located {
                pod: place.pod,
                container: Some(place.container),
                nested_pod: place.nested_pod,
                entrance,
            }),
            (Err(CgroupDenial::NotAPod), Entrance::Pod(pod)) if self.is_csi_only(pod) => {
                Ok(Located {
                    pod,
                    container: None,
                    nested_pod: false,
                    entrance,
                })
            }
            (Err(denial), _) => Err(AttestError::Denied(denial.reason())),
        }
    }

    /// Whether the peer is in the agent's own pod or in one of the same service account: a second agent of a hand-over.
    /// Of an agent outside of all pods, its own are outside of them too.
    ///
    /// # Errors
    ///
    /// If it is not, or that cannot be said yet.
    pub(crate) fn must_be_own(&self, peer: &Peer) -> Result<(), AttestError> {
        self.is_among_own(self.locate(peer, Entrance::Shared))
    }

    /// The same of whoever is at `place`.
    fn is_among_own(&self, place: Result<Located, AttestError>) -> Result<(), AttestError> {
        let place = match place {
            Err(AttestError::Denied("own_pod" | "same_pod_elided")) => return Ok(()),
            Err(AttestError::Denied("not_a_pod")) if self.own_pod.is_none() => return Ok(()),
            outcome => outcome?,
        };
        let own = self.own_pod.ok_or(AttestError::Denied("another_account"))?;
        let (own, theirs) = match (self.pods.by_uid(own), self.pods.by_uid(place.pod)) {
            (Some(own), Some(theirs)) => (own.facts(), theirs.facts()),
            _ => return Err(AttestError::NotYet("own_pod")),
        };
        let is_own =
            (&own.namespace, &own.service_account) == (&theirs.namespace, &theirs.service_account);
        if is_own {
            Ok(())
        } else {
            Err(AttestError::Denied("another_account"))
        }
    }

    fn is_csi_only(&self, pod: PodUid) -> bool {
        !self.csi_only_runtimes.is_empty()
            && self.pods.by_uid(pod).is_some_and(|pod| {
                let facts = pod.facts();
                let class = facts.runtime_class.as_ref();
                class.is_some_and(|class| self.csi_only_runtimes.contains(class))
            })
    }

    /// Whether a pod of which the API server says that may ask at all.
    fn may_ask(&self, facts: &Facts) -> Result<(), AttestError> {
        let why = if facts.node != self.node {
            "other_node"
        } else if facts.mirror {
            "static_pod"
        } else if facts.finished {
            "pod_finished"
        } else if facts.grace_ended() {
            "pod_deleted"
        } else {
            return Ok(());
        };
        Err(AttestError::Denied(why))
    }

    /// The pod in whose name the files of its volume are read. That it has one is the word of the kubelet, by way of
    /// the mounter; who it is, that of the API server.
    ///
    /// # Errors
    ///
    /// If the pod may not ask, or is not known.
    pub(crate) fn of_volume(&self, pod: PodUid) -> Result<Workload, AttestError> {
        let pod = self
            .pods
            .by_uid(pod)
            .ok_or(AttestError::NotYet("unknown_pod"))?;
        let facts = pod.facts();
        self.may_ask(&facts)?;
        Ok(Workload {
            pod,
            facts,
            place: Place::Volume,
        })
    }

    /// The workload at `place`, if the API server has already named the pod.
    ///
    /// # Errors
    ///
    /// If the pod is known and may not ask.
    pub(crate) fn known(
        &self,
        peer: &Peer,
        place: Located,
    ) -> Result<Option<Workload>, AttestError> {
        let Some(pod) = self.pods.by_uid(place.pod) else {
            return Ok(None);
        };
        let facts = pod.facts();
        self.may_ask(&facts)?;
        // A number that was recycled within the pod whose own socket it is changes nothing.
        if facts.host_network
            && peer.pinning() == Pinning::ByNumber
            && place.entrance == Entrance::Shared
        {
            return Err(AttestError::Denied("host_network_without_pidfd"));
        }
        let container = place.container.and_then(|id| facts.containers.get(&id));
        match container.map(|container| container.kind) {
            Some(ContainerKind::Ephemeral) => {
                return Err(AttestError::Denied("ephemeral_container"));
            }
            // Its image may be anybody's: where there are ephemeral containers, being unnamed is not enough.
            None if facts.has_ephemeral => return Ok(None),
            Some(ContainerKind::Ordinary) | None => {}
        }
        Ok(Some(Workload {
            pod,
            facts,
            place: Place::Pod(place),
        }))
    }

    /// The workload that the peer is: at once if its pod is known, else after a bounded wait for the watch
    /// and then one look of our own, which all who wait share.
    ///
    /// # Errors
    ///
    /// If it is none, or that cannot be said yet.
    pub(crate) async fn attest(
        &self,
        peer: &Peer,
        entrance: Entrance,
    ) -> Result<Workload, AttestError> {
        let place = self.locate(peer, entrance)?;
        if let Some(workload) = self.known(peer, place)? {
            return Ok(workload);
        }
        let deadline = Instant::now() + self.wait;
        let waited = timeout_at(deadline, async {
            loop {
                let change = self.pods.changed();
                if let Some(workload) = self.known(peer, place)? {
                    return Ok::<_, AttestError>(workload);
                }
                change.await;
            }
        })
        .await;
        if let Ok(outcome) = waited {
            outcome?;
        } else {
            self.pods
                .look()
                .await
                .map_err(|_| AttestError::NotYet("api_server"))?;
        }
        // Time has passed: what was read of the peer before the wait is read again.
        let place = self.locate(peer, entrance)?;
        self.known(peer, place)?.ok_or_else(|| {
            let known = self.pods.by_uid(place.pod).is_some();
            AttestError::Denied(if known {
                "unconfirmed_container"
            } else {
                "unknown_pod"
            })
        })
    }
}

impl From<PeerError> for AttestError {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Gone => Self::Gone,
            PeerError::OutsidePidNamespace => Self::Denied("outside_pid_namespace"),
            PeerError::Recycled => Self::Denied("recycled_pid"),
            PeerError::Io(_) => Self::Denied("unreadable_peer"),
        }
    }
}

#[cfg(test)]
mod tests;
