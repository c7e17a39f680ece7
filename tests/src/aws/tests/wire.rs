//! Requests that no SDK sends: altered after they were signed, or not signed at all.

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const BODY: &str = r#"{"SecretId":"test/db"}"#;

/// A `GetSecretValue` that is signed for one thing and may say another.
struct Letter {
    service: &'static str,
    headers: Vec<(String, String)>,
    body: &'static str,
}

impl Letter {
    fn signed(cloud: &Cloud, session: &Credentials, service: &'static str) -> Self {
        let headers = vec![
            ("host".to_owned(), host(&cloud.aws.endpoint())),
            (
                "content-type".to_owned(),
                "application/x-amz-json-1.1".to_owned(),
            ),
            (
                "x-amz-target".to_owned(),
                "secretsmanager.GetSecretValue".to_owned(),
            ),
        ];
        let mut letter = Self {
            service,
            headers,
            body: BODY,
        };
        letter.sign(session);
        letter
    }

    fn sign(&mut self, session: &Credentials) {
        let identity = session.clone().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name(self.service)
            .time(jiff::Timestamp::now().into())
            .settings(SigningSettings::default())
            .build()
            .expect("complete")
            .into();
        let pairs = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let body = SignableBody::Bytes(self.body.as_bytes());
        let request = SignableRequest::new("POST", "/", pairs, body).expect("signable");
        let signed = sign(request, &params)
            .expect("signed")
            .into_parts()
            .0
            .into_parts()
            .0;
        let added = signed
            .iter()
            .map(|header| (header.name().into(), header.value().into()));
        self.headers.extend(added);
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    async fn send(&self, cloud: &Cloud) -> String {
        let headers: String = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let length = self.body.len();
        post(
            cloud,
            &format!("{headers}content-length: {length}\r\n"),
            self.body,
        )
        .await
    }
}

fn host(endpoint: &str) -> String {
    endpoint.trim_start_matches("http://").to_owned()
}

async fn post(cloud: &Cloud, headers: &str, body: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(host(&cloud.aws.endpoint()))
        .await
        .expect("connected");
    let request = format!("POST / HTTP/1.1\r\nconnection: close\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test]
async fn aws_refuses_what_was_altered_after_it_was_signed() {
    let cloud = Cloud::start().await;
    cloud
        .aws
        .put_secret(REGION, "test/db", SecretInput::text("hunter2"));
    cloud
        .aws
        .put_secret(REGION, "test/other", SecretInput::text("other"));
    let session = cloud.session().await;
    let letter = || Letter::signed(&cloud, &session, "secretsmanager");
    let answer = letter().send(&cloud).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains(r#""SecretString":"hunter2""#), "{answer}");

    let unsigned_token = letter()
        .headers
        .iter()
        .find(|(name, _)| name == "authorization")
        .map(|(_, authorization)| authorization.replace("x-amz-security-token;", ""));
    let letters = [
        (
            "body",
            Letter {
                body: r#"{"SecretId":"test/other"}"#,
                ..letter()
            },
        ),
        (
            "target",
            letter().with("x-amz-target", "secretsmanager.ListSecrets"),
        ),
        (
            "host",
            letter().with("host", "secretsmanager.eu-central-1.amazonaws.com"),
        ),
        ("date", letter().with("x-amz-date", "20200101T000000Z")),
        ("added header", letter().with("x-amz-meta", "unsigned")),
        ("service", Letter::signed(&cloud, &session, "sts")),
        (
            "token not signed",
            letter().with("authorization", &unsigned_token.expect("it is signed")),
        ),
    ];
    for (what, letter) in letters {
        let answer = letter.send(&cloud).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert!(
            answer.contains("InvalidSignatureException"),
            "{what}: {answer}"
        );
    }
    for (what, letter, expected) in [
        (
            "not signed",
            letter().without("authorization"),
            "MissingAuthenticationTokenException",
        ),
        (
            "another scheme",
            letter().with("authorization", "Bearer abc"),
            "IncompleteSignatureException",
        ),
        (
            "another operation",
            letter().with("x-amz-target", "secretsmanager.PutSecretValue"),
            "UnknownOperationException",
        ),
    ] {
        let answer = letter.send(&cloud).await;
        assert!(answer.contains(expected), "{what}: {answer}");
    }
    assert_eq!(
        cloud
            .aws
            .count_calls(|call| call.secret.is_some() && call.succeeded()),
        1
    );
}

#[tokio::test]
async fn aws_sts_errors_have_the_shape_and_the_status_of_the_real_ones() {
    let cloud = Cloud::start().await;
    let form = |action: &str, token: &str| {
        form_urlencoded::Serializer::new(String::new())
            .append_pair("Action", action)
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", &cloud.role)
            .append_pair("RoleSessionName", "pod.test.app")
            .append_pair("WebIdentityToken", token)
            .finish()
    };
    let send = async |form: String| {
        let length = form.len();
        let headers = format!(
            "host: sts\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {length}\r\n"
        );
        post(&cloud, &headers, &form).await
    };
    let bad = altered(
        &cloud.claims(),
        "sub",
        json!("system:serviceaccount:prod:app"),
    );
    for (form, status, code) in [
        (
            form("AssumeRoleWithWebIdentity", &cloud.issuer.sign(&bad)),
            403,
            "AccessDenied",
        ),
        (
            form("AssumeRoleWithWebIdentity", "a.b.c"),
            400,
            "InvalidIdentityToken",
        ),
        (
            form("GetFederationToken", &cloud.token()),
            400,
            "InvalidAction",
        ),
    ] {
        let answer = send(form).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains("content-type: text/xml\r\n"), "{answer}");
        assert!(answer.contains("x-amzn-requestid: "), "{answer}");
        let error = format!("<Type>Sender</Type>\n    <Code>{code}</Code>\n    <Message>");
        assert!(answer.contains(&error), "{answer}");
    }
    let good = send(form("AssumeRoleWithWebIdentity", &cloud.token())).await;
    assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
    let narrowed = format!(
        "{}&Policy=%7B%7D",
        form("AssumeRoleWithWebIdentity", &cloud.token())
    );
    assert!(
        send(narrowed)
            .await
            .contains("<Code>ValidationError</Code>")
    );
}
