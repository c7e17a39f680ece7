//! How an agent leaves: what it still answers, and what it cuts.

use crate::sandbox_with_a_pod;
use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::aws::Operation;
use testkit::sandbox::{Sandbox, SandboxPod, password};
use testkit::workload::{Raw, Response, Signal};
use tokio::time::sleep;

/// Does something while the vault keeps a read of the pod's waiting; returns what became of both.
async fn while_held<T>(
    sandbox: &Sandbox,
    pod: &SandboxPod,
    does: impl AsyncFnOnce() -> T,
) -> (io::Result<Response>, T) {
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    let done = async {
        gate.reached(1).await;
        does().await
    };
    tokio::join!(pod.secret("test/database-password"), done)
}

/// A read that was under way when the agent ended had no answer, and the trail says so.
async fn must_be_cut(agent: &AgentProcess, answer: io::Result<Response>, ended: ExitStatus) {
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(ended.code(), Some(70));
    let line = agent.until_audit(|line| line["outcome"] == "cancelled");
    line.await.expect("what was cut is in the trail");
}

#[tokio::test]
async fn a_leaving_agent_answers_what_is_in_flight() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = sandbox.agent().await.expect("an agent");
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    let asked = pod.secret("test/database-password");
    let told = async {
        gate.reached(1).await;
        agent.signal(Signal::SIGTERM).expect("it runs");
        agent.until_line("\"draining\"").await.expect("it leaves");
        gate.open();
        agent.until_ended().await.expect("it ends")
    };
    let (answer, ended) = tokio::join!(asked, told);
    let answer = answer.expect("an answer");
    answer.must_be_ok();
    assert_eq!(answer.json()["value"], password("test"));
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn who_connects_to_a_leaving_agent_and_says_nothing_does_not_hold_it_up() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = sandbox.agent().await.expect("an agent");
    // It accepts for 750 ms after the last one that came.
    pod.get("/ping").await.expect("an answer");
    agent.signal(Signal::SIGTERM).expect("it runs");
    agent.until_line("\"draining\"").await.expect("it leaves");
    pod.workload
        .connect("silent")
        .await
        .expect("it still accepts");
    let told = Instant::now();
    let ended = agent.until_ended().await.expect("it ends");
    assert_eq!(ended.code(), Some(0));
    // `limits.drain` is 20 s.
    assert!(
        told.elapsed() < Duration::from_secs(10),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn an_interrupt_ends_the_drain_at_once_and_a_hangup_begins_one() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = sandbox.agent().await.expect("an agent");
    let (answer, (ended, took)) = while_held(&sandbox, &pod, async || {
        agent.signal(Signal::SIGHUP).expect("it runs");
        agent.until_line("\"draining\"").await.expect("it leaves");
        // A terminal that closes may send more than one, and a kubelet that is restarted another SIGTERM.
        for signal in [Signal::SIGHUP, Signal::SIGTERM] {
            agent.signal(signal).expect("it runs");
        }
        sleep(Duration::from_secs(2)).await;
        let cut = agent.stderr().join("\n").contains("were cut");
        assert!(!cut, "neither is in haste");
        agent.signal(Signal::SIGINT).expect("it still drains");
        let told = Instant::now();
        let ended = agent.until_ended().await.expect("it ends");
        (ended, told.elapsed())
    })
    .await;
    must_be_cut(&agent, answer, ended).await;
    // The vault's two tries would take some seconds more.
    assert!(took < Duration::from_secs(3), "it took {took:?}");
}

#[tokio::test]
async fn a_drain_cuts_what_hangs_when_its_time_is_over() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let short = |settings: AgentSettings| settings.set("limits.drain", "2s");
    let mut agent = sandbox.agent_with(short).await.expect("an agent");
    let (answer, (ended, took)) = while_held(&sandbox, &pod, async || {
        let told = Instant::now();
        let ended = agent.stop().await.expect("it ends");
        (ended, told.elapsed())
    })
    .await;
    must_be_cut(&agent, answer, ended).await;
    assert!(took < Duration::from_secs(5), "it took {took:?}");
}

/// A head may take longer than the drain: one that is never sent to its end is waited for, but nobody was cut.
#[tokio::test]
async fn who_has_sent_half_a_head_when_the_drain_ends_is_not_cut_since_nobody_waits_there() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let short = |settings: AgentSettings| settings.set("limits.drain", "2s");
    let mut agent = sandbox.agent_with(short).await.expect("an agent");
    pod.workload.connect("half").await.expect("a connection");
    let half = Raw {
        connection: Some("half".into()),
        read_millis: 0,
        ..Raw::new("GET /v1/sec")
    };
    pod.workload.raw(half).await.expect("it is sent");
    let told = Instant::now();
    let ended = agent.stop().await.expect("it ends");
    assert_eq!(ended.code(), Some(0), "{:#?}", agent.stderr());
    let took = told.elapsed();
    assert!(took > Duration::from_secs(1), "it waited for {took:?}");
}

#[tokio::test]
async fn an_agent_leaves_without_waiting_for_an_exchange_that_nobody_wants_any_more() {
    needs_workloads!();
    let (sandbox, mut pod) = sandbox_with_a_pod().await;
    let mut agent = sandbox.agent().await.expect("an agent");
    let (gate, _held) = sandbox.aws.hold(Operation::AssumeRoleWithWebIdentity);
    pod.workload.connect("asks").await.expect("a connection");
    let asks = Raw {
        connection: Some("asks".into()),
        read_millis: 0,
        ..Raw::new("GET /v1/secrets/test/database-password HTTP/1.1\r\nHost: x\r\n\r\n")
    };
    pod.workload.raw(asks).await.expect("it is sent");
    gate.reached(1).await;
    pod.workload.kill().await.expect("it runs");
    let told = Instant::now();
    assert!(agent.stop().await.expect("it leaves").success());
    // The token service would be waited for twice three seconds.
    assert!(
        told.elapsed() < Duration::from_secs(4),
        "{:?}",
        told.elapsed()
    );
}
