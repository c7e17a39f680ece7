//! What the cloud's failures become for the caller, and what they cannot lead to.

use super::{Node, SECRET, WRITTEN};
use crate::{REFUSAL_STANDS, code, must_meet};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};
use testkit::agent::AgentSettings;
use testkit::azure::{Behaviour, FakeAzure, Fault, Operation, SecretSpec, Special};
use testkit::clouds::azure::VAULT;
use testkit::kube::AGENT;
use testkit::sandbox::{CANARY, password};
use testkit::workload::{Request, Response};
use tokio::time::sleep;

#[tokio::test]
async fn each_answer_of_key_vault_has_its_own_code() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    let agent = node
        .agent_with(|s| s.set("backends.azure.timeout", "1s"))
        .await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let ask = async |name: &str| -> Response { pod.secret(name).await.expect("an answer") };
    assert_eq!(ask(SECRET).await.status, 200);
    node.azure.admit(VAULT, &client, Some("test--missing"));
    assert_eq!(code(&ask("test/missing").await), "not_found");
    let faults = [
        (Behaviour::Throttle(Some(7)), 429, "throttled", Some("7")),
        (Behaviour::Throttle(None), 429, "throttled", Some("1")),
        (Behaviour::InternalError, 503, "unavailable", Some("1")),
        (Behaviour::ServiceUnavailable, 503, "unavailable", Some("1")),
        (Behaviour::Html(200), 503, "unavailable", Some("1")),
        (Behaviour::Html(403), 503, "unavailable", Some("1")),
        (Behaviour::Html(502), 503, "unavailable", Some("1")),
        (Behaviour::Misdirect, 503, "unavailable", Some("1")),
        (Behaviour::TruncatedBody, 503, "unavailable", Some("1")),
        (Behaviour::CutBody, 503, "unavailable", Some("1")),
        (Behaviour::Endless, 503, "unavailable", Some("1")),
        (Behaviour::Disconnect, 503, "unavailable", Some("1")),
        (Behaviour::Hang, 503, "unavailable", Some("1")),
    ];
    for (behaviour, status, word, wait) in faults {
        let what = format!("{behaviour:?}");
        let _fault = node
            .azure
            .fault(Fault::on(Operation::GetSecret, behaviour).for_secret(WRITTEN));
        let begun = Instant::now();
        let answer = ask(SECRET).await;
        let text = answer.text();
        assert_eq!(
            (answer.status, &*code(&answer)),
            (status, word),
            "{what}: {text}"
        );
        assert_eq!(answer.header("retry-after"), wait, "{what}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}");
        assert!(!text.contains("canary"), "{what}");
    }
    node.azure.close_vault(VAULT, true);
    let answer = ask(SECRET).await;
    answer.must_be_refused(403, "denied");
    assert!(answer.text().contains("firewall"), "{}", answer.text());
    node.azure.close_vault(VAULT, false);
    node.azure.stop_listening().await;
    let answer = ask(SECRET).await;
    answer.must_be_refused(503, "unavailable");
    node.azure.resume_listening().await.expect("it resumes");
    assert_eq!(ask(SECRET).await.status, 200);
    let line = agent
        .until_audit(|line| line["code"] == "throttled")
        .await
        .expect("its line");
    let correlation = line["cloud_request_id"].as_str().expect("an id");
    let logged = |call: &testkit::azure::Call| call.correlation_id.as_deref() == Some(correlation);
    assert!(!node.azure.calls_where(logged).is_empty());
}

