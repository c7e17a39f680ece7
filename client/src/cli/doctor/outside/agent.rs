//! The agent of the pod's node: whether there is one, whether it is ready, and whether it may act for the pod.

use super::super::report::Report;
use super::{DRIVER, Kubectl, Missing, is_of_driver, list, text};
use crate::cli::failure::Failure;
use serde_json::Value as Json;

const STEP: &str = "agent";

/// The labels of the agent's pods.
const LABELS: &str = "app.kubernetes.io/name=latchkey,app.kubernetes.io/component=agent";

pub(super) fn examine(
    report: &mut Report,
    kubectl: &Kubectl<'_>,
    pod: &Json,
) -> Result<(), Failure> {
    let by_driver = list(pod, "/spec/volumes").any(is_of_driver);
    if by_driver {
        driver(report, kubectl)?;
    }
    let node = text(pod, "/spec/nodeName");
    if node.is_empty() {
        return Ok(());
    }
    let all = kubectl.get(&["pods", "--all-namespaces", "--selector", LABELS])?;
    let all = match all {
        Ok(all) => all,
        Err(Missing::Object) => Json::Null,
        Err(Missing::Failed(words)) => {
            report.note(
                STEP,
                "not_looked",
                format!("the agent's pods cannot be looked at: {words}"),
            );
            return Ok(());
        }
    };
    let mut here: Vec<&Json> = list(&all, "/items")
        .filter(|agent| text(agent, "/spec/nodeName") == node)
        .collect();
    // During an upgrade there are two; the one that serves counts.
    here.sort_by_key(|agent| !is_ready(agent));
    let Some(agent) = here.first() else {
        let elsewhere = list(&all, "/items").count();
        report
            .fail(
                STEP,
                "agent_absent",
                format!("no agent runs on node {node} (on other nodes: {elsewhere})"),
            )
            .next(kubectl.line(format_args!("get daemonsets --all-namespaces --selector app.kubernetes.io/name=latchkey")))
            .next(kubectl.line(format_args!("describe node {node} shows its taints, labels and kind: the DaemonSet must fit them")));
        return Ok(());
    };
    let (namespace, name) = (
        text(agent, "/metadata/namespace"),
        text(agent, "/metadata/name"),
    );
    if is_ready(agent) {
        report.ok(STEP, format!("{namespace}/{name} is ready on node {node}"));
        // With the driver's volume, the kubelet hands the tokens over, so the agent needs no right to them.
        if !by_driver {
            may_act(report, kubectl, agent, pod)?;
        }
    } else {
        report
            .fail(
                STEP,
                "agent_not_ready",
                format!(
                    "{namespace}/{name} on node {node} is not ready{}",
                    why(list(agent, "/status/containerStatuses"))
                ),
            )
            .next(kubectl.line(format_args!("--namespace {namespace} logs {name}")))
            .next(kubectl.line(format_args!("--namespace {namespace} describe pod {name}")));
    }
    Ok(())
}

fn is_ready(agent: &Json) -> bool {
    list(agent, "/status/conditions").any(|condition| {
        text(condition, "/type") == "Ready" && text(condition, "/status") == "True"
    }) && text(agent, "/metadata/deletionTimestamp").is_empty()
}

/// What the first container that says so is waiting for, or how it ended.
pub(super) fn why<'a>(mut statuses: impl Iterator<Item = &'a Json>) -> String {
    let reason = statuses.find_map(|status| {
        [
            "/state/waiting/reason",
            "/state/terminated/reason",
            "/lastState/terminated/reason",
        ]
        .iter()
        .map(|pointer| text(status, pointer))
        .find(|reason| !reason.is_empty())
    });
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

/// Whether the namespace lets the agent issue tokens for the pod's account.
fn may_act(
    report: &mut Report,
    kubectl: &Kubectl<'_>,
    agent: &Json,
    pod: &Json,
) -> Result<(), Failure> {
    let account = match text(pod, "/spec/serviceAccountName") {
        "" => "default",
        name => name,
    };
    let namespace = text(pod, "/metadata/namespace");
    let agents = format!(
        "system:serviceaccount:{}:{}",
        text(agent, "/metadata/namespace"),
        text(agent, "/spec/serviceAccountName")
    );
    let token = format!("serviceaccounts/{account}");
    let may = kubectl.may(&[
        "create",
        &token,
        "--subresource",
        "token",
        "--namespace",
        namespace,
        "--as",
        &agents,
    ])?;
    match may {
        Some(true) => report.ok(
            "tokens",
            format!("the agent may issue tokens for {namespace}/{account}"),
        ),
        Some(false) => {
            report
                .fail(
                    "tokens",
                    "token_forbidden",
                    format!("the namespace {namespace} does not let the agent issue tokens for {account}"),
                )
                .next(format!("a Role with resources: [serviceaccounts/token], resourceNames: [{account}], verbs: [create], bound to {agents}"));
        }
        None => {
            report.note(
                "tokens",
                "not_looked",
                "whether the agent may issue tokens for the account cannot be asked: that needs the right to impersonate it",
            );
        }
    }
    Ok(())
}

/// Checks that there is a driver: without it, a pod with the driver's volume does not start.
fn driver(report: &mut Report, kubectl: &Kubectl<'_>) -> Result<(), Failure> {
    if let Err(Missing::Object) = kubectl.get(&["csidriver", DRIVER])? {
        report
            .fail(
                "volume",
                "no_driver",
                format!("the pod's volume is of the CSI driver {DRIVER}, which the cluster does not have"),
            )
            .next("install the driver with the agent, or mount the directory as a hostPath");
    }
    Ok(())
}
