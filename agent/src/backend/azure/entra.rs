//! The exchange at Entra ID: a pod's own token as a client assertion, for an access token to the vaults of one cloud.

use super::{errors, tried};
use crate::backend::BackendError;
use crate::role::Role;
use crate::secret::SubjectToken;
use async_trait::async_trait;
use azure_core::cloud::CustomConfiguration;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientMethodOptions, ClientOptions, Context};
use azure_core::time::OffsetDateTime;
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions,
};
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How long after the answer that there is no federated credential Entra ID is asked once more. Its copies are
/// brought up to date one after the other, and now and then one of them overlooks a credential that has long existed:
/// that must not end a session as a refusal does.
const OVERLOOKED: Duration = Duration::from_secs(1);

/// One exchange.
pub(super) struct Exchange<'a> {
    /// Entra ID's URL.
    pub(super) authority: &'a str,
    /// The role to assume.
    pub(super) role: &'a Role,
    /// The suffix of the host of the role's vault.
    pub(super) suffix: &'a str,
    /// The options of the calls.
    pub(super) options: ClientOptions,
    /// What the calls know about their request.
    pub(super) context: Context<'static>,
}

/// The result of an exchange: an access token for the vaults of one cloud. It is never refreshed, since that would take
/// another subject token: when it expires, so does the session.
#[derive(Debug)]
pub(super) struct Bearer {
    pub(super) scope: String,
    pub(super) token: AccessToken,
}

/// The pod's token, for the duration of the exchange.
#[derive(Debug)]
struct Assertion(SubjectToken);

/// Returns the scope of a token for the vaults with this suffix. They name the same resource in their challenges: the
/// suffix as a host.
pub(super) fn scope_of(suffix: &str) -> String {
    format!("https://{}/.default", suffix.trim_start_matches('.'))
}

// === impl Exchange ===

impl Exchange<'_> {
    /// Makes the exchange, each try within `limit`.
    ///
    /// # Errors
    ///
    /// If Entra ID refuses or cannot be reached.
    pub(super) async fn run(
        self,
        token: SubjectToken,
        limit: Duration,
    ) -> Result<Bearer, BackendError> {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = self.authority.to_owned();
        let options = ClientAssertionCredentialOptions {
            client_options: ClientOptions {
                cloud: Some(Arc::new(cloud.into())),
                ..self.options
            },
        };
        let tenant = self.role.via.as_deref().unwrap_or_default().to_owned();
        let client = self.role.name.to_string();
        let credential =
            ClientAssertionCredential::new(tenant, client, Assertion(token), Some(options))
                .map_err(|error| errors::internal(&error))?;
        let scope = scope_of(self.suffix);
        let scopes = [scope.as_str()];
        let told = || TokenRequestOptions {
            method_options: ClientMethodOptions {
                context: self.context.clone(),
            },
        };
        let ask = || {
            tried(limit, || async {
                // The SDK panics if the token is said to live for ages.
                let answer = AssertUnwindSafe(credential.get_token(&scopes, Some(told())));
                let token = answer.catch_unwind().await.unwrap_or_else(|_| unreadable());
                token.and_then(|token| {
                    if can_be_sent(&token) {
                        Ok(token)
                    } else {
                        unreadable()
                    }
                })
            })
        };
        let mut outcome = ask().await;
        if outcome
            .as_ref()
            .is_err_and(errors::Failed::lacks_credential)
        {
            sleep(OVERLOOKED).await;
            outcome = ask().await;
        }
        let token = outcome.map_err(|failed| errors::of_exchange(&failed, self.role))?;
        Ok(Bearer { scope, token })
    }
}

fn unreadable<T>() -> azure_core::Result<T> {
    let text = "the answer holds no token";
    Err(azure_core::Error::with_message(
        ErrorKind::DataConversion,
        text,
    ))
}

/// Whether a header can carry the token.
fn can_be_sent(token: &AccessToken) -> bool {
    let token = token.token.secret();
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())
}

// === impl Bearer ===

impl Bearer {
    /// How long the token is valid from now.
    pub(super) fn lives_for(&self) -> Duration {
        let now = OffsetDateTime::from(crate::time::system_now());
        Duration::try_from(self.token.expires_on - now).unwrap_or_default()
    }
}

#[async_trait]
impl TokenCredential for Bearer {
    async fn get_token(
        &self,
        scopes: &[&str],
        _options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        // The SDK has checked by now that what the vault asks for fits its host, but this token may be for another
        // cloud.
        if scopes != [self.scope.as_str()] {
            let text = format!("the vault wants a token for {scopes:?}, not {}", self.scope);
            return Err(azure_core::Error::with_message(ErrorKind::Credential, text));
        }
        Ok(self.token.clone())
    }
}

