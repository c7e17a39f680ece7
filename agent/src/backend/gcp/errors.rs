//! Google Cloud's errors, with the contract's codes. The messages say what to check, and name no role but the caller's
//! own.

use crate::backend::wire::{Answer, WireError};
use crate::backend::{BackendError, Fault};
use crate::error::RequestError;
use crate::role::{MACHINE, Proof, Role};
use google_cloud_gax::error::Error;
use google_cloud_gax::error::rpc::{Code as Status, StatusDetails};
use hyper::header::{HeaderMap, RETRY_AFTER};
use latchkey_client::protocol::Code;
use latchkey_client::protocol::words::CANNOT_FETCH_KEYS;
use serde::Deserialize;
use std::time::Duration;

pub(super) const TOKEN_SERVICE: &str = "the Google token service";
pub(super) const IAM: &str = "Google's IAM credentials service";
pub(super) const STORE: &str = "Google Cloud Secret Manager";

/// The token service's message if it gets no answer from the cluster's issuer.
const ISSUER_SILENT: &str = "Error connecting to the given credential's issuer";

/// A refusal of the Security Token Service (RFC 6749, 5.2; RFC 8693, 2.2.2).
#[derive(Deserialize)]
struct OAuthError {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

/// A refusal of a Google API (AIP-193).
#[derive(Default, Deserialize)]
struct ApiError {
    error: ApiStatus,
}

#[derive(Default, Deserialize)]
struct ApiStatus {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
}

/// A call of ours that got no answer.
pub(super) fn of_transport(error: &reqwest::Error, whose: &str) -> BackendError {
    let failed = if error.is_timeout() && !error.is_connect() {
        BackendError::late(whose)
    } else {
        BackendError::unreachable(whose)
    };
    failed.because(error)
}

/// The token service's refusal of the subject token.
pub(super) fn of_token_service(answer: &Answer, role: &Role) -> BackendError {
    let refusal = serde_json::from_slice(answer.body()).unwrap_or_else(|_| {
        // What comes before the service, such as the check that its API is enabled, answers as Google's other APIs do.
        let ApiError { error } = serde_json::from_slice(answer.body()).unwrap_or_default();
        OAuthError {
            error: error.status,
            error_description: error.message,
        }
    });
    let role = &role.name;
    let words = format!("{}: {}", refusal.error, refusal.error_description);
    // It may be temporary, so the role's session and values are kept.
    if refusal.error_description.starts_with(ISSUER_SILENT) {
        let text = format!(
            "Google {CANNOT_FETCH_KEYS} this cluster's issuer, which it needs for {role}: they must be on the \
             public Internet, or with the provider"
        );
        let failed = BackendError::from(RequestError::unavailable(text));
        return failed.in_words(Some(&words));
    }
    let refused = match &*refusal.error {
        "invalid_grant" => Some(format!(
            "Google refused the service account's token for {role}: check the provider's issuer, keys and allowed \
             audiences, and the node's clock"
        )),
        "invalid_target" => Some(format!(
            "Google knows no identity provider for {role}: check the backend's provider, and that neither it nor its \
             pool is disabled or deleted"
        )),
        "unauthorized_client" => Some(format!(
            "Google refused the service account's token for {role}: the provider's attribute condition does not \
             admit it"
        )),
        "PERMISSION_DENIED" => Some(format!(
            "Google refused the service account's token for {role}: the Security Token Service API must be on, and no \
             perimeter in the way"
        )),
        _ => None,
    };
    classify(answer, TOKEN_SERVICE, refused, &refusal.error, &words)
}

/// The refusal of a service account's token to the principal that asked for it.
pub(super) fn of_impersonation(answer: &Answer, role: &Role) -> BackendError {
    let refusal: ApiError = serde_json::from_slice(answer.body()).unwrap_or_default();
    let by_machine = role.proof == Proof::Machine;
    let role = &role.name;
    let refused = match &*refusal.error.status {
        "PERMISSION_DENIED" | "NOT_FOUND" if by_machine => Some(format!(
            "Google refused the service account {role}: it does not exist, or does not admit this machine's \
             credentials (they need roles/iam.serviceAccountTokenCreator on it), and the IAM Service Account \
             Credentials API must be on"
        )),
        "UNAUTHENTICATED" if by_machine => {
            Some("Google does not take this machine's credentials: renew them".to_owned())
        }
        "PERMISSION_DENIED" | "NOT_FOUND" => Some(format!(
            "Google refused the service account {role}: it does not exist, or does not admit this workload (it needs \
             roles/iam.workloadIdentityUser on it; with delegates, each roles/iam.serviceAccountTokenCreator on the \
             next), and the IAM Service Account Credentials API must be on"
        )),
        "INVALID_ARGUMENT" | "FAILED_PRECONDITION" => Some(format!(
            "Google refused the service account {role}: check its email address and its delegates, and that it is \
             not disabled"
        )),
        _ => None,
    };
    let words = format!("{}: {}", refusal.error.status, refusal.error.message);
    classify(answer, IAM, refused, &refusal.error.status, &words)
}

/// A failed call to Secret Manager.
pub(super) fn of_read(error: &Error, role: &Role) -> BackendError {
    let role = match &*role.name {
        MACHINE => "this machine's credentials",
        name => name,
    };
    let http = error.http_status_code().unwrap_or_default();
    let code = error.status().map(|status| status.code);
    let call = |code, text: &'static str| BackendError::from(RequestError::new(code, text));
    let failed = match code {
        Some(Status::PermissionDenied) => BackendError::refused(format!(
            "Google refused this to {role}: it needs roles/secretmanager.secretAccessor on the secret (check \
             the binding's condition too), and the Secret Manager API must be on"
        )),
        Some(Status::NotFound) => call(
            Code::NotFound,
            "there is no such secret or version in the project",
        ),
        Some(Status::FailedPrecondition) => call(
            Code::NotFound,
            "the secret's version is disabled or destroyed, or its key is",
        ),
        Some(Status::InvalidArgument | Status::OutOfRange) => call(
            Code::InvalidRequest,
            "Google Cloud does not take this name, version or cursor",
        ),
        Some(Status::ResourceExhausted) => BackendError::throttled(STORE, wait_of(error)),
        Some(Status::Unauthenticated) => session_ended(),
        Some(
            Status::Unavailable
            | Status::Internal
            | Status::DeadlineExceeded
            | Status::Aborted
            | Status::DataLoss,
        ) => BackendError::troubled(STORE),
        // A status that is none of these, or not Google's, says less than the HTTP status.
        _ if http == 401 => session_ended(),
        _ if http == 429 => BackendError::throttled(STORE, wait_of(error)),
        _ if http >= 500 => BackendError::troubled(STORE),
        Some(_) => BackendError::unexpected(STORE),
        None if error.is_timeout() => BackendError::late(STORE),
        None if error.is_connect() || error.is_io() => BackendError::unreachable(STORE),
        None => BackendError::garbage(STORE),
    };
    // An answer that could not be parsed may contain a value, so the parser's error is not repeated; one that was too
    // long was not parsed.
    let too_long = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    let cause = match (error.status(), http) {
        (Some(status), _) => Some(format!("{}: {}", status.code.name(), status.message)),
        (None, 0) if !error.is_deserialization() => return failed.because(error),
        (None, 0) => too_long.map(WireError::to_string),
        (None, http) => Some(format!("HTTP {http}")),
    };
    failed.in_words(cause.as_deref())
}

fn classify(
    answer: &Answer,
    whose: &str,
    refused: Option<String>,
    code: &str,
    words: &str,
) -> BackendError {
    let status = answer.status().as_u16();
    let failed = if status == 429 || code == "RESOURCE_EXHAUSTED" {
        BackendError::throttled(whose, retry_after(answer.headers()))
    } else if status >= 500 {
        BackendError::troubled(whose)
    } else if let Some(refused) = refused {
        BackendError::refused(refused)
    } else if code.is_empty() {
        // A proxy's page, or half an answer, but nothing from Google.
        BackendError::garbage(whose)
    } else {
        BackendError::unexpected(whose)
    };
    let words = (!code.is_empty()).then_some(words);
    failed.in_words(words)
}

fn session_ended() -> BackendError {
    let text = "Google ended the session before its time; try again";
    BackendError::new(Fault::SessionEnded, RequestError::unavailable(text))
}

/// Returns how long an answer's headers ask to wait, in seconds; a date is not worth parsing here.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Returns how long Google asks to wait: from the answer's headers, otherwise from its details, in seconds, rounded up.
fn wait_of(error: &Error) -> Option<Duration> {
    let in_head = error.http_headers().and_then(retry_after);
    in_head.or_else(|| {
        error
            .status()?
            .details
            .iter()
            .find_map(|detail| match detail {
                StatusDetails::RetryInfo(info) => {
                    let delay = info.retry_delay?;
                    let seconds = u64::try_from(delay.seconds()).ok()?;
                    Some(Duration::from_secs(seconds + u64::from(delay.nanos() > 0)))
                }
                _ => None,
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_gax::error::rpc::Status as RpcStatus;

    fn role() -> Role {
        Role {
            name: "test-app@acme.iam.gserviceaccount.com".into(),
            proof: Proof::Token("acme.svc.id.goog".into()),
            prefix: "".into(),
            place: "acme".into(),
            via: None,
        }
    }

    fn read(status: Status) -> BackendError {
        let status = RpcStatus::default()
            .set_code(status)
            .set_message("its words");
        of_read(&Error::service(status), &role())
    }

    fn answer(status: u16, body: &str) -> Answer {
        let answer = Answer::new(body.as_bytes().to_vec().into());
        let (mut head, body) = answer.into_parts();
        head.status = status.try_into().expect("a status");
        Answer::from_parts(head, body)
    }

    #[test]
    fn each_status_of_the_vault_has_its_code_and_its_consequence() {
        for (status, code, fault) in [
            (Status::PermissionDenied, Code::Denied, Fault::Refused),
            (Status::NotFound, Code::NotFound, Fault::Call),
            (Status::FailedPrecondition, Code::NotFound, Fault::Call),
            (Status::InvalidArgument, Code::InvalidRequest, Fault::Call),
            (Status::ResourceExhausted, Code::Throttled, Fault::Call),
            (
                Status::Unauthenticated,
                Code::Unavailable,
                Fault::SessionEnded,
            ),
            (Status::Unavailable, Code::Unavailable, Fault::Unreachable),
            (Status::Internal, Code::Unavailable, Fault::Unreachable),
            (Status::Unimplemented, Code::Unavailable, Fault::Call),
        ] {
            let failed = read(status);
            assert_eq!(
                (failed.error.code, failed.fault),
                (code, fault),
                "{status:?}"
            );
            assert!(
                failed
                    .error
                    .cause
                    .is_some_and(|cause| cause.contains("its words"))
            );
        }
    }

    #[test]
    fn where_an_answer_has_no_status_that_of_http_counts() {
        for (http, code, fault) in [
            (401, Code::Unavailable, Fault::SessionEnded),
            (418, Code::Unavailable, Fault::Call),
            (429, Code::Throttled, Fault::Call),
            (503, Code::Unavailable, Fault::Unreachable),
        ] {
            let status = RpcStatus::default().set_code(Status::Unknown);
            let error = Error::service_with_http_metadata(status, Some(http), None);
            let failed = of_read(&error, &role());
            assert_eq!((failed.error.code, failed.fault), (code, fault), "{http}");
        }
    }

    #[test]
    fn where_there_is_no_connection_to_the_vault_the_log_says_why() {
        #[derive(Debug, thiserror::Error)]
        #[error("no connection")]
        struct Unheard(#[source] std::io::Error);

        let why = Unheard(std::io::Error::other("an unknown issuer"));
        let failed = of_read(&Error::connect(why), &role());
        assert_eq!(failed.fault, Fault::Unreachable);
        let text = failed.error.message;
        assert!(text.contains("cannot be reached"), "{text}");
        let cause = failed.error.cause.expect("a cause");
        assert!(
            cause.contains("no connection: an unknown issuer"),
            "{cause}"
        );
    }

    #[test]
    fn what_could_not_be_read_is_not_repeated() {
        let error = Error::deser("invalid type: string \"canary\", expected a payload");
        let failed = of_read(&error, &role());
        assert_eq!(
            (failed.error.code, failed.fault),
            (Code::Unavailable, Fault::Unreachable)
        );
        assert_eq!(failed.error.cause, None);
        let page = Error::http(502, HeaderMap::new(), "<html>canary".into());
        assert_eq!(
            of_read(&page, &role()).error.cause.as_deref(),
            Some("HTTP 502")
        );
    }

    #[test]
    fn a_refused_token_is_the_principals_and_a_proxys_page_is_nobodys() {
        for (status, body, code, fault) in [
            (
                400,
                r#"{"error":"invalid_grant","error_description":"why"}"#,
                Code::Denied,
                Fault::Refused,
            ),
            (
                400,
                r#"{"error":"invalid_target"}"#,
                Code::Denied,
                Fault::Refused,
            ),
            (
                403,
                r#"{"error":"unauthorized_client"}"#,
                Code::Denied,
                Fault::Refused,
            ),
            (
                400,
                r#"{"error":"invalid_request"}"#,
                Code::Unavailable,
                Fault::Call,
            ),
            // The API is disabled, or a perimeter is in the way.
            (
                403,
                r#"{"error":{"code":403,"message":"why","status":"PERMISSION_DENIED"}}"#,
                Code::Denied,
                Fault::Refused,
            ),
            (400, "<html>", Code::Unavailable, Fault::Unreachable),
            (429, "", Code::Throttled, Fault::Call),
            (
                503,
                r#"{"error":"invalid_grant"}"#,
                Code::Unavailable,
                Fault::Unreachable,
            ),
        ] {
            let failed = of_token_service(&answer(status, body), &role());
            assert_eq!(
                (failed.error.code, failed.fault),
                (code, fault),
                "{status} {body}"
            );
        }
        for (status, body, code, fault) in [
            (
                403,
                r#"{"error":{"status":"PERMISSION_DENIED","message":"why"}}"#,
                Code::Denied,
                Fault::Refused,
            ),
            (
                404,
                r#"{"error":{"status":"NOT_FOUND"}}"#,
                Code::Denied,
                Fault::Refused,
            ),
            (
                401,
                r#"{"error":{"status":"UNAUTHENTICATED"}}"#,
                Code::Unavailable,
                Fault::Call,
            ),
            (200, "half", Code::Unavailable, Fault::Unreachable),
        ] {
            let failed = of_impersonation(&answer(status, body), &role());
            assert_eq!(
                (failed.error.code, failed.fault),
                (code, fault),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn words_that_look_like_a_token_stay_out_of_the_log() {
        let body =
            r#"{"error":"invalid_grant","error_description":"cannot parse eyJhbGciOi.canary"}"#;
        let cause = of_token_service(&answer(400, body), &role()).error.cause;
        assert!(!cause.expect("a cause").contains("canary"));
    }
}
