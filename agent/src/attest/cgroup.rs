//! A process's cgroup file → the pod and container it runs in.
//!
//! Pure and exact. A cgroup path is only as good as the directories it begins with, since whoever
//! owns a cgroup names those below it as they like. So nothing is searched for: a path is read from
//! the outside in, beginning at the kubelet's own directory, the kubepods root, and the first pod
//! in it is the pod. What that root is, and how much of it a cgroup namespace hides from the agent,
//! is found out once, by [`Anchor`]. What cannot be proven is denied.
//!
//! Reading the file, and tying it to a peer that may exit meanwhile, is [`crate::peer`]'s work. The
//! reader must refuse a file that does not fit its buffer: a line that is cut off could have said
//! otherwise.

mod anchor;
mod evidence;
mod id;
mod name;
mod text;

#[cfg(test)]
mod tests;

pub(crate) use anchor::{Anchor, AnchorError};
pub(crate) use id::{ContainerId, InvalidId, PodUid};
pub(crate) use name::QosClass;

use thiserror::Error;

/// Where a process stands, as all lines of its cgroup file agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodCgroup {
    /// The outermost pod.
    pub pod: PodUid,
    /// The container directly in it; for a gVisor pod, its sandbox.
    pub container: ContainerId,
    /// Whether a name below the container is a pod's too: a cluster inside the container, or
    /// somebody who tries to pass for another pod.
    pub nested_pod: bool,
}

/// Why a cgroup file proves no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub(crate) enum CgroupDenial {
    /// The process is in a pod, but not in a container of it that has an id of 64 hex digits.
    #[error("what follows the pod in the cgroup path is no container")]
    BadContainerId,
    /// Lines of the file name different pods or containers.
    #[error("the cgroup controllers name different pods or containers")]
    ControllersDisagree,
    /// The cgroup has been removed, or has a name that says so.
    #[error("the cgroup has been removed")]
    Deleted,
    /// Neither a kernel nor a kubelet writes such a file.
    #[error("the cgroup file is malformed")]
    Malformed,
    /// The process watches over a container, but is not in it.
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
