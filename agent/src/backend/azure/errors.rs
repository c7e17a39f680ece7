//! Azure's errors, with the contract's codes. The messages say what to check, and name no client but the caller's own.

use crate::backend::error::cut;
use crate::backend::{BackendError, Fault};
use crate::error::{RequestError, chain};
use crate::role::{Proof, Role};
use azure_core::error::{ErrorKind, ErrorResponse};
use azure_core::http::RawResponse;
use azure_core::http::headers::HeaderName;
use latchkey_client::protocol::Code;
use latchkey_client::protocol::words::CANNOT_FETCH_KEYS;
use serde::Deserialize;
use std::error::Error;
use std::time::Duration;

const RETRY_AFTER: HeaderName = HeaderName::from_static("retry-after");

/// A failed call.
#[derive(Debug)]
pub(super) enum Failed {
    /// It ended in an error.
    Answer(azure_core::Error),
    /// It did not end in time.
    Late,
}

/// What a failed call says, without its copies of requests and answers.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

/// The error of a token request (RFC 6749, 5.2), with what Entra ID adds.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EntraError {
    error: String,
    error_codes: Vec<u32>,
    error_description: String,
    trace_id: String,
}

/// The errors of Entra ID that say nothing about the caller, whatever their status, and the numbers of others.
const TROUBLES: [&str; 2] = ["server_error", "temporarily_unavailable"];
const TROUBLE_NUMBERS: [u32; 2] = [90_024, 90_033];

/// The error numbers of Entra ID if there are too many requests, of this client or in its tenant.
const THROTTLES: [u32; 2] = [50_196, 90_055];

/// The error numbers of Entra ID if it gets no answer from the cluster's issuer. It may be temporary, so the client's
/// session and values are kept.
const ISSUER_SILENT: [u32; 3] = [50_166, 90_061, 501_661];

/// The error numbers of Entra ID if it has no federated credential that fits the token.
const NO_CREDENTIAL: [u32; 4] = [70_021, 700_211, 700_212, 700_213];

/// An HTTP answer that is not a success.
struct Refusal<'a> {
    status: u16,
    answer: &'a RawResponse,
}

// === impl Failed ===

impl Failed {
    /// Whether an immediate retry may succeed, because Azure could not be reached.
    pub(super) fn is_worth_another(&self) -> bool {
        match self {
            Self::Late => true,
            Self::Answer(error) => match root(error).kind() {
                ErrorKind::Connection | ErrorKind::DataConversion | ErrorKind::Io => true,
                ErrorKind::HttpResponse { status, .. } => u16::from(*status) >= 500,
                _ => false,
            },
        }
    }

    /// Whether Entra ID has no federated credential that fits the token, or not everywhere yet.
    pub(super) fn lacks_credential(&self) -> bool {
        let Self::Answer(error) = self else {
            return false;
        };
        let ErrorKind::HttpResponse {
            raw_response: Some(answer),
            ..
        } = root(error).kind()
        else {
            return false;
        };
        let number = EntraError::of(answer).number();
        number.is_some_and(|number| NO_CREDENTIAL.contains(&number))
    }
}

// === impl EntraError ===

impl EntraError {
    /// Parses an answer; one that is not Entra ID's has no number.
    fn of(answer: &RawResponse) -> Self {
        serde_json::from_slice(answer.body()).unwrap_or_default()
    }

    fn number(&self) -> Option<u32> {
        self.error_codes.first().copied()
    }
}

/// The error for an answer that lacks what it must contain.
pub(super) fn garbage() -> BackendError {
    BackendError::garbage("Azure")
}

/// The error if the SDK refuses something that was checked before.
pub(super) fn internal(error: &azure_core::Error) -> BackendError {
    RequestError::internal(error).into()
}

