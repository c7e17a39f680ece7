//! What a secret is answered with: shapes, versions, members, tags.

use super::Served;
use crate::code;
use testkit::aws::SecretInput;
use testkit::sandbox::REGION;
use testkit::workload::Request;

const PATH: &str = "/v1/secrets/test/database-password";

#[tokio::test]
async fn a_secret_is_answered_with_name_value_version_and_backend() {
    needs_workloads!();
    let served = Served::start().await;
    let version = served
        .sandbox
        .aws_secret("test/plain", "caf\u{e9} \"quoted\"\n");
    let answer = served.get("/v1/secrets/test/plain").await;
    answer.must_be_ok();
    let expected = serde_json::json!({
        "name": "test/plain", "value": "caf\u{e9} \"quoted\"\n", "version": version, "backend": "aws",
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn an_empty_value_is_a_value_and_a_binary_one_is_base64() {
    needs_workloads!();
    let served = Served::start().await;
    served.sandbox.aws_secret("test/empty", "");
    served.sandbox.aws.put_secret(
        REGION,
        "test/binary",
        SecretInput::binary(vec![0, 0xff, b'a']),
    );
    served
        .sandbox
        .aws
        .put_secret(REGION, "test/texty", SecretInput::binary(b"text".to_vec()));
    let empty = served.get("/v1/secrets/test/empty").await.json();
    assert_eq!(
        (empty["value"].as_str(), empty.get("encoding")),
        (Some(""), None)
    );
    let binary = served.get("/v1/secrets/test/binary").await.json();
    assert_eq!(
        (binary["value"].as_str(), binary["encoding"].as_str()),
        (Some("AP9h"), Some("base64"))
    );
    // Binary is what the vault holds as binary, whatever its bytes look like.
    let texty = served.get("/v1/secrets/test/texty").await.json();
    assert_eq!(texty["encoding"], "base64");
    let raw = Request::get("/v1/secrets/test/binary").header("accept", "application/octet-stream");
    let raw = served.ask(raw).await;
    assert_eq!(raw.body, [0, 0xff, b'a']);
    assert_eq!(raw.header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn a_member_is_answered_by_its_name_or_by_a_pointer() {
    needs_workloads!();
    let served = Served::start().await;
    let json = r#"{"user":"me","port":5432,"on":true,"none":null,"deep":{"a/b":{"m~n":["x",{"y":"z"}]}},
        "/odd":"slash","a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/0/1/2/3/4/5/6/7":"many","":"empty","caf\u00e9":"e","raw":{"k": [1, 2]}}"#;
    served.sandbox.aws_secret("test/json", json);
    served.sandbox.aws_secret("test/array", "[1,2]");
    let good = [
        ("user", "me"),
        ("port", "5432"),
        ("on", "true"),
        ("none", "null"),
        ("caf%C3%A9", "e"),
        ("raw", r#"{"k": [1, 2]}"#),
        ("/deep/a~1b/m~0n/0", "x"),
        ("/deep/a~1b/m~0n/1/y", "z"),
        ("/~1odd", "slash"),
        (
            "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/0/1/2/3/4/5/6/7",
            "many",
        ),
        ("/user", "me"),
        ("/", "empty"),
    ];
    for (key, expected) in good {
        let answer = served
            .get(&format!("/v1/secrets/test/json?key={key}"))
            .await;
        assert_eq!(
            (answer.status, answer.json()["value"].as_str()),
            (200, Some(expected)),
            "{key}"
        );
        assert_eq!(answer.json()["name"], "test/json", "{key}");
    }
    for key in [
        "nobody",
        "USER",
        "user/x",
        "/deep/a~1b/m~0n/01",
        "/deep/a~1b/m~0n/2",
        "/deep/a~1b/m~0n/-",
        "/user/0",
    ] {
        let answer = served
            .get(&format!("/v1/secrets/test/json?key={key}"))
            .await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (404, "key_not_found"),
            "{key}"
        );
        assert!(!answer.text().contains("5432"), "{key}");
    }
    for name in ["test/array", "test/database-password"] {
        let answer = served.get(&format!("/v1/secrets/{name}?key=x")).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (422, "not_json"),
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_old_version_is_answered_by_its_id_or_its_stage() {
    needs_workloads!();
    let served = Served::start().await;
    let first = served.sandbox.aws_secret("test/turning", "first");
    let second = served.sandbox.aws_secret("test/turning", "second");
    let aws = &served.sandbox.aws;
    let labelled = aws.add_version(
        REGION,
        "test/turning",
        SecretInput::text("third"),
        &["canary"],
    );
    let cases = [
        (String::new(), "second", &second),
        (format!("?version={first}"), "first", &first),
        (
            format!("?version={second}&stage=AWSCURRENT"),
            "second",
            &second,
        ),
        ("?stage=AWSPREVIOUS".into(), "first", &first),
        ("?stage=canary".into(), "third", &labelled),
    ];
    for (query, value, version) in cases {
        let answer = served
            .get(&format!("/v1/secrets/test/turning{query}"))
            .await
            .json();
        assert_eq!(answer["value"], value, "{query}");
        assert_eq!(answer["version"].as_str(), Some(&**version), "{query}");
    }
    let unknown = uuid::Uuid::new_v4();
    for query in [
        format!("version={unknown}"),
        "stage=nobody".into(),
        format!("version={first}&stage=canary"),
    ] {
        let answer = served
            .get(&format!("/v1/secrets/test/turning?{query}"))
            .await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (404, "not_found"),
            "{query}"
        );
    }
    let answer = served.get("/v1/secrets/test/turning?version=short").await;
    answer.must_be_refused(400, "invalid_request");
}

#[tokio::test]
async fn the_bare_value_comes_only_when_json_is_less_welcome() {
    needs_workloads!();
    let served = Served::start().await;
    let raw = [
        "text/plain",
        "application/octet-stream",
        "text/*",
        "TEXT/PLAIN",
        "text/plain, application/json;q=0.9",
        "text/plain;q=0.2, application/json;q=0.1",
        "text/plain;charset=utf-8",
        "application/octet-stream, text/html",
        "*/*;q=0.1, text/plain",
        "application/json;q=0, */*",
        "text/plain, */*;q=0.5",
    ];
    let json = [
        "",
        "*/*",
        "application/json",
        "application/*",
        "text/plain, application/json",
        "text/plain, */*",
        "application/json, text/plain",
        "text/plain;q=0.5, application/json;q=0.5",
        "text/plain;q=0",
        "text/html",
        "text/plain;q=2",
        "text/plain;q=bad",
        "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
        "garbage/;;=",
    ];
    for accept in raw.iter().chain(&json) {
        let answer = served
            .ask(Request::get(PATH).header("accept", accept))
            .await;
        let expected = raw.contains(accept);
        assert_eq!(answer.status, 200, "{accept}");
        assert_eq!(answer.header("vary"), Some("Accept"), "{accept}");
        assert_eq!(
            answer.text() == testkit::sandbox::password("test"),
            expected,
            "{accept}"
        );
        assert_eq!(answer.json().is_object(), !expected, "{accept}");
    }
    let error = served
        .ask(Request::get("/v1/secrets/test/missing").header("accept", "text/plain"))
        .await;
    error.must_be_refused(404, "not_found");
}

#[tokio::test]
async fn each_representation_has_its_tag_and_a_known_one_is_answered_304() {
    needs_workloads!();
    let served = Served::start().await;
    let version = served
        .sandbox
        .aws_secret("test/tagged", r#"{"a":"1","b,\"c":"2"}"#);
    let path = "/v1/secrets/test/tagged";
    let plain = Request::get(path);
    let tagged = [
        (plain.clone(), format!("\"{version}\"")),
        (
            plain.clone().header("accept", "text/plain"),
            format!("\"{version};raw\""),
        ),
        (
            Request::get(&format!("{path}?key=a")),
            format!("\"{version};key=a\""),
        ),
    ];
    for (request, tag) in &tagged {
        let answer = served.ask(request.clone()).await;
        assert_eq!(answer.header("etag"), Some(&**tag));
        for seen in [
            tag.clone(),
            format!("W/{tag}"),
            "*".into(),
            format!("\"x\", {tag}"),
            format!("\"a,b\" ,W/{tag}"),
        ] {
            let answer = served
                .ask(request.clone().header("if-none-match", &seen))
                .await;
            assert_eq!((answer.status, answer.body.len()), (304, 0), "{seen}");
            assert_eq!(answer.header("etag"), Some(&**tag), "{seen}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
        let others = tagged
            .iter()
            .map(|(_, tag)| tag.clone())
            .filter(|other| other != tag);
        let garbage = ["\"other\"", "nonsense", "\"", ""].map(str::to_owned);
        for seen in others.chain(garbage) {
            let answer = served
                .ask(request.clone().header("if-none-match", &seen))
                .await;
            assert_eq!(answer.status, 200, "{seen}");
        }
    }
    // The list of tags may come in several lines.
    let lines = plain.clone().header("if-none-match", "\"other\"");
    let answer = served
        .ask(lines.header("if-none-match", &tagged[0].1))
        .await;
    assert_eq!(answer.status, 304, "{}", answer.text());
    served.sandbox.aws_secret("test/tagged", "{}");
    let answer = served
        .ask(plain.header("if-none-match", &tagged[0].1))
        .await;
    answer.must_be_ok();
    // A key of any characters makes a tag that can be sent back.
    let odd = Request::get(&format!("{path}?version={version}&key=b%2C%22c"));
    let tag = served
        .ask(odd.clone())
        .await
        .header("etag")
        .expect("a tag")
        .to_owned();
    assert_eq!(
        served.ask(odd.header("if-none-match", &tag)).await.status,
        304
    );
}

#[tokio::test]
async fn a_member_that_is_not_there_has_not_stayed_the_same() {
    needs_workloads!();
    let served = Served::start().await;
    let any = Request::get("/v1/secrets/test/any?key=none").header("if-none-match", "*");
    for (value, status, word) in [("{}", 404, "key_not_found"), ("text", 422, "not_json")] {
        served.sandbox.aws_secret("test/any", value);
        let answer = served.ask(any.clone()).await;
        answer.must_be_refused(status, word);
    }
}

#[tokio::test]
async fn head_is_answered_with_the_headers_of_get_and_no_body() {
    needs_workloads!();
    let served = Served::start().await;
    for path in [
        PATH,
        "/v1/secrets/test/missing",
        "/v1/secrets",
        "/v1/identity",
        "/health",
        "/v1/secrets/a%00",
    ] {
        let get = served.get(path).await;
        let head = served.ask(Request::new("HEAD", path)).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        let of = |answer: &testkit::workload::Response| {
            let mut headers = answer.headers.clone();
            headers.retain(|(name, _)| name != "x-request-id" && name != "date");
            headers
        };
        assert_eq!(of(&head), of(&get), "{path}");
    }
}
