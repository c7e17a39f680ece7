//! The watch of the node's pods: whatever the API server does to it, the agent comes to know what is true.

use crate::can_run;
use testkit::aws::FakeAwsConfig;
use testkit::kube::{FakeKube, FakeKubeConfig};
use testkit::sandbox::Sandbox;
use testkit::until;

/// The versions that a watch asks for are gone: told as an event within the watch, or as the answer to its start.
async fn recovers_from_gone(gone_as_status: bool) {
    let kube = FakeKubeConfig {
        gone_as_status,
        ..FakeKubeConfig::default()
    };
    let sandbox = Sandbox::with(kube, FakeAwsConfig::default())
        .await
        .expect("a sandbox");
    sandbox.aws_namespace("test");
    let agent = sandbox
        .agent_with(|settings| settings.set("limits.attest_wait", "8s"))
        .await;
    let _agent = agent.expect("an agent");
    let known = sandbox.pod("test", "known").await.expect("a pod");
    assert_eq!(
        known
            .secret("test/database-password")
            .await
            .expect("an answer")
            .status,
        200
    );

    // A pod is deleted while nobody watches, and what happened meanwhile is forgotten.
    sandbox.kube.stop_listening().await;
    known.object.delete();
    sandbox.kube.compact();
    sandbox.kube.resume_listening().await.expect("it listens");
    sandbox
        .kube
        .until(|kube| kube.watches() > 0 && kube.count("list", "pods") >= 2)
        .await;
    let refused = known
        .secret("test/database-password")
        .await
        .expect("an answer");
    refused.must_be_refused(403, "not_attested");
    let new = sandbox.pod("test", "new").await.expect("a pod");
    assert_eq!(
        new.secret("test/database-password")
            .await
            .expect("an answer")
            .status,
        200
    );
}

#[tokio::test]
async fn a_watch_whose_versions_are_gone_begins_anew_with_a_list() {
    if can_run() {
        recovers_from_gone(false).await;
    }
}

#[tokio::test]
async fn a_watch_whose_start_is_refused_as_gone_begins_anew_with_a_list() {
    if can_run() {
        recovers_from_gone(true).await;
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_it_is_told_that_it_has_expired_or_what_is_no_json() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let agent = sandbox.agent().await.expect("an agent");
    let known = async || agent.metric("latchkey_pods").await.expect("metrics");
    let before = known().await;
    for (name, end) in [
        ("expired", FakeKube::watch_expire as fn(&FakeKube)),
        ("garbage", FakeKube::watch_garbage),
        ("closed", FakeKube::watch_close),
    ] {
        sandbox.kube.until(|kube| kube.watches() > 0).await;
        end(&sandbox.kube);
        // Nobody asks for anything: only the watch can tell.
        let pod = sandbox.pod("test", name).await.expect("a pod");
        until(name, async || known().await == before + 1.0).await;
        pod.object.delete();
        until(name, async || known().await == before).await;
    }
}