#[tokio::test]
async fn entra_id_fails_in_the_same_words() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let _agent = node
        .agent_with(|s| s.set("backends.azure.timeout", "1s"))
        .await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    for (behaviour, status, word) in [
        (Behaviour::InternalError, 503, "unavailable"),
        (Behaviour::Html(200), 503, "unavailable"),
        (Behaviour::Html(400), 503, "unavailable"),
        (Behaviour::TruncatedBody, 503, "unavailable"),
        (Behaviour::CutBody, 503, "unavailable"),
        (Behaviour::Endless, 503, "unavailable"),
        (Behaviour::Disconnect, 503, "unavailable"),
        (Behaviour::Hang, 503, "unavailable"),
        (Behaviour::Throttle(Some(1)), 429, "throttled"),
    ] {
        let what = format!("{behaviour:?}");
        let _fault = node.azure.fault(Fault::on(Operation::Token, behaviour));
        let answer = pod.secret(SECRET).await.expect("an answer");
        let text = answer.text();
        assert_eq!(
            (answer.status, &*code(&answer)),
            (status, word),
            "{what}: {text}"
        );
        assert!(text.contains("Entra ID"), "{what}: {text}");
    }
    assert!(node.with_token().is_empty());
    // It has asked to slow down, so it is left alone for as long.
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 429);
    sleep(REFUSAL_STANDS).await;
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn a_vault_whose_challenge_is_for_another_host_gets_no_token() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    // The last one is a host that the vault's own ends with, and another resource all the same.
    let asked = || node.azure.count_of(Operation::GetSecret);
    for host in ["evil.example", "graph.microsoft.com", "test"] {
        let before = asked();
        let divert = Behaviour::Special(Special::Divert(host.to_owned()));
        let _fault = node.azure.fault(Fault::on(Operation::GetSecret, divert));
        let answer = pod.secret(SECRET).await.expect("an answer");
        assert_eq!((answer.status, &*code(&answer)), (403, "denied"), "{host}");
        assert!(
            answer.text().contains("vault_suffixes"),
            "{}",
            answer.text()
        );
        assert!(asked() > before, "{host}");
        // That stands for a while, as a refusal does.
        sleep(REFUSAL_STANDS).await;
    }
    assert!(node.with_token().is_empty());
    // The vault is itself again, and what it asked for is forgotten.
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn whoever_has_no_certificate_for_the_vault_gets_no_token() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    // Another authority's certificate, by the same names.
    let other = FakeAzure::start().await.expect("another cloud");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let ca = other.ca_file(elsewhere.path()).expect("a file");
    let _agent = node
        .agent_with(|s| s.env("SSL_CERT_FILE", ca.display()))
        .await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert!(node.azure.calls().is_empty());
}

#[tokio::test]
async fn a_bundle_that_is_replaced_counts_from_the_next_start() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let other = FakeAzure::start().await.expect("another cloud");
    let directory = tempfile::tempdir().expect("a directory");
    let ca = node.azure.ca_file(directory.path()).expect("a file");
    let bundle = |s: AgentSettings| s.env("SSL_CERT_FILE", ca.display());
    let agent = node.agent_with(bundle).await;
    other.ca_file(directory.path()).expect("the same file");
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    drop(agent);
    let _agent = node.agent_with(bundle).await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
}

#[tokio::test]
async fn what_is_disabled_expired_or_not_valid_yet_is_not_found() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure.admit(VAULT, &client, None);
    let now = jiff::Timestamp::now().as_second();
    let text = || SecretSpec::text("x");
    for (name, spec) in [
        (
            "disabled",
            SecretSpec {
                enabled: false,
                ..text()
            },
        ),
        (
            "expired",
            SecretSpec {
                expires: Some(now - 60),
                ..text()
            },
        ),
        (
            "future",
            SecretSpec {
                not_before: Some(now + 600),
                ..text()
            },
        ),
    ] {
        node.azure.put_secret(VAULT, name, spec);
    }
    node.azure.put_secret(VAULT, "gone", text());
    node.azure.remove_secret(VAULT, "gone");
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    for name in ["disabled", "expired", "future", "gone"] {
        let answer = pod.secret(name).await.expect("an answer");
        let text = answer.text();
        assert_eq!(
            (answer.status, &*code(&answer)),
            (404, "not_found"),
            "{text}"
        );
    }
    // They are not shown either.
    let answer = pod.get("/v1/secrets").await.expect("an answer");
    let shown = answer.json()["secrets"].clone();
    assert_eq!(shown, serde_json::json!([SECRET]));
}