/// A failed token request ("Microsoft Entra authentication and authorization error codes").
pub(super) fn of_exchange(failed: &Failed, role: &Role) -> BackendError {
    classify(failed, "Entra ID", |refusal| {
        let error = EntraError::of(refusal.answer);
        let code = error.number()?;
        let client = &role.name;
        let failed = if TROUBLES.contains(&&*error.error) || TROUBLE_NUMBERS.contains(&code) {
            BackendError::troubled("Entra ID")
        } else if THROTTLES.contains(&code) {
            BackendError::throttled("Entra ID", retry_after(refusal.answer))
        } else if code == 700_024 {
            // The assertion is minutes old at most, so it is the clock that is wrong.
            let text = "Entra ID refused what is out of date: check the node's clock";
            BackendError::from(RequestError::unavailable(text))
        } else {
            let refused = format!("Entra ID refused the client {client} (AADSTS{code})");
            if ISSUER_SILENT.contains(&code) {
                let text = format!(
                    "{refused}: it {CANNOT_FETCH_KEYS} the cluster's issuer; check that the issuer's URL is public"
                );
                RequestError::unavailable(text).into()
            } else {
                let check = what_to_check(code);
                BackendError::refused(format!("{refused}: {check}"))
            }
        };
        let words = one_line(&error.error_description);
        let request = Some(error.trace_id).filter(|id| !id.is_empty());
        Some(BackendError {
            cloud_request_id: request.map(Into::into),
            ..failed.in_words(Some(&words))
        })
    })
}

/// Returns what to check if Entra ID refuses with this number.
fn what_to_check(code: u32) -> &'static str {
    match code {
        50_027 | 700_027 | 5_000_819 => {
            "it does not believe the token's signature; check that the cluster's published keys are the current ones"
        }
        53_003 | 530_035 => "a policy of Conditional Access for workload identities blocks it",
        70_021 => {
            "it has no federated credential for this service account; check issuer, subject and audience"
        }
        90_002 | 90_013 | 900_023 => {
            "there is no such tenant; check azure.workload.identity/tenant-id, or the agent's tenant and authority"
        }
        500_011 | 650_057 => {
            "the tenant does not know the vaults' resource; check the agent's authority and vault_suffixes"
        }
        700_016 => {
            "the tenant has no such application or managed identity; check azure.workload.identity/client-id and the tenant"
        }
        700_211 => "no federated credential of it has the cluster's issuer",
        700_212 => "no federated credential of it has the token's audience",
        700_213 | 7_002_138 => {
            "no federated credential of it has this service account as its subject"
        }
        7_000_112 => "the application is disabled in the tenant",
        70_025 | 700_025 => "it is not set up for federated credentials",
        _ => "https://login.microsoftonline.com/error explains the number",
    }
}

/// A failed call to Key Vault (its "REST API error codes").
pub(super) fn of_vault(failed: &Failed, role: &Role) -> BackendError {
    if let Failed::Answer(error) = failed
        && matches!(root(error).kind(), ErrorKind::Credential | ErrorKind::Other)
    {
        // The SDK's check of the challenge failed, or our own: no token was sent. The SDK keeps asking for what that
        // challenge named, so the session is of no more use, even when the vault is back to normal.
        let answer = RequestError::new(
            Code::Denied,
            "the vault asks for a token that is not for it: check its URL, and the agent's authority and vault_suffixes",
        );
        return BackendError::new(Fault::SessionEnded, answer.because(&told(error)));
    }
    classify(failed, "Key Vault", |refusal| {
        let error: Option<ErrorResponse> = serde_json::from_slice(refusal.answer.body()).ok();
        let detail = error?.error?;
        let message = detail.message.unwrap_or_default();
        let inner = detail.inner_error.and_then(|inner| inner.code);
        let client = &role.name;
        let by_machine = role.proof == Proof::Machine;
        let code = detail.code.unwrap_or_default();
        let failed: BackendError = match (refusal.status, inner.as_deref().unwrap_or(&code)) {
            (400, _) => {
                let text = "Azure does not take this name, version or cursor";
                RequestError::invalid(text).into()
            }
            // The token is genuine, but another tenant's.
            (401, _) if message.contains("AKV10032") && by_machine => {
                BackendError::refused(format!(
                    "the vault belongs to another tenant than this machine's credentials ({client}): sign in to its tenant"
                ))
            }
            (401, _) if message.contains("AKV10032") => BackendError::refused(format!(
                "the vault belongs to another tenant than the client {client}: check azure.workload.identity/tenant-id and the vault's URL"
            )),
            (401, _) => {
                let text = "Azure ended the session before its time; try again";
                BackendError::new(Fault::SessionEnded, RequestError::unavailable(text))
            }
            (403, "SecretDisabled") => {
                RequestError::new(Code::NotFound, "the secret is disabled").into()
            }
            (403, "SecretExpired" | "SecretNotYetValid") => {
                let text = "the secret has expired, or is not valid yet";
                RequestError::new(Code::NotFound, text).into()
            }
            (403, "ForbiddenByConnection" | "ForbiddenByFirewall") => RequestError::new(
                Code::Denied,
                "the vault does not let this node in: check its firewall and its private endpoint",
            )
            .into(),
            (403, _) if by_machine => BackendError::refused(format!(
                "Azure refused this to this machine's credentials ({client}): check their role assignments, or the vault's access policy"
            )),
            (403, _) => BackendError::refused(format!(
                "Azure refused this to the client {client}: check its role assignments, or the vault's access policy"
            )),
            (404 | 409 | 410, _) => {
                RequestError::new(Code::NotFound, "there is no such secret or version").into()
            }
            _ => return None,
        };
        let words = format!("{} {code}: {}", refusal.status, one_line(&message));
        Some(failed.in_words(Some(&words)))
    })
}

