//! A process's cgroup file → the pod and container it runs in.
//!
//! Pure and exact. A cgroup path is only as trustworthy as the directories it begins with, since whoever owns a cgroup
//! names those below it as they like. So the parser never searches a path: it reads from the outside in, beginning at
//! the kubelet's own directory, the kubepods root, and the first pod in it is the pod. [`Anchor`] finds out once what
//! that root is and how much of it a cgroup namespace hides from the agent. What cannot be proven is denied.
//!
//! [`crate::peer`] reads the file and ties it to a peer that may exit meanwhile. It must refuse a file that does not
//! fit its buffer: a truncated line could have said something else.

mod anchor;
mod evidence;
mod id;
mod name;
mod text;

#[cfg(test)]
mod tests;

pub(crate) use anchor::{Anchor, AnchorError, is_root};
pub(crate) use id::{ContainerId, InvalidId, PodUid};
pub(crate) use name::QosClass;

use thiserror::Error;

/// Where a process is, as all lines of its cgroup file agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodCgroup {
    /// The outermost pod.
    pub pod: PodUid,
    /// The container directly in it; for a gVisor pod, its sandbox.
    pub container: ContainerId,
    /// Whether a name below the container is also a pod's: a cluster inside the container, or somebody trying to pass
    /// for another pod.
    pub nested_pod: bool,
}

/// Why a cgroup file does not prove a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub(crate) enum CgroupDenial {
    /// The process is in a pod, but not in a container that has an id of 64 hex digits.
    #[error("what follows the pod in the cgroup path is no container")]
    BadContainerId,
    /// Lines of the file name different pods or containers.
    #[error("the cgroup controllers name different pods or containers")]
    ControllersDisagree,
    /// The cgroup has been removed, or its name ends as if it had.
    #[error("the cgroup has been removed")]
    Deleted,
    /// No kernel and no kubelet writes such a file.
    #[error("the cgroup file is malformed")]
    Malformed,
    /// The process monitors a container, but is not in it.
    #[error("the process is a container's monitor")]
    MonitorProcess,
    /// Nothing in the file looks like a pod.
    #[error("the process is in no pod")]
    NotAPod,
    /// The cgroup is not below the kubepods root, whatever its name.
    #[error("the cgroup is outside the kubepods root")]
    OutsideRoot,
    /// The process is in the agent's own pod, whose name the cgroup namespace hides.
    #[error("the process is in the agent's own pod")]
    SamePodElided,
    /// The process is in a static pod, which cannot have a service account.
    #[error("the process is in a static pod")]
    StaticPod,
}

impl CgroupDenial {
    /// The denial as one stable word, for logs and metrics.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::BadContainerId => "bad_container_id",
            Self::ControllersDisagree => "controllers_disagree",
            Self::Deleted => "deleted",
            Self::Malformed => "malformed",
            Self::MonitorProcess => "monitor_process",
            Self::NotAPod => "not_a_pod",
            Self::OutsideRoot => "outside_root",
            Self::SamePodElided => "same_pod_elided",
            Self::StaticPod => "static_pod",
        }
    }
}
