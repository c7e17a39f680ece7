//! Secrets Manager's protocol and `GetSecretValue`, in JSON 1.1 (Secrets Manager API reference, 2017-10-17).
//!
//! Every request is authenticated (signature, session token, expiry), then its parameters are checked, then the role's
//! policy on the secret's ARN, and only then is the secret looked up.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::request::Parts;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::State;
use super::call::{Call, Operation};
use super::fault::{Behaviour, Special};
use super::iam::Session;
use super::listing::ListSecrets;
use super::policy::{Decision, Question};
use super::reply::{self, Refusal};
use super::secret::{Secret, SecretInput, Store, Version, arn_without_suffix, partition_of};
use super::sigv4::Authorization;
use crate::fake::{OTHER, Reply};

/// The prefix of all the service's targets.
pub(super) const TARGET: &str = "secretsmanager.";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct GetSecretValue {
    #[serde(default)]
    secret_id: String,
    version_id: Option<String>,
    version_stage: Option<String>,
}

/// What `SecretId` names.
#[derive(Debug)]
enum SecretId<'a> {
    Arn {
        arn: &'a str,
        region: &'a str,
        account: &'a str,
        name: &'a str,
    },
    Name(&'a str),
}

/// Records the request, whether or not it is accepted, so that faults can match it and the log can show it.
pub(super) fn describe(parts: &Parts, body: &[u8], state: &State, call: &mut Call) {
    let target = parts
        .headers
        .get("x-amz-target")
        .and_then(|target| target.to_str().ok());
    call.operation = match target.and_then(|target| target.strip_prefix(TARGET)) {
        Some("GetSecretValue") => Operation::GetSecretValue,
        Some("ListSecrets") => Operation::ListSecrets,
        _ => Operation::Unknown,
    };
    if let Ok(authorization) = Authorization::of(parts) {
        call.region = Some(authorization.region.to_owned());
        call.access_key = Some(authorization.access_key.to_owned());
        if let Some(session) = state.iam.read().session(authorization.access_key) {
            call.role = Some(session.role.clone());
            call.session_name = Some(session.name.clone());
        }
    }
    if call.operation == Operation::GetSecretValue
        && let Ok(asked) = serde_json::from_slice::<GetSecretValue>(body)
    {
        call.secret = Some(asked.secret_id);
        call.version_id = asked.version_id;
        call.version_stage = asked.version_stage;
    }
}

/// Authenticates the request and answers it; `fault` may replace a value.
pub(super) fn answer(
    state: &State,
    parts: &Parts,
    body: &[u8],
    now: Timestamp,
    operation: Operation,
    fault: Option<&Behaviour>,
) -> Result<Reply, Refusal> {
    if operation == Operation::Unknown || parts.uri.path() != "/" || parts.uri.query().is_some() {
        return Err(Refusal::new(400, "UnknownOperationException", ""));
    }
    let (session, region) = authenticate(state, parts, body, now, "secretsmanager")?;
    match operation {
        Operation::GetSecretValue => {
            parse::<GetSecretValue>(body)?.answer(state, &session, region, fault)
        }
        _ => parse::<ListSecrets>(body)?.answer(state, &session, region),
    }
}

/// The session whose signature for `service` the request has, and the region of that signature.
pub(super) fn authenticate<'a>(
    state: &State,
    parts: &'a Parts,
    body: &[u8],
    now: Timestamp,
    service: &str,
) -> Result<(Arc<Session>, &'a str), Refusal> {
    let unrecognized = || {
        Refusal::new(
            400,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        )
    };
    let invalid = |text: String| Refusal::new(400, "InvalidSignatureException", text);
    let authorization = Authorization::of(parts)?;
    let region = authorization.region;
    if !state.knows_region(region) {
        return Err(invalid(
            "Credential should be scoped to a valid region.".to_owned(),
        ));
    }
    if authorization.service != service {
        return Err(invalid(format!(
            "Credential should be scoped to correct service: '{service}'."
        )));
    }
    let iam = state.iam.read();
    let session = iam
        .session(authorization.access_key)
        .ok_or_else(unrecognized)?;
    let token = parts.headers.get("x-amz-security-token");
    if token.is_none_or(|token| token.as_bytes() != session.token.as_bytes())
        || session.partition != partition_of(region)
        || iam
            .role(&session.role)
            .is_none_or(|role| role.id != session.role_id)
    {
        return Err(unrecognized());
    }
    if !session.is_live(now) {
        return Err(Refusal::new(
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ));
    }
    let session = Arc::clone(session);
    drop(iam);
    authorization.verify(&session.secret_key, parts, body, now)?;
    Ok((session, region))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, "SerializationException", error.to_string()))
}

