//! A pod as read from the API server: only the parts that the agent needs.
//!
//! A list of pods fails as a whole if one of them cannot be parsed, and whoever may edit a pod controls parts of it
//! that the agent does not need: a time in `metadata.managedFields` may be later than our type can hold. So those parts
//! are skipped, and nobody can use them to keep a node's pods from being known.

use super::facts::MIRROR;
use crate::role::POD_ANNOTATIONS;
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A pod, parsed only as far as the agent uses it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Listed {
    #[serde(default, deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: Option<Spec>,
    pub(super) status: Option<Status>,
}

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
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) service_account_name: Option<String>,
    pub(super) node_name: Option<String>,
    pub(super) host_network: Option<bool>,
    pub(super) runtime_class_name: Option<String>,
    pub(super) ephemeral_containers: Option<Vec<IgnoredAny>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) phase: Option<String>,
    pub(super) qos_class: Option<String>,
    pub(super) container_statuses: Option<Vec<ContainerStatus>>,
    pub(super) init_container_statuses: Option<Vec<ContainerStatus>>,
    pub(super) ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    #[serde(rename = "containerID")]
    pub(super) container_id: Option<String>,
    pub(super) state: Option<State>,
    pub(super) last_state: Option<State>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct State {
    pub(super) terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Terminated {
    #[serde(rename = "containerID")]
    pub(super) container_id: Option<String>,
}

/// Reads the metadata into the type that the watch needs.
fn metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(from)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        annotations: read.annotations,
        deletion_timestamp: read.deletion_timestamp.map(|time| deletion(&time)),
        ..ObjectMeta::default()
    })
}

/// Reads those annotations that matter here. A pod may have 256 KiB of others (`TotalAnnotationSizeLimitB` in
/// apimachinery's validation).
fn annotations<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let read = Option::<BTreeMap<String, String>>::deserialize(from)?;
    Ok(read.map(|mut all| {
        all.retain(|key, _| key == MIRROR || POD_ANNOTATIONS.contains(&&**key));
        all
    }))
}

/// When a deleted pod's grace period ends. A time that cannot be parsed counts as past.
fn deletion(time: &str) -> Time {
    Time(time.parse().unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::cgroup::{ContainerId, QosClass};
    use crate::attest::pods::{ContainerKind, Facts};
    use serde_json::json;

    #[test]
    fn it_is_asked_for_as_a_pod() {
        assert_eq!(Listed::kind(&()), "Pod");
        assert_eq!(Listed::api_version(&()), "v1");
        let path = Listed::url_path(&(), Some("test"));
        assert_eq!(path, "/api/v1/namespaces/test/pods");
    }

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
        let listed: Listed = serde_json::from_value(pod).expect("a pod");
        assert_eq!(listed.metadata.resource_version.as_deref(), Some("7"));
        let kept = listed.metadata.annotations.as_ref();
        assert_eq!(kept.map(BTreeMap::len), Some(2), "the other one is dropped");
        let (uid, facts) = Facts::of(listed).expect("a pod");
        assert_eq!(uid.to_string(), "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0");
        let names = [&facts.namespace, &facts.name, &facts.service_account];
        assert_eq!(names.map(|name| &**name), ["test", "web", "app"]);
        assert_eq!(
            (&*facts.node, facts.runtime_class.as_deref()),
            ("node", Some("gvisor"))
        );
        assert_eq!(facts.qos, Some(QosClass::Burstable));
        assert!(facts.host_network && facts.mirror && facts.finished);
        assert!(facts.has_ephemeral && facts.grace_ended() && facts.exempts_containers());
        let named = |digit: &str| {
            let id = ContainerId::from_status(&format!("containerd://{}", digit.repeat(64)));
            facts
                .containers
                .get(&id?)
                .map(|named| (&*named.name, named.kind))
        };
        assert_eq!(named("1"), Some(("app", ContainerKind::Ordinary)));
        assert_eq!(named("2"), Some(("init", ContainerKind::Ordinary)));
        assert_eq!(named("3"), Some(("debug", ContainerKind::Ephemeral)));
        assert!(named("f").is_some(), "what was there before a restart");
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
        let listed: Listed = serde_json::from_value(pod).expect("a pod");
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
            let listed: Listed = serde_json::from_value(pod(time)).expect("a pod");
            let (_, facts) = Facts::of(listed).expect("a pod");
            assert_eq!(facts.grace_ended(), over, "{time}");
        }
    }
}
