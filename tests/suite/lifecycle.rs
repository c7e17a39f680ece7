//! What a pod may ask for from its first moment to after its last.

mod away;

use crate::{at_most, code, is_no_workload, is_own, sandbox_with_a_pod};
use std::time::{Duration, Instant};
use testkit::kube::{Container, Fault, PodSpec};
use testkit::sandbox::{ACCOUNT, Sandbox, SandboxPod, container_id};
use testkit::workload::{Raw, Request, Response, Workload};
use tokio::time::sleep;

const OWN: &str = "/v1/secrets/test/database-password";

async fn scene() -> (Sandbox, testkit::agent::AgentProcess) {
    scene_with("1s").await
}

/// With an agent that waits so long for a pod that it does not know yet.
async fn scene_with(attest_wait: &str) -> (Sandbox, testkit::agent::AgentProcess) {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let agent = sandbox
        .agent_with(|settings| settings.set("limits.attest_wait", attest_wait))
        .await;
    (sandbox, agent.expect("an agent"))
}

/// Asks until the answer is as wanted. One that is under way when the pod ends has none.
async fn until_answer(pod: &SandboxPod, wanted: impl Fn(&Response) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let Ok(answer) = pod.get(OWN).await else {
            assert!(Instant::now() < deadline, "still no answer");
            continue;
        };
        if wanted(&answer) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still {} {}",
            answer.status,
            answer.text()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Asks once on a connection, and keeps it.
async fn keep_idle(pod: &SandboxPod) {
    pod.workload.connect("idle").await.expect("a connection");
    let ask = Raw {
        connection: Some("idle".into()),
        answers: Some(1),
        watch_millis: 50,
        ..Raw::new("GET /v1/identity HTTP/1.1\r\nHost: x\r\n\r\n")
    };
    let asked = pod.workload.raw(ask).await.expect("an answer");
    assert_eq!((asked.statuses(), asked.closed), (vec![200], false));
}

/// That connection ends, though nothing more is asked on it.
async fn idle_is_closed(pod: &SandboxPod) {
    let rest = Raw {
        connection: Some("idle".into()),
        ..Raw::new("")
    };
    let received = pod.workload.raw(rest).await.expect("it can be read");
    assert!(received.closed && received.bytes.is_empty(), "{received:?}");
}

#[tokio::test]
async fn a_container_that_the_api_server_has_not_named_yet_is_served_at_once() {
    needs_workloads!();
    let (sandbox, agent) = scene().await;
    let object = sandbox.kube.create_pod(PodSpec {
        phase: "Pending".into(),
        ..PodSpec::of("test", "web", ACCOUNT)
    });
    sandbox.kube.until_requested("watch", "pods", 1).await;
    let spec = sandbox.place(object.uid(), &container_id());
    let workload = Workload::start(spec).await.expect("a process");
    assert!(is_own(&workload.get(OWN).await.expect("an answer")));
    let line = agent
        .until_audit(|line| line["outcome"] == "ok")
        .await
        .expect("a line");
    assert_eq!(line["container_confirmed"], false);
    assert_eq!(
        sandbox.kube.count("list", "pods"),
        1,
        "only the first list was needed"
    );
}

#[tokio::test]
async fn an_ephemeral_container_is_refused_and_the_ordinary_one_is_not() {
    needs_workloads!();
    let (sandbox, agent) = scene().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let ephemeral = container_id();
    pod.object.add_ephemeral("debug", Some(&ephemeral));
    let spec = sandbox.place(pod.object.uid(), &ephemeral);
    let debugger = Workload::start(spec).await.expect("a process");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_no_workload(&debugger.get(OWN).await.expect("an answer")) {
        assert!(Instant::now() < deadline, "it is still served");
    }
    let line = agent
        .until_audit(|line| line["reason"] == "ephemeral_container")
        .await;
    line.expect("why is in the trail");
    assert!(is_own(&pod.get(OWN).await.expect("an answer")));
    // One that is not named at all could be another of that kind.
    let spec = sandbox.place(pod.object.uid(), &container_id());
    let unnamed = Workload::start(spec).await.expect("a process");
    assert!(is_no_workload(&unnamed.get(OWN).await.expect("an answer")));
}

/// Its container may have been restarted, of which nobody has told yet: it is to come back, and is then looked for.
#[tokio::test]
async fn a_container_that_has_come_to_be_in_doubt_is_told_to_come_back_on_another_connection() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let spec = sandbox.place(pod.object.uid(), &container_id());
    let unnamed = Workload::start(spec).await.expect("a process");
    unnamed.connect("kept").await.expect("a connection");
    let read = async || {
        let asked = unnamed.send_on("kept", Request::get(OWN)).await;
        asked.expect("an answer")
    };
    assert!(is_own(&read().await));
    pod.object.add_ephemeral("debug", Some(&container_id()));
    let deadline = Instant::now() + Duration::from_secs(10);
    let answer = loop {
        let answer = read().await;
        if !is_own(&answer) {
            break answer;
        }
        assert!(Instant::now() < deadline, "it is still served");
        sleep(Duration::from_millis(20)).await;
    };
    answer.must_be_refused(503, "unavailable");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_deleted_pods_connection_is_closed_within_a_second_and_its_process_refused() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    pod.workload.connect("kept").await.expect("a connection");
    let first = pod
        .workload
        .send_on("kept", Request::get(OWN))
        .await
        .expect("an answer");
    assert!(is_own(&first));
    keep_idle(&pod).await;
    let asked = Instant::now();
    let again = pod.workload.send_on("kept", Request::get("/v1/identity"));
    again.await.expect("an answer").must_be_ok();
    let bound = at_most(Duration::from_secs(1), 20, asked.elapsed());
    pod.object.delete();
    let deleted = Instant::now();
    while let Ok(answer) = pod
        .workload
        .send_on("kept", Request::get("/v1/identity"))
        .await
    {
        assert!(deleted.elapsed() < bound, "still {}", answer.status);
        sleep(Duration::from_millis(20)).await;
    }
    idle_is_closed(&pod).await;
    assert!(is_no_workload(&pod.get(OWN).await.expect("an answer")));
}

