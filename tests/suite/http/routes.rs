//! The other routes, and what no route takes.

use super::Served;
use crate::code;
use serde_json::json;
use testkit::agent::AgentSettings;
use testkit::aws::{FakeAwsConfig, SecretInput};
use testkit::kube::FakeKubeConfig;
use testkit::sandbox::{REGION, Sandbox};
use testkit::workload::{Request, Response, Workload, WorkloadSpec};

const SECRET: &str = "/v1/secrets/test/database-password";

fn names(answer: &Response) -> Vec<String> {
    let names = answer.json()["secrets"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    names
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn a_list_comes_page_by_page_as_the_application_writes_the_names() {
    needs_workloads!();
    let aws = FakeAwsConfig {
        page_limit: 3,
        ..FakeAwsConfig::default()
    };
    let sandbox = Sandbox::with(FakeKubeConfig::default(), aws)
        .await
        .expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    for number in 0..8 {
        sandbox.aws_secret(&format!("test/list/{number}"), "x");
        sandbox.aws_secret(&format!("other/{number}"), "x");
    }
    let prefixed = [
        ("eks.amazonaws.com/role-arn", &*role),
        ("latchkey.dev/prefix", "test/list/"),
    ];
    sandbox
        .kube
        .annotate_service_account("test", "app", &prefixed);
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let mut seen = Vec::new();
    let mut path = "/v1/secrets?limit=4".to_owned();
    loop {
        let page = pod.get(&path).await.expect("an answer");
        page.must_be_ok();
        assert!(names(&page).len() <= 4);
        seen.extend(names(&page));
        let Some(next) = page.json()["next"].as_str().map(str::to_owned) else {
            break;
        };
        let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        path = format!("/v1/secrets?limit=4&cursor={next}");
    }
    seen.sort_unstable();
    assert_eq!(seen, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    // What is listed can be read.
    assert_eq!(pod.secret("3").await.expect("an answer").status, 200);
    for query in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "cursor=nonsense",
        "limit=1&limit=2",
        "prefix=x",
    ] {
        let answer = pod
            .get(&format!("/v1/secrets?{query}"))
            .await
            .expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn the_identity_is_what_the_cluster_says_of_the_caller() {
    needs_workloads!();
    let served = Served::start().await;
    let identity = served.get("/v1/identity").await.json();
    let expected = json!({
        "namespace": "test", "pod": "web", "pod_uid": served.pod.object.uid(), "service_account": "app",
        "container_id": served.pod.container, "host_network": false, "node": "n1",
        "roles": {"aws": served.sandbox.aws.role_arn("test-app")},
    });
    assert_eq!(identity, expected);
    served.sandbox.namespace("plain", &[]);
    let plain = served.sandbox.pod("plain", "web").await.expect("a pod");
    let identity = plain.get("/v1/identity").await.expect("an answer").json();
    assert_eq!(identity["roles"], json!({"aws": null}));
}

#[tokio::test]
async fn health_is_answered_to_anybody_and_asks_nobody() {
    needs_workloads!();
    let served = Served::start().await;
    let host = Workload::start(WorkloadSpec::host(&served.sandbox.socket()))
        .await
        .expect("a process");
    for path in ["/health", "/ping", "/ready"] {
        for answer in [
            host.get(path).await.expect("an answer"),
            served.get(path).await,
        ] {
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.json()["status"], "healthy", "{path}");
            assert_eq!(answer.json()["backend"], "aws", "{path}");
        }
        let answer = host.get(&format!("{path}?x=1")).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{path}"
        );
    }
    let refused = host.get("/v1/identity").await.expect("an answer");
    refused.must_be_refused(403, "not_attested");
    assert!(served.sandbox.aws.calls().is_empty());
}

#[tokio::test]
async fn clients_of_awss_own_agent_are_answered_as_by_it() {
    needs_workloads!();
    let served = Served::start().await;
    let first = served.sandbox.aws_secret("test/turning", "first");
    let second = served.sandbox.aws_secret("test/turning", "second");
    served
        .sandbox
        .aws
        .put_secret(REGION, "test/binary", SecretInput::binary(vec![0xff]));
    let get = "/secretsmanager/get?secretId=test/turning";
    for token in ["", "nonsense"] {
        let request = Request::get(get).header("X-Aws-Parameters-Secrets-Token", token);
        let answer = served.ask(request).await;
        let body = answer.json();
        answer.must_be_ok();
        assert_eq!(
            (&body["Name"], &body["SecretString"]),
            (&json!("test/turning"), &json!("second"))
        );
        assert_eq!(
            (&body["VersionId"], &body["VersionStages"]),
            (&json!(second), &json!(["AWSCURRENT"]))
        );
        assert_eq!(
            body["ARN"].as_str(),
            served.sandbox.aws.arn_of(REGION, "test/turning").as_deref()
        );
        assert!(body["CreatedDate"].is_number() && body.get("SecretBinary").is_none());
    }
    for query in [
        "versionStage=AWSPREVIOUS",
        &format!("versionId={first}"),
        "versionStage=AWSPREVIOUS&refreshNow=true",
    ] {
        assert_eq!(
            served.get(&format!("{get}&{query}")).await.json()["SecretString"],
            "first",
            "{query}"
        );
    }
    let binary = served
        .get("/secretsmanager/get?secretId=test%2Fbinary")
        .await
        .json();
    assert_eq!(
        (&binary["SecretBinary"], binary.get("SecretString")),
        (&json!("/w=="), None)
    );
    let errors = [
        (
            "secretId=test/missing",
            404,
            "ResourceNotFoundException",
            "not_found",
        ),
        ("secretId=prod/x", 403, "AccessDeniedException", "denied"),
        (
            "secretId=a//b",
            400,
            "InvalidParameterException",
            "invalid_request",
        ),
        ("", 400, "InvalidParameterException", "invalid_request"),
        (
            "secretId=test/turning&refreshNow=maybe",
            400,
            "InvalidParameterException",
            "invalid_request",
        ),
        (
            "secretId=test/turning&roleArn=x",
            400,
            "InvalidParameterException",
            "invalid_request",
        ),
    ];
    for (query, status, kind, word) in errors {
        let answer = served.get(&format!("/secretsmanager/get?{query}")).await;
        let body = answer.json();
        assert_eq!(
            (answer.status, body["__type"].as_str(), &*code(&answer)),
            (status, Some(kind), word),
            "{query}"
        );
        assert!(body["message"].is_string(), "{query}");
        assert_eq!(
            body["request_id"].as_str(),
            answer.header("x-request-id"),
            "{query}"
        );
    }
    // Not what makes such a client try again.
    let answer = served.ask(Request::new("POST", get)).await;
    assert_eq!(answer.json()["__type"], "InvalidParameterException");
}

#[tokio::test]
async fn the_agent_only_reads() {
    needs_workloads!();
    let served = Served::start().await;
    for method in [
        "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "LIST", "get",
    ] {
        for path in [
            SECRET,
            "/v1/secrets",
            "/v1/identity",
            "/health",
            "/secretsmanager/get?secretId=x",
        ] {
            let answer = served.ask(Request::new(method, path)).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(code(&answer), "method_not_allowed", "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}");
        }
    }
    let answer = served.get("/v1/secrets:batchGet").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    for path in [
        "/",
        "/v1",
        "/v2/secrets/x",
        "/v1/secret/x",
        "/v1/secrets:other",
        "/metrics",
        "/latest/meta-data/",
        "//v1/secrets/x",
        "/V1/secrets/x",
    ] {
        let answer = served.get(path).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (404, "no_such_route"),
            "{path}"
        );
    }
    assert!(served.sandbox.aws.calls().is_empty());
}

#[tokio::test]
async fn who_asks_for_what_there_is_not_is_a_pod_within_its_rate_all_the_same() {
    needs_workloads!();
    let mut served = Served::start().await;
    let slow = |settings: AgentSettings| settings.set("limits.requests_per_second_per_pod", 2);
    served.agent = served.sandbox.agent_with(slow).await.expect("an agent");
    for (method, path) in [("GET", "/v2/secrets/x"), ("POST", SECRET)] {
        let mut refused = 0;
        for _ in 0..20 {
            let answer = served.ask(Request::new(method, path)).await;
            refused += u32::from(code(&answer) == "busy");
        }
        assert!(refused > 0, "{method} {path}");
        let host = Workload::start(WorkloadSpec::host(&served.sandbox.socket()))
            .await
            .expect("a process");
        let answer = host.request(Request::new(method, path)).await;
        let answer = answer.expect("an answer");
        answer.must_be_refused(403, "not_attested");
    }
}

#[tokio::test]
async fn unknown_parameters_and_relayed_requests_are_refused() {
    needs_workloads!();
    let served = Served::start().await;
    let too_long = format!("key={}", "a".repeat(1025));
    for query in [
        "x=1",
        "vers%69on2=1",
        "KEY=a",
        "key=a&key=b",
        "version=1%00",
        "=",
        "backend=other",
        "wait=5s",
        &too_long,
    ] {
        let answer = served.get(&format!("{SECRET}?{query}")).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{query}"
        );
    }
    for (query, why) in [
        ("key=a%00", "the query parameter key has control characters"),
        (
            &*too_long,
            "the query parameter key is longer than 1024 bytes",
        ),
    ] {
        let answer = served.get(&format!("{SECRET}?{query}")).await;
        assert_eq!(answer.json()["error"], why);
    }
    for header in [
        "Origin",
        "Referer",
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-proto",
        "X-FORWARDED-ANYTHING",
        "Via",
    ] {
        for path in [SECRET, "/v1/identity", "/health", "/v1/secrets:batchGet"] {
            let answer = served.ask(Request::get(path).header(header, "")).await;
            assert_eq!(
                (answer.status, &*code(&answer)),
                (400, "invalid_request"),
                "{header} {path}"
            );
        }
    }
    assert!(served.sandbox.aws.calls().is_empty());
}

