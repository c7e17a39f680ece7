//! Names of secrets: read once, from their encoding, and no two readers may differ about what they mean.

use super::Served;
use crate::code;
use testkit::workload::Request;

#[tokio::test]
async fn a_slash_may_be_written_as_it_is_or_encoded() {
    needs_workloads!();
    let served = Served::start().await;
    served.sandbox.aws_secret("test/a/b.c_d+e=f@g-h", "deep");
    for path in [
        "/v1/secrets/test/a/b.c_d+e=f@g-h",
        "/v1/secrets/test%2Fa%2Fb.c_d+e=f@g-h",
        "/v1/secrets/test%2fa/b%2Ec_d%2Be%3Df%40g%2Dh",
    ] {
        let answer = served.get(path).await;
        assert_eq!(
            (answer.status, answer.json()["value"].as_str()),
            (200, Some("deep")),
            "{path}"
        );
        assert_eq!(answer.json()["name"], "test/a/b.c_d+e=f@g-h", "{path}");
    }
}

/// The HTTP library drops it before the agent sees the target.
#[tokio::test]
async fn a_number_sign_ends_the_name_unless_it_is_encoded() {
    needs_workloads!();
    let served = Served::start().await;
    let asked = async |name: &str| {
        let request =
            format!("GET /v1/secrets/{name} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let received = served.raw(request).await;
        let text = String::from_utf8_lossy(&received.bytes).into_owned();
        (received.statuses(), text)
    };
    let (statuses, text) = asked("test/database-password#/../x?version=y").await;
    assert_eq!(statuses, [200], "{text}");
    assert!(
        text.contains("\"name\":\"test/database-password\""),
        "{text}"
    );
    let (statuses, text) = asked("test/database-password%23x").await;
    assert_eq!(statuses, [400], "{text}");
}

#[tokio::test]
async fn a_name_that_could_mean_something_else_is_refused_and_never_reaches_the_vault() {
    needs_workloads!();
    let served = Served::start().await;
    let long = format!("test/{}", "a".repeat(508));
    let bad = [
        ".",
        "..",
        "test/..",
        "test/../prod/x",
        "./test/x",
        "test//x",
        "/test/x",
        "test/x/",
        "test/.",
        "%2e",
        "%2e%2e",
        "test%2f..%2fprod",
        "test/%2e%2e/prod/x",
        "test%2F%2Fx",
        "%2Ftest/x",
        "test/x%2F",
        "test%5Cx",
        "test%00x",
        "%00",
        "test%0Ax",
        "test%0d%0aHost:x",
        "test%1Fx",
        "test%7Fx",
        "test%C2%85x",
        "test%",
        "test%2",
        "test%zz",
        "test%2gx",
        "test%%2Fx",
        "test%+2x",
        "test%ff",
        "test%c0%af",
        "test%u002f",
        // Decoded once: what is encoded twice is a percent sign, which AWS does not take.
        "test%252Fdatabase-password",
        "test%25",
        "test%20x",
        "test%3Ax",
        "test%2Ax",
        "test%C3%A9",
        "test;x",
        "test,x",
        "test~x",
        "arn:aws:secretsmanager:eu-central-1:111122223333:secret:test/database-password",
        "arn%3Aaws%3Asecretsmanager%3Aeu-central-1%3A111122223333%3Asecret%3Atest/x",
        &long,
    ];
    for name in bad {
        let answer = served.get(&format!("/v1/secrets/{name}")).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{name}"
        );
    }
    // A batch takes names as they are, and what is bad there is bad here.
    let bad = [
        "",
        ".",
        "..",
        "test/../x",
        "test//x",
        "/x",
        "x/",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\u{85}b",
        "arn:aws:x",
        "a b",
    ];
    let body = serde_json::json!({ "names": bad }).to_string();
    let answer = served
        .ask(Request::new("POST", "/v1/secrets:batchGet").body(body))
        .await
        .json();
    let codes: Vec<_> = answer["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|error| &error["code"])
        .collect();
    assert_eq!(codes, ["invalid_request"; 13]);
    let reads = served.sandbox.aws.count_calls(|call| call.secret.is_some());
    assert_eq!(reads, 0, "a refused name was asked of the vault");
}

#[tokio::test]
async fn the_vault_is_asked_for_the_name_as_decoded_or_not_at_all() {
    needs_workloads!();
    let served = Served::start().await;
    // Every byte, as it stands and encoded, between two letters: what the agent asks for is what a reader who decodes
    // once would say, byte by byte.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-!".contains(&byte);
    for byte in 0..=0xff_u8 {
        let encoded = format!("a%{byte:02X}b");
        let answer = served.get(&format!("/v1/secrets/{encoded}")).await;
        let asked = served.sandbox.aws.calls_where(|call| call.secret.is_some());
        served.sandbox.aws.clear_calls();
        if allowed(byte) {
            let name = format!("a{}b", char::from(byte));
            assert_eq!(asked.len(), 1, "{encoded}");
            assert_eq!(asked[0].secret.as_deref(), Some(&*name), "{encoded}");
            assert_eq!(answer.status, 403, "{encoded}");
        } else {
            assert!(asked.is_empty(), "{encoded}");
            assert_eq!(answer.status, 400, "{encoded}");
        }
    }
}

#[tokio::test]
async fn an_arn_is_read_where_it_says_only_if_the_operator_allows_arns() {
    needs_workloads!();
    let sandbox = testkit::sandbox::Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let value = testkit::aws::SecretInput::text("there");
    sandbox.aws.put_secret("us-west-2", "test/far", value);
    let arn = sandbox
        .aws
        .arn_of("us-west-2", "test/far")
        .expect("it is there");
    let _agent = sandbox
        .agent_with(|settings| settings.set("backends.aws.allow_arns", true))
        .await
        .expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(&arn).await.expect("an answer");
    assert_eq!(
        (answer.status, answer.json()["value"].as_str()),
        (200, Some("there"))
    );
    let read = sandbox.aws.calls_where(|call| call.secret.is_some());
    assert_eq!(read[0].region.as_deref(), Some("us-west-2"));
    let path = format!("/secretsmanager/get?secretId={arn}");
    let answer = pod.get(&path).await.expect("an answer");
    assert_eq!(answer.json()["Name"], "test/far", "{}", answer.text());
    // Another account's or partition's is refused by the cloud or before.
    let other = arn.replace("111122223333", "444455556666");
    let answer = pod.secret(&other).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    let other = arn.replace("arn:aws:", "arn:aws-cn:");
    let answer = pod.secret(&other).await.expect("an answer");
    answer.must_be_refused(400, "invalid_request");
}