#[tokio::test]
async fn a_pod_that_ends_is_served_in_its_grace_and_not_after_it() {
    needs_workloads!();
    let (sandbox, agent) = scene().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert!(is_own(&pod.get(OWN).await.expect("an answer")));
    pod.object.terminate(3600);
    assert!(is_own(&pod.get(OWN).await.expect("an answer")));
    pod.object.terminate(-60);
    until_answer(&pod, is_no_workload).await;
    agent
        .until_audit(|line| line["reason"] == "pod_deleted")
        .await
        .expect("a line");
}

#[tokio::test]
async fn a_finished_pod_is_refused() {
    needs_workloads!();
    for phase in ["Succeeded", "Failed"] {
        let (sandbox, agent) = scene().await;
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        keep_idle(&pod).await;
        pod.object.set_phase(phase);
        until_answer(&pod, is_no_workload).await;
        idle_is_closed(&pod).await;
        agent
            .until_audit(|line| line["reason"] == "pod_finished")
            .await
            .expect("a line");
    }
}

#[tokio::test]
async fn the_mirror_of_a_static_pod_and_a_pod_of_another_node_are_refused() {
    needs_workloads!();
    let (sandbox, agent) = scene().await;
    let mirror = PodSpec {
        namespace: "test".into(),
        mirror: true,
        ..PodSpec::default()
    };
    let pod = sandbox.pod_of(mirror).await.expect("a pod");
    assert!(is_no_workload(&pod.get(OWN).await.expect("an answer")));
    agent
        .until_audit(|line| line["reason"] == "static_pod")
        .await
        .expect("a line");
    let elsewhere = PodSpec {
        node: "n2".into(),
        ..PodSpec::of("test", "elsewhere", ACCOUNT)
    };
    let pod = sandbox.pod_of(elsewhere).await.expect("a pod");
    assert!(is_no_workload(&pod.get(OWN).await.expect("an answer")));
}

