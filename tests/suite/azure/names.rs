//! Names and lists at Key Vault.

use super::Node;
use crate::code;
use serde_json::{Value, json};
use testkit::azure::{Behaviour, Fault, Operation, SecretSpec, Special};
use testkit::clouds::azure::VAULT;
use testkit::workload::Request;

#[tokio::test]
async fn a_name_that_could_lead_elsewhere_never_reaches_key_vault() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure.admit(VAULT, &client, None);
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    for wrong in [
        "..%2Fsecrets%2Ftest--database-password",
        "a%2F..%2F..%2Fsecrets%2Fx",
        "a--b",
        "-a",
        "a-",
        "test/-a",
        "a_b",
        "a.b",
        "a%3Fapi-version=7.4",
        "a%23b",
        "a%253f",
        "a%20b",
        "a%5Cb",
        "a%00b",
        "%C3%A4",
        "keys%3A1",
        "arn:aws:secretsmanager:eu-central-1:111122223333:secret:x",
    ] {
        let answer = pod.secret(wrong).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{wrong}: {}",
            answer.text()
        );
    }
    let long = pod.secret(&"n".repeat(128)).await.expect("an answer");
    assert_eq!(long.status, 400);
    assert!(node.azure.calls().is_empty());
    // What does reach it is exactly the mapped name.
    node.azure
        .put_secret(VAULT, "test--db-1", SecretSpec::text("x"));
    for asked in ["test/db-1", "test%2Fdb-1", "Test/DB-1"] {
        let answer = pod.secret(asked).await.expect("an answer");
        assert_eq!(answer.status, 200, "{asked}: {}", answer.text());
    }
    for call in node.with_token() {
        assert!(
            call.target.starts_with("/secrets/test--db-1/?api-version="),
            "{}",
            call.target
        );
    }
}

#[tokio::test]
async fn spellings_that_key_vault_does_not_tell_apart_are_one_secret_and_one_key() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.secret(&client, "test--key", "x");
    let cached = |s: testkit::agent::AgentSettings| s.set("cache.ttl", "1h");
    let agent = node.agent_with(cached).await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    for asked in ["test/key", "Test/Key", "TEST/KEY"] {
        let answer = pod.secret(asked).await.expect("an answer");
        assert_eq!(answer.json()["name"], "test/key", "{}", answer.text());
    }
    let batch = Request::new("POST", "/v1/secrets:batchGet").body(r#"{"names":["TEST/key"]}"#);
    let answer = pod.request(batch).await.expect("an answer");
    assert_eq!(answer.json()["secrets"][0]["name"], "test/key");
    assert_eq!(node.with_token().len(), 1);
    // The latest under one spelling is the latest under all.
    node.secret(&client, "test--key", "y");
    let latest = Request::get("/v1/secrets/TEST/KEY").header("cache-control", "no-cache");
    let answer = pod.request(latest).await.expect("an answer");
    assert_eq!(answer.json()["value"], "y");
    let answer = pod.secret("test/key").await.expect("an answer");
    assert_eq!(answer.json()["value"], "y");
    // Also to whoever looks for its readers in the trail.
    let last = answer.header("x-request-id").expect("an id");
    let line = agent.until_audit(|line| line["request_id"] == last).await;
    line.expect("the last line");
    let lines = agent.audit();
    assert_eq!(lines.len(), 6);
    for line in lines {
        assert_eq!(line["secret"], "test/key", "{line}");
    }
}

#[tokio::test]
async fn a_list_shows_what_can_be_asked_for_as_applications_write_it_page_by_page() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure.admit(VAULT, &client, None);
    let put = |name: &str| node.azure.put_secret(VAULT, name, SecretSpec::text("x"));
    for number in 0..60 {
        put(&format!("Team--Key-{number:02}"));
    }
    for strange in ["team---x", "team--", "team--a---b", "-team--a", "other"] {
        put(strange);
    }
    let annotations = [
        ("azure.workload.identity/client-id", &*client),
        ("latchkey.dev/prefix", "team/"),
    ];
    node.sandbox
        .kube
        .annotate_service_account("test", "app", &annotations);
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let list = async |query: &str| -> Value {
        let path = format!("/v1/secrets{query}");
        let answer = pod.get(&path).await.expect("an answer");
        answer.must_be_ok();
        answer.json()
    };
    let all: Vec<String> = (0..60).map(|number| format!("key-{number:02}")).collect();
    assert_eq!(list("?limit=1000").await["secrets"], json!(all));
    // In parts.
    let mut seen = Vec::new();
    let mut query = "?limit=25".to_owned();
    loop {
        let page = list(&query).await;
        let names = page["secrets"].as_array().expect("names");
        assert!(names.len() <= 25, "{page}");
        seen.extend(
            names
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned)),
        );
        let Some(next) = page["next"].as_str() else {
            break;
        };
        query = format!("?limit=25&cursor={next}");
    }
    assert_eq!(seen, all);
    // What the list shows can be asked for.
    let answer = pod.secret("key-07").await.expect("an answer");
    answer.must_be_ok();
}

#[tokio::test]
async fn neither_a_cursor_nor_a_link_of_the_vault_leads_to_another_host() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure.admit(VAULT, &client, None);
    for number in 0..30 {
        let spec = SecretSpec::text("x");
        node.azure
            .put_secret(VAULT, &format!("key-{number:02}"), spec);
    }
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.get("/v1/secrets").await.expect("an answer").status, 200);
    let port = node.azure.authority();
    let port = port.rsplit(':').next().expect("a port");
    let elsewhere = format!("foreign-vault.vault.test:{port}");
    let divert = Behaviour::Special(Special::Divert(elsewhere.clone()));
    let diverted = node.azure.fault(Fault::on(Operation::ListSecrets, divert));
    let answer = pod.get("/v1/secrets?limit=1000").await.expect("an answer");
    answer.must_be_ok();
    assert_eq!(answer.json()["secrets"].as_array().map(Vec::len), Some(31));
    drop(diverted);
    for cursor in [
        format!("https%3A%2F%2F{elsewhere}%2Fsecrets"),
        "x%26maxresults%3D1".to_owned(),
        "..%2F..%2F".to_owned(),
    ] {
        let path = format!("/v1/secrets?cursor={cursor}");
        let answer = pod.get(&path).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{}",
            answer.text()
        );
    }
    for call in node.azure.calls() {
        let stray = call.vault.as_deref().is_some_and(|vault| vault != VAULT);
        assert!(!stray, "{call:?}");
    }
}