#[tokio::test]
async fn what_the_vault_keeps_as_base64_is_given_as_bytes() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure.admit(VAULT, &client, None);
    let binary = SecretSpec {
        content_type: Some("application/octet-stream".to_owned()),
        ..SecretSpec::text("AP/+gA==")
    };
    node.azure.put_secret(VAULT, "binary", binary);
    node.azure.put_secret(VAULT, "empty", SecretSpec::text(""));
    let long = "\u{1F511}".repeat(6000);
    node.azure
        .put_secret(VAULT, "long", SecretSpec::text(&long));
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret("binary").await.expect("an answer");
    assert_eq!(answer.json()["encoding"], "base64", "{}", answer.text());
    assert_eq!(answer.json()["value"], "AP/+gA==");
    let raw = Request::get("/v1/secrets/binary").header("accept", "application/octet-stream");
    let answer = pod.request(raw).await.expect("an answer");
    assert_eq!(answer.body, [0, 255, 254, 128]);
    assert_eq!(
        pod.secret("empty").await.expect("an answer").json()["value"],
        ""
    );
    assert_eq!(
        pod.secret("long").await.expect("an answer").json()["value"],
        long
    );
}

#[tokio::test]
async fn no_secret_and_no_token_of_azure_is_in_anything_that_the_agent_says() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    node.namespace("prod");
    let agent = node
        .agent_with(|s| s.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1"))
        .await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let spoiled = [
        Behaviour::CutBody,
        Behaviour::TruncatedBody,
        Behaviour::Html(200),
        Behaviour::InternalError,
        Behaviour::Disconnect,
        Behaviour::Throttle(None),
    ];
    let each = |operation| spoiled.clone().map(|behaviour| (operation, behaviour));
    let faults = [each(Operation::Token), each(Operation::GetSecret)].concat();
    // An exchange names nobody in its answer that could be another.
    let of_another = (Operation::GetSecret, Behaviour::Misdirect);
    for (operation, behaviour) in [&faults[..], &[of_another]].concat() {
        let what = format!("{operation:?} {behaviour:?}");
        let spoilt = || {
            let calls = node.azure.calls_of(operation).into_iter();
            calls.filter(|call| !call.succeeded()).count()
        };
        let fault = || node.azure.fault(Fault::on(operation, behaviour));
        must_meet(&what, (&pod, SECRET), spoilt, fault).await;
    }
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(answer.json()["value"], password("test"));
    for path in [
        "/v1/secrets/prod/database-password",
        "/v1/secrets/test/nothing",
        "/v1/secrets/no_such_name",
        "/v1/secrets",
        "/v1/identity",
    ] {
        pod.get(path).await.expect("an answer");
    }
    let mut hidden: BTreeSet<String> = node.azure.access_tokens().into_iter().collect();
    let tokens = node.sandbox.kube.tokens();
    hidden.extend(tokens.into_iter().filter_map(|asked| asked.token));
    assert!(hidden.len() > 1, "no session was given");
    let bearer = node.sandbox.kube.bearer(AGENT);
    hidden.extend([CANARY.to_owned(), "eyJ".to_owned(), bearer]);
    let stderr = agent.stderr().join("\n");
    assert!(stderr.contains("\"level\":\"DEBUG\""), "it was not loud");
    let (_, metrics) = agent.admin("/metrics").await.expect("metrics");
    let environment = fs::read(format!("/proc/{}/environ", agent.pid())).expect("root may read");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for (place, text) in [
        ("stderr", &stderr),
        ("the metrics", &metrics),
        ("its environment", &environment),
    ] {
        for secret in &hidden {
            let line = text.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "{secret} is in {place}");
        }
    }
}

#[tokio::test]
async fn equal_reads_of_a_pod_at_once_are_one_call_and_one_exchange() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(
        pod.get("/v1/identity").await.expect("an answer").status,
        200
    );
    let (gate, _held) = node.azure.hold(Operation::Token);
    let asked = futures::future::join_all((0..20).map(|_| pod.secret(SECRET)));
    let opened = async {
        gate.reached(1).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asked, opened);
    for answer in answers {
        assert_eq!(answer.expect("an answer").status, 200);
    }
    assert_eq!((node.exchanges().len(), node.with_token().len()), (1, 1));
}
