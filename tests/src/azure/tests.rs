//! Checks that the fake does what the real services do, with a client that is not the agent's.

use super::*;
use crate::jwt::{Bound, Claims, Issuer};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";
const OTHER_TENANT: &str = "33e01921-4d64-4f8c-a055-5bdaffd5e33d";
const CLIENT: &str = "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab";

struct Cloud {
    azure: FakeAzure,
    issuer: Issuer,
}

impl Cloud {
    async fn start() -> Self {
        let azure = FakeAzure::start().await.expect("a port");
        let issuer = Issuer::new("https://cluster.example");
        azure.publish_issuer(issuer.url(), &issuer.jwks());
        azure.put_app(TENANT, AppSpec::new(CLIENT, issuer.url(), "test", "app"));
        azure.make_vault("v1", TENANT, Access::Roles);
        azure.put_secret("v1", "Key", SecretSpec::text("x"));
        Self { azure, issuer }
    }

    fn assertion(&self, account: &str, audience: &str, seconds: i64) -> String {
        self.issuer.sign(&Claims::new(
            self.issuer.url(),
            "test",
            Bound::new(account, "uid"),
            None,
            audience,
            seconds,
        ))
    }

    async fn send(&self, host: &str, request: Request<Full<bytes::Bytes>>) -> Response<Value> {
        let mut roots = RootCertStore::empty();
        let pem = self.azure.inner.authority.certificate();
        let ca = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        roots.add(ca).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.azure.address()).await;
        let name = ServerName::try_from(host.to_owned()).expect("a name");
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream.expect("it listens"))
            .await
            .expect("it is trusted");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP");
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.expect("an answer");
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Response::from_parts(parts, serde_json::from_slice(&body).expect("JSON"))
    }

    async fn token(&self, tenant: &str, client: &str, assertion: &str) -> Response<Value> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("client_id", client)
            .append_pair("grant_type", "client_credentials")
            .append_pair("scope", "https://vault.test/.default")
            .append_pair(
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            )
            .append_pair("client_assertion", assertion)
            .finish();
        let request = Request::post(format!("/{tenant}/oauth2/v2.0/token"))
            .header(HOST, LOGIN_HOST)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form))
            .expect("a request");
        self.send(LOGIN_HOST, request).await
    }

    async fn get(&self, vault: &str, target: &str, token: Option<&str>) -> Response<Value> {
        let host = format!("{vault}{VAULT_SUFFIX}");
        let mut request = Request::get(target).header(HOST, &host);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::default()).expect("a request");
        self.send(&host, request).await
    }

    async fn access(&self) -> String {
        let assertion = self.assertion("app", "api://AzureADTokenExchange", 600);
        let answer = self.token(TENANT, CLIENT, &assertion).await;
        let token = answer.body()["access_token"].as_str();
        token.expect("a token").to_owned()
    }
}

fn code(answer: &Response<Value>) -> (u16, Value) {
    (
        answer.status().as_u16(),
        answer.body()["error_codes"][0].clone(),
    )
}

#[tokio::test]
async fn entra_id_believes_an_assertion_by_signature_issuer_subject_audience_and_time() {
    let cloud = Cloud::start().await;
    let exchange = "api://AzureADTokenExchange";
    let good = cloud.assertion("app", exchange, 600);
    let answer = cloud.token(TENANT, CLIENT, &good).await;
    assert_eq!(answer.status(), 200, "{:?}", answer.body());
    let forged = cloud.issuer.impostor().sign(&Claims::new(
        cloud.issuer.url(),
        "test",
        Bound::new("app", "uid"),
        None,
        exchange,
        600,
    ));
    for (tenant, client, assertion, status, number) in [
        ("nobody", CLIENT, &good, 400, 90_002),
        (TENANT, TENANT, &good, 400, 700_016),
        (TENANT, CLIENT, &forged, 401, 700_027),
        (TENANT, CLIENT, &"x.y.z".to_owned(), 401, 50_027),
        (
            TENANT,
            CLIENT,
            &cloud.assertion("other", exchange, 600),
            401,
            700_213,
        ),
        (
            TENANT,
            CLIENT,
            &cloud.assertion("app", "other", 600),
            401,
            700_212,
        ),
        (
            TENANT,
            CLIENT,
            &cloud.assertion("app", exchange, -1),
            401,
            700_024,
        ),
    ] {
        let answer = cloud.token(tenant, client, assertion).await;
        assert_eq!(code(&answer), (status, Value::from(number)));
    }
    cloud
        .azure
        .publish_issuer("https://cluster.example", &Value::Null);
    let answer = cloud.token(TENANT, CLIENT, &good).await;
    assert_eq!(code(&answer), (401, Value::from(700_027)));
}

