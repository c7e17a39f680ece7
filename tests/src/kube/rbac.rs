//! Who may do what, and the refusal in the real server's words.

use std::collections::HashMap;

use serde_json::json;

use super::FakeKube;
use super::status::Status;

/// One right: all of `verbs` on all of `resources`, within its namespace and names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// `get`, `list`, `watch`, `create`, `patch`; `impersonate:associated-node` on `nodes`, and the like.
    pub verbs: Vec<String>,
    /// `pods`, `serviceaccounts`, `serviceaccounts/token`, `namespaces`.
    pub resources: Vec<String>,
    /// The only namespace that it holds in; `None`: the whole cluster.
    pub namespace: Option<String>,
    /// The only names that it holds for; empty: all of them, which lists need.
    pub names: Vec<String>,
}

/// What a request wants to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Access {
    pub(super) verb: String,
    /// The resource, with `/subresource`.
    pub(super) resource: String,
    /// Empty if the request is for the whole cluster.
    pub(super) namespace: String,
    /// Empty if the request names no object.
    pub(super) name: String,
}

#[derive(Debug, Default)]
pub(super) struct Rbac {
    rules: HashMap<String, Vec<Rule>>,
    /// (verb, resource) pairs that are refused to everybody now, whatever the rules say.
    forbidden: Vec<(String, String)>,
}

impl Rule {
    /// The right to `verbs` on `resources`, both separated by spaces, in the whole cluster.
    #[must_use]
    pub fn allow(verbs: &str, resources: &str) -> Self {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        Self {
            verbs: words(verbs),
            resources: words(resources),
            namespace: None,
            names: Vec::new(),
        }
    }

    /// The rights that the agent's manifests give it.
    #[must_use]
    pub fn agent() -> Vec<Self> {
        vec![
            Self::allow("get list watch", "pods"),
            Self::allow("get", "serviceaccounts namespaces"),
            Self::allow("create", "serviceaccounts/token"),
        ]
    }

    /// The rights of the level `node`: to impersonate the agent's own node, for its pods and their tokens.
    #[must_use]
    pub fn as_node() -> Vec<Self> {
        let on = |verb: &str| format!("impersonate-on:associated-node:{verb}");
        vec![
            Self::allow("impersonate:associated-node", "nodes"),
            Self::allow(&[on("get"), on("list"), on("watch")].join(" "), "pods"),
            Self::allow(&on("create"), "serviceaccounts/token"),
            Self::allow("get", "serviceaccounts namespaces"),
        ]
    }

    fn covers(&self, access: &Access) -> bool {
        let holds = |words: &[String], word: &str| words.iter().any(|w| w == word || w == "*");
        holds(&self.verbs, &access.verb)
            && holds(&self.resources, &access.resource)
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == access.namespace)
            && (self.names.is_empty() || self.names.contains(&access.name))
    }
}

impl Rbac {
    pub(super) fn grant(&mut self, user: &str, rules: Vec<Rule>) {
        self.rules.insert(user.to_owned(), rules);
    }

    pub(super) fn allows(&self, user: &str, access: &Access) -> bool {
        let forbidden = self
            .forbidden
            .iter()
            .any(|(verb, resource)| *verb == access.verb && *resource == access.resource);
        // The rights of every authenticated user, by the role system:basic-user.
        let basic = access.verb == "create" && access.resource == "selfsubjectaccessreviews";
        let rules = self.rules.get(user).map(Vec::as_slice).unwrap_or_default();
        !forbidden && (basic || rules.iter().any(|rule| rule.covers(access)))
    }

    pub(super) fn judge(&self, user: &str, access: &Access) -> Result<(), Status> {
        if self.allows(user, access) {
            Ok(())
        } else {
            Err(access.refusal(user))
        }
    }
}

impl Access {
    pub(super) fn refusal(&self, user: &str) -> Status {
        let Self {
            verb,
            resource,
            namespace,
            name,
        } = self;
        let plural = resource.split('/').next().unwrap_or_default();
        let subject = if name.is_empty() {
            plural.to_owned()
        } else {
            format!("{plural} \"{name}\"")
        };
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let message = format!(
            "{subject} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"\" {scope}"
        );
        let mut status = Status::forbidden(&message);
        status.body["details"] = if name.is_empty() {
            json!({"kind": plural})
        } else {
            json!({"name": name, "kind": plural})
        };
        status
    }
}

impl FakeKube {
    /// Gives `user` exactly these rights.
    pub fn grant(&self, user: &str, rules: Vec<Rule>) {
        self.cluster.change(|state| state.rbac.grant(user, rules));
    }

    /// Takes (verb, resource) from everybody until [`permit`](Self::permit); open watches go on, as in the real one.
    pub fn forbid(&self, verb: &str, resource: &str) {
        let pair = (verb.to_owned(), resource.to_owned());
        self.cluster.change(|state| state.rbac.forbidden.push(pair));
    }

    /// Reverts a [`forbid`](Self::forbid).
    pub fn permit(&self, verb: &str, resource: &str) {
        self.cluster.change(|state| {
            state
                .rbac
                .forbidden
                .retain(|(v, r)| (v.as_str(), r.as_str()) != (verb, resource));
        });
    }
}
