//! Why a peer is not a workload.

use super::cgroup::CgroupDenial;
use std::fmt;

/// Why a peer may not make requests, as precisely as is known. The caller learns only that it may not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Denial {
    /// It is in no pod of the agent's own service account, and only such a pod may connect here.
    AnotherAccount,
    /// Its cgroup file does not prove a pod.
    Cgroup(CgroupDenial),
    /// Outside of Kubernetes: it is in a container that the agent is not in.
    Container,
    /// It is in an ephemeral container, which was added to the pod for debugging.
    EphemeralContainer,
    /// It connected on the node's own network, where the fallback for old kernels cannot tell it from others.
    HostNetworkWithoutPidfd,
    /// It was moved to another pod after it connected.
    IdentityChanged,
    /// It came in by another pod's socket.
    ListenerMismatch,
    /// It is not root, but the mounter always is.
    NotRoot,
    /// Its pod is on another node.
    OtherNode,
    /// Outside of Kubernetes: it is in a PID namespace of its own.
    OtherPidNamespace,
    /// Outside of Kubernetes: it is in a user namespace of its own.
    OtherUserNamespace,
    /// It is outside of the agent's PID namespace, so nothing can be read about it.
    OutsidePidNamespace,
    /// It is in the agent's own pod.
    OwnPod,
    /// Outside of Kubernetes: it is in a pod.
    Pod,
    /// Its pod is deleted, and its grace period is over.
    PodDeleted,
    /// Its pod has ended.
    PodFinished,
    /// The process that now has its PID is not the one that connected.
    RecycledPid,
    /// Its pod is a static pod, which has no service account.
    StaticPod,
    /// The API server has not named its container.
    UnconfirmedContainer,
    /// The API server knows no such pod.
    UnknownPod,
    /// The configuration has no such principal.
    UnknownPrincipal,
    /// The configuration names no principal for its uid.
    UnmappedUid,
    /// The kernel did not let the agent read about it.
    UnreadablePeer,
}

impl Denial {
    /// The denial as one stable word, for logs, metrics and the audit trail.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::AnotherAccount => "another_account",
            Self::Cgroup(denial) => denial.reason(),
            Self::Container => "container",
            Self::EphemeralContainer => "ephemeral_container",
            Self::HostNetworkWithoutPidfd => "host_network_without_pidfd",
            Self::IdentityChanged => "identity_changed",
            Self::ListenerMismatch => "listener_mismatch",
            Self::NotRoot => "not_root",
            Self::OtherNode => "other_node",
            Self::OtherPidNamespace => "other_pid_namespace",
            Self::OtherUserNamespace => "other_user_namespace",
            Self::OutsidePidNamespace => "outside_pid_namespace",
            Self::OwnPod => "own_pod",
            Self::Pod => "pod",
            Self::PodDeleted => "pod_deleted",
            Self::PodFinished => "pod_finished",
            Self::RecycledPid => "recycled_pid",
            Self::StaticPod => "static_pod",
            Self::UnconfirmedContainer => "unconfirmed_container",
            Self::UnknownPod => "unknown_pod",
            Self::UnknownPrincipal => "unknown_principal",
            Self::UnmappedUid => "unmapped_uid",
            Self::UnreadablePeer => "unreadable_peer",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