impl GetSecretValue {
    fn answer(
        &self,
        state: &State,
        session: &Session,
        region: &str,
        fault: Option<&Behaviour>,
    ) -> Result<Reply, Refusal> {
        let id = SecretId::parse(&self.secret_id)?;
        if self
            .version_id
            .as_ref()
            .is_some_and(|id| !(32..=64).contains(&id.len()))
        {
            return Err(constraint("versionId", "length between 32 and 64"));
        }
        if self
            .version_stage
            .as_ref()
            .is_some_and(|stage| !(1..=256).contains(&stage.len()))
        {
            return Err(constraint("versionStage", "length between 1 and 256"));
        }
        let store = state.store.read();
        let secret = id.find(&store, &session.account, region);
        let resource = secret.map_or_else(
            || id.unresolved_arn(&session.account, region),
            |found| found.arn.clone(),
        );

        let mut context = vec![
            ("aws:RequestedRegion", region),
            ("secretsmanager:SecretId", &self.secret_id),
        ];
        if let Some(stage) = &self.version_stage {
            context.push(("secretsmanager:VersionStage", stage));
        }
        let why = Some(self.secret_id.as_str());
        authorize(
            state,
            session,
            "secretsmanager:GetSecretValue",
            &resource,
            why,
            &context,
        )?;
        if let SecretId::Arn { account, .. } = id
            && account != session.account
        {
            // A secret of another account also needs a resource policy, and this fake's secrets have none.
            return Err(denied(
                session,
                "secretsmanager:GetSecretValue",
                why,
                "resource-based",
            ));
        }

        let secret = secret.ok_or_else(|| {
            not_found("Secrets Manager can't find the specified secret.".to_owned())
        })?;
        if secret.marked_for_deletion.is_some() {
            return Err(Refusal::new(
                400,
                "InvalidRequestException",
                "You can't perform this operation on the secret because it was marked for deletion.",
            ));
        }
        let version = self.version_of(secret)?;
        match fault {
            Some(Behaviour::Special(Special::KmsDenied)) => Err(Refusal::new(
                400,
                "AccessDeniedException",
                "Access to KMS is not allowed",
            )),
            Some(Behaviour::Special(Special::DecryptionFailure)) => Err(Refusal::new(
                400,
                "DecryptionFailure",
                "Secrets Manager can't decrypt the protected secret text using the provided KMS key.",
            )),
            Some(Behaviour::Misdirect) => {
                let mut answer = value_json(secret, version);
                answer["ARN"] = secret.arn.replace(&secret.name, OTHER).into();
                answer["Name"] = OTHER.into();
                Ok(reply::json(200, &answer))
            }
            _ => Ok(reply::json(200, &value_json(secret, version))),
        }
    }

    fn version_of<'a>(&self, secret: &'a Secret) -> Result<&'a Version, Refusal> {
        let by_stage = |stage: &str| {
            secret.version_at(stage).ok_or_else(|| {
                not_found(format!(
                    "Secrets Manager can't find the specified secret value for staging label: \
                     {stage}"
                ))
            })
        };
        let Some(id) = &self.version_id else {
            return by_stage(self.version_stage.as_deref().unwrap_or("AWSCURRENT"));
        };
        let version = secret.version(id).ok_or_else(|| {
            not_found(format!(
                "Secrets Manager can't find the specified secret value for VersionId: {id}"
            ))
        })?;
        if self
            .version_stage
            .as_ref()
            .is_some_and(|stage| !version.stages.contains(stage))
        {
            return Err(Refusal::new(
                400,
                "InvalidRequestException",
                "You provided a VersionStage that is not associated to the provided VersionId.",
            ));
        }
        Ok(version)
    }
}

