//! Who is served first, when everything that several pods have asked lies before the agent at once: it was stopped meanwhile.
//! Requests are numbered as they are begun.

use super::{Neighbours, connect};
use crate::{number, number_in};
use futures::future::join_all;
use std::time::Duration;
use testkit::aws::{Behaviour, Fault, Gate, Operation};
use testkit::workload::{Flood, Raw, Request, Signal};
use tokio::time::sleep;

/// How many connections ask at once: as many as one pod may have, beside those that are there already.
const CROWD: usize = 60;

/// How many of them each pod has, where they are several pods'.
const FROM_EACH: usize = 5;

/// How many of them may come before the one that matters: some turns of eight requests, or of four new peers.
const FEW: u64 = 30;

/// How long it takes to write all that is asked, at the most.
const WRITTEN: Duration = Duration::from_millis(500);

#[tokio::test]
async fn when_all_connections_of_a_pod_speak_up_at_once_another_is_answered_between_them() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let crowd = connect(&of.noisy.workload, CROWD).await;
    of.polite.workload.connect("kept").await.expect("connected");
    let health = || Request::get("/health");
    let noisy = async |name: &String| of.noisy.workload.send_on(name, health()).await;
    let polite = async || of.polite.workload.send_on("kept", health()).await;
    join_all(crowd.iter().map(noisy)).await;
    let before = number(&polite().await.expect("an answer"));

    of.agent.signal(Signal::SIGSTOP).expect("it runs");
    let asks = async {
        sleep(WRITTEN).await;
        polite().await.expect("an answer")
    };
    let goes_on = async {
        sleep(WRITTEN * 2).await;
        of.agent.signal(Signal::SIGCONT).expect("it is stopped");
    };
    let (noisy, polite, ()) = tokio::join!(join_all(crowd.iter().map(noisy)), asks, goes_on);
    assert!(
        noisy
            .into_iter()
            .all(|answer| answer.expect("an answer").status == 200)
    );
    let first = number(&polite) - before - 1;
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
    let connects = async {
        gate.reached(1).await;
        of.agent.signal(Signal::SIGSTOP).expect("it runs");
        let flood = Flood {
            path: "/health".into(),
            connections: FROM_EACH,
            requests: 1,
            reconnect: true,
            interval_micros: 0,
            expect: None,
        };
        join_all(crowd.iter().map(|pod| pod.workload.flood(flood.clone()))).await
    };
    let goes_on = async {
        gate.reached(1).await;
        sleep(WRITTEN).await;
        gate.open();
        sleep(WRITTEN).await;
        of.agent.signal(Signal::SIGCONT).expect("it is stopped");
    };
    let (received, flooded, ()) = tokio::join!(asks, connects, goes_on);
    for flooded in flooded {
        let flooded = flooded.expect("answers");
        assert_eq!(flooded.count(200), FROM_EACH, "{flooded:?}");
    }
    let text = String::from_utf8_lossy(&received.bytes);
    let ids: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("x-request-id: "))
        .collect();
    let [_, second] = ids[..] else {
        panic!("two answers were expected: {text}");
    };
    let first = number_in(second) - before - 2;
    assert!(first < FEW, "{first} requests of the crowd's came before");
}
