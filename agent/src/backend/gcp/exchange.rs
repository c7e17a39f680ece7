//! Subject token → bearer: the Security Token Service's token exchange (RFC 8693), and from there to a service
//! account's token if the role is one (`generateAccessToken` of the IAM Service Account Credentials API).
//!
//! These are two small POST requests of our own. The SDK's way keeps a task for each credential that refreshes it
//! forever, and has no deadline.

use super::bearer::{AccessToken, Bearer, REASON};
use super::{errors, role};
use crate::backend::wire::{Answer, Wire, WireError};
use crate::backend::{BackendError, Caller};
use crate::config::GcpProvider;
use crate::error::RequestError;
use crate::role::Role;
use crate::secret::SubjectToken;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// IAM decides what the tokens may do, not their scope.
pub(super) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The life of a token whose answer does not state it; the Security Token Service gives an hour.
const UNTOLD_LIFE: Duration = Duration::from_secs(300);

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The maximum size of an answer, in bytes; a token has one or two thousand.
const MAX_ANSWER: usize = 64 << 10;

/// Where tokens are exchanged.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) wire: Wire,
    /// How long one call may take.
    pub(super) timeout: Duration,
    /// The base URL of the Security Token Service.
    pub(super) sts: String,
    /// The base URL of the IAM Service Account Credentials API.
    pub(super) iam: String,
    /// Absent outside a cluster.
    pub(super) provider: Option<GcpProvider>,
    /// Requested for a service account's token, and the limit for every token.
    pub(super) lifetime: Duration,
}

/// A token was to be exchanged without a provider that trusts it, although no role asks for that.
#[derive(Debug, thiserror::Error)]
#[error("no provider of identities is configured to exchange the token at")]
struct NoProvider;

/// A bearer, and when it expires.
pub(super) struct Granted {
    pub(super) bearer: Bearer,
    pub(super) ends: Instant,
}

#[derive(Deserialize)]
struct Federated {
    access_token: AccessToken,
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: AccessToken,
    expire_time: Timestamp,
}

/// The one claim of a subject token that is read here: it tells Google which issuer to check.
#[derive(Deserialize)]
struct Claims {
    iss: String,
}

// === impl Exchange ===

impl Exchange {
    /// Exchanges the subject token for the bearer of the workload's own principal.
    pub(super) async fn federate(
        &self,
        token: &SubjectToken,
        role: &Role,
        caller: &Caller,
    ) -> Result<Granted, BackendError> {
        let whose = errors::TOKEN_SERVICE;
        let audience = match &self.provider {
            None => return Err(RequestError::internal(&NoProvider).into()),
            Some(GcpProvider::Federation(name)) => name.clone(),
            Some(GcpProvider::Gke(pool)) => {
                let issuer =
                    issuer(token).ok_or_else(|| BackendError::garbage("the API server"))?;
                format!("identitynamespace:{pool}:{issuer}")
            }
        };
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", GRANT)
            .append_pair("audience", &audience)
            .append_pair("scope", SCOPE)
            .append_pair("requested_token_type", ACCESS_TOKEN)
            .append_pair("subject_token_type", JWT)
            .append_pair("subject_token", token.expose())
            .finish();
        let reason = role::reason(&caller.pod_uid, caller.request_id.as_str());
        let headers = HeaderMap::from_iter([(REASON, reason), (CONTENT_TYPE, FORM)]);
        let asked = Instant::now();
        let url = format!("{}/v1/token", self.sts);
        let answer = self.post(&url, headers, form, whose).await?;
        if answer.status() != StatusCode::OK {
            return Err(errors::of_token_service(&answer, role));
        }
        let told: Federated =
            serde_json::from_slice(answer.body()).map_err(|_| BackendError::garbage(whose))?;
        let life = told.expires_in.map_or(UNTOLD_LIFE, Duration::from_secs);
        // Google accepts no lifetime for this token, so the agent itself stops using it in time.
        let life = life.min(self.lifetime);
        Ok(Granted {
            bearer: Bearer::of(&told.access_token).ok_or_else(|| BackendError::garbage(whose))?,
            // `life` is limited above, so this does not overflow.
            ends: asked
                .checked_add(life)
                .ok_or_else(|| BackendError::garbage(whose))?,
        })
    }

