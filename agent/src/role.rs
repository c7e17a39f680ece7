//! Workload → role: what the pod would become in a cloud, by its service account's annotations.

use crate::account::Account;
use crate::attest::Workload;
use crate::backend::{BackendId, Backends};
use crate::error::RequestError;
use latchkey_client::protocol::{Code, Step};
use std::borrow::Cow;
use std::sync::Arc;

/// The annotation of a pod that names the containers which are to get no AWS role, separated by commas, as EKS'
/// own webhook reads it.
pub(crate) const EKS_SKIP_CONTAINERS: &str = "eks.amazonaws.com/skip-containers";

/// The same for Azure, separated by semicolons, as its workload identity webhook reads it.
pub(crate) const AZURE_SKIP_CONTAINERS: &str = "azure.workload.identity/skip-containers";

/// The annotation that says what stands before each name at the backend, in place of the configuration.
pub(crate) const PREFIX_KEY: &str = "latchkey.dev/prefix";

/// The name of the role that is the machine's own credentials, whatever they are.
pub(crate) const MACHINE: &str = "machine";

/// The annotations of a pod that matter here.
pub(crate) const POD_ANNOTATIONS: [&str; 2] = [EKS_SKIP_CONTAINERS, AZURE_SKIP_CONTAINERS];

/// What a workload asks to become at one backend. It is part of every key under which a pod keeps sessions and
/// values, so each field that changes what is read stands here.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Role {
    /// As the cloud writes it, for people and for the audit line: an AWS role's ARN.
    pub(crate) name: Arc<str>,
    /// What the backend wants to be shown before it lets anybody take on the role.
    pub(crate) proof: Proof,
    /// What stands before each name at the backend.
    pub(crate) prefix: Arc<str>,
    /// Where secrets are read: an AWS region, a GCP project, the URL of a Key Vault.
    pub(crate) place: Arc<str>,
    /// By what the role is taken on, where that is not the backend's usual way: AWS' global token service, an Azure
    /// tenant, GCP's chain of delegates.
    pub(crate) via: Option<Arc<str>>,
}

/// By what a role is taken on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Proof {
    /// The machine's own credentials, outside of Kubernetes.
    Machine,
    /// Nothing: the backend is no cloud, and who may read what is settled before it is asked.
    None,
    /// The pod's own subject token, made out to this audience.
    Token(Arc<str>),
}

/// Why an account has no role for a backend.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoRole(pub(crate) Cow<'static, str>);

impl NoRole {
    pub(crate) const UNKNOWN_BACKEND: Self = Self(Cow::Borrowed("there is no such backend"));
}

/// The role of `workload` for `backend`.
///
/// # Errors
///
/// `no_role` if its service account names none, or its container is exempt or may be so.
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
        _ if workload.is_volume() => {
            "the pod exempts containers from its role, and any container may mount the volume's files"
        }
        Some(container) if !skipped.contains(&container.name) => return Ok(role.clone()),
        Some(_) => "the pod's skip-containers annotation exempts this container from the role",
        // Its cgroup does not say, as in some sandboxes. One that it says and that is not named yet is no workload.
        None => {
            "the pod exempts containers from its role, and which of them asks cannot be told here"
        }
    };
    Err(RequestError::new(Code::NoRole, why).at(Step::Role))
}
