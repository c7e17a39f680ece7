//! Peer → workload: which pod of this node is the process at the other end?
//!
//! The kernel names the process ([`crate::peer`]), its cgroup names a pod UID ([`cgroup`]), and the API server's
//! word says what that UID is ([`pods`]). Only all three together ([`node`]) make a [`Workload`], which nothing else can
//! make. Outside of Kubernetes a uid takes the place of the pod ([`local`]), and in a sidecar the socket itself is the proof.

pub(crate) mod cgroup;
mod denial;
pub(crate) mod local;
pub(crate) mod node;
pub(crate) mod pods;

use crate::peer::{Peer, PeerError, Pinning, is_exhausted};
use cgroup::{ContainerId, PodUid};
pub(crate) use denial::Denial;
use local::Local;
use node::Node;
use pods::{Facts, Pod};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

/// An attested pod: the proof that the peer of a connection is a process of one of its containers, or that the kubelet
/// has a volume for it. Outside of Kubernetes a principal of the machine stands for the pod.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pod: Arc<Pod>,
    facts: Arc<Facts>,
    location: Location,
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
pub(crate) struct InPod {
    pub(crate) pod: PodUid,
    /// Absent where the cgroup does not say: in some sandboxes ([`Node::new`]).
    pub(crate) container: Option<ContainerId>,
    /// Whether a cgroup below the container is named like a pod.
    pub(crate) nested_pod: bool,
    entrance: Entrance,
}

/// Where a peer is, and so whose it can be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Location {
    /// On this machine, under this uid.
    Local(u32),
    /// In the pod that the agent itself is in.
    OwnPod,
    /// In a pod of this node.
    Pod(InPod),
    /// No process: the pod's volume, which the kubelet publishes before there is one.
    Volume,
}

/// Says which pod a peer is, by what the agent was told to go by (`identity.mode`).
#[derive(Debug)]
pub(crate) enum Attestor {
    /// The node's cgroups and the API server's word.
    Kubernetes(Arc<Node>),
    /// The peer's uid.
    Local(Local),
    /// The socket: only the agent's own pod can reach it.
    Sidecar(Arc<Pod>),
}

/// Why a peer is no workload. The caller learns nothing of it but the code.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum AttestError {
    /// It is no pod that may ask here.
    #[error("denied: {0}")]
    Denied(Denial),
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
        self.location == Location::Volume
    }

    /// The container of the peer, by its cgroup, if a cgroup was looked at.
    pub(crate) fn container(&self) -> Option<ContainerId> {
        self.location.container()
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

// === impl Location ===

impl Location {
    fn container(&self) -> Option<ContainerId> {
        match self {
            Self::Pod(in_pod) => in_pod.container,
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
            Self::Kubernetes(_) | Self::Local(_) => match Peer::of(stream, pinning) {
                // Nothing can be read of it, so it is refused: with an answer that says so.
                Err(PeerError::OutsidePidNamespace) => Peer::unseen(stream, pinning),
                pinned => pinned,
            },
        }
    }

    /// Where the peer is now that came in by `entrance`.
    ///
    /// # Errors
    ///
    /// If nobody who may ask is there, or the peer has exited.
    pub(crate) fn locate(&self, peer: &Peer, entrance: Entrance) -> Result<Location, AttestError> {
        match self {
            Self::Kubernetes(node) => node.locate(peer, entrance).map(Location::Pod),
            Self::Local(local) => local.locate(peer),
            Self::Sidecar(_) => Ok(Location::OwnPod),
        }
    }

    /// The workload at `location`, if it is known already.
    ///
    /// # Errors
    ///
    /// If it is known and may not ask.
    pub(crate) fn known(
        &self,
        peer: &Peer,
        location: Location,
    ) -> Result<Option<Workload>, AttestError> {
        let pod = match (self, location) {
            (Self::Kubernetes(node), Location::Pod(in_pod)) => return node.known(peer, in_pod),
            (Self::Local(local), Location::Local(uid)) => local.principal(uid),
            (Self::Sidecar(pod), Location::OwnPod) => Some(pod),
            _ => None,
        };
        Ok(pod.map(|pod| Workload {
            pod: pod.clone(),
            facts: pod.facts(),
            location,
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
                let location = self.locate(peer, entrance)?;
                let workload = self.known(peer, location)?;
                workload.ok_or(AttestError::Denied(Denial::UnknownPrincipal))
            }
        }
    }

    /// Whether a workload may still ask, by what the API server says of its pod now.
    pub(crate) fn may_still_ask(&self, workload: &Workload) -> bool {
        let pod = workload.pod();
        !pod.is_gone()
            && match self {
                Self::Kubernetes(node) => node.may_ask(&pod.facts()).is_ok(),
                Self::Local(_) | Self::Sidecar(_) => true,
            }
    }

    /// What is missing before it can be said who anybody is; empty when nothing is. Vaults do not matter here: one that
    /// is away must not take the node's agent out of service.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        match self {
            Self::Kubernetes(node) => node.missing(),
            Self::Local(_) | Self::Sidecar(_) => Vec::new(),
        }
    }

    /// The attestor of a node's pods, where it is one.
    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        match self {
            Self::Kubernetes(node) => Some(node),
            Self::Local(_) | Self::Sidecar(_) => None,
        }
    }

    /// Whether there is such a pod, as far as is known.
    pub(crate) fn knows(&self, pod: PodUid) -> bool {
        match self {
            Self::Kubernetes(node) => node.knows(pod),
            Self::Local(_) | Self::Sidecar(_) => false,
        }
    }

    /// The entries of all that are known.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        match self {
            Self::Kubernetes(node) => node.pods(),
            Self::Local(local) => local.principals().cloned().collect(),
            Self::Sidecar(pod) => vec![pod.clone()],
        }
    }
}

// === impl AttestError ===

impl AttestError {
    /// The word for it in logs, metrics and the audit trail.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Denied(denial) => denial.as_str(),
            Self::Gone => "peer_gone",
            Self::NotYet(what) => what,
        }
    }
}

impl From<PeerError> for AttestError {
    fn from(error: PeerError) -> Self {
        Self::from(&error)
    }
}

impl From<&PeerError> for AttestError {
    fn from(error: &PeerError) -> Self {
        match error {
            PeerError::Gone => Self::Gone,
            PeerError::OutsidePidNamespace => Self::Denied(Denial::OutsidePidNamespace),
            PeerError::Recycled => Self::Denied(Denial::RecycledPid),
            PeerError::Io(error) if is_exhausted(error) => Self::NotYet("exhausted"),
            PeerError::Io(_) => Self::Denied(Denial::UnreadablePeer),
        }
    }
}

#[cfg(test)]
mod tests;