impl<'a> SecretId<'a> {
    fn parse(id: &'a str) -> Result<Self, Refusal> {
        if !(1..=2048).contains(&id.len()) {
            return Err(constraint("secretId", "length between 1 and 2048"));
        }
        if !id.starts_with("arn:") {
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_+=.@!".contains(&byte);
            return if id.bytes().all(valid) && id.len() <= 512 {
                Ok(Self::Name(id))
            } else {
                Err(Refusal::new(
                    400,
                    "ValidationException",
                    "Invalid name. Must be a valid name containing alphanumeric characters, or any \
                     of the following: -/_+=.@!",
                ))
            };
        }
        let parts: Vec<&str> = id.splitn(7, ':').collect();
        match parts.as_slice() {
            &["arn", _, "secretsmanager", region, account, "secret", name] if !name.is_empty() => {
                Ok(Self::Arn {
                    arn: id,
                    region,
                    account,
                    name,
                })
            }
            _ => Err(Refusal::new(400, "ValidationException", "Invalid ARN")),
        }
    }

    /// Finds the secret, by name, by its whole ARN, or by its ARN without the six characters at the end.
    fn find<'s>(&self, store: &'s Store, account: &str, region: &str) -> Option<&'s Secret> {
        match *self {
            Self::Name(name) => store.shelf(account, region)?.get(name),
            Self::Arn { region: other, .. } if other != region => None,
            Self::Arn {
                arn, account, name, ..
            } => {
                let shelf = store.shelf(account, region)?;
                let whole = name
                    .len()
                    .checked_sub(7)
                    .and_then(|end| shelf.get(name.get(..end)?));
                whole
                    .filter(|secret| secret.arn == arn)
                    .or_else(|| shelf.get(name))
            }
        }
    }

    /// The ARN by which a secret that does not exist is judged: AWS cannot know its suffix, so a policy that spells it
    /// out with `-??????` denies where one with `*` gives `ResourceNotFoundException`.
    fn unresolved_arn(&self, account: &str, region: &str) -> String {
        match *self {
            Self::Name(name) => arn_without_suffix(account, region, name),
            Self::Arn { arn, .. } => arn.to_owned(),
        }
    }
}

pub(super) fn authorize(
    state: &State,
    session: &Session,
    action: &str,
    resource: &str,
    asked_for: Option<&str>,
    context: &[(&str, &str)],
) -> Result<(), Refusal> {
    let iam = state.iam.read();
    let decision = match iam.role(&session.role) {
        Some(role)
            if role
                .revoked_until
                .is_some_and(|until| session.issued <= until) =>
        {
            Decision::ExplicitlyDenied
        }
        Some(role) => role.policy.decide(&Question {
            action,
            resource,
            principal: "",
            context,
        }),
        None => Decision::NotAllowed,
    };
    match decision {
        Decision::Allowed => Ok(()),
        Decision::NotAllowed => Err(denied(session, action, asked_for, "identity-based")),
        Decision::ExplicitlyDenied => Err(Refusal::new(
            400,
            "AccessDeniedException",
            format!(
                "{} with an explicit deny in an identity-based policy",
                not_authorized(session, action, asked_for)
            ),
        )),
    }
}

fn denied(session: &Session, action: &str, resource: Option<&str>, policy: &str) -> Refusal {
    Refusal::new(
        400,
        "AccessDeniedException",
        format!(
            "{} because no {policy} policy allows the {action} action",
            not_authorized(session, action, resource)
        ),
    )
}

fn not_authorized(session: &Session, action: &str, resource: Option<&str>) -> String {
    let on = resource
        .map(|resource| format!(" on resource: {resource}"))
        .unwrap_or_default();
    format!(
        "User: {} is not authorized to perform: {action}{on}",
        session.arn()
    )
}

fn not_found(message: String) -> Refusal {
    Refusal::new(400, "ResourceNotFoundException", message)
}

pub(super) fn constraint(field: &str, needs: &str) -> Refusal {
    Refusal::new(
        400,
        "ValidationException",
        format!(
            "1 validation error detected: Value at '{field}' failed to satisfy constraint: Member \
             must have {needs}"
        ),
    )
}

fn value_json(secret: &Secret, version: &Version) -> Value {
    let (member, value) = match &version.value {
        SecretInput::Binary(bytes) => ("SecretBinary", BASE64.encode(bytes)),
        SecretInput::Text(text) => ("SecretString", text.clone()),
    };
    let mut answer = json!({
        "ARN": secret.arn,
        "CreatedDate": seconds(version.created),
        "Name": secret.name,
        member: value,
        "VersionId": version.id,
    });
    // For a version without a stage, which AWS calls deprecated, the answer omits the member.
    if !version.stages.is_empty() {
        answer["VersionStages"] = json!(version.stages);
    }
    answer
}

/// A time as JSON 1.1 writes it: seconds with three decimals.
pub(super) fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}
