//! Where a request begins and ends: one reading only, and whatever has two ends the connection.

use super::Served;
use nix::sys::signal::Signal;
use testkit::workload::{Raw, Request};

const SECRET: &str = "/v1/secrets/test/database-password";

#[tokio::test]
async fn a_smuggled_request_is_never_answered() {
    needs_workloads!();
    let served = Served::start().await;
    // Each hides `GET /ping`, which would be a second answer, behind a request with two readings.
    const HIDDEN: &str = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    let get = |headers: &str, rest: &str| {
        format!("GET {SECRET} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{rest}")
    };
    let post = |headers: &str, rest: &str| {
        format!("POST /v1/secrets:batchGet HTTP/1.1\r\nHost: x\r\n{headers}\r\n{rest}")
    };
    let length = HIDDEN.len();
    let corpus = [
        get(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding: chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get("Transfer-Encoding: identity\r\n", HIDDEN),
        get(
            "Transfer-Encoding: gzip, chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding: chunked, identity\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding : chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding\t: chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            " Transfer-Encoding: chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding: xchunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(
            "Transfer-Encoding:\r\n chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        get(&format!("Content-Length: {length}\r\n"), HIDDEN),
        get(
            &format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
            HIDDEN,
        ),
        get(
            &format!("Content-Length: {length}\r\nContent-Length: 0\r\n"),
            HIDDEN,
        ),
        get(&format!("Content-Length: {length}, 0\r\n"), HIDDEN),
        get(&format!("Content-Length: +{length}\r\n"), HIDDEN),
        get(&format!("Content-Length: -{length}\r\n"), HIDDEN),
        get(&format!("Content-Length: 0x{length:x}\r\n"), HIDDEN),
        get("Content-Length: 99999999999999999999\r\n", HIDDEN),
        get("Content-Length: \r\n", HIDDEN),
        get("X: y\r\n folded: z\r\n", HIDDEN),
        get("X: y\rContent-Length: 30\r\n", HIDDEN),
        get("X: a\0b\r\n", HIDDEN),
        get("X y\r\n", HIDDEN),
        get(": y\r\n", HIDDEN),
        post(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        post(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            &format!("0\r\n\r\n{HIDDEN}"),
        ),
        post(
            "Transfer-Encoding: chunked\r\n",
            &format!("5;\n\r\n{HIDDEN}0\r\n\r\n"),
        ),
        post(
            "Transfer-Encoding: chunked\r\n",
            &format!("-1\r\n{HIDDEN}0\r\n\r\n"),
        ),
        post(
            "Transfer-Encoding: chunked\r\n",
            &format!("fffffffffffffffff\r\n{HIDDEN}0\r\n\r\n"),
        ),
        post(
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            &format!("{{}} {HIDDEN}"),
        ),
        format!("GET {SECRET} HTTP/1.1 \r\nHost: x\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("GET {SECRET} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        format!("GET {SECRET} HTTP/2.0\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET {SECRET}\r\n\r\n{HIDDEN}"),
        format!("GET http://x{SECRET} HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET http://x/ping HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET unix:/ping HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
        format!("GET {SECRET}?a b HTTP/1.1\r\nHost: x\r\n\r\n{HIDDEN}"),
    ];
    for bytes in corpus {
        let received = served.raw(bytes.clone()).await;
        let text = String::from_utf8_lossy(&received.bytes);
        assert_eq!(received.statuses(), [400], "{bytes:?}\n{text}");
        assert!(received.closed, "{bytes:?}\n{text}");
        assert!(!text.contains("canary"), "{bytes:?}\n{text}");
    }
    // The preface of HTTP/2 is hung up on without a word.
    let preface = format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{HIDDEN}");
    let received = served.raw(preface).await;
    assert_eq!((received.bytes.len(), received.closed), (0, true));
    assert_eq!(
        served.sandbox.aws.count_calls(|call| call.secret.is_some()),
        0
    );
}

#[tokio::test]
async fn a_bare_line_feed_has_one_reading() {
    needs_workloads!();
    let served = Served::start().await;
    // RFC 9112 section 2.2 lets a recipient take a single LF as the end of a line. Nobody relays to this socket, so
    // there is no second reader to differ; what counts is that each request is answered once and by itself.
    let received = served
        .kept(
            "GET /ping HTTP/1.1\nHost: x\n\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
            1,
        )
        .await;
    assert!(
        matches!(&*received.statuses(), [400] | [200, 404]),
        "{:?}",
        received.statuses()
    );
}

#[tokio::test]
async fn an_empty_body_is_no_body_and_an_upgrade_is_not_made() {
    needs_workloads!();
    let served = Served::start().await;
    for (name, value) in [
        ("Content-Length", "0"),
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Expect", "100-continue"),
    ] {
        let mut request = Request::get(SECRET).header(name, value);
        if name == "Connection" {
            request = request
                .header("Upgrade", "h2c")
                .header("HTTP2-Settings", "AAMAAABkAAQAAP__");
        }
        let answer = served.ask(request).await;
        assert_eq!(
            (answer.status, answer.header("upgrade")),
            (200, None),
            "{name}"
        );
    }
    let answer = served.ask(Request::get(SECRET).body("x")).await;
    answer.must_be_refused(400, "invalid_request");
}

#[tokio::test]
async fn a_connection_lives_as_long_as_both_want_it() {
    needs_workloads!();
    let served = Served::start().await;
    let line = |version: &str, headers: &str| {
        format!("GET /ping HTTP/{version}\r\nHost: any, thing at all\r\n{headers}\r\n")
    };
    let cases = [
        (line("1.1", ""), 1, false),
        (line("1.1", "Connection: close\r\n"), 1, true),
        (line("1.0", ""), 1, true),
        (line("1.0", "Connection: keep-alive\r\n"), 1, false),
        ("GET /ping HTTP/1.0\r\n\r\n".into(), 1, true),
        (line("1.1", "").repeat(3), 3, false),
        (
            line("1.1", "") + &line("1.1", "Connection: close\r\n") + &line("1.1", ""),
            2,
            true,
        ),
    ];
    for (bytes, answers, closed) in cases {
        let received = if closed {
            served.raw(bytes.clone()).await
        } else {
            served.kept(bytes.clone(), answers).await
        };
        assert_eq!(received.statuses(), vec![200; answers], "{bytes:?}");
        assert_eq!(received.closed, closed, "{bytes:?}");
    }
    // One that only stops writing still gets its answer.
    let raw = Raw {
        shut: true,
        ..Raw::new(format!("GET {SECRET} HTTP/1.1\r\nHost: x\r\n\r\n"))
    };
    let received = served.received(raw).await;
    assert_eq!((received.statuses(), received.closed), (vec![200], true));
    // Many on one connection.
    served
        .pod
        .workload
        .connect("kept")
        .await
        .expect("a connection");
    for _ in 0..20 {
        let answer = served
            .pod
            .workload
            .send_on("kept", Request::get(SECRET))
            .await
            .expect("an answer");
        answer.must_be_ok();
    }
}

#[tokio::test]
async fn a_body_that_waits_for_100_continue_is_asked_for() {
    needs_workloads!();
    body_after_100_continue(false).await;
}

#[tokio::test]
async fn a_body_that_comes_after_its_head_is_read_to_its_end_by_an_agent_that_leaves_meanwhile() {
    needs_workloads!();
    body_after_100_continue(true).await;
}

/// A batch is answered whose body comes only when the agent has asked for it, and perhaps has been told to leave.
async fn body_after_100_continue(leaving: bool) {
    let mut served = Served::start().await;
    let head = "POST /v1/secrets:batchGet HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 36\r\n\r\n";
    served
        .pod
        .workload
        .connect("patient")
        .await
        .expect("a connection");
    let on = |bytes: &str| Raw {
        connection: Some("patient".into()),
        answers: Some(1),
        watch_millis: 150,
        ..Raw::new(bytes)
    };
    assert_eq!(served.received(on(head)).await.statuses(), [100]);
    if leaving {
        let agent = &mut served.agent;
        agent.signal(Signal::SIGTERM).expect("it runs");
        agent.until_line("\"draining\"").await.expect("it leaves");
    }
    let body = r#"{"names":["test/database-password"]}"#;
    assert_eq!(body.len(), 36);
    let received = served.received(on(body)).await;
    assert_eq!(received.statuses(), [200]);
    assert!(String::from_utf8_lossy(&received.bytes).contains(&testkit::sandbox::password("test")));
}

#[tokio::test]
async fn long_targets_and_long_headers_have_statuses_of_their_own() {
    needs_workloads!();
    let served = Served::start().await;
    let target = |length: usize| {
        format!(
            "GET {SECRET}?key={} HTTP/1.1\r\nHost: x\r\n\r\n",
            "k".repeat(length)
        )
    };
    assert_eq!(served.kept(target(7 * 1024), 1).await.statuses(), [400]);
    for length in [8 * 1024, 10 * 1024, 60 * 1024] {
        let received = served.raw(target(length)).await;
        assert!(
            matches!(&*received.statuses(), [414 | 431]),
            "{length}: {:?}",
            received.statuses()
        );
        assert!(received.closed, "{length}");
    }
    let received = served.raw(target(8 * 1024)).await;
    assert_eq!(received.statuses(), [414]);
    let headers =
        |length: usize| format!("GET /ping HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(length));
    assert_eq!(served.kept(headers(15 * 1024), 1).await.statuses(), [200]);
    for bytes in [
        headers(17 * 1024),
        headers(1024 * 1024),
        format!("GET /ping HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(500)),
    ] {
        let received = served.raw(bytes).await;
        assert_eq!((received.statuses(), received.closed), (vec![431], true));
    }
}
