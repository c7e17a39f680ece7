//! The levels of rights, and the node's startup taint, between the agent and the API server.

use crate::code;
use testkit::PATIENCE;
use testkit::agent::AgentSettings;
use testkit::aws::Operation;
use testkit::kube::{AGENT, Fault, NODES, Rule};
use testkit::sandbox::{NODE, Sandbox, password};
use tokio::time::timeout;

/// A taint of the kind that keeps pods off until the agent is there.
const TAINT: &str = "latchkey.dev/agent-not-ready";

fn as_node(settings: AgentSettings) -> AgentSettings {
    settings.set("kubernetes.impersonate_node", true)
}

fn with_taint(settings: AgentSettings) -> AgentSettings {
    settings.set("kubernetes.startup_taint", TAINT)
}

/// A cluster in which the agent's account may do nothing about pods and tokens but as its node.
async fn confined_to_its_node() -> Sandbox {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.kube.place(AGENT, NODE);
    sandbox.kube.grant(AGENT, Rule::as_node());
    let audience = Rule::allow(
        "request-serviceaccounts-token-audience",
        "sts.amazonaws.com",
    );
    sandbox.kube.grant(NODES, vec![audience]);
    sandbox
}

/// The line of `latchkey-agent check` about that subject.
async fn checked(settings: AgentSettings, subject: &str) -> String {
    let (_, said, _) = settings.run_to_end(&["check"]).await.expect("it ends");
    let line = said.lines().find(|line| line.contains(subject));
    line.unwrap_or_else(|| panic!("no line about {subject} in {said}"))
        .to_owned()
}

#[tokio::test]
async fn as_its_node_the_agent_needs_no_right_of_its_own_on_pods_or_tokens() {
    needs_workloads!();
    let sandbox = confined_to_its_node().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let _agent = sandbox.agent_with(as_node).await.expect("an agent");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], password("test"));
    let tokens = sandbox.kube.tokens();
    assert_eq!(tokens.last().map(|token| token.status), Some(201));
}

#[tokio::test]
async fn an_agent_whose_token_is_bound_to_another_node_gets_nothing() {
    needs_workloads!();
    let sandbox = confined_to_its_node().await;
    sandbox.kube.place(AGENT, "another");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let settings = as_node(sandbox.settings().expect("settings"));
    let short = settings.set("limits.attest_wait", "500ms");
    let agent = short.start().await.expect("it starts");
    agent.until_line("Forbidden").await.expect("it is refused");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    assert_eq!(code(&answer), "unavailable");
    assert!(sandbox.kube.tokens().is_empty());
}

#[tokio::test]
async fn an_audience_that_nodes_may_not_ask_for_is_denied() {
    needs_workloads!();
    let sandbox = confined_to_its_node().await;
    sandbox.kube.grant(NODES, Vec::new());
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let _agent = sandbox.agent_with(as_node).await.expect("an agent");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    assert_eq!(code(&answer), "denied");
}

#[tokio::test]
async fn the_check_says_which_level_of_rights_is_in_force() {
    needs_workloads!();
    let sandbox = confined_to_its_node().await;
    let settings = || sandbox.settings().expect("settings");
    let level = "level of rights to tokens";
    let line = checked(as_node(settings()), level).await;
    assert!(
        line.starts_with("ok ") && line.contains(": node: "),
        "{line}"
    );
    let listed = checked(as_node(settings()), "asked for as the node").await;
    assert!(listed.starts_with("ok "), "{listed}");
    sandbox.kube.place(AGENT, "another");
    let listed = checked(as_node(settings()), "asked for as the node").await;
    assert!(
        listed.starts_with("missing ") && listed.contains("1.36"),
        "{listed}"
    );

    let mut rules = Rule::agent();
    rules.retain(|rule| rule.resources != ["serviceaccounts/token"]);
    sandbox.kube.grant(AGENT, rules);
    let line = checked(settings(), level).await;
    assert!(line.contains(": namespace: "), "{line}");
    let line = checked(settings().set("csi.enabled", true), level).await;
    assert!(
        line.starts_with("ok ") && line.contains(": none: "),
        "{line}"
    );

    sandbox.kube.grant(AGENT, Rule::agent());
    let line = checked(settings(), level).await;
    assert!(line.contains("every namespace, every account"), "{line}");
    // It has it, whether it is needed or not.
    let line = checked(settings().set("csi.enabled", true), level).await;
    assert!(line.contains("every namespace, every account"), "{line}");
}

