//! What the agent's account may do at the API server, and which level of rights that is.

use super::Finding;
use crate::attest::pods::Listed;
use crate::config::{self, Config};
use crate::error::chain;
use crate::kubernetes::Clients;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, ListParams, PostParams};
use std::time::Duration;
use tokio::time::timeout;

/// How long the API server may take to answer a check.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster-wide right.
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
}

const fn right(verb: &'static str, resource: &'static str) -> Right {
    Right {
        verb,
        group: "",
        resource,
        subresource: "",
    }
}

/// What the agent requests as itself, however it gets pods and tokens.
const ACCOUNTS: Right = right("get", "serviceaccounts");

/// The same, if a Namespace's annotation stands for its accounts.
const NAMESPACES: Right = right("get", "namespaces");

/// What it requests about pods as itself.
const PODS: [Right; 3] = [
    right("watch", "pods"),
    right("list", "pods"),
    right("get", "pods"),
];

/// What lets it make requests as its node.
const AS_NODE: [Right; 5] = [
    Right {
        verb: "impersonate:associated-node",
        group: "authentication.k8s.io",
        resource: "nodes",
        subresource: "",
    },
    right("impersonate-on:associated-node:watch", "pods"),
    right("impersonate-on:associated-node:list", "pods"),
    right("impersonate-on:associated-node:get", "pods"),
    Right {
        verb: "impersonate-on:associated-node:create",
        group: "",
        resource: "serviceaccounts",
        subresource: "token",
    },
];

/// Whoever has this for all accounts can become any of them.
const ANY_TOKEN: Right = Right {
    verb: "create",
    group: "",
    resource: "serviceaccounts",
    subresource: "token",
};

/// What it takes to remove the startup taint.
const TAINT: [Right; 2] = [right("get", "nodes"), right("patch", "nodes")];

/// Checks every right that this configuration needs, and which level of rights to tokens is in force.
pub(super) async fn check(clients: &Clients, config: &Config) -> Vec<Finding> {
    let settings = &config.kubernetes;
    let mut findings = Vec::new();
    let mut wanted = vec![&ACCOUNTS];
    if config.identity.namespace_annotations {
        wanted.push(&NAMESPACES);
    }
    wanted.extend(if settings.impersonate_node {
        AS_NODE.iter()
    } else {
        PODS.iter()
    });
    if settings.startup_taint.is_some() {
        wanted.extend(&TAINT);
    }
    for right in wanted {
        let (verb, resource) = (right.verb, right.full_name());
        let granted = match right.is_granted(&clients.own).await {
            Ok(true) => Ok("granted"),
            Ok(false) => Err(format!(
                "not granted: bind a ClusterRole that allows {verb} on {resource}"
            )),
            // It would be the same for each of them.
            Err(why) => {
                findings.push(Finding::of("API server", Err::<String, _>(why)));
                return findings;
            }
        };
        findings.push(Finding::of(format!("right to {verb} {resource}"), granted));
    }
    if settings.impersonate_node {
        let listed = list_as_node(clients, &settings.node).await;
        findings.push(Finding::of(
            "pods of this node, asked for as the node",
            listed,
        ));
    }
    let level = level(clients, settings, config.csi.enabled).await;
    findings.push(Finding::of("level of rights to tokens", level));
    findings
}

/// The narrowest level that explains what the account may do.
async fn level(
    clients: &Clients,
    settings: &config::Kubernetes,
    by_csi: bool,
) -> Result<String, String> {
    Ok(if ANY_TOKEN.is_granted(&clients.own).await? {
        "every namespace, every account: whoever takes this agent's token can be any of them. Narrow it, see \
         docs/operations.md"
    } else if settings.impersonate_node {
        "node: for pods of this node only, asked for as the node"
    } else if by_csi {
        "none: the kubelet hands tokens over by CSI; beyond that only where a namespace names accounts in a Role of its own \
         and no admission policy refuses it"
    } else {
        "namespace: only for accounts that their namespaces name in a Role of their own"
    }
    .into())
}

/// Checks what no review of rights can tell: whether the API server knows constrained impersonation, and whether the
/// agent's token is bound to this node.
async fn list_as_node(clients: &Clients, node: &str) -> Result<String, String> {
    let pods = Api::<Listed>::all(clients.node.clone());
    let parameters = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .limit(1);
    match timeout(API_TIMEOUT, pods.list(&parameters)).await {
        Ok(Ok(_)) => Ok("listed".into()),
        Ok(Err(error)) => Err(format!(
            "the API server does not let the agent act as {node} (Kubernetes 1.36, and a token bound to a pod of that \
             node): {}",
            chain(&error)
        )),
        Err(_) => Err("the API server does not answer".into()),
    }
}

impl Right {
    /// The resource, with its subresource.
    fn full_name(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    async fn is_granted(&self, client: &kube::Client) -> Result<bool, String> {
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: filled(self.verb),
                    group: filled(self.group),
                    resource: filled(self.resource),
                    subresource: filled(self.subresource),
                    version: Some("v1".into()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
        let parameters = PostParams::default();
        match timeout(API_TIMEOUT, reviews.create(&parameters, &review)).await {
            Ok(Ok(review)) => Ok(review.status.is_some_and(|status| status.allowed)),
            Ok(Err(error)) => Err(format!("the API server cannot be asked: {}", chain(&error))),
            Err(_) => Err("the API server does not answer".into()),
        }
    }
}
