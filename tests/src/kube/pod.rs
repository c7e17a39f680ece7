//! Pods: how a test describes one, and the handle by which it changes it.

use serde_json::{Value, json};
use uuid::Uuid;

use super::FakeKube;
use super::objects::{now, object, timestamp, uid_of};
use super::store::{Key, Kind};

/// A pod to create; `PodSpec { host_network: true, ..PodSpec::of("test", "web", "app") }`.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace, which must exist.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; `None`: a new one.
    pub uid: Option<String>,
    /// Its service account, which must exist.
    pub service_account: String,
    /// The node it runs on; empty while it waits for the scheduler.
    pub node: String,
    /// Whether it lives in the node's network namespace.
    pub host_network: bool,
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Whether it is the mirror of a static pod: no service account, and annotations that say so.
    pub mirror: bool,
    /// Its annotations.
    pub annotations: Vec<(String, String)>,
    /// The name of its RuntimeClass.
    pub runtime_class: Option<String>,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its id in the status, as 64 hex digits; `None` until the kubelet has reported it.
    pub id: Option<String>,
    /// Whether it is an init container.
    pub init: bool,
}

/// A pod of a [`FakeKube`].
#[derive(Clone, Debug)]
pub struct Pod {
    kube: FakeKube,
    key: Key,
    uid: String,
}

impl Default for PodSpec {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            name: "pod".to_owned(),
            uid: None,
            service_account: "default".to_owned(),
            node: "n1".to_owned(),
            host_network: false,
            phase: "Running".to_owned(),
            containers: vec![Container::new("app")],
            mirror: false,
            annotations: Vec::new(),
            runtime_class: None,
        }
    }
}

impl PodSpec {
    /// A pod of a service account, that runs on `n1` and has the container `app`.
    #[must_use]
    pub fn of(namespace: &str, name: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: service_account.to_owned(),
            ..Self::default()
        }
    }
}

impl Container {
    /// A container that the kubelet has not yet reported.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            id: None,
            init: false,
        }
    }

    /// A running container with this id.
    #[must_use]
    pub fn running(name: &str, id: &str) -> Self {
        Self {
            id: Some(id.to_owned()),
            ..Self::new(name)
        }
    }

    fn status(&self) -> Value {
        let mut status = json!({
            "name": self.name, "image": "registry.example/app:1", "imageID": "", "restartCount": 0,
            "ready": self.id.is_some(), "started": self.id.is_some(), "lastState": {},
        });
        match &self.id {
            Some(id) => {
                status["containerID"] = format!("containerd://{id}").into();
                status["state"] = json!({"running": {"startedAt": now()}});
            }
            None => status["state"] = json!({"waiting": {"reason": "ContainerCreating"}}),
        }
        status
    }
}

impl FakeKube {
    /// Creates a pod.
    ///
    /// # Panics
    ///
    /// If its namespace or service account does not exist, or a pod of this name does.
    pub fn create_pod(&self, spec: PodSpec) -> Pod {
        let PodSpec {
            namespace,
            name,
            service_account,
            ..
        } = &spec;
        let key = Key::new(Kind::Pod, namespace, name);
        assert!(
            self.exists(&Key::new(Kind::Namespace, "", namespace)),
            "namespace {namespace} not found"
        );
        assert!(
            spec.mirror || self.exists(&Key::new(Kind::ServiceAccount, namespace, service_account)),
            "error looking up service account {namespace}/{service_account}: not found"
        );
        assert!(!self.exists(&key), "pods \"{name}\" already exists");
        let object = spec.object();
        let uid = uid_of(&object);
        self.put(key.clone(), object);
        Pod {
            kube: self.clone(),
            key,
            uid,
        }
    }
}

