//! `AssumeRoleWithWebIdentity`, in the query protocol (AWS STS API reference, 2011-06-15).

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::State;
use super::call::{Call, Operation};
use super::iam::{Role, RoleArn, Session, is_name_byte};
use super::policy::{Decision, Question};
use super::reply::{self, Refusal, escaped};
use crate::fake::Reply;
use crate::jwt::{self, Forged, TokenSeen};

/// The only operation that is served.
const ACTION: &str = "AssumeRoleWithWebIdentity";

/// How far into the future `nbf` may be.
const LEEWAY_SECONDS: i64 = 300;

/// The form fields that are known.
#[derive(Debug, Default)]
pub(super) struct Form {
    action: String,
    version: String,
    role_arn: String,
    session_name: String,
    token: String,
    duration: Option<String>,
}

/// What an accepted subject token says.
struct Subject {
    provider: String,
    sub: String,
    aud: String,
}

impl Form {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut form = Self::default();
        for (name, value) in form_urlencoded::parse(body) {
            let value = value.into_owned();
            match name.as_ref() {
                "Action" => form.action = value,
                "Version" => form.version = value,
                "RoleArn" => form.role_arn = value,
                "RoleSessionName" => form.session_name = value,
                "WebIdentityToken" => form.token = value,
                "DurationSeconds" => form.duration = Some(value),
                // Session policies, which would narrow the session: refusing them is better than ignoring them.
                other => {
                    return Err(validation(format!(
                        "this fake does not know the parameter {other}"
                    )));
                }
            }
        }
        Ok(form)
    }

    /// Records the request, whether or not it is accepted.
    pub(super) fn describe(&self, call: &mut Call) {
        if self.action == ACTION {
            call.operation = Operation::AssumeRoleWithWebIdentity;
        }
        call.role = Some(self.role_arn.clone());
        call.session_name = Some(self.session_name.clone());
        call.token = jwt::unverified(&self.token).as_ref().map(TokenSeen::of);
    }

    /// Checks in the order of STS: the parameters, the token, then the role.
    pub(super) fn answer(
        &self,
        state: &State,
        now: Timestamp,
        call: &mut Call,
    ) -> Result<Reply, Refusal> {
        if self.action != ACTION || self.version != "2011-06-15" {
            return Err(Refusal::new(
                400,
                "InvalidAction",
                format!(
                    "Could not find operation {} for version {}",
                    self.action, self.version
                ),
            ));
        }
        let role_arn = self.check_role_arn()?;
        self.check_session_name()?;
        let asked = self.check_duration()?;
        if !(4..=20_000).contains(&self.token.len()) {
            return Err(constraint("webIdentityToken", "length between 4 and 20000"));
        }

        let subject = self.believe(state, &role_arn, now)?;

        let iam = state.iam.read();
        let role = iam
            .role(&self.role_arn)
            .filter(|role| trusts(role, &subject))
            .ok_or_else(not_authorized)?;
        if asked.is_some_and(|asked| asked > role.max_session_duration) {
            return Err(validation(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        // STS's default is an hour, even if the role would allow more.
        let seconds = role.sessions_end_after.unwrap_or(asked.unwrap_or(3600));
        let session = Session::begin(
            &self.role_arn,
            &role_arn,
            &role.id,
            &self.session_name,
            now,
            seconds,
        );
        drop(iam);

        let session = Arc::new(session);
        state.iam.write().keep_session(Arc::clone(&session));
        call.access_key = Some(session.access_key.clone());
        Ok(reply::xml(
            200,
            success(&session, &subject, &call.request_id),
        ))
    }

    fn check_role_arn(&self) -> Result<RoleArn<'_>, Refusal> {
        if self.role_arn.is_empty() {
            return Err(constraint("roleArn", "value not null"));
        }
        if !(20..=2048).contains(&self.role_arn.len()) {
            return Err(constraint("roleArn", "length between 20 and 2048"));
        }
        RoleArn::parse(&self.role_arn)
            .ok_or_else(|| validation(format!("{} is invalid", self.role_arn)))
    }

    fn check_session_name(&self) -> Result<(), Refusal> {
        if !(2..=64).contains(&self.session_name.len()) {
            return Err(constraint("roleSessionName", "length between 2 and 64"));
        }
        if !self.session_name.bytes().all(is_name_byte) {
            return Err(constraint("roleSessionName", r"pattern: [\w+=,.@-]*"));
        }
        Ok(())
    }

    fn check_duration(&self) -> Result<Option<u32>, Refusal> {
        let Some(duration) = &self.duration else {
            return Ok(None);
        };
        match duration.parse::<u32>() {
            Ok(0..900) => Err(constraint(
                "durationSeconds",
                "value greater than or equal to 900",
            )),
            Ok(900..=43_200) => Ok(duration.parse().ok()),
            Ok(_) => Err(constraint(
                "durationSeconds",
                "value less than or equal to 43200",
            )),
            Err(_) => Err(Refusal::new(
                400,
                "MalformedInput",
                "DurationSeconds is no number",
            )),
        }
    }

    /// Checks the token against the provider of the role's own account.
    fn believe(
        &self,
        state: &State,
        role: &RoleArn<'_>,
        now: Timestamp,
    ) -> Result<Subject, Refusal> {
        let Some(claims) = jwt::unverified(&self.token) else {
            return Err(invalid_token(
                "The ID Token provided is not a valid JWT. (You may see this error if you sent an \
                 Access Token)",
            ));
        };
        let issuer = claims["iss"].as_str().unwrap_or_default();
        let provider_arn = match issuer.strip_prefix("https://") {
            Some(host) => format!(
                "arn:{}:iam::{}:oidc-provider/{}",
                role.partition,
                role.account,
                host.trim_end_matches('/')
            ),
            None => return Err(invalid_token("Issuer must be a valid URL")),
        };
        let iam = state.iam.read();
        let Some(provider) = iam.provider(&provider_arn) else {
            return Err(invalid_token(format!(
                "No OpenIDConnect provider found in your account for {issuer}"
            )));
        };
        // From here on only the signed claims count.
        let claims = provider
            .keys
            .verify(&self.token)
            .map_err(|forged| match forged {
                Forged::Key => no_key(),
                Forged::Algorithm => invalid_token("Unsupported or missing signature algorithm"),
                Forged::Malformed => invalid_token("The ID Token provided is not a valid JWT."),
                Forged::Signature => invalid_token("Token signature invalid"),
            })?;
        check_lifetime(&claims, now.as_second())?;
        let aud = audience(&claims, &provider.client_ids)
            .ok_or_else(|| invalid_token("Incorrect token audience"))?;
        let sub = claims["sub"]
            .as_str()
            .filter(|sub| (1..=255).contains(&sub.len()))
            .ok_or_else(|| invalid_token("Missing a required claim: sub"))?;
        Ok(Subject {
            provider: provider_arn,
            sub: sub.to_owned(),
            aud,
        })
    }
}

fn check_lifetime(claims: &Value, now: i64) -> Result<(), Refusal> {
    let Some(exp) = claims["exp"].as_i64() else {
        return Err(invalid_token("Missing a required claim: exp"));
    };
    if claims["iat"].as_i64().is_none() {
        return Err(invalid_token("Missing a required claim: iat"));
    }
    if exp <= now {
        return Err(Refusal::new(
            400,
            "ExpiredTokenException",
            format!(
                "Token expired: current date/time {now} must be before the expiration date/time \
                 {exp}"
            ),
        ));
    }
    if claims["nbf"]
        .as_i64()
        .is_some_and(|nbf| nbf > now + LEEWAY_SECONDS)
    {
        return Err(invalid_token("The token is not valid yet"));
    }
    Ok(())
}

/// The token's audience that the provider knows.
fn audience(claims: &Value, client_ids: &[String]) -> Option<String> {
    let one = std::slice::from_ref(&claims["aud"]);
    let all = claims["aud"].as_array().map_or(one, Vec::as_slice);
    let known = |aud: &&str| client_ids.iter().any(|id| id == aud);
    all.iter()
        .filter_map(Value::as_str)
        .find(known)
        .map(str::to_owned)
}

fn trusts(role: &Role, subject: &Subject) -> bool {
    let host = subject
        .provider
        .split_once(":oidc-provider/")
        .map_or("", |(_, host)| host);
    let (of_sub, of_aud) = (format!("{host}:sub"), format!("{host}:aud"));
    let question = Question {
        action: "sts:AssumeRoleWithWebIdentity",
        resource: "",
        principal: &subject.provider,
        context: &[(&of_sub, &subject.sub), (&of_aud, &subject.aud)],
    };
    role.trust.decide(&question) == Decision::Allowed
}

fn success(session: &Session, subject: &Subject, request_id: &str) -> String {
    format!(
        r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult>
    <Audience>{aud}</Audience>
    <AssumedRoleUser>
      <AssumedRoleId>{role_id}:{name}</AssumedRoleId>
      <Arn>{arn}</Arn>
    </AssumedRoleUser>
    <Provider>{provider}</Provider>
    <Credentials>
      <AccessKeyId>{access_key}</AccessKeyId>
      <SecretAccessKey>{secret_key}</SecretAccessKey>
      <SessionToken>{token}</SessionToken>
      <Expiration>{expires}</Expiration>
    </Credentials>
    <SubjectFromWebIdentityToken>{sub}</SubjectFromWebIdentityToken>
  </AssumeRoleWithWebIdentityResult>
  <ResponseMetadata>
    <RequestId>{request_id}</RequestId>
  </ResponseMetadata>
</AssumeRoleWithWebIdentityResponse>
"#,
        aud = escaped(&subject.aud),
        role_id = session.role_id,
        name = session.name,
        arn = session.arn(),
        provider = escaped(&subject.provider),
        access_key = session.access_key,
        secret_key = session.secret_key,
        token = session.token,
        expires = session.expires().strftime("%Y-%m-%dT%H:%M:%SZ"),
        sub = escaped(&subject.sub),
    )
}

fn validation(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationError", message)
}

fn constraint(field: &str, needs: &str) -> Refusal {
    validation(format!(
        "1 validation error detected: Value at '{field}' failed to satisfy constraint: Member must \
         have {needs}"
    ))
}

/// The issuer does not publish the key, or does not answer: STS does not say which.
pub(super) fn no_key() -> Refusal {
    invalid_token(
        "Couldn't retrieve verification key from your identity provider,  please reference \
         AssumeRoleWithWebIdentity documentation for requirements",
    )
}

fn invalid_token(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidIdentityToken", message)
}

fn not_authorized() -> Refusal {
    Refusal::new(
        403,
        "AccessDenied",
        "Not authorized to perform sts:AssumeRoleWithWebIdentity",
    )
}
