//! Workload → role: what the pod becomes in a cloud, according to its service account's annotations.

use crate::account::Account;
use crate::attest::Workload;
use crate::backend::{BackendId, Backends};
use crate::error::RequestError;
use latchkey_client::protocol::words::EXEMPTS;
use latchkey_client::protocol::{Code, Step};
use std::borrow::Cow;
use std::sync::Arc;

/// The pod annotation that names the containers that get no AWS role, separated by commas, as EKS's own webhook reads
/// it.
pub(crate) const EKS_SKIP_CONTAINERS: &str = "eks.amazonaws.com/skip-containers";

/// The same for Azure, separated by semicolons, as its workload identity webhook reads it.
pub(crate) const AZURE_SKIP_CONTAINERS: &str = "azure.workload.identity/skip-containers";

/// The annotation that sets the prefix of each name at the backend, and overrides the configuration.
pub(crate) const PREFIX_KEY: &str = "latchkey.dev/prefix";

/// The name of the role that stands for the machine's own credentials, whatever they are.
pub(crate) const MACHINE: &str = "machine";

/// The pod annotations that affect roles.
pub(crate) const POD_ANNOTATIONS: [&str; 2] = [EKS_SKIP_CONTAINERS, AZURE_SKIP_CONTAINERS];

/// What a workload becomes at one backend. It is part of the key of every session and value that a pod keeps, so every
/// field that changes what is read belongs here.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Role {
    /// The name as the cloud writes it, for people and for the audit line, such as an AWS role's ARN.
    pub(crate) name: Arc<str>,
    /// The proof that the backend requires before it lets anyone assume the role.
    pub(crate) proof: Proof,
    /// The prefix of each name at the backend.
    pub(crate) prefix: Arc<str>,
    /// Where secrets are read: an AWS region, a GCP project, the URL of a Key Vault.
    pub(crate) place: Arc<str>,
    /// How the role is assumed, if not in the backend's usual way: AWS's global token service, an Azure tenant, GCP's
    /// chain of delegates.
    pub(crate) via: Option<Arc<str>>,
}

// === impl Role ===

impl Role {
    /// Whether one cloud takes both for the same, so that it refuses both if it refuses one: they may differ in what is
    /// read, and where. What needs no proof of the pod's own is named alike at backends that know nothing of each other.
    pub(crate) fn is_same_to_cloud(&self, other: &Self) -> bool {
        match self.proof {
            Proof::Token(_) => {
                (&self.name, &self.proof, &self.via) == (&other.name, &other.proof, &other.via)
            }
            Proof::Machine | Proof::None => self == other,
        }
    }
}

/// What proves that a workload may assume a role.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Proof {
    /// The machine's own credentials, outside Kubernetes.
    Machine,
    /// Nothing: the backend is not a cloud, and who may read what is decided before it is called.
    None,
    /// The pod's own subject token, issued for this audience.
    Token(Arc<str>),
}

/// Why an account has no role for a backend.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoRole(pub(crate) Cow<'static, str>);

impl NoRole {
    pub(crate) const UNKNOWN_BACKEND: Self = Self(Cow::Borrowed("there is no such backend"));

    /// A principal of the machine that is nothing in any cloud.
    pub(crate) const NONE_WRITTEN: Self = Self(Cow::Borrowed(
        "the agent's configuration names no role in a cloud for this user: its [[local.workload]] says role = \"none\"",
    ));

    pub(crate) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }
}

/// Returns the role of `workload` for `backend`.
///
/// # Errors
///
/// `no_role` if its service account names none, or its container is exempt or may be.
pub(crate) fn of(
    workload: &Workload,
    account: &Account,
    backends: &Backends,
    backend: BackendId,
) -> Result<Arc<Role>, RequestError> {
    let role = account
        .role(backend)
        .map_err(|none| RequestError::new(Code::NoRole, none.0.clone()).at(Step::Role))?;
    let facts = workload.facts();
    let skipped = backends
        .at(backend)
        .skip_annotation()
        .and_then(|key| facts.exempt.get(key));
    let Some(skipped) = skipped else {
        return Ok(role.clone());
    };
    let container = workload
        .container()
        .and_then(|container| facts.containers.get(&container));
    let why = match container {
        _ if workload.is_volume() => format!(
            "the pod {EXEMPTS} containers from its role, and any container may mount the volume's files"
        ),
        Some(container) if !skipped.contains(&container.name) => return Ok(role.clone()),
        Some(_) => {
            format!("the pod's skip-containers annotation {EXEMPTS} this container from the role")
        }
        // Its cgroup names no container, as in some sandboxes. A process whose cgroup names one that the pod does not
        // list yet is not attested at all.
        None => format!(
            "the pod {EXEMPTS} containers from its role, and which of them asks cannot be told here"
        ),
    };
    Err(RequestError::new(Code::NoRole, why).at(Step::Role))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(proof: Proof, via: Option<&str>, place: &str) -> Role {
        Role {
            name: "name".into(),
            proof,
            prefix: "".into(),
            place: place.into(),
            via: via.map(Into::into),
        }
    }

    #[test]
    fn a_cloud_takes_two_roles_for_the_same_only_if_the_pod_proves_them_in_the_same_way() {
        let token = || Proof::Token("audience".into());
        let one = role(token(), Some("tenant"), "here");
        assert!(one.is_same_to_cloud(&role(token(), Some("tenant"), "there")));
        assert!(!one.is_same_to_cloud(&role(token(), Some("another"), "here")));
        // Two clouds know nothing of each other's `machine`, nor a store of what another one refuses.
        for proof in [Proof::Machine, Proof::None] {
            let one = role(proof.clone(), None, "here");
            assert!(one.is_same_to_cloud(&one));
            assert!(!one.is_same_to_cloud(&role(proof, None, "there")));
        }
    }
}
