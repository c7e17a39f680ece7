//! Sends requests to the fake, both as the agent sends them and as it never would.

use super::*;
use crate::jwt::{Bound, Claims, Issuer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use jiff::SignedDuration;
use serde_json::{Value, json};

mod identity;
mod secrets;

/// A Google Cloud that trusts one cluster by a provider, with the service account `reader` for `test/app`.
struct Cloud {
    gcp: FakeGcp,
    issuer: Issuer,
    provider: String,
    account: String,
}

/// An answer: its status, and its JSON.
type Answer = (u16, Value);

impl Cloud {
    async fn start() -> Self {
        let gcp = FakeGcp::start().await.expect("it starts");
        let issuer = Issuer::new("https://cluster.test/id/1");
        let provider = gcp.provider_name("clusters", "east");
        gcp.add_provider(ProviderSpec::new(&provider, issuer.url(), issuer.jwks()))
            .expect("a known mapping");
        let account = gcp.create_account("reader");
        Self {
            gcp,
            issuer,
            provider,
            account,
        }
    }

    /// The claims that a pod of `test/app` would get.
    fn claims(&self) -> Claims {
        let pod = Some(Bound::new("app-1", "0b0e"));
        let audience = format!("https:{}", self.provider);
        let account = Bound::new("app", "5a");
        Claims::new(self.issuer.url(), "test", account, pod, &audience, 600)
    }

    fn token(&self) -> String {
        self.issuer.sign(&self.claims())
    }

    fn principal(&self) -> String {
        let pool = self
            .provider
            .split_once("/providers/")
            .expect("a provider")
            .0;
        format!("principal:{pool}/subject/system:serviceaccount:test:app")
    }

    async fn exchange(&self, audience: &str, token: &str) -> Answer {
        let form = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            (
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("scope", "https://www.googleapis.com/auth/cloud-platform"),
            ("audience", audience),
            ("subject_token", token),
        ];
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        self.ask(Method::POST, "/v1/token", None, body).await
    }

    /// The bearer of the pod's own principal.
    async fn own(&self) -> String {
        let (status, answer) = self.exchange(&self.provider, &self.token()).await;
        assert_eq!(status, 200, "{answer}");
        answer["access_token"].as_str().expect("a token").to_owned()
    }

    async fn impersonate(&self, bearer: Option<&str>, account: &str, body: &Value) -> Answer {
        let path = format!("/v1/projects/-/serviceAccounts/{account}:generateAccessToken");
        self.ask(Method::POST, &path, bearer, body.to_string())
            .await
    }

    async fn read(&self, bearer: Option<&str>, secret: &str, version: &str) -> Answer {
        let path = format!("/v1/projects/{PROJECT}/secrets/{secret}/versions/{version}:access");
        self.ask(Method::GET, &path, bearer, String::new()).await
    }

    async fn ask(&self, method: Method, path: &str, bearer: Option<&str>, body: String) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.gcp.endpoint()));
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request
            .body(Full::new(bytes::Bytes::from(body)))
            .expect("a request");
        let client: Client<_, Full<bytes::Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

/// The status, and what Google calls the refusal.
fn refusal((status, answer): &Answer) -> (u16, &str) {
    let error = &answer["error"];
    (
        *status,
        error
            .as_str()
            .or(error["status"].as_str())
            .unwrap_or_default(),
    )
}

fn value((status, answer): &Answer) -> Vec<u8> {
    assert_eq!(*status, 200, "{answer}");
    let data = answer["payload"]["data"].as_str().unwrap_or_default();
    BASE64.decode(data).expect("base64")
}