#[tokio::test]
async fn an_unknown_pod_waits_and_then_one_list_answers_for_all_who_wait() {
    needs_workloads!();
    let (sandbox, agent) = scene().await;
    sandbox.kube.watch_hold();
    let pod = sandbox.pod("test", "late").await.expect("a pod");
    let others: Vec<SandboxPod> = {
        let mut others = Vec::new();
        for name in ["a", "b", "c", "d"] {
            others.push(sandbox.pod("test", name).await.expect("a pod"));
        }
        others
    };
    let before = sandbox.kube.count("list", "pods");
    // The pods ask at the same time, which on a busy machine is a while: the first look lasts until all have asked.
    let slow = Fault::Delay(Duration::from_secs(2));
    sandbox.kube.fail_times("list", "pods", slow, 1);
    let asks = others.iter().chain([&pod]).map(|pod| pod.get(OWN));
    for answer in futures::future::join_all(asks).await {
        let answer = answer.expect("an answer");
        assert!(is_own(&answer), "{}", answer.text());
    }
    // That of the first, and one for all who have asked meanwhile.
    assert_eq!(sandbox.kube.count("list", "pods") - before, 2);
    // A UID that is nobody's is refused after the same look.
    let nobody = uuid::Uuid::new_v4().to_string();
    let spec = sandbox.place(&nobody, &container_id());
    let workload = Workload::start(spec).await.expect("a process");
    assert!(is_no_workload(&workload.get(OWN).await.expect("an answer")));
    agent
        .until_audit(|line| line["reason"] == "unknown_pod")
        .await
        .expect("a line");
}

#[tokio::test]
async fn a_pod_that_cannot_be_looked_up_is_told_to_come_back() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    sandbox.kube.watch_hold();
    sandbox.kube.fail("list", "pods", Fault::Answer(500, None));
    let pod = sandbox.pod("test", "late").await.expect("a pod");
    let answer = pod.get(OWN).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    sandbox.kube.heal();
    assert!(is_own(&pod.get(OWN).await.expect("an answer")));
}

#[tokio::test]
async fn a_pod_recreated_under_the_same_name_is_another_even_if_its_deletion_was_missed() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    sandbox.kube.create_service_account("test", "other", &[]);
    let old = sandbox.pod("test", "web").await.expect("a pod");
    assert!(is_own(&old.get(OWN).await.expect("an answer")));
    old.object.delete_unseen();
    let new = sandbox
        .pod_of(PodSpec::of("test", "web", "other"))
        .await
        .expect("a pod");
    let answer = new.get(OWN).await.expect("an answer");
    answer.must_be_refused(403, "no_role");
    let identity = new.get("/v1/identity").await.expect("an answer").json();
    assert_eq!(identity["service_account"], "other");
    // A list tells what the watch did not.
    sandbox.kube.compact();
    sandbox.kube.stop_listening().await;
    sandbox.kube.resume_listening().await.expect("it listens");
    until_answer(&old, is_no_workload).await;
}