// === impl Assertion ===

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(
        &self,
        _options: Option<ClientMethodOptions<'_>>,
    ) -> azure_core::Result<String> {
        Ok(self.0.expose().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Proof;
    use azure_core::http::headers::Headers;
    use azure_core::http::{AsyncRawResponse, HttpClient, Request, Transport};
    use latchkey_client::protocol::Code;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tokio::time::Instant;

    const LIMIT: Duration = Duration::from_secs(3);

    /// Entra ID with these answers, the first one last, which it repeats.
    #[derive(Debug)]
    struct Entra(Mutex<Vec<(u16, Value)>>);

    #[async_trait]
    impl HttpClient for Entra {
        async fn execute_request(&self, _: &Request) -> azure_core::Result<AsyncRawResponse> {
            let mut answers = self.0.lock();
            let next = if answers.len() > 1 {
                answers.pop()
            } else {
                None
            };
            let (status, body) = next.unwrap_or_else(|| answers[0].clone());
            let (headers, body) = (Headers::new(), body.to_string());
            Ok(AsyncRawResponse::from_bytes(status.into(), headers, body))
        }
    }

    fn token(token: &str, life: i64) -> (u16, Value) {
        let body = json!({
            "token_type": "Bearer", "access_token": token,
            "expires_in": life, "ext_expires_in": life,
        });
        (200, body)
    }

    fn refusal(number: u32) -> (u16, Value) {
        let text = format!("AADSTS{number}: no");
        let body = json!({
            "error": "invalid_client", "error_codes": [number], "error_description": text,
            "timestamp": "", "trace_id": "", "correlation_id": "",
        });
        (400, body)
    }

    async fn exchange(answers: &[(u16, Value)]) -> Result<Bearer, BackendError> {
        let answers = answers.iter().rev().cloned().collect();
        let transport = Transport::new(Arc::new(Entra(Mutex::new(answers))));
        let role = Role {
            name: "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab".into(),
            proof: Proof::Token("api://AzureADTokenExchange".into()),
            prefix: "".into(),
            place: "https://v1.vault.azure.net".into(),
            via: Some("contoso.onmicrosoft.com".into()),
        };
        let exchange = Exchange {
            authority: "https://login.microsoftonline.com",
            role: &role,
            suffix: ".vault.azure.net",
            options: ClientOptions {
                transport: Some(transport),
                ..ClientOptions::default()
            },
            context: Context::new(),
        };
        exchange
            .run(SubjectToken::from("a.b.c".to_owned()), LIMIT)
            .await
    }

    async fn code(answers: &[(u16, Value)]) -> (Code, bool) {
        let failed = exchange(answers).await.expect_err("no session");
        (failed.error.code, failed.is_refusal())
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_that_is_overlooked_once_is_no_refusal() {
        for number in [70_021, 700_211, 700_212, 700_213] {
            let began = Instant::now();
            let session = exchange(&[refusal(number), token("right", 3600)]).await;
            assert_eq!(session.expect("a session").token.token.secret(), "right");
            assert!(began.elapsed() >= OVERLOOKED);
            let outcome = code(&[refusal(number), refusal(number), token("late", 3600)]).await;
            assert_eq!(outcome, (Code::Denied, true), "{number}");
        }
        let began = Instant::now();
        let outcome = code(&[refusal(700_016), token("right", 3600)]).await;
        assert_eq!(outcome, (Code::Denied, true));
        assert!(began.elapsed() < OVERLOOKED, "nothing else is asked again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_about_the_client_is_no_refusal() {
        for (number, wanted) in [
            (90_024, Code::Unavailable),
            (90_033, Code::Unavailable),
            (90_055, Code::Throttled),
            (50_196, Code::Throttled),
        ] {
            assert_eq!(code(&[refusal(number)]).await, (wanted, false), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_a_token_that_can_be_used_is_none() {
        for answer in [
            token("right", 300_000_000_000),
            token("right", i64::MAX),
            token("right", i64::MIN),
            token("", 3600),
            token("new\nline", 3600),
        ] {
            let outcome = code(std::slice::from_ref(&answer)).await;
            assert_eq!(outcome, (Code::Unavailable, false), "{answer:?}");
        }
        assert!(exchange(&[token("right", 3600)]).await.is_ok());
    }
}
