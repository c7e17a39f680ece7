//! AWS' errors, as the contract names them. The texts say what to look at and name no role but the caller's own.

use crate::backend::{BackendError, Fault};
use crate::error::RequestError;
use crate::role::{Proof, Role};
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_secretsmanager::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use latchkey_client::protocol::Code;
use std::error::Error;
use std::time::Duration;

/// Codes that ask for fewer calls.
const THROTTLES: [&str; 5] = [
    "LimitExceededException",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
];

/// Codes of a signature or token whose time is wrong. A token is minutes old at most, so it is the clock.
const CLOCK: [&str; 5] = [
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidSignatureException",
    "RequestExpired",
    "SignatureDoesNotMatch",
];

/// An answer without what it must hold.
pub(super) fn garbage() -> BackendError {
    BackendError::new(
        Fault::Unreachable,
        RequestError::unavailable("AWS gave an answer that cannot be read; try again"),
    )
}

/// A failed `AssumeRoleWithWebIdentity` in `region` (AWS STS API Reference, "Errors").
pub(super) fn of_exchange<E>(
    error: &SdkError<E, HttpResponse>,
    role: &Role,
    region: &str,
) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let message = error.message().unwrap_or_default();
    let audience = match &role.proof {
        Proof::Token(audience) => audience,
        Proof::Machine | Proof::None => "",
    };
    let role = &role.name;
    classify(
        error,
        &format!("the AWS token service in {region}"),
        |code| {
            let text = match code {
                "AccessDenied" | "AccessDeniedException" => format!(
                    "AWS refused the role {role}: it does not exist, or its trust policy does not admit this \
                 service account (check its conditions on sub, and on aud, which is {audience})"
                ),
                // One code for much; STS says in words what it is.
                "InvalidIdentityToken" if message.contains("No OpenIDConnect provider") => format!(
                    "AWS does not know this cluster's issuer: the account of the role {role} has no OIDC provider \
                 for it"
                ),
                "InvalidIdentityToken" if message.contains("audience") => format!(
                    "AWS does not take the token's audience: the OIDC provider in the account of the role {role} \
                 does not list {audience} among its client ids"
                ),
                "InvalidIdentityToken" if message.contains("verification key") => format!(
                    "AWS cannot fetch the keys of this cluster's issuer, or they are others: it needs them for the \
                 role {role}"
                ),
                "InvalidIdentityToken" | "IDPRejectedClaim" => format!(
                    "AWS refused the service account's token for the role {role}: check the OIDC provider of the \
                 account (issuer, audience)"
                ),
                "MalformedPolicyDocument" | "PackedPolicyTooLarge" | "ValidationError" => format!(
                    "AWS refused the request for the role {role}: check its ARN, and that sessions.duration is not \
                 longer than the role's maximum"
                ),
                "RegionDisabledException" => format!(
                    "AWS refused the role {role}: its account has not activated the token service in this region"
                ),
                _ => return None,
            };
            Some((Fault::Refused, RequestError::new(Code::Denied, text)))
        },
    )
}

/// A failed `AssumeRole` with the machine's own credentials (AWS STS API Reference, "Errors").
pub(super) fn of_machine<E>(error: &SdkError<E, HttpResponse>, role: &Role) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let (role, region) = (&role.name, &role.place);
    let whose = format!("the AWS token service in {region}");
    classify(error, &whose, |code| {
        let text = match code {
            "AccessDenied" | "AccessDeniedException" => format!(
                "AWS refused the role {role} to this machine's credentials: it does not exist, its trust policy does not \
                 name them, or their own policy does not allow sts:AssumeRole on it"
            ),
            "ExpiredToken" | "ExpiredTokenException" | "InvalidClientTokenId" => {
                "AWS does not take this machine's credentials: renew them".to_owned()
            }
            "MalformedPolicyDocument" | "PackedPolicyTooLarge" | "ValidationError" => format!(
                "AWS refused the request for the role {role}: check its ARN, and that sessions.duration is not \
                 longer than the role's maximum, or than an hour if the machine's credentials are a role's"
            ),
            "RegionDisabledException" => format!(
                "AWS refused the role {role}: its account has not activated the token service in this region"
            ),
            _ => return None,
        };
        Some((Fault::Refused, RequestError::new(Code::Denied, text)))
    })
}

