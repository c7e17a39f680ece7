//! AWS's errors, with the contract's codes. The messages say what to check, and name no role but the caller's own.

use crate::backend::{BackendError, Fault};
use crate::error::RequestError;
use crate::role::{MACHINE, Proof, Role};
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_secretsmanager::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use latchkey_client::protocol::Code;
use latchkey_client::protocol::words::{CANNOT_FETCH_KEYS, NO_SUCH_SECRET_IN, NOT_AT_STAGE_IN};
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

/// Codes of a signature or token whose time is wrong. A token is minutes old at most, so it is the clock that is wrong.
const CLOCK: [&str; 5] = [
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidSignatureException",
    "RequestExpired",
    "SignatureDoesNotMatch",
];

/// What is said where the machine's own credentials have been deleted, or have expired.
const MACHINE_UNKNOWN: &str = "AWS does not take this machine's credentials: renew them";

/// The error for an answer that lacks what it must contain.
pub(super) fn garbage() -> BackendError {
    BackendError::garbage("AWS")
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
    let is_own = *role.place == *region;
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
                // One code for several causes; only STS's message tells which.
                "InvalidIdentityToken" if message.contains("No OpenIDConnect provider") => format!(
                    "AWS does not know this cluster's issuer: the account of the role {role} has no OIDC provider \
                 for it"
                ),
                "InvalidIdentityToken" if message.contains("audience") => format!(
                    "AWS does not take the token's audience: the OIDC provider in the account of the role {role} \
                 does not list {audience} among its client ids"
                ),
                // It may be temporary, so the role's session and values are kept: AWS's own SDKs retry too.
                _ if code == "IDPCommunicationError" || message.contains("verification key") => {
                    let text = format!(
                        "AWS {CANNOT_FETCH_KEYS} this cluster's issuer, or they are others: it needs them for \
                         the role {role}"
                    );
                    return Some(RequestError::unavailable(text).into());
                }
                "InvalidIdentityToken" | "IDPRejectedClaim" => format!(
                    "AWS refused the service account's token for the role {role}: check the OIDC provider of the \
                 account (issuer, audience)"
                ),
                "MalformedPolicyDocument" | "PackedPolicyTooLarge" | "ValidationError" => format!(
                    "AWS refused the request for the role {role}: check its ARN, and that sessions.duration is not \
                 longer than the role's maximum"
                ),
                // In a fallback region this denies nothing.
                "RegionDisabledException" if is_own => return Some(switched_off(role)),
                _ => return None,
            };
            Some(BackendError::refused(text))
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
                MACHINE_UNKNOWN.to_owned()
            }
            "MalformedPolicyDocument" | "PackedPolicyTooLarge" | "ValidationError" => format!(
                "AWS refused the request for the role {role}: check its ARN, and that sessions.duration is not \
                 longer than the role's maximum, or than an hour if the machine's credentials are a role's"
            ),
            "RegionDisabledException" => return Some(switched_off(role)),
            _ => return None,
        };
        Some(BackendError::refused(text))
    })
}

/// The account has no token service in the region. That applies to every role, so this one's session is kept.
fn switched_off(role: &str) -> BackendError {
    let text = format!(
        "AWS refused the role {role}: its account has not activated the token service in this region"
    );
    RequestError::new(Code::Denied, text).into()
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
    let is_own = *role.place == *region;
    let role = &role.name;
    classify(error, &format!("AWS Secrets Manager in {region}"), |code| {
        Some(match code {
            "AccessDeniedException" | "AccessDenied" => BackendError::refused(format!(
                "AWS refused this in {region} to the role {role}: check its policy, the secret's and the key's"
            )),
            "DecryptionFailure" => {
                let text = format!(
                    "AWS could not decrypt the secret in {region} for the role {role}: check its KMS key"
                );
                RequestError::new(Code::Denied, text).into()
            }
            "ResourceNotFoundException" => {
                let text = format!("{NO_SUCH_SECRET_IN}{region}");
                RequestError::new(Code::NotFound, text).into()
            }
            "InvalidRequestException" => {
                let text = format!(
                    "the secret is marked for deletion, has no value, or {NOT_AT_STAGE_IN}{region}"
                );
                RequestError::new(Code::NotFound, text).into()
            }
            "InvalidParameterException" | "ValidationException" | "InvalidNextTokenException" => {
                let text = "AWS does not take this name, version, stage or cursor";
                RequestError::invalid(text).into()
            }
            // No session of ours. They may have been renewed since they were looked up, which the next try finds out.
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
                if is_own && **role == *MACHINE =>
            {
                let told = RequestError::new(Code::Denied, MACHINE_UNKNOWN);
                BackendError::new(Fault::SessionEnded, told)
            }
            // A region that the account has not enabled knows none of its sessions, even if they are valid elsewhere.
            "UnrecognizedClientException" | "InvalidClientTokenId" if !is_own => {
                let text = format!(
                    "AWS in {region} does not know the session of the role {role}: enable that region in its account"
                );
                RequestError::unavailable(text).into()
            }
            "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId" => {
                let text = "AWS ended the session before its time; try again";
                BackendError::new(Fault::SessionEnded, RequestError::unavailable(text))
            }
            _ => return None,
        })
    })
}

