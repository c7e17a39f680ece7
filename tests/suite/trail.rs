//! The audit trail: one line for each secret asked for, with every field, and no secret without its line.

use crate::{code, sandbox_with_a_pod};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::aws::Operation;
use testkit::sandbox::{Sandbox, SandboxPod};
use testkit::workload::{Raw, Request, Workload, WorkloadSpec};

/// Every field of the contract.
const FIELDS: [&str; 23] = [
    "time",
    "target",
    "boot_id",
    "seq",
    "request_id",
    "namespace",
    "service_account",
    "pod",
    "pod_uid",
    "container_id",
    "container_confirmed",
    "pid",
    "uid",
    "backend",
    "role",
    "secret",
    "version",
    "outcome",
    "code",
    "cache",
    "shared_with",
    "cloud_request_id",
    "duration_ms",
];

/// How many lines the queue holds in the test that fills it.
const QUEUE: usize = 2;

/// How many ask at the same time: more than queue and writer take.
const ASKED: usize = 16;

/// An agent to whose trail nobody listens.
async fn deaf(
    sandbox: &Sandbox,
    change: impl FnOnce(AgentSettings) -> AgentSettings,
) -> AgentProcess {
    let deaf = AgentSettings {
        deaf_stderr: true,
        ..sandbox.settings().expect("settings")
    };
    let agent = change(deaf).start().await.expect("a process");
    agent.until_readyz().await.expect("it is ready");
    agent
}

async fn line_of(agent: &AgentProcess, outcome: &str, secret: &str) -> Value {
    let line = agent.until_audit(|line| line["outcome"] == outcome && line["secret"] == secret);
    let line = line.await.expect("a line");
    for field in FIELDS {
        assert!(line.get(field).is_some(), "{field} is missing in {line:#}");
    }
    line
}

/// What a line says of who asked.
fn asker(line: &Value) -> [&Value; 8] {
    [
        "namespace",
        "service_account",
        "pod",
        "pod_uid",
        "container_id",
        "pid",
        "uid",
        "backend",
    ]
    .map(|field| &line[field])
}

#[tokio::test]
async fn a_line_says_who_read_what_as_whom_and_how_it_ended() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let role = sandbox.aws.role_arn("test-app");
    sandbox.aws_namespace("prod");
    let version = sandbox.aws_secret("test/api-key", "k");
    let agent = sandbox.agent().await.expect("an agent");
    let answer = pod.secret("test/api-key").await.expect("an answer");
    answer.must_be_ok();
    let refused = pod
        .secret("prod/database-password")
        .await
        .expect("an answer");
    assert_eq!(refused.status, 403);

    let ok = line_of(&agent, "ok", "test/api-key").await;
    let pid = json!(pod.workload.pid());
    let who = [
        json!("test"),
        json!("app"),
        json!("web"),
        json!(pod.object.uid()),
        json!(pod.container),
        pid,
        json!(0),
        json!("aws"),
    ];
    assert_eq!(asker(&ok), who.each_ref());
    assert_eq!(
        (&ok["role"], &ok["version"]),
        (&json!(role), &json!(version))
    );
    assert_eq!((&ok["code"], &ok["cache"]), (&Value::Null, &json!("off")));
    assert_eq!(ok["container_confirmed"], true);
    assert_eq!(
        ok["request_id"],
        answer.header("x-request-id").unwrap_or_default()
    );
    let read =
        |call: &testkit::aws::Call| call.operation == Operation::GetSecretValue && call.succeeded();
    let calls = sandbox.aws.calls_where(read);
    assert_eq!(ok["cloud_request_id"], calls[0].request_id);
    assert!(
        ok["duration_ms"].as_f64().is_some_and(|took| took > 0.0),
        "{ok:#}"
    );
    let time: jiff::Timestamp = ok["time"]
        .as_str()
        .unwrap_or_default()
        .parse()
        .expect("a time");
    assert!(
        time.duration_until(jiff::Timestamp::now()).as_secs() < 60,
        "{ok:#}"
    );

    let denied = line_of(&agent, "error", "prod/database-password").await;
    assert_eq!(asker(&denied), who.each_ref());
    assert_eq!(
        (&denied["code"], &denied["role"]),
        (&json!("denied"), &json!(role))
    );
    assert_eq!(denied["version"], Value::Null);
    assert_eq!(denied["boot_id"], ok["boot_id"]);
    assert!(denied["cloud_request_id"].is_string(), "{denied:#}");
}

