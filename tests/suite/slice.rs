//! The promise itself: a pod reads its own namespace's secret, and only that.

use testkit::sandbox::{Sandbox, password};
use testkit::workload::{Workload, WorkloadSpec};

#[tokio::test]
async fn a_pod_reads_its_own_namespaces_secret_and_only_that() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.aws_namespace("prod");
    let agent = sandbox.agent().await.expect("an agent");
    let test = sandbox.pod("test", "web").await.expect("a pod");
    let prod = sandbox.pod("prod", "web").await.expect("a pod");

    let own = test
        .secret("test/database-password")
        .await
        .expect("an answer");
    assert_eq!(
        (own.status, own.json()["value"].as_str()),
        (200, Some(&*password("test")))
    );
    let other = test
        .secret("prod/database-password")
        .await
        .expect("an answer");
    other.must_be_refused(403, "denied");
    let prods = prod
        .secret("prod/database-password")
        .await
        .expect("an answer");
    assert_eq!(
        (prods.status, prods.json()["value"].as_str()),
        (200, Some(&*password("prod")))
    );

    let line = agent
        .until_audit(|line| line["secret"] == "prod/database-password" && line["code"] == "denied")
        .await
        .expect("the refusal is in the trail");
    assert_eq!(line["pod_uid"], test.object.uid());
    assert_eq!(line["namespace"], "test");
}

#[tokio::test]
async fn the_other_namespaces_role_in_the_annotation_changes_nothing() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let prod = sandbox.aws_namespace("prod");
    sandbox
        .kube
        .annotate_service_account("test", "app", &[("eks.amazonaws.com/role-arn", &prod)]);
    let _agent = sandbox.agent().await.expect("an agent");
    let thief = sandbox.pod("test", "web").await.expect("a pod");
    let answer = thief
        .secret("prod/database-password")
        .await
        .expect("an answer");
    answer.must_be_refused(403, "denied");
}

#[tokio::test]
async fn a_pod_without_an_annotation_has_no_role() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.namespace("plain", &[]);
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("plain", "web").await.expect("a pod");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_refused(403, "no_role");
}

#[tokio::test]
async fn a_process_of_the_node_is_no_pod() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let agent = sandbox.agent().await.expect("an agent");
    let host = Workload::start(WorkloadSpec::host(&sandbox.socket()))
        .await
        .expect("a process");
    let answer = host
        .get("/v1/secrets/test/database-password")
        .await
        .expect("an answer");
    answer.must_be_refused(403, "not_attested");
    let line = agent
        .until_audit(|line| line["code"] == "not_attested")
        .await
        .expect("a line");
    assert_eq!(line["reason"], "not_a_pod");
}
