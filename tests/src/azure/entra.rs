//! Entra ID's token endpoint: the client credentials flow with a federated credential (OAuth 2.0, RFC 7521 and 7523),
//! or with a client secret (RFC 6749, 2.3.1).

use http::Method;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::call::{Call, Operation};
use super::service;
use super::{RESOURCE, State};
use crate::fake::Reply;
use crate::jwt::TokenSeen;
use crate::jwt::{self, Forged};

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How far into the future `nbf` may be, in seconds.
const LEEWAY: i64 = 300;

/// A token request.
#[derive(Debug, Default)]
pub(super) struct Form {
    tenant: String,
    grant_type: String,
    client_id: String,
    scope: String,
    assertion_type: String,
    assertion: String,
    secret: Option<String>,
    unknown: Vec<String>,
}

/// A refusal by AADSTS number, status and text.
struct Refused(u32, u16, String);

/// The answer while the cluster's issuer does not answer.
pub(super) fn issuer_silent(now: Timestamp) -> Reply {
    let text = "Request to External OIDC endpoint failed.".to_owned();
    Refused(501_661, 400, text).into_reply("invalid_request", now)
}

/// The refusal of an assertion for its signature, in these words.
pub(super) fn refusal(text: String, now: Timestamp) -> Reply {
    Refused(700_027, 401, text).into_reply("invalid_client", now)
}

impl Refused {
    fn into_reply(self, error: &str, now: Timestamp) -> Reply {
        let Self(code, status, text) = self;
        let trace = uuid::Uuid::new_v4().to_string();
        let text = format!(
            "AADSTS{code}: {text}\r\nTrace ID: {trace}\r\nCorrelation ID: {trace}\r\nTimestamp: {now}"
        );
        service::json(
            status,
            &json!({
                "error": error, "error_description": text, "error_codes": [code],
                "timestamp": now.to_string(), "trace_id": trace, "correlation_id": trace,
                "error_uri": format!("https://login.microsoftonline.com/error?code={code}"),
            }),
        )
    }
}

impl Form {
    /// Parses the request, if this is the endpoint's path.
    pub(super) fn parse(parts: &Parts, body: &[u8]) -> Option<Self> {
        let path = parts.uri.path().strip_prefix('/')?;
        let tenant = path.strip_suffix("/oauth2/v2.0/token")?;
        let is_form = parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/x-www-form-urlencoded");
        if parts.method != Method::POST || !is_form || tenant.is_empty() || tenant.contains('/') {
            return None;
        }
        let mut form = Self {
            tenant: tenant.to_owned(),
            ..Self::default()
        };
        for (name, value) in form_urlencoded::parse(body) {
            let value = value.into_owned();
            match name.as_ref() {
                "grant_type" => form.grant_type = value,
                "client_id" => form.client_id = value,
                "scope" => form.scope = value,
                "client_assertion_type" => form.assertion_type = value,
                "client_assertion" => form.assertion = value,
                "client_secret" => form.secret = Some(value),
                other => form.unknown.push(other.to_owned()),
            }
        }
        Some(form)
    }

    /// Records the request, whether or not it is accepted.
    pub(super) fn describe(&self, call: &mut Call) {
        call.operation = Operation::Token;
        call.tenant = Some(self.tenant.clone());
        call.client = Some(self.client_id.clone());
        call.token = jwt::unverified(&self.assertion).as_ref().map(TokenSeen::of);
    }

    pub(super) fn answer(&self, state: &State, call: &mut Call) -> Reply {
        match self.judge(state, call) {
            Ok(reply) => reply,
            Err(refused) => {
                call.error = Some(refused.0.to_string());
                refused.into_reply("invalid_client", state.now())
            }
        }
    }

    fn judge(&self, state: &State, call: &mut Call) -> Result<Reply, Refused> {
        let now = state.now();
        let bad = |code, text: &str| Refused(code, 400, text.to_owned());
        if let Some(unknown) = self.unknown.first() {
            return Err(bad(900_144, &format!("this fake does not know {unknown}.")));
        }
        if self.grant_type != "client_credentials" {
            return Err(bad(70_003, "The app requested an unsupported grant type."));
        }
        if self.secret.is_none() && self.assertion_type != ASSERTION_TYPE {
            return Err(bad(50_049, "Unknown or invalid assertion type."));
        }
        let directory = state.directory.read();
        if !directory.has_tenant(&self.tenant) {
            let text = format!("Tenant '{}' not found.", self.tenant);
            return Err(bad(90_002, &text));
        }
        if self.scope.strip_suffix("/.default") != Some(RESOURCE) {
            let text = format!("The resource principal named {} was not found.", self.scope);
            return Err(bad(500_011, &text));
        }
        let Some(app) = directory.app(&self.tenant, &self.client_id) else {
            let text = format!(
                "Application with identifier '{}' was not found in the directory.",
                self.client_id
            );
            return Err(bad(700_016, &text));
        };
        let spec = &app.spec;
        if spec.disabled {
            let text = format!("Application '{}' is disabled.", self.client_id);
            return Err(Refused(7_000_112, 401, text));
        }
        let refused = |code, text: String| Refused(code, 401, text);
        if let Some(secret) = &self.secret {
            if spec.secret.as_ref() != Some(secret) || !self.assertion.is_empty() {
                return Err(refused(7_000_215, "Invalid client secret provided.".into()));
            }
            drop(directory);
            return Ok(self.grant(state, call, now));
        }
        let Some(claims) = jwt::unverified(&self.assertion) else {
            return Err(refused(50_027, "JWT token is invalid or malformed.".into()));
        };
        let claim = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
        let none = "No matching federated identity record found for presented assertion";
        let Some(keys) = directory
            .keys_of(&claim("iss"))
            .filter(|_| claim("iss") == spec.issuer)
        else {
            let text = format!("{none} issuer '{}'.", claim("iss"));
            return Err(refused(700_211, text));
        };
        let claims = match keys.verify(&self.assertion) {
            Ok(claims) => claims,
            Err(Forged::Malformed) => {
                return Err(refused(50_027, "JWT token is invalid or malformed.".into()));
            }
            Err(_) => {
                let text = "Client assertion failed signature validation.".to_owned();
                return Err(refused(700_027, text));
            }
        };
        let time = |name: &str| claims[name].as_i64().unwrap_or_default();
        if time("exp") <= now.as_second() || time("nbf") > now.as_second() + LEEWAY {
            let text = "Client assertion is not within its valid time range.".to_owned();
            return Err(refused(700_024, text));
        }
        if claims["sub"] != *spec.subject {
            let text = format!("{none} subject '{}'.", claim("sub"));
            return Err(refused(700_213, text));
        }
        let is_audience = |audience: &Value| *audience == *spec.audience;
        let fits = match &claims["aud"] {
            Value::Array(all) => all.iter().any(is_audience),
            one => is_audience(one),
        };
        if !fits {
            let text = format!("{none} audience '{}'.", claims["aud"]);
            return Err(refused(700_212, text));
        }
        drop(directory);
        Ok(self.grant(state, call, now))
    }

    fn grant(&self, state: &State, call: &mut Call, now: Timestamp) -> Reply {
        call.error = None;
        let (token, seconds) = state
            .directory
            .write()
            .grant(&self.tenant, &self.client_id, now);
        service::json(
            200,
            &json!({
                "token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds,
                "access_token": token,
            }),
        )
    }
}