#[tokio::test]
async fn key_vault_challenges_believes_and_then_asks_who_may() {
    let cloud = Cloud::start().await;
    let target = "/secrets/key/?api-version=2025-07-01";
    let answer = cloud.get("v1", target, None).await;
    assert_eq!(answer.status(), 401);
    let challenge = answer.headers()[WWW_AUTHENTICATE].to_str().expect("text");
    assert!(
        challenge.contains("resource=\"https://vault.test\""),
        "{challenge}"
    );
    let token = cloud.access().await;
    let inner = |answer: &Response<Value>| {
        let error = &answer.body()["error"];
        (
            answer.status().as_u16(),
            error["innererror"]["code"].clone(),
        )
    };
    let answer = cloud.get("v1", target, Some(&token)).await;
    assert_eq!(inner(&answer), (403, "ForbiddenByRbac".into()));
    cloud.azure.admit("v1", CLIENT, Some("key"));
    let answer = cloud.get("v1", target, Some(&token)).await;
    assert_eq!(answer.body()["value"], "x");
    // Another secret, and listing, need other rights.
    let other = "/secrets/other/?api-version=2025-07-01";
    assert_eq!(cloud.get("v1", other, Some(&token)).await.status(), 403);
    let list = "/secrets?api-version=2025-07-01";
    assert_eq!(cloud.get("v1", list, Some(&token)).await.status(), 403);
    // No forged token, none of another tenant, none that has expired.
    let forged = Issuer::new("https://login.test").sign(&serde_json::json!({"appid": CLIENT}));
    assert_eq!(cloud.get("v1", target, Some(&forged)).await.status(), 401);
    cloud.azure.make_vault("v2", OTHER_TENANT, Access::Roles);
    let answer = cloud.get("v2", target, Some(&token)).await;
    let message = answer.body()["error"]["message"].as_str().expect("text");
    assert!(message.starts_with("AKV10032"), "{message}");
    cloud.azure.revoke_tokens(CLIENT);
    assert_eq!(cloud.get("v1", target, Some(&token)).await.status(), 401);
    let again = cloud.access().await;
    assert_eq!(cloud.get("v1", target, Some(&again)).await.status(), 200);
    cloud
        .azure
        .set_clock_offset(jiff::SignedDuration::from_hours(2));
    assert_eq!(cloud.get("v1", target, Some(&again)).await.status(), 401);
}

#[tokio::test]
async fn key_vault_takes_only_what_its_api_has() {
    let cloud = Cloud::start().await;
    cloud.azure.admit("v1", CLIENT, None);
    let token = cloud.access().await;
    for (target, status) in [
        ("/secrets/key?api-version=7.4", 200),
        ("/secrets/KEY/?api-version=7.4", 200),
        ("/secrets/key", 400),
        ("/secrets/key?api-version=1.0", 400),
        ("/secrets/a_b?api-version=7.4", 400),
        ("/secrets/key/latest?api-version=7.4", 400),
        ("/secrets/nothing?api-version=7.4", 404),
        ("/keys/key?api-version=7.4", 404),
        ("/secrets/key/x/y?api-version=7.4", 404),
        ("/secrets?api-version=7.4&maxresults=26", 400),
        ("/secrets?api-version=7.4&$skiptoken=x", 400),
    ] {
        let answer = cloud.get("v1", target, Some(&token)).await;
        assert_eq!(answer.status(), status, "{target}: {:?}", answer.body());
    }
}
