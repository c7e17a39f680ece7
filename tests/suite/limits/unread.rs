//! What a pod asks for and does not read lies somewhere meanwhile, and that is bounded wherever it lies.

use super::{Neighbours, connect};
use crate::number;
use std::ops::RangeBounds;
use std::time::Duration;
use testkit::aws::Operation;
use testkit::workload::{Raw, Request, Workload};
use testkit::{PATIENCE, until};

/// Ten secrets, some 4 MiB as JSON: their names, and the body that asks for all of them.
fn large(of: &Neighbours) -> (Vec<String>, String) {
    let names: Vec<_> = (0..10).map(|number| format!("test/{number}")).collect();
    for name in &names {
        of.sandbox.aws_secret(name, &"\u{1}".repeat(64_000));
    }
    let body = serde_json::json!({ "names": names }).to_string();
    (names, body)
}

/// More time than usual for one request, on a slow machine. A pod itself waits for 45 s.
const PATIENT: (&str, &str) = ("limits.request_deadline", "20s");

/// Asks for a batch on each of these connections, and reads nothing.
async fn ask_and_not_read(workload: &Workload, kept: &[String], body: &str) {
    let post = format!(
        "POST /v1/secrets:batchGet HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    for name in kept {
        let raw = Raw {
            connection: Some(name.clone()),
            read_millis: 0,
            ..Raw::new(post.clone())
        };
        workload.raw(raw).await.expect("it is sent");
    }
}

