//! Namespaces and service accounts.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::FakeKube;
use super::store::{Key, Kind};

/// Annotations as a test writes them: key and value.
pub type Annotations<'a> = &'a [(&'a str, &'a str)];

impl FakeKube {
    /// Creates a namespace, and in it the service account `default`, as the controller does.
    pub fn create_namespace(&self, name: &str, annotations: Annotations<'_>) {
        let mut object = object(Kind::Namespace, "", name, annotations);
        object["metadata"]["labels"] = json!({"kubernetes.io/metadata.name": name});
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
        self.put(Key::new(Kind::Namespace, "", name), object);
        self.create_service_account(name, "default", &[]);
    }

    /// Creates a service account, and returns its UID; an existing one is replaced by one with another UID.
    ///
    /// # Panics
    ///
    /// If the namespace does not exist.
    pub fn create_service_account(
        &self,
        namespace: &str,
        name: &str,
        annotations: Annotations<'_>,
    ) -> String {
        assert!(
            self.exists(&Key::new(Kind::Namespace, "", namespace)),
            "namespace {namespace} not found"
        );
        let key = Key::new(Kind::ServiceAccount, namespace, name);
        self.cluster.change(|state| state.store.remove(&key, false));
        let object = object(Kind::ServiceAccount, namespace, name, annotations);
        let uid = uid_of(&object);
        self.put(key, object);
        uid
    }

    /// Replaces the annotations of a service account; its UID stays.
    ///
    /// # Panics
    ///
    /// If it does not exist.
    pub fn annotate_service_account(
        &self,
        namespace: &str,
        name: &str,
        annotations: Annotations<'_>,
    ) {
        self.annotate(
            &Key::new(Kind::ServiceAccount, namespace, name),
            annotations,
        );
    }

    /// The UID of a service account.
    ///
    /// # Panics
    ///
    /// If it does not exist.
    #[must_use]
    pub fn service_account_uid(&self, namespace: &str, name: &str) -> String {
        uid_of(&self.object(&Key::new(Kind::ServiceAccount, namespace, name)))
    }

    /// The cluster's newest revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.cluster.lock().store.revision()
    }

    fn annotate(&self, key: &Key, annotations: Annotations<'_>) {
        self.edit(key, |object| {
            object["metadata"]["annotations"] = map(annotations)
        });
    }

    pub(super) fn exists(&self, key: &Key) -> bool {
        self.cluster.lock().store.object(key).is_some()
    }

    pub(super) fn object(&self, key: &Key) -> Value {
        let state = self.cluster.lock();
        let object = state.store.object(key);
        let object = object.unwrap_or_else(|| {
            panic!(
                "{} {}/{} not found",
                key.kind.name(),
                key.namespace,
                key.name
            )
        });
        Value::clone(object)
    }

    pub(super) fn put(&self, key: Key, object: Value) {
        self.cluster.change(|state| state.store.put(key, object));
    }

    pub(super) fn edit(&self, key: &Key, edit: impl FnOnce(&mut Value)) {
        let mut object = self.object(key);
        edit(&mut object);
        self.put(key.clone(), object);
    }
}

/// An object with metadata as a real server writes it.
pub(super) fn object(
    kind: Kind,
    namespace: &str,
    name: &str,
    annotations: Annotations<'_>,
) -> Value {
    let mut metadata = json!({
        "name": name, "uid": Uuid::new_v4().to_string(), "creationTimestamp": now(), "annotations": map(annotations),
        "managedFields": [{
            "manager": "testkit", "operation": "Update", "apiVersion": "v1", "time": now(),
            "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:annotations": {".": {}}}},
        }],
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    json!({"kind": kind.name(), "apiVersion": "v1", "metadata": metadata})
}

pub(super) fn uid_of(object: &Value) -> String {
    object["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The present time, as the API writes it: RFC 3339 to the second.
pub(super) fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

pub(super) fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn map(annotations: Annotations<'_>) -> Value {
    let pairs = annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    Value::Object(pairs.collect::<Map<_, _>>())
}
