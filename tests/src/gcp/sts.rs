//! The Security Token Service's `POST /v1/token` (RFC 8693, and Google's reference of it).

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::State;
use super::call::{Call, Operation};
use super::iam::Bearer;
use super::reply::{self, Refusal};
use crate::fake::Reply;
use crate::jwt::TokenSeen;
use crate::jwt::{self, KeySet};

/// Where it is.
pub(super) const PATH: &str = "/v1/token";

/// The lifetime of an issued bearer, in seconds.
const LIFE: i64 = 3600;

/// How far into the future `iat` and `nbf` may be.
const LEEWAY_SECONDS: i64 = 60;

/// The form fields that are known.
#[derive(Debug, Default)]
pub(super) struct Form {
    grant_type: String,
    audience: String,
    scope: String,
    requested_token_type: String,
    subject_token: String,
    subject_token_type: String,
}

impl Form {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut form = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            let field = match name.as_ref() {
                "grant_type" => &mut form.grant_type,
                "audience" => &mut form.audience,
                "scope" => &mut form.scope,
                "requested_token_type" => &mut form.requested_token_type,
                "subject_token" => &mut form.subject_token,
                "subject_token_type" => &mut form.subject_token_type,
                // `options` would change what the bearer may do: refusing it is better than ignoring it.
                other => {
                    return Err(invalid(format!(
                        "this fake does not know the parameter {other}"
                    )));
                }
            };
            *field = value.into_owned();
        }
        Ok(form)
    }

    /// Records the request, whether or not it is accepted.
    pub(super) fn describe(&self, call: &mut Call) {
        call.operation = Operation::ExchangeToken;
        call.token = jwt::unverified(&self.subject_token)
            .as_ref()
            .map(TokenSeen::of);
    }

    pub(super) fn answer(
        &self,
        state: &State,
        now: Timestamp,
        call: &mut Call,
    ) -> Result<Reply, Refusal> {
        for (field, value, expected) in [
            (
                "grant_type",
                &self.grant_type,
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            (
                "requested_token_type",
                &self.requested_token_type,
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            (
                "subject_token_type",
                &self.subject_token_type,
                "urn:ietf:params:oauth:token-type:jwt",
            ),
            (
                "scope",
                &self.scope,
                "https://www.googleapis.com/auth/cloud-platform",
            ),
        ] {
            if value != expected {
                return Err(invalid(format!("Invalid value for \"{field}\": {value:?}")));
            }
        }
        let principal = match self.audience.strip_prefix("identitynamespace:") {
            Some(pool) => self.of_cluster(pool, state, now)?,
            None => self.of_provider(state, now)?,
        };
        call.principal = Some(principal.0.clone());
        let token = format!("ya29.d.{}", super::random());
        let bearer = Bearer::of_principal(principal, now + SignedDuration::from_secs(LIFE));
        state.iam.write().give(token.clone(), bearer);
        Ok(reply::json(
            200,
            &json!({
                "access_token": token,
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": LIFE,
            }),
        ))
    }

    /// Federation: `//iam.googleapis.com/projects/…/providers/…`.
    fn of_provider(&self, state: &State, now: Timestamp) -> Result<(String, Vec<String>), Refusal> {
        let iam = state.iam.read();
        let provider = iam.provider(&self.audience).ok_or_else(no_target)?;
        let claims = self.verify(&provider.keys, &provider.spec.issuer, now)?;
        if !audiences(&claims).any(|audience| provider.takes_audience(audience)) {
            return Err(invalid_grant(
                "The audience in ID Token does not match the expected audience.",
            ));
        }
        provider.principal(&claims)
    }

    /// GKE: `identitynamespace:POOL:ISSUER`.
    fn of_cluster(
        &self,
        pool: &str,
        state: &State,
        now: Timestamp,
    ) -> Result<(String, Vec<String>), Refusal> {
        let iam = state.iam.read();
        let (pool, issuer) = pool.split_once(':').ok_or_else(no_target)?;
        let cluster = iam.cluster(pool, issuer).ok_or_else(no_target)?;
        let claims = self.verify(&cluster.keys, issuer, now)?;
        if !audiences(&claims).any(|audience| audience == pool) {
            return Err(invalid_grant(
                "The audience in ID Token does not match the expected audience.",
            ));
        }
        let subject = claims["sub"].as_str().unwrap_or_default();
        cluster
            .principal(pool, subject)
            .ok_or_else(|| invalid_grant("The subject is no Kubernetes service account."))
    }

    /// The claims, if the issuer signed them and they are valid now.
    fn verify(&self, keys: &KeySet, issuer: &str, now: Timestamp) -> Result<Value, Refusal> {
        let claims = keys.verify(&self.subject_token).map_err(|forged| {
            invalid_grant(format!("The credential cannot be verified: {forged:?}"))
        })?;
        if claims["iss"] != *issuer {
            return Err(invalid_grant(
                "The issuer in ID Token does not match the expected ones.",
            ));
        }
        let time = |claim: &str| claims[claim].as_i64();
        let second = now.as_second();
        if time("exp").is_none_or(|exp| exp <= second) {
            return Err(invalid_grant("ID Token is stale to sign-in."));
        }
        let early = |claim: &str| time(claim).is_some_and(|at| at > second + LEEWAY_SECONDS);
        if time("iat").is_none() || early("iat") || early("nbf") {
            return Err(invalid_grant("ID Token is issued in the future."));
        }
        Ok(claims)
    }
}

fn audiences(claims: &Value) -> impl Iterator<Item = &str> {
    let one = std::slice::from_ref(&claims["aud"]);
    let all = claims["aud"].as_array().map_or(one, Vec::as_slice);
    all.iter().filter_map(Value::as_str)
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::oauth(400, "invalid_request", message)
}

pub(super) fn issuer_silent() -> Refusal {
    invalid_grant("Error connecting to the given credential's issuer.")
}

pub(super) fn invalid_grant(message: impl Into<String>) -> Refusal {
    Refusal::oauth(400, "invalid_grant", message)
}

fn no_target() -> Refusal {
    Refusal::oauth(
        400,
        "invalid_target",
        "The target service indicated by the \"audience\" parameters is invalid. This might either be because the \
         pool or provider is disabled or deleted or because it doesn't exist.",
    )
}
