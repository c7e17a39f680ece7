//! Who is served first, when everything that several pods have asked lies before the agent at once: it was stopped meanwhile.
//! Requests are numbered as they are begun.

use super::{Neighbours, connect};
use crate::{answer_on, ask_on, number, numbers};
use std::time::Duration;
use testkit::aws::{Behaviour, Fault, Gate, Operation};
use testkit::workload::{Raw, Signal};
use tokio::time::sleep;

/// How many connections ask at once: as many as one pod may have, beside those that are there already.
const CROWD: usize = 60;

/// How many of them each pod has, where they are several pods'.
const FROM_EACH: usize = 5;

/// How many of them may come before the one that matters: some turns of eight requests, or of four new peers.
const FEW: u64 = 30;

/// How long it takes the cloud to send its answer, at the most.
const SENT: Duration = Duration::from_secs(1);

/// What nobody has to be known for.
const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn when_all_connections_of_a_pod_speak_up_at_once_another_is_answered_between_them() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let (noisy, polite) = (&of.noisy.workload, &of.polite.workload);
    let crowd = connect(noisy, CROWD).await;
    polite.connect("kept").await.expect("connected");
    for name in &crowd {
        ask_on(noisy, name, HEALTH).await;
        answer_on(noisy, name).await;
    }
    ask_on(polite, "kept", HEALTH).await;
    let before = numbers(&answer_on(polite, "kept").await)[0];

    of.agent.signal(Signal::SIGSTOP).expect("it runs");
    for name in &crowd {
        ask_on(noisy, name, HEALTH).await;
    }
    ask_on(polite, "kept", HEALTH).await;
    of.agent.signal(Signal::SIGCONT).expect("it is stopped");
    let first = numbers(&answer_on(polite, "kept").await)[0] - before - 1;
    for name in &crowd {
        assert_eq!(answer_on(noisy, name).await.statuses(), [200]);
    }
    assert!(first < FEW, "{first} requests of the crowd's came before");
}

#[tokio::test]
async fn while_new_connections_of_many_pods_are_let_in_a_request_under_way_goes_on() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    of.sandbox.aws_secret("test/slow", "x");
    let gate = Gate::new();
    let hold = Fault::on(Operation::GetSecretValue, Behaviour::Hold(gate.clone()));
    let _fault = of.sandbox.aws.fault(hold.for_secret("test/slow"));
    // Of none so many requests that they would have to stand back for each other.
    let mut crowd = Vec::new();
    for name in 0..CROWD / FROM_EACH {
        let pod = of.sandbox.pod("test", &format!("noisy-{name}")).await;
        crowd.push(pod.expect("a pod"));
        crowd[name].get("/health").await.expect("an answer");
    }
    let before = number(&of.polite.get("/health").await.expect("an answer"));
    // The second request is begun when the first one, which waits for the cloud, is answered.
    let asks = async {
        let raw = Raw::new(
            "GET /v1/secrets/test/slow HTTP/1.1\r\nHost: x\r\n\r\n\
             GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        );
        of.polite.workload.raw(raw).await.expect("answers")
    };
    let others = async {
        gate.reached(1).await;
        of.agent.signal(Signal::SIGSTOP).expect("it runs");
        for pod in &crowd {
            for name in connect(&pod.workload, FROM_EACH).await {
                ask_on(&pod.workload, &name, HEALTH).await;
            }
        }
        gate.open();
        sleep(SENT).await;
        of.agent.signal(Signal::SIGCONT).expect("it is stopped");
    };
    let (received, ()) = tokio::join!(asks, others);
    for pod in &crowd {
        for number in 0..FROM_EACH {
            let answer = answer_on(&pod.workload, &format!("c{number}")).await;
            assert_eq!(answer.statuses(), [200]);
        }
    }
    let [_, second] = numbers(&received)[..] else {
        let text = String::from_utf8_lossy(&received.bytes);
        panic!("two answers were expected: {text}");
    };
    let first = second - before - 2;
    assert!(first < FEW, "{first} requests of the crowd's came before");
}
