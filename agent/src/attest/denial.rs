//! Why a peer is no workload.

use super::cgroup::CgroupDenial;
use std::fmt;

/// Why a peer may not ask, as far as it can be said at all. The caller learns nothing of it but that it may not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Denial {
    /// It is in no pod of the agent's own service account, and only such a one may ask here.
    AnotherAccount,
    /// Its cgroup file proves no pod.
    Cgroup(CgroupDenial),
    /// Outside of Kubernetes: it is in a container, and the agent is not in that one.
    Container,
    /// It is in a container that was put into the pod for debugging.
    EphemeralContainer,
    /// It is in a pod of the node's own network, which the fallback for old kernels cannot tell from others.
    HostNetworkWithoutPidfd,
    /// It was moved to another pod after it had connected.
    IdentityChanged,
    /// It came in by the socket of another pod.
    ListenerMismatch,
    /// It is not root, and the mounter is.
    NotRoot,
    /// Its pod is another node's.
    OtherNode,
    /// Outside of Kubernetes: it is in a PID namespace of its own.
    OtherPidNamespace,
    /// Outside of Kubernetes: it is in a user namespace of its own.
    OtherUserNamespace,
    /// It is outside of the agent's PID namespace, and nothing can be read of it.
    OutsidePidNamespace,
    /// It is in the agent's own pod.
    OwnPod,
    /// Outside of Kubernetes: it is in a pod all the same.
    Pod,
    /// Its pod is deleted, and has had its time to end.
    PodDeleted,
    /// Its pod has ended.
    PodFinished,
    /// The process that has its number now is not the one that connected.
    RecycledPid,
    /// Its pod is the kubelet's own and has no service account.
    StaticPod,
    /// The API server does not name its container.
    UnconfirmedContainer,
    /// The API server knows no such pod.
    UnknownPod,
    /// The configuration knows no such principal.
    UnknownPrincipal,
    /// The configuration names no principal for its uid.
    UnmappedUid,
    /// The kernel refused a look at it.
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
