//! `generateAccessToken` of the IAM Service Account Credentials API, v1.

use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;

use super::State;
use super::call::{Call, Operation};
use super::iam::Bearer;
use super::reply::{self, Refusal};
use crate::fake::Reply;

const KIND: &str = "iam.googleapis.com/ServiceAccount";

/// The longest lifetime without an organisation's permission, in seconds.
const LONGEST: i64 = 3600;

/// The account in `/v1/projects/-/serviceAccounts/EMAIL:generateAccessToken`.
pub(super) fn account_of(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/projects/-/serviceAccounts/")?
        .strip_suffix(":generateAccessToken")
}

pub(super) fn describe(account: &str, call: &mut Call) {
    call.operation = Operation::GenerateAccessToken;
    call.account = Some(account.to_owned());
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    scope: Vec<String>,
    #[serde(default)]
    lifetime: Option<String>,
    #[serde(default)]
    delegates: Vec<String>,
}

pub(super) fn answer(
    state: &State,
    now: Timestamp,
    account: &str,
    headers: &HeaderMap,
    body: &[u8],
    call: &mut Call,
) -> Result<Reply, Refusal> {
    let iam = state.iam.read();
    let caller = iam.believe(headers, now)?;
    call.principal = Some(caller.principal.clone());
    let invalid = |text: &str| Refusal::api("INVALID_ARGUMENT", text);
    let body: Body = serde_json::from_slice(body).map_err(|error| invalid(&error.to_string()))?;
    if body.scope.is_empty() {
        return Err(invalid("The request must have a scope."));
    }
    let seconds = match &body.lifetime {
        None => LONGEST,
        Some(text) => text
            .strip_suffix('s')
            .and_then(|seconds| seconds.parse().ok())
            .filter(|seconds| (1..=LONGEST).contains(seconds))
            .ok_or_else(|| invalid("The lifetime must be between 1s and 3600s."))?,
    };
    // Each in the chain must be allowed to act through the next, and the last to get the account's token.
    let mut who = caller;
    for delegate in &body.delegates {
        let email = delegate
            .strip_prefix("projects/-/serviceAccounts/")
            .ok_or_else(|| invalid("A delegate is no resource name of a service account."))?;
        who = step(
            &iam,
            &who,
            email,
            "iam.serviceAccounts.implicitDelegation",
            now,
        )?;
    }
    step(
        &iam,
        &who,
        account,
        "iam.serviceAccounts.getAccessToken",
        now,
    )?;
    drop(iam);
    let token = format!("ya29.c.{}", super::random());
    let expires = now + SignedDuration::from_secs(seconds);
    let bearer = Bearer::of_account(account, expires);
    state.iam.write().give(token.clone(), bearer);
    Ok(reply::json(
        200,
        &json!({
            "accessToken": token,
            "expireTime": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }),
    ))
}

/// A step from one principal to the account that it may use.
fn step(
    iam: &super::iam::Iam,
    who: &Bearer,
    email: &str,
    permission: &str,
    now: Timestamp,
) -> Result<Bearer, Refusal> {
    let resource = format!("serviceAccounts/{email}");
    let exists = iam.account(email);
    if exists.is_none() || !iam.allows(who, permission, &[&resource], &resource, KIND) {
        return Err(Refusal::api(
            "PERMISSION_DENIED",
            format!("Permission '{permission}' denied on resource (or it may not exist)."),
        ));
    }
    if exists.is_some_and(|account| account.disabled) {
        return Err(Refusal::api(
            "FAILED_PRECONDITION",
            "Service account is disabled.",
        ));
    }
    Ok(Bearer::of_account(
        email,
        now + SignedDuration::from_secs(LONGEST),
    ))
}
