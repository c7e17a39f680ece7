//! How machines outside of any cluster sign in: service accounts' keys, people's refresh tokens, the metadata server.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Call, Operation};
use super::iam::Bearer;
use super::reply::{self, Refusal};
use super::{FakeGcp, PROJECT, State, random};
use crate::fake::Reply;
use crate::jwt::{self, Issuer, KeySet};

/// Where people's refresh tokens are exchanged.
pub(super) const REFRESH: &str = "/token";

/// Where the metadata server offers the token of the machine's account.
pub(super) const METADATA: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The lifetime of a bearer, in seconds.
const LIFE: i64 = 3600;

/// The longest lifetime of what an account signs for itself, in seconds, with an allowance for differing clocks.
const LONGEST: i64 = 3600 + 2 * 60;

/// Who is signed in.
#[derive(Debug, Default)]
pub(super) struct Machines {
    /// The public keys of each account.
    keys: BTreeMap<String, KeySet>,
    /// People by their refresh tokens.
    people: HashMap<String, Person>,
    /// The account that the machine runs as.
    account: Option<String>,
}

#[derive(Debug)]
struct Person {
    email: String,
    client_secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    grant_type: String,
    client_id: String,
    client_secret: String,
    refresh_token: String,
    scopes: Option<String>,
}

/// What tests may set up.
impl FakeGcp {
    /// Makes a key of a service account; returns the file that `gcloud iam service-accounts keys create` writes.
    ///
    /// # Panics
    ///
    /// If the cryptographic library cannot make a key.
    #[must_use]
    pub fn account_key(&self, email: &str) -> Value {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("an RSA key can be made");
        let der: Pkcs8V1Der<'_> = key.as_der().expect("it can be written");
        let text = BASE64.encode(der.as_ref());
        let lines: Vec<&str> = (0..text.len())
            .step_by(64)
            .map(|from| &text[from..text.len().min(from + 64)])
            .collect();
        let signer = Issuer::with_key(email, key);
        let mut iam = self.inner.state.iam.write();
        let keys = KeySet::from_jwks(&signer.jwks());
        iam.machines.keys.insert(email.to_owned(), keys);
        json!({
            "type": "service_account", "project_id": PROJECT, "client_email": email,
            "private_key_id": signer.key_id(),
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")),
            "token_uri": format!("{}{REFRESH}", self.endpoint()),
        })
    }

    /// Signs a person in; returns the file that `gcloud auth application-default login` writes.
    #[must_use]
    pub fn sign_in(&self, email: &str) -> Value {
        let (refresh_token, client_secret) = (format!("1//{}", random()), random());
        let person = Person {
            email: email.to_owned(),
            client_secret: client_secret.clone(),
        };
        let mut iam = self.inner.state.iam.write();
        iam.machines.people.insert(refresh_token.clone(), person);
        json!({
            "type": "authorized_user", "client_id": "gcloud.apps.googleusercontent.com",
            "client_secret": client_secret, "refresh_token": refresh_token, "quota_project_id": PROJECT,
            "token_uri": format!("{}{REFRESH}", self.endpoint()),
        })
    }

    /// Makes the machine run as a service account, whose tokens its metadata server issues.
    pub fn run_as(&self, email: &str) {
        self.inner.state.iam.write().machines.account = Some(email.to_owned());
    }
}

impl Machines {
    /// The bearer of a token that an account has signed for itself (AIP-4111), if it is valid.
    pub(super) fn self_signed(&self, token: &str, now: Timestamp) -> Option<Bearer> {
        let email = jwt::unverified(token)?["iss"].as_str()?.to_owned();
        let claims = self.keys.get(&email)?.verify(token).ok()?;
        let time = |name: &str| claims[name].as_i64();
        let (begins, ends) = (time("iat")?, time("exp")?);
        let second = now.as_second();
        let good = claims["sub"] == *email
            && claims["scope"] == SCOPE
            && begins <= second
            && ends > second
            && ends - begins <= LONGEST;
        let expires = Timestamp::from_second(ends).ok()?;
        good.then(|| Bearer::of_account(&email, expires))
    }
}

/// Exchanges a person's refresh token for a bearer (RFC 6749, 6).
pub(super) fn refresh(
    state: &State,
    now: Timestamp,
    body: &[u8],
    call: &mut Call,
) -> Result<Reply, Refusal> {
    let form: Refresh = serde_json::from_slice(body)
        .map_err(|error| Refusal::oauth(400, "invalid_request", error.to_string()))?;
    let mut iam = state.iam.write();
    let person = iam.machines.people.get(&form.refresh_token).filter(|one| {
        one.client_secret == form.client_secret
            && form.grant_type == "refresh_token"
            && !form.client_id.is_empty()
            && form.scopes.as_deref().is_none_or(|scopes| scopes == SCOPE)
    });
    let Some(person) = person else {
        let text = "Token has been expired or revoked.";
        return Err(Refusal::oauth(400, "invalid_grant", text));
    };
    let email = person.email.clone();
    call.principal = Some(email.clone());
    let token = format!("ya29.a0{}", random());
    let bearer = Bearer::of_person(&email, now + SignedDuration::from_secs(LIFE));
    iam.give(token.clone(), bearer);
    Ok(given(&token))
}

/// The machine's own token, as its metadata server gives it to every program on the machine.
pub(super) fn metadata(
    state: &State,
    now: Timestamp,
    parts: &Parts,
    call: &mut Call,
) -> Result<Reply, Refusal> {
    let mut iam = state.iam.write();
    let account = iam.machines.account.clone();
    let asks = parts.headers.get("metadata-flavor");
    let Some(email) = account.filter(|_| asks.is_some_and(|flavor| flavor == "Google")) else {
        return Err(Refusal::api("NOT_FOUND", "There is no such account."));
    };
    call.principal = Some(email.clone());
    let token = format!("ya29.c.{}", random());
    let bearer = Bearer::of_account(&email, now + SignedDuration::from_secs(LIFE));
    iam.give(token.clone(), bearer);
    Ok(given(&token))
}

/// Records the request, if it is one of these.
pub(super) fn describe(path: &str, call: &mut Call) {
    match path {
        REFRESH => call.operation = Operation::RefreshToken,
        METADATA => call.operation = Operation::MachineToken,
        _ => {}
    }
}

fn given(token: &str) -> Reply {
    let body = json!({"access_token": token, "expires_in": LIFE, "token_type": "Bearer"});
    reply::json(200, &body)
}