/// The machine has no credentials, or those that make them do not answer.
pub(super) fn no_credentials(cause: &(dyn Error + 'static)) -> BackendError {
    let error = RequestError::unavailable(
        "this machine has no AWS credentials now: sign in, or check AWS_PROFILE and credential_process",
    );
    BackendError::new(Fault::Call, error.because(cause))
}

/// A failed call to Secrets Manager in `region` (its API Reference, "Common Errors" and those of `GetSecretValue`).
pub(super) fn of_read<E>(
    error: &SdkError<E, HttpResponse>,
    role: &Role,
    region: &str,
) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let role = &role.name;
    classify(error, &format!("AWS Secrets Manager in {region}"), |code| {
        Some(match code {
            "AccessDeniedException" | "AccessDenied" => (
                Fault::Refused,
                RequestError::new(
                    Code::Denied,
                    format!(
                        "AWS refused this in {region} to the role {role}: check its policy, the secret's and the key's"
                    ),
                ),
            ),
            "DecryptionFailure" => (
                Fault::Call,
                RequestError::new(
                    Code::Denied,
                    format!(
                        "AWS could not decrypt the secret for the role {role}: check its KMS key"
                    ),
                ),
            ),
            "ResourceNotFoundException" => (
                Fault::Call,
                RequestError::new(
                    Code::NotFound,
                    format!("there is no such secret, version or stage in {region}"),
                ),
            ),
            "InvalidRequestException" => (
                Fault::Call,
                RequestError::new(
                    Code::NotFound,
                    "the secret is marked for deletion or has no value",
                ),
            ),
            "InvalidParameterException" | "ValidationException" | "InvalidNextTokenException" => (
                Fault::Call,
                RequestError::invalid("AWS does not take this name, version, stage or cursor"),
            ),
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId" => (
                Fault::SessionEnded,
                RequestError::unavailable("AWS ended the session before its time; try again"),
            ),
            _ => return None,
        })
    })
}

fn classify<E>(
    error: &SdkError<E, HttpResponse>,
    whose: &str,
    known: impl FnOnce(&str) -> Option<(Fault, RequestError)>,
) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let unreachable = |what: &str| {
        (
            Fault::Unreachable,
            RequestError::unavailable(format!("{whose} {what}; try again")),
        )
    };
    let (fault, answer) = match error {
        SdkError::ConstructionFailure(_) => {
            let text =
                format!("the agent's settings let no call to {whose} be made; its log says why");
            (Fault::Call, RequestError::unavailable(text))
        }
        SdkError::TimeoutError(_) => unreachable("does not answer in time"),
        SdkError::DispatchFailure(_) => unreachable("cannot be reached"),
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let code = service.err().code().unwrap_or_default();
            if THROTTLES.contains(&code) {
                let text = format!("{whose} asks to slow down; try again later");
                let answer = RequestError::new(Code::Throttled, text);
                (Fault::Call, answer.retry_after(retry_after(service.raw())))
            } else if let Some(answer) = known(code) {
                answer
            } else if CLOCK.contains(&code) {
                let text = format!("{whose} refused what is out of date: check the node's clock");
                (Fault::Call, RequestError::unavailable(text))
            } else if status >= 500 {
                unreachable("has trouble of its own")
            } else if code.is_empty() {
                // A proxy's page, or half an answer: nobody who is AWS has spoken.
                unreachable("gave an answer that cannot be read")
            } else {
                // It is there and says no in a way of its own: what one pod asks must not take a region from the others.
                let text = format!("{whose} gave an unexpected answer; try again");
                (Fault::Call, RequestError::unavailable(text))
            }
        }
        _ => unreachable("gave an answer that cannot be read"),
    };
    let cloud_request_id = error.request_id().map(Into::into);
    BackendError {
        error: answer.because(error),
        fault,
        cloud_request_id,
    }
}

/// The seconds that the cloud asks to wait; a date is not worth parsing here.
fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let seconds = response.headers().get("retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
