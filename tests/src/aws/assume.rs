//! `AssumeRole` with credentials of the caller's own (AWS STS API reference, 2011-06-15).
//!
//! The caller is a role's session, as that of an instance or a CI job. The trust policy of the requested role must name
//! the caller's role; the answer is a session of the requested role.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::request::Parts;
use jiff::Timestamp;

use super::State;
use super::call::{Call, Operation};
use super::iam::{RoleArn, Session, is_name_byte};
use super::policy::{Decision, Question};
use super::reply::{self, Refusal, escaped};
use super::secretsmanager::authenticate;
use crate::fake::Reply;

/// The operation.
const ACTION: &str = "AssumeRole";

/// The longest session of a role that a role has assumed ("role chaining"), in seconds.
const CHAINED: u32 = 3600;

/// The form's fields.
#[derive(Debug)]
pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    /// The form, if it is of this operation.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let fields: BTreeMap<_, _> = form_urlencoded::parse(body).into_owned().collect();
        (fields.get("Action").map(String::as_str) == Some(ACTION)).then_some(Self(fields))
    }

    fn field(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Records the request, whether or not it is accepted.
    pub(super) fn describe(&self, call: &mut Call) {
        call.operation = Operation::AssumeRole;
        call.role = Some(self.field("RoleArn").to_owned());
        call.session_name = Some(self.field("RoleSessionName").to_owned());
    }

    /// Checks in the order of STS: the signature, the parameters, then the role.
    pub(super) fn answer(
        &self,
        state: &State,
        parts: &Parts,
        body: &[u8],
        call: &mut Call,
    ) -> Result<Reply, Refusal> {
        let now = call.at;
        let (caller, _) = authenticate(state, parts, body, now, "sts")?;
        const KNOWN: [&str; 5] = [
            "Action",
            "DurationSeconds",
            "RoleArn",
            "RoleSessionName",
            "Version",
        ];
        if let Some(other) = self.0.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(validation(format!(
                "this fake does not know the parameter {other}"
            )));
        }
        let (role_arn, name) = (self.field("RoleArn"), self.field("RoleSessionName"));
        let parsed =
            RoleArn::parse(role_arn).ok_or_else(|| validation(format!("{role_arn} is invalid")))?;
        if !(2..=64).contains(&name.len()) || !name.bytes().all(is_name_byte) {
            return Err(validation("roleSessionName must match [\\w+=,.@-]{2,64}"));
        }
        let seconds = match self.field("DurationSeconds") {
            "" => CHAINED,
            text => text
                .parse()
                .ok()
                .filter(|seconds| (900..=43_200).contains(seconds))
                .ok_or_else(|| validation("durationSeconds must be from 900 to 43200"))?,
        };
        if seconds > CHAINED {
            return Err(validation(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
            ));
        }
        let session = self.begin(state, &caller, &parsed, name, now, seconds)?;
        call.access_key = Some(session.access_key.clone());
        Ok(reply::xml(200, success(&session, &call.request_id)))
    }

    fn begin(
        &self,
        state: &State,
        caller: &Session,
        parsed: &RoleArn<'_>,
        name: &str,
        now: Timestamp,
        seconds: u32,
    ) -> Result<Arc<Session>, Refusal> {
        let role_arn = self.field("RoleArn");
        let iam = state.iam.read();
        let question = Question {
            action: "sts:AssumeRole",
            resource: "",
            principal: &caller.role,
            context: &[("sts:RoleSessionName", name)],
        };
        let role = iam
            .role(role_arn)
            .filter(|role| role.trust.decide(&question) == Decision::Allowed)
            .ok_or_else(|| {
                Refusal::new(
                    403,
                    "AccessDenied",
                    format!(
                        "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
                        caller.arn()
                    ),
                )
            })?;
        if seconds > role.max_session_duration {
            return Err(validation(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        let seconds = role.sessions_end_after.unwrap_or(seconds);
        let session = Arc::new(Session::begin(
            role_arn, parsed, &role.id, name, now, seconds,
        ));
        drop(iam);
        state.iam.write().keep_session(Arc::clone(&session));
        Ok(session)
    }
}

fn success(session: &Session, request_id: &str) -> String {
    format!(
        r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleResult>
    <AssumedRoleUser>
      <AssumedRoleId>{role_id}:{name}</AssumedRoleId>
      <Arn>{arn}</Arn>
    </AssumedRoleUser>
    <Credentials>
      <AccessKeyId>{access_key}</AccessKeyId>
      <SecretAccessKey>{secret_key}</SecretAccessKey>
      <SessionToken>{token}</SessionToken>
      <Expiration>{expires}</Expiration>
    </Credentials>
  </AssumeRoleResult>
  <ResponseMetadata>
    <RequestId>{request_id}</RequestId>
  </ResponseMetadata>
</AssumeRoleResponse>
"#,
        role_id = session.role_id,
        name = escaped(&session.name),
        arn = escaped(&session.arn()),
        access_key = session.access_key,
        secret_key = session.secret_key,
        token = session.token,
        expires = session.expires().strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
}

fn validation(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationError", message)
}
