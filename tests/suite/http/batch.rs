//! Many secrets in one request.

use super::Served;
use crate::code;
use serde_json::{Value, json};
use testkit::aws::SecretInput;
use testkit::sandbox::{REGION, password};
use testkit::until;
use testkit::workload::{Raw, Request};

fn batch(body: impl Into<Vec<u8>>) -> Request {
    Request::new("POST", "/v1/secrets:batchGet").body(body)
}

#[tokio::test]
async fn a_name_that_is_too_long_for_any_vault_comes_neither_into_the_trail_nor_into_an_answer() {
    needs_workloads!();
    let served = Served::start().await;
    let long = "a".repeat(60_000);
    let answer = served
        .ask(batch(json!({"names": ["x", long]}).to_string()))
        .await;
    assert_eq!(
        (answer.status, &*code(&answer)),
        (400, "invalid_request"),
        "{}",
        answer.text()
    );
    assert!(answer.text().len() < 1024);
    let longest = "a".repeat(512);
    let answer = served
        .ask(batch(json!({"names": [longest]}).to_string()))
        .await;
    answer.must_be_ok();
    let line = served
        .agent
        .until_audit(|line| line["secret"] == *longest)
        .await;
    line.expect("its line");
    // Each of its characters takes six bytes there.
    let impossible = json!({"names": ["\u{7f}".repeat(512)]});
    served.ask(batch(impossible.to_string())).await.must_be_ok();
    let beginning = "\u{7f}".repeat(64);
    let line = served
        .agent
        .until_audit(|line| line["secret"] == *beginning);
    line.await.expect("its line");
    assert!(
        served
            .agent
            .audit()
            .iter()
            .all(|line| line.to_string().len() < 2048)
    );
}

