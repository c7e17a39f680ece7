//! A pod as read from the API server: only the parts that the agent needs.
//!
//! A list of pods fails as a whole if one of them cannot be parsed, and whoever may edit a pod controls parts of it
//! that the agent does not need: a time in `metadata.managedFields` may be later than our type can hold. So those parts
//! are skipped, and nobody can use them to keep a node's pods from being known.

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A pod, parsed only as far as the agent uses it.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub(crate) struct Listed(pub(crate) k8s::Pod);

impl Resource for Listed {
    type DynamicType = ();
    type Scope = <k8s::Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        k8s::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        k8s::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        k8s::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        k8s::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    host_network: Option<bool>,
    runtime_class_name: Option<String>,
    ephemeral_containers: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    qos_class: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: Option<State>,
    last_state: Option<State>,
}

#[derive(Deserialize)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Deserialize)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

impl From<Wire> for Listed {
    fn from(wire: Wire) -> Self {
        let metadata = wire.metadata;
        Self(k8s::Pod {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                annotations: metadata.annotations,
                deletion_timestamp: metadata.deletion_timestamp.map(|time| deletion(&time)),
                ..ObjectMeta::default()
            },
            spec: wire.spec.map(Into::into),
            status: wire.status.map(Into::into),
        })
    }
}

/// When a deleted pod's grace period ends. A time that cannot be parsed counts as past.
fn deletion(time: &str) -> Time {
    Time(time.parse().unwrap_or(Timestamp::MIN))
}

impl From<Spec> for k8s::PodSpec {
    fn from(spec: Spec) -> Self {
        // Only whether there are any matters.
        let ephemeral = spec.ephemeral_containers;
        Self {
            service_account_name: spec.service_account_name,
            node_name: spec.node_name,
            host_network: spec.host_network,
            runtime_class_name: spec.runtime_class_name,
            ephemeral_containers: ephemeral
                .map(|list| vec![k8s::EphemeralContainer::default(); list.len().min(1)]),
            ..Self::default()
        }
    }
}

impl From<Status> for k8s::PodStatus {
    fn from(status: Status) -> Self {
        let all = |list: Option<Vec<ContainerStatus>>| {
            list.map(|list| list.into_iter().map(Into::into).collect())
        };
        Self {
            phase: status.phase,
            qos_class: status.qos_class,
            container_statuses: all(status.container_statuses),
            init_container_statuses: all(status.init_container_statuses),
            ephemeral_container_statuses: all(status.ephemeral_container_statuses),
            ..Self::default()
        }
    }
}

impl From<ContainerStatus> for k8s::ContainerStatus {
    fn from(status: ContainerStatus) -> Self {
        Self {
            name: status.name,
            container_id: status.container_id,
            state: status.state.map(Into::into),
            last_state: status.last_state.map(Into::into),
            ..Self::default()
        }
    }
}

impl From<State> for k8s::ContainerState {
    fn from(state: State) -> Self {
        let terminated = state
            .terminated
            .map(|terminated| k8s::ContainerStateTerminated {
                container_id: terminated.container_id,
                ..k8s::ContainerStateTerminated::default()
            });
        Self {
            terminated,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::pods::Facts;
    use serde_json::json;

    #[test]
    fn all_that_the_agent_goes_by_is_read_of_a_pod() {
        let status = |name: &str, digit: &str| {
            let id = |digit: &str| format!("containerd://{}", digit.repeat(64));
            json!({
                "name": name, "containerID": id(digit), "image": "i", "imageID": "", "ready": true, "restartCount": 1,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                "lastState": {"terminated": {"exitCode": 1, "containerID": id("f")}},
            })
        };
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": "web", "namespace": "test", "uid": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                "resourceVersion": "7", "deletionTimestamp": "2020-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30,
                "annotations": {
                    "eks.amazonaws.com/skip-containers": "proxy", "kubernetes.io/config.mirror": "x", "other": "y",
                },
            },
            "spec": {
                "serviceAccountName": "app", "nodeName": "node", "hostNetwork": true, "runtimeClassName": "gvisor",
                "containers": [{"name": "app"}], "ephemeralContainers": [{"name": "debug"}],
            },
            "status": {
                "phase": "Failed", "qosClass": "Burstable", "startTime": "2026-01-01T00:00:00Z",
                "containerStatuses": [status("app", "1")], "initContainerStatuses": [status("init", "2")],
                "ephemeralContainerStatuses": [status("debug", "3")],
            },
        });
        let typed: k8s::Pod = serde_json::from_value(pod.clone()).expect("a pod");
        let Listed(listed) = serde_json::from_value(pod).expect("a pod");
        assert_eq!(listed.metadata.resource_version.as_deref(), Some("7"));
        let (listed, typed) = (Facts::of(listed), Facts::of(typed));
        assert!(listed.is_some() && listed == typed, "{listed:?} {typed:?}");
    }

    #[test]
    fn what_the_agent_does_not_go_by_may_be_anything() {
        let pod = json!({
            "metadata": {
                "name": "web", "creationTimestamp": null,
                "managedFields": [{"time": "9999-12-31T00:00:00Z"}], "labels": 5, "ownerReferences": "x",
            },
            "spec": {"volumes": 7},
        });
        assert!(serde_json::from_value::<k8s::Pod>(pod.clone()).is_err());
        let Listed(listed) = serde_json::from_value(pod).expect("a pod");
        assert_eq!(listed.metadata.name.as_deref(), Some("web"));
    }

    #[test]
    fn a_grace_that_cannot_be_read_is_over() {
        let pod = |time: &str| {
            json!({
                "metadata": {"name": "web", "namespace": "test", "uid": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                    "deletionTimestamp": time},
                "spec": {},
            })
        };
        for (time, over) in [
            ("9999-12-31T23:59:59Z", true),
            ("9000-01-01T00:00:00Z", false),
        ] {
            let Listed(listed) = serde_json::from_value(pod(time)).expect("a pod");
            let (_, facts) = Facts::of(listed).expect("a pod");
            assert_eq!(facts.grace_ended(), over, "{time}");
        }
    }
}
