//! What the agent knows while the API server is away.

use super::{OWN, is_own, scene, until_answer};
use crate::code;
use std::time::{Duration, Instant};
use testkit::kube::Fault;
use testkit::sandbox::{Sandbox, container_id};
use testkit::workload::{Workload, WorkloadSpec};
use tokio::time::sleep;

#[tokio::test]
async fn while_the_api_server_is_away_known_pods_read_and_new_ones_wait() {
    needs_workloads!();
    let (sandbox, agent) = scene().await;
    let failures = async || {
        let failures = agent.metric("latchkey_watch_failures_total").await;
        failures.expect("metrics")
    };
    let known = sandbox.pod("test", "known").await.expect("a pod");
    assert!(is_own(&known.get(OWN).await.expect("an answer")));
    let before = failures().await;
    sandbox.kube.stop_listening().await;
    assert!(is_own(&known.get(OWN).await.expect("an answer")));
    // Its container restarts: another id, which nobody can name now.
    let spec = sandbox.place(known.object.uid(), &container_id());
    let restarted = Workload::start(spec).await.expect("a process");
    assert!(is_own(&restarted.get(OWN).await.expect("an answer")));
    let new = sandbox.pod("test", "new").await.expect("a pod");
    let answer = new.get(OWN).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    // Past the age at which the account is looked up before it is used.
    sleep(Duration::from_secs(26)).await;
    assert!(is_own(&known.get(OWN).await.expect("an answer")));
    // One every three seconds at least, for whoever watches over the agent.
    let failed = failures().await - before;
    assert!(failed >= 5.0, "{failed} failures");
    // And the log says why.
    let said = agent.stderr();
    let of_watch = |line: &&String| line.contains("the watch of this node's pods failed");
    let last = said.iter().rfind(of_watch).expect("a line");
    assert!(last.contains("Connection refused"), "{last}");
    // In its own words alone.
    let of_library = said.iter().find(|line| line.contains("kube_client"));
    assert_eq!(of_library, None);
    sandbox.kube.resume_listening().await.expect("it listens");
    let back = Instant::now();
    until_answer(&new, is_own).await;
    assert!(
        back.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        back.elapsed()
    );
    let again = "the API server reports this node's pods again";
    agent.until_line(again).await.expect("it says so");
    let lines = agent.stderr();
    let again = lines.iter().filter(|line| line.contains(again)).count();
    assert_eq!(again, 1);
}

#[tokio::test]
async fn an_agent_that_starts_without_the_api_server_becomes_ready_when_it_is_back() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.kube.stop_listening().await;
    let agent = sandbox
        .settings()
        .expect("settings")
        .start()
        .await
        .expect("a process");
    agent.until_served().await.expect("pods find somebody");
    let (status, text) = agent.admin("/readyz").await.expect("an answer");
    assert_eq!(status, 503);
    assert!(text.contains("pods"), "{text}");
    let host = Workload::start(WorkloadSpec::host(&sandbox.socket()));
    let asker = host.await.expect("a process");
    assert_eq!(asker.get("/ready").await.expect("an answer").status, 503);
    let counted = "latchkey_requests_total{code=\"unavailable\",route=\"ready\"}";
    assert_eq!(agent.metric(counted).await.expect("metrics"), 1.0);
    sandbox.kube.resume_listening().await.expect("it listens");
    agent.until_ready().await.expect("it becomes ready");
    assert_eq!(agent.admin("/readyz").await.expect("an answer").0, 200);
}

/// Whoever waits for it has a place of the pod's meanwhile, and at the request's own deadline would be told nothing of why.
#[tokio::test]
async fn a_call_that_the_api_server_never_answers_ends_by_itself_and_the_pod_reads_later() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    // So that a pod has to be looked for.
    sandbox.kube.watch_hold();
    for (verb, resource) in [("list", "pods"), ("create", "serviceaccounts/token")] {
        sandbox.kube.fail(verb, resource, Fault::Hang);
        let pod = sandbox.pod("test", verb).await.expect("a pod");
        let answer = pod.get(OWN).await.expect("an answer");
        let told = (answer.status, &*code(&answer));
        assert_eq!(told, (503, "unavailable"), "{verb} {resource}");
        sandbox.kube.heal();
        until_answer(&pod, is_own).await;
    }
}