impl PodSpec {
    fn object(&self) -> Value {
        let mut annotations: Vec<_> = self
            .annotations
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        let hash = Uuid::new_v4().simple().to_string();
        if self.mirror {
            annotations.extend([
                ("kubernetes.io/config.hash", hash.as_str()),
                ("kubernetes.io/config.mirror", hash.as_str()),
                ("kubernetes.io/config.source", "file"),
            ]);
        }
        let mut pod = object(Kind::Pod, &self.namespace, &self.name, &annotations);
        if let Some(uid) = &self.uid {
            pod["metadata"]["uid"] = uid.as_str().into();
        }
        pod["metadata"]["labels"] = json!({"app": self.name});
        pod["spec"] = self.spec();
        pod["status"] = self.status();
        if self.mirror {
            pod["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "v1", "kind": "Node", "name": self.node, "uid": Uuid::new_v4().to_string(), "controller": true,
            }]);
        }
        pod
    }

    fn spec(&self) -> Value {
        let mounts = json!([{
            "name": "kube-api-access", "readOnly": true,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        }]);
        let containers = |init: bool| -> Vec<Value> {
            let wanted = self
                .containers
                .iter()
                .filter(|container| container.init == init);
            let container = |container: &Container| {
                json!({
                    "name": container.name, "image": "registry.example/app:1", "resources": {},
                    "volumeMounts": mounts, "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent",
                })
            };
            wanted.map(container).collect()
        };
        let mut spec = json!({
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            ]}}],
            "containers": containers(false),
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "priority": 0,
            "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
        });
        if self.containers.iter().any(|container| container.init) {
            spec["initContainers"] = containers(true).into();
        }
        if !self.node.is_empty() {
            spec["nodeName"] = self.node.as_str().into();
        }
        if self.host_network {
            spec["hostNetwork"] = true.into();
        }
        if let Some(class) = &self.runtime_class {
            spec["runtimeClassName"] = class.as_str().into();
        }
        if !self.mirror {
            spec["serviceAccountName"] = self.service_account.as_str().into();
            spec["serviceAccount"] = self.service_account.as_str().into();
        }
        spec
    }

    fn status(&self) -> Value {
        let statuses = |init: bool| -> Vec<Value> {
            let wanted = self
                .containers
                .iter()
                .filter(|container| container.init == init);
            wanted.map(Container::status).collect()
        };
        let mut status = json!({
            "phase": self.phase, "qosClass": "BestEffort", "startTime": now(),
            "conditions": [{"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                            "lastTransitionTime": now()}],
            "containerStatuses": statuses(false),
        });
        if self.containers.iter().any(|container| container.init) {
            status["initContainerStatuses"] = statuses(true).into();
        }
        status
    }
}

impl Pod {
    /// Its UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// Reports a container as running with this id, as the kubelet does after each start.
    pub fn set_container(&self, name: &str, id: &str) {
        let status = Container::running(name, id).status();
        self.edit(|pod| {
            for list in ["containerStatuses", "initContainerStatuses"] {
                for old in pod["status"][list].as_array_mut().into_iter().flatten() {
                    if old["name"] == name {
                        *old = status.clone();
                    }
                }
            }
        });
    }

    /// Adds an ephemeral container, as `kubectl debug` does; if it has an id, it runs.
    pub fn add_ephemeral(&self, name: &str, id: Option<&str>) {
        let container = Container {
            id: id.map(str::to_owned),
            ..Container::new(name)
        };
        self.edit(|pod| {
            push(
                &mut pod["spec"]["ephemeralContainers"],
                json!({"name": name, "image": "registry.example/debug:1", "targetContainerName": "app"}),
            );
            push(&mut pod["status"]["ephemeralContainerStatuses"], container.status());
        });
    }

    /// Claims an edit at that time (`metadata.managedFields`), as whoever edits a pod may claim.
    pub fn claim_edit_at(&self, time: &str) {
        self.edit(|pod| {
            pod["metadata"]["managedFields"] = json!([{
                "manager": "somebody", "operation": "Update", "apiVersion": "v1", "time": time,
                "fieldsType": "FieldsV1", "fieldsV1": {},
            }]);
        });
    }

    /// Sets `status.phase`.
    pub fn set_phase(&self, phase: &str) {
        self.edit(|pod| pod["status"]["phase"] = phase.into());
    }

    /// Schedules it to another node.
    pub fn set_node(&self, node: &str) {
        self.edit(|pod| pod["spec"]["nodeName"] = node.into());
    }

    /// Replaces its annotations.
    pub fn annotate(&self, annotations: super::Annotations<'_>) {
        self.edit(|pod| {
            pod["metadata"]["annotations"] = annotations.iter().map(|(k, v)| (*k, *v)).collect();
        });
    }

    /// Begins its deletion: sets `deletionTimestamp` this many seconds from now (in the past if negative).
    pub fn terminate(&self, grace_seconds: i64) {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace_seconds);
        self.edit(|pod| {
            pod["metadata"]["deletionTimestamp"] = timestamp(at).into();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds.max(0).into();
        });
    }

    /// Deletes it.
    pub fn delete(&self) {
        self.remove(false);
    }

    /// Deletes it without any watch event.
    pub fn delete_unseen(&self) {
        self.remove(true);
    }

    /// The object as the server has it now.
    ///
    /// # Panics
    ///
    /// If it has been deleted.
    #[must_use]
    pub fn object(&self) -> Value {
        self.kube.object(&self.key)
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        self.kube.edit(&self.key, edit);
    }

    fn remove(&self, unseen: bool) {
        self.kube.cluster.change(|state| {
            let now = state.store.object(&self.key).map(|object| uid_of(object));
            assert_eq!(
                now.as_deref(),
                Some(self.uid.as_str()),
                "pod {} is not there",
                self.key.name
            );
            state.store.remove(&self.key, unseen);
        });
    }
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(items) => items.push(item),
        None => *list = json!([item]),
    }
}