#[tokio::test]
async fn a_batch_answers_each_name_once_and_for_itself() {
    needs_workloads!();
    let served = Served::start().await;
    served.sandbox.aws_namespace("prod");
    served
        .sandbox
        .aws
        .put_secret(REGION, "test/binary", SecretInput::binary(vec![0xff]));
    let wanted = json!({"names": [
        "test/database-password", "test/missing", "test/binary", "test/database-password", "prod/database-password", "a//b",
    ]});
    let answer = served.ask(batch(wanted.to_string())).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let body = answer.json();
    let read: Vec<_> = body["secrets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|s| (&s["name"], &s["value"]))
        .collect();
    let expected = [
        (&json!("test/database-password"), &json!(password("test"))),
        (&json!("test/binary"), &json!("/w==")),
    ];
    assert_eq!(read, expected);
    let errors: Vec<_> = body["errors"].as_array().into_iter().flatten().collect();
    let short: Vec<_> = errors
        .iter()
        .map(|e| json!([e["name"], e["code"], e["status"]]))
        .collect();
    let expected = [
        json!(["test/missing", "not_found", 404]),
        json!(["prod/database-password", "denied", 403]),
        json!(["a//b", "invalid_request", 400]),
    ];
    assert_eq!(short, expected);
    let reads = served
        .sandbox
        .aws
        .count_calls(|call| call.secret.as_deref() == Some("test/database-password"));
    assert_eq!(reads, 1, "a name that stands twice is read once");
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let expected = [
        "a//b",
        "prod/database-password",
        "test/binary",
        "test/database-password",
        "test/missing",
    ];
    for name in expected {
        let is_its = |line: &Value| line["request_id"] == *id && line["secret"] == name;
        served.agent.until_audit(is_its).await.expect("its line");
    }
    let is_ours = |line: &Value| line["request_id"] == *id;
    let lines = served.agent.audit().into_iter().filter(is_ours);
    let mut asked: Vec<_> = lines.map(|line| line["secret"].to_string()).collect();
    asked.sort_unstable();
    assert_eq!(
        asked,
        expected.map(|name| format!("{name:?}")),
        "one line a name"
    );
}

#[tokio::test]
async fn a_batch_that_is_too_large_or_malformed_is_refused() {
    needs_workloads!();
    let served = Served::patient().await;
    let many = |count: usize| {
        json!({"names": (0..count).map(|n| format!("test/{n}")).collect::<Vec<_>>()}).to_string()
    };
    assert_eq!(served.ask(batch(many(100))).await.status, 200);
    for body in [
        many(101),
        many(0),
        String::new(),
        "[]".into(),
        r#"[["a"]]"#.into(),
        "{}".into(),
        r#"{"names":["a"],"more":1}"#.into(),
        r#"{"names":"a"}"#.into(),
        r#"{"names":[1]}"#.into(),
        r#"{"names":["a"]}x"#.into(),
        "{\"names\":[\"a\"]".into(),
    ] {
        let answer = served.ask(batch(body.clone())).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{body:.60}"
        );
    }
    let answer = served.ask(batch(vec![b' '; 64 * 1024 + 1])).await;
    answer.must_be_refused(413, "too_large");

    // 70 values of 64 KiB are more than 4 MiB: what does not fit any more says so, the rest is there.
    let value = "v".repeat(64 * 1024 - 1);
    let big: Vec<_> = (0..70).map(|number| format!("test/big/{number}")).collect();
    for name in &big {
        served.sandbox.aws_secret(name, &value);
    }
    let answer = served.ask(batch(json!({"names": big}).to_string())).await;
    let body = answer.json();
    let (read, errors) = (
        body["secrets"].as_array().expect("some"),
        body["errors"].as_array().expect("some"),
    );
    assert_eq!((read.len() + errors.len(), answer.status), (70, 200));
    assert!((62..=64).contains(&read.len()), "{}", read.len());
    assert!(
        errors
            .iter()
            .all(|error| error["code"] == "too_large" && error["status"] == 413)
    );
    // The trail says the same of each.
    let id = answer.header("x-request-id").expect("an id").to_owned();
    let of_it = |line: &Value, code: &Value| line["request_id"] == *id && line["code"] == *code;
    let count = |code: Value| {
        let lines = served.agent.audit();
        lines.iter().filter(|line| of_it(line, &code)).count()
    };
    let is_whole = async || count(json!("too_large")) + count(json!(null)) == 70;
    until("a line for each", is_whole).await;
    assert_eq!(count(json!("too_large")), errors.len());
    let small = served.ask(batch(r#"{"names":["test/big/0"]}"#)).await;
    assert_eq!(small.json()["secrets"][0]["value"], value);
}

#[tokio::test]
async fn an_error_before_the_body_is_read_is_the_connections_last_answer() {
    needs_workloads!();
    let served = Served::start().await;
    for (framing, body) in [
        ("Content-Length: 12", "{\"names\":[]}"),
        (
            "Transfer-Encoding: chunked",
            "c\r\n{\"names\":[]}\r\n0\r\n\r\n",
        ),
    ] {
        let post =
            |target: &str| format!("POST {target} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{body}");
        let unread = served.raw(post("/v1/secrets:batchGet?unknown=1")).await;
        assert_eq!((unread.statuses(), unread.closed), (vec![400], true));
        let text = String::from_utf8_lossy(&unread.bytes).to_lowercase();
        assert!(text.contains("connection: close"), "{text}");
        let read = served.kept(post("/v1/secrets:batchGet"), 1).await;
        assert_eq!(
            (read.statuses(), read.closed),
            (vec![400], false),
            "{framing}"
        );
    }
    let broken = "Transfer-Encoding: chunked\r\n\r\nno length\r\n";
    let post = format!("POST /v1/secrets:batchGet HTTP/1.1\r\nHost: x\r\n{broken}");
    let refused = served.raw(post).await;
    assert_eq!((refused.statuses(), refused.closed), (vec![400], true));
    let text = String::from_utf8_lossy(&refused.bytes).to_lowercase();
    assert!(text.contains("connection: close"), "{text}");
}

/// The head of a batch, up to the framing of its body.
const POST: &str = "POST /v1/secrets:batchGet HTTP/1.1\r\nHost: x\r\n";

#[tokio::test]
async fn a_body_that_is_nearly_all_framing_is_not_read_to_its_end() {
    needs_workloads!();
    let served = Served::start().await;
    let (zeros, blanks) = ("0".repeat(64 << 10), " ".repeat(64 << 10));
    let extension = format!("1;{}", "x".repeat(64 << 10));
    for size in [zeros, format!("1{blanks}"), extension] {
        // Not a byte of the body comes, nor does its end.
        let endless = Raw {
            read_millis: 3_000,
            ..Raw::new(format!("{POST}Transfer-Encoding: chunked\r\n\r\n{size}"))
        };
        let refused = served.received(endless).await;
        assert_eq!((refused.statuses(), refused.closed), (vec![400], true));
    }
    let tiny: String = (0..20_000).map(|_| "1\r\n \r\n").collect();
    let tiny = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{tiny}");
    let refused = served.raw(tiny).await;
    assert_eq!((refused.statuses(), refused.closed), (vec![400], true));
}

#[tokio::test]
async fn the_longest_body_may_come_in_chunks_of_64_bytes() {
    needs_workloads!();
    let served = Served::start().await;
    let names: Vec<_> = (0..100)
        .map(|number| format!("test/{number:0>500}"))
        .collect();
    let body = json!({ "names": names }).to_string();
    assert!((48 << 10..64 << 10).contains(&body.len()));
    let chunks = body.as_bytes().chunks(64).map(|chunk| {
        let chunk = std::str::from_utf8(chunk).expect("ASCII");
        format!("{:x}\r\n{chunk}\r\n", chunk.len())
    });
    let chunks: String = chunks.collect();
    let post = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    let read = served.kept(post, 1).await;
    assert_eq!((read.statuses(), read.closed), (vec![200], false));
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_takes_no_more_memory_than_its_bytes() {
    needs_workloads!();
    let served = Served::patient().await;
    served
        .pod
        .workload
        .connect("drip")
        .await
        .expect("a connection");
    let drip = async |bytes: &str| {
        let raw = Raw {
            connection: Some("drip".into()),
            read_millis: 0,
            ..Raw::new(bytes)
        };
        served.received(raw).await
    };
    drip(&format!("{POST}Content-Length: 60000\r\n\r\n")).await;
    let before = served.agent.resident().expect("it runs");
    for _ in 0..1_500 {
        drip(" ").await;
    }
    let still = Raw {
        connection: Some("drip".into()),
        read_millis: 50,
        ..Raw::new(" ")
    };
    assert!(!served.received(still).await.closed, "it was waited for");
    let grown = served
        .agent
        .resident()
        .expect("it runs")
        .saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes more for 1,500");
}