#[tokio::test]
async fn with_a_required_header_nothing_is_answered_without_it() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let _agent = sandbox
        .agent_with(|s| s.set("listen.require_header", "X-Latchkey"))
        .await
        .expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let batch = Request::new("POST", "/v1/secrets:batchGet").body(r#"{"names":["test/x"]}"#);
    let paths = [
        SECRET,
        "/v1/secrets",
        "/v1/identity",
        "/secretsmanager/get?secretId=test/x",
        "/health",
        "/ping",
        "/ready",
    ];
    for request in paths.map(Request::get).into_iter().chain([batch]) {
        let what = format!("{request:?}");
        let answer = pod.request(request).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{what}"
        );
    }
    assert!(sandbox.aws.calls().is_empty());
    let answer = pod
        .request(Request::get(SECRET).header("x-latchkey", "true"))
        .await
        .expect("an answer");
    answer.must_be_ok();
}

#[tokio::test]
async fn every_answer_says_that_nobody_may_keep_it_and_has_an_id_of_ours() {
    needs_workloads!();
    let served = Served::start().await;
    let mut ids = std::collections::HashSet::new();
    for path in [
        SECRET,
        SECRET,
        "/v1/secrets",
        "/v1/identity",
        "/health",
        "/nowhere",
        "/v1/secrets/a//b",
        "/v1/secrets/test/missing",
        "/v1/secrets/prod/x",
    ] {
        let answer = served
            .ask(Request::get(path).header("X-Request-Id", "mine"))
            .await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(
            answer.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert_eq!(answer.header("vary"), Some("Accept"), "{path}");
        let id = answer.header("x-request-id").expect("an id").to_owned();
        assert_ne!(id, "mine");
        if answer.status >= 400 {
            assert_eq!(answer.json()["request_id"], id, "{path}");
            assert!(answer.json()["error"].is_string(), "{path}");
        }
        assert!(ids.insert(id), "{path}");
    }
}