#[tokio::test]
async fn a_caller_that_is_no_pod_is_named_by_its_process_only() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let spec = WorkloadSpec::host(&sandbox.socket());
    let host = Workload::start(spec).await.expect("a process");
    let answer = host
        .get("/v1/secrets/test/database-password")
        .await
        .expect("an answer");
    assert_eq!(code(&answer), "not_attested");
    let line = line_of(&agent, "error", "test/database-password").await;
    assert_eq!(
        (&line["code"], &line["reason"]),
        (&json!("not_attested"), &json!("not_a_pod"))
    );
    assert_eq!(
        (&line["pid"], &line["uid"]),
        (&json!(host.pid()), &json!(0))
    );
    for field in [
        "namespace",
        "service_account",
        "pod",
        "pod_uid",
        "container_id",
        "role",
        "version",
    ] {
        assert_eq!(line[field], Value::Null, "{line:#}");
    }
}

#[tokio::test]
async fn a_caller_that_dies_before_its_answer_leaves_a_line() {
    needs_workloads!();
    let (sandbox, mut pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    tokio::select! {
        answer = pod.secret("test/database-password") => panic!("{answer:?}"),
        () = gate.reached(1) => {}
    }
    let (pid, uid) = (pod.workload.pid(), pod.object.uid().to_owned());
    pod.workload.kill().await.expect("it was there");
    let line = line_of(&agent, "cancelled", "test/database-password").await;
    assert_eq!((&line["pid"], &line["pod_uid"]), (&json!(pid), &json!(uid)));
    assert_eq!(
        (&line["version"], &line["code"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn a_caller_that_closes_its_connection_leaves_a_line_and_its_place_and_nothing_more_is_read_for_it()
 {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let settings = sandbox.settings().expect("settings");
    let settings = settings
        .set("limits.in_flight_per_pod", "1")
        .set("backends.aws.timeout", "10s");
    let agent = settings.start().await.expect("a process");
    agent.until_readyz().await.expect("it is ready");
    let (gate, held) = sandbox.aws.hold(Operation::GetSecretValue);
    let names: Vec<_> = (0..16).map(|number| format!("test/{number}")).collect();
    let body = json!({ "names": names }).to_string();
    let head = format!(
        "POST /v1/secrets:batchGet HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let gives_up = Raw {
        read_millis: 3000,
        ..Raw::new(head + &body)
    };
    let (received, ()) = tokio::join!(pod.workload.raw(gives_up), gate.reached(1));
    let received = received.expect("a connection");
    assert!(received.bytes.is_empty(), "it is held");
    line_of(&agent, "cancelled", &names[0]).await;
    drop(held);
    gate.open();
    pod.secret("test/database-password")
        .await
        .expect("an answer")
        .must_be_ok();
    let last = sandbox
        .aws
        .calls_where(|call| call.secret.as_ref() == names.last());
    assert!(last.is_empty(), "{last:?}");
}

/// How long after an answer its line is seen, in the middle of several.
async fn usual_wait_for_a_line(agent: &AgentProcess, pod: &SandboxPod) -> Duration {
    let mut waits = Vec::new();
    for _ in 0..9 {
        let answer = pod.secret("test/nothing").await.expect("an answer");
        let answered = Instant::now();
        let id = answer.header("x-request-id").expect("an id");
        let line = agent.until_audit(|line| line["request_id"] == *id).await;
        line.expect("its line");
        waits.push(answered.elapsed());
    }
    waits.sort_unstable();
    waits[waits.len() / 2]
}

#[tokio::test]
async fn the_death_of_a_caller_is_heard_of_at_once() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    // The agent looks at all connections each second: nine of ten that are told within half of one, and what a line
    // takes to be seen at all, are not told by that.
    let half = Duration::from_millis(500) + usual_wait_for_a_line(&agent, &pod).await;
    let (gate, _held) = sandbox.aws.hold(Operation::GetSecretValue);
    let mut late = Vec::new();
    for number in 1..=10 {
        let mut caller = pod.workload.exec_into().await.expect("a second process");
        tokio::select! {
            answer = caller.get("/v1/secrets/test/database-password") => panic!("{answer:?}"),
            () = gate.reached(number) => {}
        }
        let pid = caller.pid();
        caller.kill().await.expect("it was there");
        let killed = Instant::now();
        let line = agent.until_audit(|line| line["outcome"] == "cancelled" && line["pid"] == pid);
        line.await.expect("its line");
        let waited = killed.elapsed();
        if waited >= half {
            late.push(waited);
        }
    }
    assert!(late.len() <= 1, "{late:?}");
}

#[tokio::test]
async fn each_name_of_a_batch_has_a_line_and_the_trail_has_no_gap() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    sandbox.aws_namespace("prod");
    let agent = sandbox.agent().await.expect("an agent");
    let names = [
        "test/database-password",
        "prod/database-password",
        "test/nothing",
    ];
    let body = json!({ "names": names }).to_string();
    let batch = Request::new("POST", "/v1/secrets:batchGet").body(body);
    let answer = pod.request(batch).await.expect("an answer");
    answer.must_be_ok();
    for (name, outcome, code) in [
        (names[0], "ok", Value::Null),
        (names[1], "error", json!("denied")),
        (names[2], "error", json!("not_found")),
    ] {
        let line = line_of(&agent, outcome, name).await;
        assert_eq!(line["code"], code, "{line:#}");
        assert_eq!(
            line["request_id"],
            answer.header("x-request-id").unwrap_or_default()
        );
    }
    for _ in 0..5 {
        pod.secret("test/database-password")
            .await
            .expect("an answer");
    }
    agent
        .until_audit(|line| line["seq"] == 7)
        .await
        .expect("eight lines");
    let lines = agent.audit();
    let numbers: Vec<_> = lines
        .iter()
        .filter_map(|line| line["seq"].as_u64())
        .collect();
    assert_eq!(numbers, (0..8).collect::<Vec<_>>());
}

#[tokio::test]
async fn no_secret_leaves_without_its_line_when_nobody_reads_the_trail() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let short = |settings: AgentSettings| {
        settings
            .set("audit.queue", QUEUE)
            .set("limits.attest_wait", "1s")
            .set("backends.aws.timeout", "3s")
            .set("limits.request_deadline", "6s")
    };
    let mut agent = deaf(&sandbox, short).await;
    let asks = (0..ASKED).map(|_| pod.secret("test/database-password"));
    let answers = futures::future::join_all(asks).await;
    let mut given = 0;
    for answer in answers {
        let answer = answer.expect("an answer");
        if answer.status == 200 {
            given += 1;
        } else {
            answer.must_be_refused(503, "unavailable");
            assert!(answer.header("retry-after").is_some());
        }
    }
    // Whatever the writer has in its hands and what is in the queue, but not all that was asked for.
    assert!((1..ASKED).contains(&given), "{given} secrets were given");
    agent.hear().expect("nobody reads it yet");
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    let last = answer.header("x-request-id").unwrap_or_default().to_owned();
    agent
        .until_audit(|line| line["request_id"] == *last)
        .await
        .expect("its line");
    let lines = agent
        .audit()
        .iter()
        .filter(|line| line["outcome"] == "ok")
        .count();
    assert_eq!(lines, given + 1, "secrets and lines");
}

#[tokio::test]
async fn when_the_trail_cannot_be_written_any_more_nothing_is_given_and_the_agent_asks_to_be_restarted()
 {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = deaf(&sandbox, |settings| settings).await;
    agent.hang_up().expect("nobody reads it yet");
    // Whoever asks before the first line has failed still gets an answer.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = pod.secret("test/database-password").await;
        let answer = answer.expect("an answer");
        if answer.status != 200 {
            answer.must_be_refused(503, "unavailable");
            break;
        }
        assert!(
            Instant::now() < deadline,
            "secrets are given without a trail"
        );
    }
    for probe in ["/readyz", "/livez"] {
        let (status, told) = agent.admin(probe).await.expect("an answer");
        assert_eq!(status, 503, "{probe}");
        assert!(told.contains("audit trail"), "{told}");
    }
    assert_eq!(
        pod.get("/v1/identity").await.expect("an answer").status,
        200
    );
}

#[tokio::test]
async fn an_agent_whose_trail_nobody_reads_leaves_all_the_same() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let mut agent = deaf(&sandbox, |settings| settings.set("limits.drain", "2s")).await;
    let answer = pod
        .secret("test/database-password")
        .await
        .expect("an answer");
    answer.must_be_ok();
    let told = Instant::now();
    agent.stop().await.expect("it leaves");
    assert!(
        told.elapsed() < Duration::from_secs(8),
        "it took {:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_has_one_line() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    let slow = |settings: AgentSettings| settings.set("limits.requests_per_second_per_pod", 2);
    let agent = sandbox.agent_with(slow).await.expect("an agent");
    let batch = |names: &str| {
        let batch = Request::new("POST", "/v1/secrets:batchGet");
        batch.body(format!(r#"{{"names":[{names}]}}"#))
    };
    let host = Workload::start(WorkloadSpec::host(&sandbox.socket()))
        .await
        .expect("a process");
    let answer = host.request(batch(r#""test/a""#)).await.expect("an answer");
    assert_eq!(code(&answer), "not_attested");
    let line = line_of(&agent, "error", "").await;
    assert_eq!(line["code"], "not_attested");
    assert_eq!(line["reason"], "not_a_pod");
    assert_eq!(line["pid"], host.pid());
    let many = r#""test/a","test/b","test/c","test/d","test/e","test/f""#;
    let answer = pod.request(batch(many)).await.expect("an answer");
    assert_eq!(code(&answer), "busy");
    let line = agent
        .until_audit(|line| line["code"] == "busy")
        .await
        .expect("a line");
    assert_eq!((&line["secret"], &line["pod"]), (&json!(""), &json!("web")));
    // What is no batch asks for nothing.
    let answer = pod.request(batch("1")).await.expect("an answer");
    assert_eq!(code(&answer), "invalid_request");
    let lines = agent.audit();
    assert_eq!(lines.iter().filter(|line| line["secret"] == "").count(), 2);
}
