//! Field selectors: `spec.nodeName=n1,metadata.namespace!=kube-system`.

use serde_json::Value;

use super::status::Status;
use super::store::Kind;

/// A parsed field selector; the empty one selects everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Selector(Vec<Condition>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Condition {
    field: String,
    value: String,
    equal: bool,
}

/// The fields that pods are selected by (pkg/apis/core/v1/conversion.go).
const POD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

impl Selector {
    pub(super) fn parse(kind: Kind, text: &str) -> Result<Self, Status> {
        let conditions = text.split(',').filter(|part| !part.is_empty());
        conditions
            .map(|part| Condition::parse(kind, part))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        self.0.iter().all(|condition| {
            let pointer = format!("/{}", condition.field.replace('.', "/"));
            let value = match object.pointer(&pointer) {
                Some(Value::Bool(value)) => value.to_string(),
                Some(Value::String(value)) => value.clone(),
                _ if condition.field == "spec.hostNetwork" => "false".to_owned(),
                _ => String::new(),
            };
            (value == condition.value) == condition.equal
        })
    }
}

impl Condition {
    fn parse(kind: Kind, part: &str) -> Result<Self, Status> {
        let split = part.split_once("!=").map(|split| (split, false));
        let split = split.or_else(|| part.split_once("==").map(|split| (split, true)));
        let split = split.or_else(|| part.split_once('=').map(|split| (split, true)));
        let Some(((field, value), equal)) = split else {
            let message = format!("invalid selector: '{part}'; can't understand '{part}'");
            return Err(Status::bad_request(&message));
        };
        let known = match kind {
            Kind::Pod => POD_FIELDS.contains(&field),
            Kind::Node => ["metadata.name", "spec.unschedulable"].contains(&field),
            Kind::Namespace => ["metadata.name", "status.phase"].contains(&field),
            Kind::ServiceAccount => ["metadata.name", "metadata.namespace"].contains(&field),
        };
        if !known {
            return Err(Status::bad_request(&format!(
                "field label not supported: {field}"
            )));
        }
        Ok(Self {
            field: field.to_owned(),
            value: value.to_owned(),
            equal,
        })
    }
}
