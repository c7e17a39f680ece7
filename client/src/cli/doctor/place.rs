//! Where the command runs: what to do next differs between a pod and a machine without a cluster.

use crate::client::is_in_pod;
use crate::protocol::Identity;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// How to start an agent on one's own machine.
pub(super) const START: &str = "latchkey-agent --config deploy/local.toml";

/// How to see what such an agent lacks.
pub(super) const CHECK: &str =
    "latchkey-agent check --config FILE, with the agent's own configuration";

/// Where such an agent logs.
pub(super) const STDERR: &str = "the agent's stderr says more";

/// How to say where the agent's socket is.
pub(super) const ELSEWHERE: &str =
    "if the agent's socket is elsewhere: --socket PATH, or LATCHKEY_SOCKET=PATH";

/// Where the command runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// A container of a pod.
    Pod,
    /// A laptop, a VM or a CI job.
    Machine,
}

impl Place {
    /// As far as can be told before the agent says who this is.
    pub(super) fn of_environment() -> Self {
        if is_in_pod() {
            Self::Pod
        } else {
            Self::Machine
        }
    }

    /// As the agent says.
    pub(super) fn of(identity: &Identity) -> Self {
        if identity.pod.is_empty() {
            Self::Machine
        } else {
            Self::Pod
        }
    }
}

/// Whether the pod has an agent of its own, which knows no node.
pub(super) fn is_sidecar(identity: &Identity) -> bool {
    !identity.pod.is_empty() && identity.node.is_empty()
}

impl fmt::Display for Place {
    /// What the agent serves there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "node",
            Self::Machine => "machine",
        })
    }
}

/// The user that the agent sees.
pub(super) fn user() -> String {
    // Without /proc, a person can get the number from `id`.
    let uid = fs::metadata("/proc/self").map(|own| own.uid().to_string());
    uid.map_or_else(|_| "uid".to_owned(), |uid| format!("uid {uid}"))
}