#[tokio::test]
async fn a_changed_annotation_takes_effect_within_thirty_seconds() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert!(is_own(&pod.get(OWN).await.expect("an answer")));
    sandbox.kube.annotate_service_account("test", ACCOUNT, &[]);
    let changed = Instant::now();
    loop {
        let answer = pod.get(OWN).await.expect("an answer");
        if code(&answer) == "no_role" {
            break;
        }
        assert!(
            changed.elapsed() < Duration::from_secs(30),
            "still {}",
            answer.status
        );
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn a_service_account_made_anew_shares_no_session_with_the_one_before() {
    needs_workloads!();
    let (sandbox, _agent) = scene().await;
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert!(is_own(&pod.get(OWN).await.expect("an answer")));
    let role = sandbox.aws.role_arn("test-app");
    let annotations = [("eks.amazonaws.com/role-arn", &*role)];
    sandbox
        .kube
        .create_service_account("test", ACCOUNT, &annotations);
    let sessions = || {
        let exchanges = sandbox.aws.calls_where(|call| call.secret.is_none());
        exchanges.len()
    };
    assert_eq!(sessions(), 1);
    let changed = Instant::now();
    while sessions() < 2 {
        assert!(is_own(&pod.get(OWN).await.expect("an answer")));
        assert!(
            changed.elapsed() < Duration::from_secs(30),
            "still the old session"
        );
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn exempt_containers_get_no_role_and_the_namespace_stands_in_for_its_accounts() {
    needs_workloads!();
    let (sandbox, _agent) = scene_with("4s").await;
    let exempting = PodSpec {
        annotations: vec![(
            "eks.amazonaws.com/skip-containers".into(),
            "proxy, app".into(),
        )],
        ..PodSpec::of("test", "exempt", ACCOUNT)
    };
    let pod = sandbox.pod_of(exempting.clone()).await.expect("a pod");
    let answer = pod.get(OWN).await.expect("an answer");
    answer.must_be_refused(403, "no_role");
    // Which container it is has to be known for that, and it waits until it is.
    let (object, id) = (
        sandbox.kube.create_pod(PodSpec {
            name: "young".into(),
            containers: vec![Container::new("sidecar")],
            ..exempting
        }),
        container_id(),
    );
    let spec = sandbox.place(object.uid(), &id);
    let unnamed = Workload::start(spec).await.expect("a process");
    let answer = unnamed.get(OWN).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    let named = async {
        sleep(Duration::from_millis(300)).await;
        object.set_container("sidecar", &id);
    };
    let (answer, ()) = tokio::join!(unnamed.get(OWN), named);
    assert!(is_own(&answer.expect("an answer")));

    let role = sandbox.aws_role("wide", ACCOUNT, "wide/*");
    sandbox
        .kube
        .create_namespace("wide", &[("eks.amazonaws.com/role-arn", &role)]);
    sandbox.kube.create_service_account("wide", ACCOUNT, &[]);
    sandbox.aws_secret("wide/a", "value");
    let pod = sandbox.pod("wide", "web").await.expect("a pod");
    assert_eq!(pod.secret("wide/a").await.expect("an answer").status, 200);
}

#[tokio::test]
async fn what_somebody_writes_into_a_pod_of_theirs_keeps_no_other_from_being_known() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let theirs = sandbox.pod("test", "theirs").await.expect("a pod");
    // The API server takes any year that has four digits; not everybody reads them all.
    theirs.object.claim_edit_at("9999-12-31T00:00:00Z");
    let agent = sandbox.agent().await.expect("it becomes ready");
    for pod in [&pod, &theirs] {
        assert!(is_own(&pod.get(OWN).await.expect("an answer")));
    }
    // Nor from being forgotten, or made known later.
    theirs.object.delete();
    until_answer(&theirs, is_no_workload).await;
    let late = sandbox.pod("test", "late").await.expect("a pod");
    assert!(is_own(&late.get(OWN).await.expect("an answer")));
    drop(agent);
}

#[tokio::test]
async fn the_agents_own_pod_may_not_ask_it() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let own = sandbox.pod("test", "agent").await.expect("a pod");
    let uid = own.object.uid().to_owned();
    let agent = sandbox
        .agent_with(|settings| settings.set("kubernetes.pod_uid", uid))
        .await;
    let agent = agent.expect("an agent");
    assert!(is_no_workload(&own.get(OWN).await.expect("an answer")));
    agent
        .until_audit(|line| line["reason"] == "own_pod")
        .await
        .expect("a line");
}
