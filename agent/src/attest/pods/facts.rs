//! What the API server says about a pod, reduced to what the agent needs.

use super::Listed;
use crate::attest::cgroup::{ContainerId, PodUid, QosClass};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// The longest list of exempt containers that is parsed, in bytes.
const EXEMPTION_LIMIT: usize = 16 * 1024;

/// How far a node's clock may be ahead of the API server's before a deleted pod's grace period ends early.
const GRACE_SLACK: Duration = Duration::from_secs(2);

/// The annotation on a pod that mirrors a static pod. The static pod's processes carry another UID, so anything that
/// claims this one is refused.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// What the API server says about a pod, reduced to what the agent needs.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Facts {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) service_account: Arc<str>,
    pub(crate) node: String,
    pub(crate) host_network: bool,
    pub(crate) mirror: bool,
    pub(crate) finished: bool,
    pub(crate) qos: Option<QosClass>,
    /// The name of its RuntimeClass.
    pub(crate) runtime_class: Option<String>,
    pub(crate) has_ephemeral: bool,
    pub(crate) containers: HashMap<ContainerId, Container>,
    /// For each annotation that exempts containers from a role: which of the containers named so far it exempts.
    pub(crate) exempt: BTreeMap<String, BTreeSet<String>>,
    grace_ends: Option<Timestamp>,
}

/// A container that the API server has named.
#[derive(Debug, PartialEq)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) kind: ContainerKind,
}

/// How a container got into its pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ContainerKind {
    /// By `kubectl debug`: any image, under the pod's service account.
    Ephemeral,
    /// As part of the pod's specification.
    Ordinary,
}

// === impl Facts ===

impl Facts {
    /// What is known without an API server: a principal, and its pod's name if it has one. Without a pod it is on the
    /// machine's own network.
    pub(crate) fn of_principal(namespace: &str, service_account: &str, pod: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: pod.into(),
            service_account: service_account.into(),
            host_network: pod.is_empty(),
            ..Self::default()
        }
    }

    /// Whether some of its containers get no role, so that it matters which one makes a request.
    pub(crate) fn exempts_containers(&self) -> bool {
        !self.exempt.is_empty()
    }

    /// Whether the pod is deleted and its grace period is over.
    pub(crate) fn grace_ended(&self) -> bool {
        self.grace_ends
            .is_some_and(|end| crate::time::now() - GRACE_SLACK > end)
    }

    /// The UID and facts of a pod as the API server has it; none if it lacks a UID, name, namespace or spec.
    pub(super) fn of(pod: Listed) -> Option<(PodUid, Self)> {
        let uid = pod.metadata.uid?.parse().ok()?;
        let spec = pod.spec?;
        let status = pod.status.unwrap_or_default();
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let mut containers = HashMap::new();
        let ordinary = [status.container_statuses, status.init_container_statuses];
        for (statuses, kind) in ordinary
            .into_iter()
            .map(|statuses| (statuses, ContainerKind::Ordinary))
            .chain([(
                status.ephemeral_container_statuses,
                ContainerKind::Ephemeral,
            )])
        {
            for status in statuses.unwrap_or_default() {
                // Processes of the container before a restart may still be ending.
                let last = [status.state, status.last_state].into_iter().flatten();
                let ids = last
                    .filter_map(|state| state.terminated.and_then(|state| state.container_id))
                    .chain(status.container_id);
                for id in ids.filter_map(|id| ContainerId::from_status(&id)) {
                    containers.insert(
                        id,
                        Container {
                            name: status.name.clone(),
                            kind,
                        },
                    );
                }
            }
        }
        // Parsed once, not at each request. Whoever writes the annotation may make it as long, and rewrite it as often,
        // as they like: one that is longer than any real list of containers is not parsed, and exempts them all.
        let named = |listed: &str| {
            let listed: Option<BTreeSet<&str>> = (listed.len() <= EXEMPTION_LIMIT)
                .then(|| listed.split([',', ';']).map(str::trim).collect());
            containers
                .values()
                .map(|container: &Container| &container.name)
                .filter(|name| {
                    listed
                        .as_ref()
                        .is_none_or(|listed| listed.contains(&***name))
                })
                .cloned()
                .collect()
        };
        let exempt = annotations
            .iter()
            .filter(|(key, _)| crate::role::POD_ANNOTATIONS.contains(&key.as_str()))
            .map(|(key, listed)| (key.clone(), named(listed)))
            .collect();
        let facts = Self {
            namespace: pod.metadata.namespace?.into(),
            name: pod.metadata.name?.into(),
            service_account: spec
                .service_account_name
                .unwrap_or_else(|| "default".into())
                .into(),
            node: spec.node_name.unwrap_or_default(),
            host_network: spec.host_network.unwrap_or_default(),
            mirror: annotations.contains_key(MIRROR),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            qos: status.qos_class.and_then(|class| class.parse().ok()),
            runtime_class: spec.runtime_class_name,
            has_ephemeral: spec
                .ephemeral_containers
                .is_some_and(|list| !list.is_empty()),
            exempt,
            containers,
            grace_ends: pod.metadata.deletion_timestamp.map(|time| time.0),
        };
        Some((uid, facts))
    }
}
