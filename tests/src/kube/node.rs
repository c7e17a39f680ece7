//! Nodes: the objects, and a node's identity, which an account that runs there may impersonate (KEP-5284).

use std::collections::HashMap;

use http::HeaderMap;
use serde_json::{Value, json};

use super::api::{Answer, respond};
use super::objects::object;
use super::rbac::Access;
use super::status::Status;
use super::store::{Key, Kind};
use super::{Cluster, FakeKube, State};

/// The prefix of a node's user name.
const USER: &str = "system:node:";

/// The group of all nodes, for rights beyond those of the node authorizer.
pub const NODES: &str = "system:nodes";

/// As whom a request is judged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Subject {
    /// A user, by RBAC.
    User(String),
    /// A node, by the node authorizer and the admission plugin NodeRestriction.
    Node(String),
}

impl Subject {
    /// The token's user, or the one that the headers name, if the user may act as that one.
    pub(super) fn of(
        state: &State,
        user: &str,
        headers: &HeaderMap,
        access: &Access,
    ) -> Result<Self, Status> {
        let is_impersonation = |name: &str| name.starts_with("impersonate-");
        let named: Vec<&str> = headers
            .keys()
            .map(http::HeaderName::as_str)
            .filter(|name| is_impersonation(name))
            .collect();
        if named.is_empty() {
            return Ok(Self::User(user.to_owned()));
        }
        let wanted = headers.get("impersonate-user");
        let wanted = wanted.and_then(|value| value.to_str().ok()).unwrap_or("");
        // Only the name: with groups or more, this does not impersonate a node.
        if let (Some(node), 1) = (wanted.strip_prefix(USER), named.len())
            && state.places.get(user).is_some_and(|place| place == node)
        {
            let identity = Access {
                verb: "impersonate:associated-node".into(),
                resource: "nodes".into(),
                name: "*".into(),
                ..Access::default()
            };
            let action = Access {
                verb: format!("impersonate-on:associated-node:{}", access.verb),
                ..access.clone()
            };
            if state.rbac.allows(user, &identity) && state.rbac.allows(user, &action) {
                return Ok(Self::Node(node.to_owned()));
            }
        }
        let anybody = Access {
            verb: "impersonate".into(),
            resource: "users".into(),
            name: wanted.into(),
            ..Access::default()
        };
        state.rbac.judge(user, &anybody)?;
        Ok(match wanted.strip_prefix(USER) {
            Some(node) => Self::Node(node.to_owned()),
            None => Self::User(wanted.to_owned()),
        })
    }

    /// Whether the subject may do that.
    pub(super) fn judge(
        &self,
        state: &State,
        access: &Access,
        options: &HashMap<String, String>,
    ) -> Result<(), Status> {
        let node = match self {
            Self::User(user) => return state.rbac.judge(user, access),
            Self::Node(node) => node,
        };
        let own_pods = format!("spec.nodeName={node}");
        let selector = options.get("fieldSelector").map_or("", String::as_str);
        let pod = Key::new(Kind::Pod, &access.namespace, &access.name);
        let allowed = match (access.verb.as_str(), access.resource.as_str()) {
            ("list" | "watch", "pods") => selector.split(',').any(|part| part == own_pods),
            ("get", "pods") => state
                .store
                .object(&pod)
                .is_some_and(|pod| pod["spec"]["nodeName"] == node.as_str()),
            ("get", "nodes") => access.name == *node,
            // NodeRestriction decides whose token it may be.
            ("create", "serviceaccounts/token") => true,
            _ => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(access.refusal(&format!("{USER}{node}")))
        }
    }

    /// NodeRestriction: a node gets tokens only for pods that run on it, and only for audiences that it may request.
    pub(super) fn admit_token(
        &self,
        state: &State,
        namespace: &str,
        account: &str,
        request: &Value,
    ) -> Result<(), Status> {
        let Self::Node(node) = self else {
            return Ok(());
        };
        let refuse = |why: &str| {
            let message = format!("serviceaccounts \"{account}\" is forbidden: {why}");
            Err(Status::forbidden(&message))
        };
        let bound = &request["spec"]["boundObjectRef"];
        if bound["kind"] != "Pod" {
            return refuse("node requested token not bound to a pod");
        }
        let name = bound["name"].as_str().unwrap_or_default();
        let pod = state.store.object(&Key::new(Kind::Pod, namespace, name));
        if pod.is_none_or(|pod| pod["spec"]["nodeName"] != node.as_str()) {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        for audience in request["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let audience = audience.as_str().unwrap_or_default();
            let wish = Access {
                verb: "request-serviceaccounts-token-audience".into(),
                resource: audience.into(),
                namespace: namespace.into(),
                name: account.into(),
            };
            if !state.rbac.allows(NODES, &wish) {
                return refuse(&format!(
                    "audience \"{audience}\" not found in pod spec volume, {USER}{node} is not authorized to request \
                     tokens for this audience"
                ));
            }
        }
        Ok(())
    }
}

impl FakeKube {
    /// Creates a node with these taints, each a key and an effect.
    pub fn create_node(&self, name: &str, taints: &[(&str, &str)]) {
        let mut node = object(Kind::Node, "", name, &[]);
        let taints = taints
            .iter()
            .map(|(key, effect)| json!({"key": key, "effect": effect}));
        node["spec"] = json!({"taints": taints.collect::<Vec<_>>()});
        self.put(Key::new(Kind::Node, "", name), node);
    }

    /// The keys of a node's taints.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    #[must_use]
    pub fn taints(&self, node: &str) -> Vec<String> {
        let node = self.object(&Key::new(Kind::Node, "", node));
        let taints = node["spec"]["taints"].as_array().cloned();
        taints
            .unwrap_or_default()
            .iter()
            .map(|taint| taint["key"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Binds the user's token to a pod on that node, as a kubelet's tokens for its pods are.
    pub fn place(&self, user: &str, node: &str) {
        self.cluster.change(|state| {
            state.places.insert(user.to_owned(), node.to_owned());
        });
    }
}

impl Cluster {
    /// Changes a node's taints by a merge patch, and nothing else.
    pub(super) fn patch(&self, key: &Key, patch: &Value) -> Result<Answer, Status> {
        self.change(|state| {
            let Some(node) = state.store.object(key) else {
                return Err(Status::not_found(key));
            };
            let mut node = Value::clone(node);
            let version = &patch["metadata"]["resourceVersion"];
            if !version.is_null() && *version != node["metadata"]["resourceVersion"] {
                let why = "the object has been modified; please apply your changes to the latest version and try again";
                return Err(Status::conflict("nodes", &key.name, why));
            }
            if patch["spec"]["taints"].is_array() {
                node["spec"]["taints"] = patch["spec"]["taints"].clone();
            }
            state.store.put(key.clone(), node);
            let node = state.store.object(key).ok_or_else(|| Status::not_found(key))?;
            Ok(respond(http::StatusCode::OK, node))
        })
    }
}