    /// Returns a token of the role's service account, requested with the bearer `own`.
    pub(super) async fn impersonate(
        &self,
        own: &Bearer,
        role: &Role,
        caller: &Caller,
    ) -> Result<Granted, BackendError> {
        let whose = errors::IAM;
        let resource = |email: &str| format!("projects/-/serviceAccounts/{email}");
        let chain = role.via.as_deref().unwrap_or_default();
        let delegates: Vec<String> = chain
            .split(',')
            .filter(|email| !email.is_empty())
            .map(resource)
            .collect();
        let body = json!({
            "scope": [SCOPE],
            "lifetime": format!("{}s", self.lifetime.as_secs()),
            "delegates": delegates,
        });
        let account = resource(&role.name);
        let asked = Instant::now();
        let url = format!("{}/v1/{account}:generateAccessToken", self.iam);
        let mut headers = own.headers(role::reason(&caller.pod_uid, caller.request_id.as_str()));
        headers.insert(CONTENT_TYPE, JSON);
        let answer = self.post(&url, headers, body.to_string(), whose).await?;
        if answer.status() != StatusCode::OK {
            return Err(errors::of_impersonation(&answer, role));
        }
        let told: Impersonated =
            serde_json::from_slice(answer.body()).map_err(|_| BackendError::garbage(whose))?;
        let left = told.expire_time.duration_since(crate::time::now());
        Ok(Granted {
            bearer: Bearer::of(&told.access_token).ok_or_else(|| BackendError::garbage(whose))?,
            // A clock that is behind must not make a token live longer than requested.
            ends: asked
                + Duration::try_from(left)
                    .unwrap_or_default()
                    .min(self.lifetime),
        })
    }

    async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: String,
        whose: &str,
    ) -> Result<Answer, BackendError> {
        let url = Url::parse(url).map_err(|error| RequestError::internal(&error))?;
        let mut request = reqwest::Request::new(Method::POST, url);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body.into());
        let answer = self.wire.ask(request, self.timeout, MAX_ANSWER).await;
        answer.map_err(|error| match error {
            WireError::Lost(error) => errors::of_transport(&error, whose),
            WireError::TooLong(_) => BackendError::garbage(whose).because(&error),
        })
    }
}

/// Returns the issuer that a token names. It is not trusted here: Google verifies the token.
fn issuer(token: &SubjectToken) -> Option<String> {
    let claims: Claims = serde_json::from_slice(&token.payload()?).ok()?;
    (!claims.iss.is_empty()).then_some(claims.iss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::wire::Roots;
    use crate::request::RequestId;
    use crate::role::Proof;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    const WANTED: Duration = Duration::from_secs(900);

    /// Returns the URL of a service that answers every request with `text`.
    async fn saying(text: String) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(|_: http::Request<Incoming>| {
                    let answer = http::Response::new(text.clone());
                    async { Ok::<_, Infallible>(answer) }
                });
                let http = http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            }
        });
        format!("http://{address}")
    }

    fn exchange(sts: String, iam: String) -> Exchange {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Exchange {
            wire: Wire::new(Roots::load()),
            timeout: Duration::from_secs(3),
            sts,
            iam,
            provider: Some(GcpProvider::Federation("provider".into())),
            lifetime: WANTED,
        }
    }

    #[tokio::test]
    async fn a_connection_to_a_token_service_that_breaks_is_no_answer() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let exchange = exchange(url.clone(), String::new());
        let asked = exchange.post(&url, HeaderMap::new(), String::new(), "it");
        let broken = async { listener.accept().await.map(drop).expect("a connection") };
        let (answer, ()) = tokio::join!(asked, broken);
        let text = answer.expect_err("it broke").error.message;
        assert!(text.contains("cannot be reached"), "{text}");
    }

    #[tokio::test]
    async fn a_token_is_used_no_longer_than_was_wanted_whatever_google_says_of_its_life() {
        let years = crate::time::now() + jiff::SignedDuration::from_hours(24 * 400);
        let exchange = exchange(
            saying(json!({"access_token": "t", "expires_in": 86_400}).to_string()).await,
            saying(json!({"accessToken": "t", "expireTime": years}).to_string()).await,
        );
        let role = Role {
            name: "somebody@project".into(),
            proof: Proof::None,
            prefix: "".into(),
            place: "project".into(),
            via: None,
        };
        let caller = Caller {
            pod_uid: "1".into(),
            namespace: "test".into(),
            service_account: "app".into(),
            request_id: RequestId::new("", 1),
        };
        let token = SubjectToken::from("e30.e30.e30".to_owned());
        let own = exchange.federate(&token, &role, &caller).await;
        let own = own.unwrap_or_else(|failed| panic!("{failed:?}"));
        assert!(own.ends <= Instant::now() + WANTED);
        let accounts = exchange.impersonate(&own.bearer, &role, &caller).await;
        let accounts = accounts.unwrap_or_else(|failed| panic!("{failed:?}"));
        assert!(accounts.ends <= Instant::now() + WANTED);
    }

    #[test]
    fn the_issuer_is_the_tokens_own_claim() {
        let token = |claims: &str| {
            let claims = URL_SAFE_NO_PAD.encode(claims);
            issuer(&SubjectToken::from(format!("e30.{claims}.e30")))
        };
        let gke = "https://container.googleapis.com/v1/projects/p/locations/l/clusters/c";
        assert_eq!(
            token(&format!(r#"{{"iss":"{gke}","sub":"x"}}"#)).as_deref(),
            Some(gke)
        );
        for wrong in ["{}", r#"{"iss":""}"#, r#"{"iss":1}"#, "x"] {
            assert_eq!(token(wrong), None, "{wrong}");
        }
        assert_eq!(issuer(&SubjectToken::from("no token".to_owned())), None);
    }
}