fn classify(
    failed: &Failed,
    whose: &str,
    known: impl FnOnce(&Refusal<'_>) -> Option<BackendError>,
) -> BackendError {
    let error = match failed {
        Failed::Late => return BackendError::late(whose),
        Failed::Answer(error) => error,
    };
    let failed = match root(error).kind() {
        ErrorKind::HttpResponse {
            status,
            raw_response: Some(answer),
            ..
        } => {
            let status = u16::from(*status);
            let refusal = Refusal { status, answer };
            if status == 429 {
                BackendError::throttled(whose, retry_after(refusal.answer))
            } else if status >= 500 {
                BackendError::troubled(whose)
            } else if let Some(failed) = known(&refusal) {
                return failed;
            } else {
                // Someone else's page, but nothing from Azure.
                BackendError::garbage(whose)
            }
        }
        ErrorKind::Connection => BackendError::unreachable(whose),
        ErrorKind::Io if is_late(error) => BackendError::late(whose),
        ErrorKind::Io => BackendError::unreachable(whose),
        _ => BackendError::garbage(whose),
    };
    failed.because(&told(error))
}

/// Returns the innermost error: the SDK wraps its errors in each other, and the outer ones say less.
fn root(error: &azure_core::Error) -> &azure_core::Error {
    let mut root = error;
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(inner) = error.downcast_ref::<azure_core::Error>() {
            root = inner;
        }
        source = error.source();
    }
    root
}

fn is_late(error: &azure_core::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<reqwest::Error>() {
            return error.is_timeout();
        }
        source = error.source();
    }
    false
}

/// Returns what an error says for the log. An answer that could not be read is left out, as it may contain a secret.
fn told(error: &azure_core::Error) -> Told {
    let root = root(error);
    let text = match root.kind() {
        ErrorKind::DataConversion => "the answer is not what Azure's API says".to_owned(),
        ErrorKind::HttpResponse { status, .. } => status.to_string(),
        _ => cut(&chain(root)),
    };
    Told(text)
}

/// Returns Azure's message in one line: what it refused, and whom, are in the later ones.
fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(" ")
}

/// Returns how long the cloud asks to wait, in seconds; a date is not worth parsing here.
fn retry_after(answer: &RawResponse) -> Option<Duration> {
    let seconds = answer.headers().get_optional_str(&RETRY_AFTER)?;
    Some(Duration::from_secs(seconds.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_federated_credential_that_is_missing_or_differs_is_told_as_such() {
        assert!(what_to_check(70_025).contains("federated credentials"));
        for subject in [700_213, 7_002_138] {
            assert!(what_to_check(subject).contains("subject"), "{subject}");
        }
        // A client secret is never sent, so no text is about it.
        assert_eq!(what_to_check(7_000_215), what_to_check(0));
    }
}
