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
use std::sync::Arc;
use std::time::Duration;

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
        let token = tried(limit, || credential.get_token(&scopes, Some(told())))
            .await
            .map_err(|failed| errors::of_exchange(&failed, self.role))?;
        Ok(Bearer { scope, token })
    }
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