#[tokio::test]
async fn the_check_names_the_rights_that_a_startup_taint_needs() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let settings = with_taint(sandbox.settings().expect("settings"));
    let line = checked(settings.clone(), "right to patch nodes").await;
    assert!(line.starts_with("missing "), "{line}");
    let mut rules = Rule::agent();
    rules.push(Rule::allow("get patch", "nodes"));
    sandbox.kube.grant(AGENT, rules);
    let line = checked(settings, "right to patch nodes").await;
    assert!(line.starts_with("ok "), "{line}");
}

#[tokio::test]
async fn a_node_loses_its_startup_taint_when_its_agent_is_ready_and_keeps_the_others() {
    needs_workloads!();
    let sandbox = tainted().await;
    sandbox.kube.fail("list", "pods", Fault::Hang);
    let settings = with_taint(sandbox.settings().expect("settings"));
    let agent = settings.start().await.expect("it starts");
    sandbox.kube.until_requested("list", "pods", 1).await;
    assert_eq!(sandbox.kube.count("get", "nodes"), 0, "it is not ready");
    assert_eq!(sandbox.kube.taints(NODE), [TAINT, "dedicated"]);
    sandbox.kube.heal();
    agent.until_line("taken off").await.expect("it is ready");
    assert_eq!(sandbox.kube.taints(NODE), ["dedicated"]);
}

#[tokio::test]
async fn a_startup_taint_that_cannot_be_taken_off_yet_is_tried_again_and_stops_nobody() {
    needs_workloads!();
    let sandbox = tainted().await;
    sandbox.aws_namespace("test");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    sandbox.kube.forbid("patch", "nodes");
    let _agent = sandbox.agent_with(with_taint).await.expect("an agent");
    sandbox.kube.until_requested("patch", "nodes", 1).await;
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    assert_eq!(sandbox.kube.taints(NODE), [TAINT, "dedicated"]);
    sandbox.kube.permit("patch", "nodes");
    let gone = sandbox
        .kube
        .until(|kube| kube.taints(NODE) == ["dedicated"]);
    timeout(PATIENCE, gone).await.expect("it tries again");
}

/// A cluster whose node has a startup taint and another, and an agent that may take it off.
async fn tainted() -> Sandbox {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let taints = [(TAINT, "NoSchedule"), ("dedicated", "NoExecute")];
    sandbox.kube.create_node(NODE, &taints);
    let mut rules = Rule::agent();
    rules.push(Rule::allow("get patch", "nodes"));
    sandbox.kube.grant(AGENT, rules);
    sandbox
}

/// docs/operations.md reckons the capacity of clusters with these numbers.
#[tokio::test]
async fn the_requests_of_a_node_are_those_that_its_capacity_is_reckoned_with() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let first = sandbox.pod("test", "first").await.expect("a pod");
    let second = sandbox.pod("test", "second").await.expect("a pod");
    let _agent = sandbox.agent().await.expect("an agent");
    let count = || {
        let counted = [
            ("list", "pods"),
            ("watch", "pods"),
            ("get", "serviceaccounts"),
            ("get", "namespaces"),
            ("create", "serviceaccounts/token"),
        ];
        counted.map(|(verb, resource)| sandbox.kube.count(verb, resource))
    };
    assert_eq!(
        count()[2..],
        [0, 0, 0],
        "nothing is asked about accounts before a pod asks"
    );
    for pod in [&first, &second] {
        for _ in 0..3 {
            let answer = pod
                .secret("test/database-password")
                .await
                .expect("an answer");
            answer.must_be_ok();
        }
    }
    sandbox.kube.until_requested("watch", "pods", 1).await;
    assert_eq!(
        count(),
        [1, 1, 1, 1, 2],
        "a list and a watch, a look at the account, a token for each pod"
    );
    let calls = |operation| sandbox.aws.count_of(operation);
    assert_eq!(
        calls(Operation::AssumeRoleWithWebIdentity),
        2,
        "an exchange for each pod"
    );
    assert_eq!(calls(Operation::GetSecretValue), 6, "a call for each read");
}