/// The noisy pod's batch, as soon as so many of its names have a value. Each says for itself whether there was room for it.
async fn until_there(
    of: &Neighbours,
    body: &str,
    wanted: impl RangeBounds<usize>,
) -> serde_json::Value {
    let asks = async {
        loop {
            let batch = Request::new("POST", "/v1/secrets:batchGet").body(body);
            let answer = of.noisy.request(batch).await.expect("an answer").json();
            let part = |list: &str| answer[list].as_array().cloned().unwrap_or_default();
            let (secrets, errors) = (part("secrets"), part("errors"));
            assert_eq!(secrets.len() + errors.len(), 10);
            // What a busy machine was too slow for says nothing of the room.
            let is_told = errors.iter().all(|error| error["code"] == "busy");
            if is_told && wanted.contains(&secrets.len()) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(PATIENCE * 2, asks).await;
    answer.expect("it comes to that")
}

#[tokio::test]
async fn what_a_pod_does_not_read_takes_little_of_the_agents_memory() {
    needs_workloads!();
    let of = Neighbours::start(&[PATIENT]).await;
    let (names, body) = large(&of);
    let resident = || of.agent.resident().expect("it runs");
    // The values are read once, and kept for all that follow.
    let batch = Request::new("POST", "/v1/secrets:batchGet").body(&*body);
    let first = of.noisy.request(batch).await.expect("an answer");
    assert!(first.body.len() > 3 << 20);
    let before = resident();
    let kept = connect(&of.noisy.workload, 30).await;
    ask_and_not_read(&of.noisy.workload, &kept, &body).await;
    let errors = &until_there(&of, &body, ..1).await["errors"];
    assert_eq!(
        (&errors[0]["code"], &errors[0]["status"]),
        (&"busy".into(), &429.into())
    );
    // No value is given out of which the trail does not say so, nor the other way round.
    let one = of.noisy.secret(&names[0]).await.expect("an answer");
    one.must_be_refused(429, "busy");
    let id = one.header("x-request-id").expect("an id").to_owned();
    let line = of.agent.until_audit(|line| line["request_id"] == *id);
    assert_eq!(line.await.expect("its line")["code"], "busy");
    of.polite_is_served().await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes more than before");
    // Short answers are given all the same, and with what was not read goes its room.
    assert_eq!(
        of.noisy
            .get("/v1/identity")
            .await
            .expect("an answer")
            .status,
        200
    );
    for name in &kept {
        of.noisy.workload.close(name).await.expect("it is open");
    }
    until_there(&of, &body, names.len()..).await;
}

/// They are as long as what they quote, and cost no vault anything.
#[tokio::test]
async fn refusals_that_a_pod_does_not_read_count_as_values_do() {
    needs_workloads!();
    let of = Neighbours::start(&[
        PATIENT,
        ("limits.in_flight_per_pod", "64"),
        ("limits.requests_per_second_per_pod", "1000000"),
    ])
    .await;
    // Twice escaped, in the sentence and in JSON.
    let no_role = [("eks.amazonaws.com/role-arn", &*"\"".repeat(2000))];
    let pod = of.sandbox.pod_as("test", "refused", &no_role);
    let pod = pod.await.expect("a pod");
    let names: Vec<_> = (0..100).map(|number| format!("test/{number}")).collect();
    let body = serde_json::json!({ "names": names }).to_string();
    let kept = connect(&pod.workload, 50).await;
    ask_and_not_read(&pod.workload, &kept, &body).await;
    let are_busy = async || {
        let batch = Request::new("POST", "/v1/secrets:batchGet").body(&*body);
        let answer = pod.request(batch).await.expect("an answer").json();
        let errors = answer["errors"].as_array().cloned().unwrap_or_default();
        assert_eq!(errors.len(), 100);
        errors.iter().any(|error| error["code"] == "busy")
    };
    until("no room for refusals", are_busy).await;
    for name in &kept {
        pod.workload.close(name).await.expect("it is open");
    }
    until("room again", async || !are_busy().await).await;
}

#[tokio::test]
async fn a_peer_that_takes_nothing_of_its_answer_for_ten_seconds_loses_its_connection() {
    needs_workloads!();
    let of = Neighbours::start(&[PATIENT]).await;
    let (names, body) = large(&of);
    let kept = connect(&of.noisy.workload, 2).await;
    ask_and_not_read(&of.noisy.workload, &kept, &body).await;
    // Two such answers leave no room for a third. There is room again when the agent has thrown them away.
    until_there(&of, &body, ..names.len()).await;
    until_there(&of, &body, names.len()..).await;
    for name in &kept {
        let rest = Raw {
            connection: Some(name.clone()),
            ..Raw::new("")
        };
        let rest = of.noisy.workload.raw(rest).await.expect("it is there");
        assert!(rest.closed, "{name} is still open");
        // What the kernel has taken, and not the answer's end.
        let length = rest.bytes.len();
        assert!((1..200_000).contains(&length), "{name} has {length} bytes");
    }
}

#[tokio::test]
async fn a_pods_batches_read_no_more_at_once_than_it_may_have_requests_in_flight() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.in_flight_per_pod", "2")]).await;
    let names: Vec<_> = (0..8).map(|number| format!("test/{number}")).collect();
    for name in &names {
        of.sandbox.aws_secret(name, name);
    }
    let (gate, _held) = of.sandbox.aws.hold(Operation::GetSecretValue);
    let body = serde_json::json!({ "names": names }).to_string();
    let batch = Request::new("POST", "/v1/secrets:batchGet").body(body);
    let opens = async {
        gate.reached(2).await;
        let third = tokio::time::timeout(Duration::from_millis(300), gate.reached(3)).await;
        gate.open();
        third
    };
    let (answer, third) = tokio::join!(of.noisy.request(batch), opens);
    assert!(third.is_err(), "three are read at once");
    let answer = answer.expect("an answer").json();
    assert_eq!(
        answer["secrets"].as_array().map(Vec::len),
        Some(8),
        "{answer:#}"
    );
}

/// So many requests at once that anybody may ask, the last of which ends the connection.
fn pipelined(count: usize) -> String {
    const ASK: &str = "GET /health HTTP/1.1\r\nHost: x\r\n";
    format!("{ASK}\r\n").repeat(count - 1) + ASK + "Connection: close\r\n\r\n"
}

/// Waits until the agent has answered so many of those.
async fn until_answered(of: &Neighbours, count: u32) {
    const ANSWERED: &str = "latchkey_requests_total{code=\"ok\",route=\"health\"}";
    let answered = async || of.agent.metric(ANSWERED).await.expect("metrics");
    until("all is answered", async || {
        answered().await >= f64::from(count)
    })
    .await;
}

/// Whether one more connection may be had; it is kept if so.
async fn is_let_in(workload: &Workload, name: &str) -> bool {
    workload.connect(name).await.expect("a connection");
    let asked = workload.send_on(name, Request::get("/v1/identity")).await;
    let is_let_in = asked.is_ok_and(|answer| answer.status == 200);
    if !is_let_in {
        // It may have ended by itself.
        let _ended = workload.close(name).await;
    }
    is_let_in
}

#[tokio::test]
async fn a_connection_that_has_ended_counts_until_its_answers_are_read() {
    needs_workloads!();
    let of = Neighbours::start(&[("limits.connections_per_pod", "4")]).await;
    let kept = connect(&of.noisy.workload, 4).await;
    for name in &kept {
        let raw = Raw {
            connection: Some(name.clone()),
            read_millis: 0,
            ..Raw::new(pipelined(20))
        };
        of.noisy.workload.raw(raw).await.expect("it is sent");
    }
    until_answered(&of, 80).await;
    // The agent has closed by then. What it has sent lies in the kernel's memory, on the agent's account.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answer = of.noisy.get("/v1/identity").await.expect("an answer");
    answer.must_be_refused(429, "busy");
    of.polite_is_served().await;
    // One is read, another thrown away.
    let rest = Raw {
        connection: Some(kept[0].clone()),
        ..Raw::new("")
    };
    let read = of.noisy.workload.raw(rest).await.expect("it is there");
    assert_eq!((read.statuses(), read.closed), (vec![200; 20], true));
    of.noisy.workload.close(&kept[1]).await.expect("it is open");
    for name in ["one", "two"] {
        let is_let_in = async || is_let_in(&of.noisy.workload, name).await;
        until("room for two again", is_let_in).await;
    }
}

/// Each new pod would otherwise have a quota of its own, while what those before it left lies in the agent's memory.
#[tokio::test]
async fn what_somebody_holds_of_pods_that_are_gone_counts_in_their_namespace_until_it_is_let_go() {
    needs_workloads!();
    let mut of = Neighbours::start(&[("limits.connections_per_pod", "2")]).await;
    of.sandbox.aws_namespace("prod");
    let other = of.sandbox.pod("prod", "other").await.expect("a pod");
    let holder = &of.polite.workload;
    for name in &connect(&of.noisy.workload, 2).await {
        let raw = Raw {
            connection: Some(name.clone()),
            read_millis: 0,
            ..Raw::new(pipelined(20))
        };
        of.noisy.workload.raw(raw).await.expect("it is sent");
        let meeting = of.sandbox.directory().join(name);
        let (received, passed) = tokio::join!(holder.receive(name, &meeting), async {
            until("a meeting", async || meeting.exists()).await;
            of.noisy.workload.pass(name, &meeting).await
        });
        received.and(passed).expect("the connection changes hands");
    }
    until_answered(&of, 40).await;
    of.noisy.workload.kill().await.expect("it ends");
    of.noisy.object.delete();
    let next = of.sandbox.pod("test", "next").await.expect("a pod");
    let status = async || next.get("/v1/identity").await.expect("an answer").status;
    until("no more connections", async || status().await == 429).await;
    let told = next.get("/v1/identity").await.expect("an answer").text();
    assert!(
        told.contains("this namespace's pods that are gone"),
        "{told}"
    );
    let answer = other.get("/v1/identity").await.expect("an answer");
    assert_eq!(answer.status, 200, "that is another's namespace");
    holder.close("c0").await.expect("it is open");
    until("one let go of", async || status().await == 200).await;
}

#[tokio::test]
async fn few_answers_are_queued_for_a_peer_that_does_not_read_them() {
    needs_workloads!();
    let of = Neighbours::start(&[]).await;
    let next = async || number(&of.polite.get("/health").await.expect("an answer"));
    let before = next().await;
    let unread = connect(&of.noisy.workload, 1).await;
    let raw = Raw {
        connection: Some(unread[0].clone()),
        read_millis: 0,
        ..Raw::new(pipelined(400))
    };
    of.noisy.workload.raw(raw).await.expect("it is sent");
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Each takes more than a KiB there, whatever its length.
    let begun = next().await - before;
    assert!((20..110).contains(&begun), "{begun} were answered");
}
