//! Peer → workload: which pod of this node is the process at the other end?
//!
//! The kernel names the process ([`crate::peer`]), its cgroup names a pod UID ([`cgroup`]), and the API server says
//! what that UID is ([`pods`]). Only all three together ([`node`]) make a [`Workload`], and nothing else can make one.
//! Outside of Kubernetes a uid takes the place of the pod ([`local`]); in a sidecar the socket itself is the proof.

pub(crate) mod cgroup;
mod denial;
pub(crate) mod local;
pub(crate) mod node;
pub(crate) mod pods;

use crate::peer::{Named, Peer, PeerError, Pinning, is_exhausted};
use cgroup::{ContainerId, PodUid};
pub(crate) use denial::Denial;
use local::Local;
use node::Node;
use pods::{Facts, Pod};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

/// An attested pod: the proof that the peer of a connection is a process in one of its containers, or that the kubelet
/// has a volume for it. Outside of Kubernetes, a principal of the machine stands for the pod.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pod: Arc<Pod>,
    facts: Arc<Facts>,
    location: Location,
}

/// The socket by which a peer connected, and what that alone proves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entrance {
    /// The socket that all pods share: proves nothing.
    Shared,
    /// A socket that is mounted into this pod and no other.
    Pod(PodUid),
}

/// The pod that a peer is in, on which its cgroup and its entrance agree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InPod {
    pub(crate) pod: PodUid,
    /// Absent where the cgroup does not say, as in some sandboxes ([`Node::new`]).
    pub(crate) container: Option<ContainerId>,
    /// Whether a cgroup below the container is named like a pod.
    pub(crate) nested_pod: bool,
    entrance: Entrance,
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Location {
    /// On this machine, under this uid.
    Local(u32),
    /// In the pod that the agent itself is in.
    OwnPod,
    /// In a pod of this node.
    Pod(InPod),
    /// Not a process: the pod's volume, which the kubelet publishes before the pod has any process.
    Volume,
}

/// Says which pod a peer is, by the configured means (`identity.mode`).
#[derive(Debug)]
pub(crate) enum Attestor {
    /// The node's cgroups and what the API server says.
    Kubernetes(Arc<Node>),
    /// The peer's uid.
    Local(Local),
    /// The socket: only the agent's own pod can reach it.
    Sidecar(Arc<Pod>),
}

/// Why a peer is not a workload. The caller learns only the code.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum AttestError {
    /// It is not a workload that may make requests here.
    #[error("denied: {0}")]
    Denied(Denial),
    /// The process has exited.
    #[error("the peer has exited")]
    Gone,
    /// It cannot be decided yet; the word says what is missing.
    #[error("cannot be said yet: {0}")]
    NotYet(&'static str),
}

// === impl Workload ===

impl Workload {
    /// The pod's entry, which owns everything that is done on the pod's behalf.
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

    /// The peer's container, if its cgroup was read and names one.
    pub(crate) fn container(&self) -> Option<ContainerId> {
        self.location.container()
    }

    /// Whether the API server has named the container too. It may not yet have named one that just started.
    pub(crate) fn container_confirmed(&self) -> bool {
        self.container()
            .is_some_and(|container| self.facts.containers.contains_key(&container))
    }

    /// Whether the API server has said nothing new about the pod since.
    pub(crate) fn is_current(&self) -> bool {
        !self.pod.is_gone() && self.pod.is_told(&self.facts)
    }

    /// Whether both are the same container of the same pod entry.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pod, &other.pod) && self.container() == other.container()
    }

    /// Whether both are the same container of the same pod, even if under different pod entries.
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
    /// The peer of `stream`, named as far as this attestor needs it.
    pub(crate) fn named(&self, stream: &impl AsFd, pinning: Pinning) -> Result<Named, PeerError> {
        match self {
            // The containers of a pod usually do not see each other's processes.
            Self::Sidecar(_) => Peer::unseen(stream, pinning).map(Named::Pinned),
            Self::Kubernetes(_) | Self::Local(_) => Peer::named(stream, pinning),
        }
    }

    /// Where the peer, which came in by `entrance`, is now.
    ///
    /// # Errors
    ///
    /// If that is no place that may make requests, or the peer has exited.
    pub(crate) fn locate(&self, peer: &Peer, entrance: Entrance) -> Result<Location, AttestError> {
        match self {
            Self::Kubernetes(node) => node.locate(peer, entrance).map(Location::Pod),
            Self::Local(local) => local.locate(peer),
            Self::Sidecar(_) => Ok(Location::OwnPod),
        }
    }

    /// The PID that the kernel names as the process at the other end of `stream`, and the pod of whoever has that PID
    /// now: for the log alone, since nothing of it is proven.
    pub(crate) fn guess(&self, stream: &impl AsFd) -> (Option<i32>, Option<PodUid>) {
        let Ok(peer) = Peer::unseen(stream, Pinning::ByNumber) else {
            return (None, None);
        };
        let pod = match self.locate(&peer, Entrance::Shared) {
            Ok(Location::Pod(in_pod)) => Some(in_pod.pod),
            _ => None,
        };
        (Some(peer.pid()), pod)
    }

    /// The workload at `location`, if it is already known.
    ///
    /// # Errors
    ///
    /// If it is known and may not make requests.
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

    /// Attests the peer as a workload.
    ///
    /// # Errors
    ///
    /// If it is not one, or that cannot be decided yet.
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

    /// Whether a workload may still make requests, by what the API server now says about its pod.
    pub(crate) fn may_still_ask(&self, workload: &Workload) -> bool {
        let pod = workload.pod();
        !pod.is_gone()
            && match self {
                Self::Kubernetes(node) => node.may_ask(&pod.facts()).is_ok(),
                Self::Local(_) | Self::Sidecar(_) => true,
            }
    }

    /// What is still missing before anybody can be attested; empty when nothing is. Vaults do not matter here: one that
    /// is unreachable must not take the node's agent out of service.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        match self {
            Self::Kubernetes(node) => node.missing(),
            Self::Local(_) | Self::Sidecar(_) => Vec::new(),
        }
    }

    /// The attestor of a node's pods, if it is one.
    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        match self {
            Self::Kubernetes(node) => Some(node),
            Self::Local(_) | Self::Sidecar(_) => None,
        }
    }

    /// Whether this pod is known.
    pub(crate) fn knows(&self, pod: PodUid) -> bool {
        match self {
            Self::Kubernetes(node) => node.knows(pod),
            Self::Local(_) | Self::Sidecar(_) => false,
        }
    }

    /// The entries of all known pods.
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