fn classify<E>(
    error: &SdkError<E, HttpResponse>,
    whose: &str,
    known: impl FnOnce(&str) -> Option<BackendError>,
) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let failed = match error {
        SdkError::ConstructionFailure(_) => {
            let text =
                format!("the agent's settings let no call to {whose} be made; its log says why");
            BackendError::from(RequestError::unavailable(text)).because(error)
        }
        // The SDK's own timer and that of the wire end together.
        SdkError::TimeoutError(_) => BackendError::late(whose).because(error),
        SdkError::DispatchFailure(failed) if failed.is_timeout() => {
            BackendError::late(whose).because(error)
        }
        // It is too long: a list of what this pod may list, perhaps.
        SdkError::DispatchFailure(failed) if failed.is_other() => {
            BackendError::unexpected(whose).because(error)
        }
        SdkError::DispatchFailure(_) => BackendError::unreachable(whose).because(error),
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let code = service.err().code().unwrap_or_default();
            let failed = if THROTTLES.contains(&code) || status == 429 {
                BackendError::throttled(whose, retry_after(service.raw()))
            } else if let Some(failed) = known(code) {
                failed
            } else if CLOCK.contains(&code) {
                let text = format!(
                    "{whose} refused what is out of date or was changed on its way: check the node's clock, and proxies \
                     that change requests"
                );
                BackendError::from(RequestError::unavailable(text))
            } else if status >= 500 {
                BackendError::troubled(whose)
            } else if code.is_empty() {
                // A proxy's page, or half an answer, but nothing from AWS.
                BackendError::garbage(whose)
            } else {
                BackendError::unexpected(whose)
            };
            if code.is_empty() {
                failed.because(error)
            } else {
                let message = service.err().message().unwrap_or_default();
                failed.in_words(Some(&format!("{code}: {message}")))
            }
        }
        _ => BackendError::garbage(whose).because(error),
    };
    BackendError {
        cloud_request_id: error.request_id().map(Into::into),
        ..failed
    }
}

/// Returns how long the cloud asks to wait, in seconds; a date is not worth parsing here.
fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let seconds = response.headers().get("retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_secretsmanager::error::ErrorMetadata;
    use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
    use aws_smithy_runtime_api::client::result::ConnectorError;

    fn failed(code: &str) -> SdkError<GetSecretValueError, HttpResponse> {
        let said = ErrorMetadata::builder().code(code).message("its words");
        answered(400, said.build())
    }

    fn answered(status: u16, said: ErrorMetadata) -> SdkError<GetSecretValueError, HttpResponse> {
        let answer = HttpResponse::new(status.try_into().expect("a status"), "".into());
        SdkError::service_error(GetSecretValueError::generic(said), answer)
    }

    #[test]
    fn an_answer_that_is_too_long_does_not_make_its_region_count_as_away() {
        let too_long = ConnectorError::other("the answer is longer than 5 bytes".into(), None);
        let failed: SdkError<GetSecretValueError, HttpResponse> =
            SdkError::dispatch_failure(too_long);
        let failed = of_read(&failed, &role(), "eu-central-1");
        assert_eq!(
            (failed.error.code, failed.fault),
            (Code::Unavailable, Fault::Call)
        );
    }

    #[test]
    fn a_hang_is_told_as_one_whichever_timer_ends_first() {
        let why = || "no answer".into();
        for (failed, told) in [
            (
                SdkError::timeout_error("no answer"),
                "does not answer in time",
            ),
            (
                SdkError::dispatch_failure(ConnectorError::timeout(why())),
                "does not answer in time",
            ),
            (
                SdkError::dispatch_failure(ConnectorError::io(why())),
                "cannot be reached",
            ),
        ] {
            let failed: SdkError<GetSecretValueError, HttpResponse> = failed;
            let failed = of_read(&failed, &role(), "eu-central-1");
            assert!(failed.error.message.contains(told), "{}", failed.error);
        }
    }

    #[test]
    fn a_429_without_a_code_of_awss_throttles_and_is_no_outage() {
        let failed = answered(429, ErrorMetadata::builder().build());
        let failed = of_read(&failed, &role(), "eu-central-1");
        assert_eq!(failed.error.code, Code::Throttled);
        assert_ne!(failed.fault, Fault::Unreachable);
    }

    fn role() -> Role {
        Role {
            name: "arn:aws:iam::111122223333:role/test-app".into(),
            proof: Proof::Token("sts.amazonaws.com".into()),
            prefix: "".into(),
            place: "eu-central-1".into(),
            via: None,
        }
    }

    #[test]
    fn a_region_that_may_know_no_session_of_the_account_ends_none() {
        for (code, region, fault) in [
            ("ExpiredTokenException", "eu-central-1", Fault::SessionEnded),
            ("ExpiredTokenException", "af-south-1", Fault::SessionEnded),
            (
                "UnrecognizedClientException",
                "eu-central-1",
                Fault::SessionEnded,
            ),
            ("UnrecognizedClientException", "af-south-1", Fault::Call),
            ("InvalidClientTokenId", "af-south-1", Fault::Call),
        ] {
            let failed = of_read(&failed(code), &role(), region);
            assert_eq!(
                (failed.error.code, failed.fault),
                (Code::Unavailable, fault),
                "{code} {region}"
            );
            let named = failed.error.message.contains(region);
            assert_eq!(named, fault == Fault::Call, "{}", failed.error);
        }
    }

    #[test]
    fn a_machines_own_credentials_are_refused_and_looked_up_again() {
        let machine = Role {
            name: MACHINE.into(),
            proof: Proof::Machine,
            ..role()
        };
        for code in ["UnrecognizedClientException", "ExpiredTokenException"] {
            let failed = of_read(&failed(code), &machine, "eu-central-1");
            let got = (failed.error.code, failed.fault);
            assert_eq!(got, (Code::Denied, Fault::SessionEnded), "{code}");
            assert_eq!(failed.error.message, MACHINE_UNKNOWN, "{code}");
        }
    }

    #[test]
    fn an_issuer_that_aws_does_not_reach_is_named() {
        let failed = of_exchange(&failed("IDPCommunicationError"), &role(), "eu-central-1");
        assert_eq!(
            (failed.error.code, failed.fault),
            (Code::Unavailable, Fault::Call)
        );
        assert!(failed.error.message.contains("issuer"), "{}", failed.error);
    }

    #[test]
    fn a_token_service_that_is_switched_off_in_a_region_says_nothing_of_the_role() {
        let error = failed("RegionDisabledException");
        let role = role();
        for (failed, code) in [
            (of_exchange(&error, &role, "eu-central-1"), Code::Denied),
            (of_exchange(&error, &role, "af-south-1"), Code::Unavailable),
            (of_machine(&error, &role), Code::Denied),
        ] {
            assert_eq!((failed.error.code, failed.fault), (code, Fault::Call));
        }
    }

    #[test]
    fn a_version_and_a_stage_that_do_not_belong_together_are_among_the_causes() {
        let failed = of_read(&failed("InvalidRequestException"), &role(), "eu-central-1");
        assert_eq!(failed.error.code, Code::NotFound);
        assert!(failed.error.message.contains("stage"), "{}", failed.error);
    }
}
