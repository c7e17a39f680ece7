//! An assumed role at Azure: what it reads and lists.

use super::{answer, errors, role, tried, wire};
use crate::backend::{BackendError, Page, Secret, Selector, Session, paging};
use crate::role::Role;
use crate::secret::SecretName;
use async_trait::async_trait;
use azure_core::http::pager::{PagerContinuation, PagerOptions};
use azure_core::http::{ClientMethodOptions, Context};
use azure_security_keyvault_secrets::SecretClient;
use azure_security_keyvault_secrets::models::{
    SecretClientGetSecretOptions, SecretClientListSecretPropertiesOptions,
};
use futures::TryStreamExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The most names that Key Vault returns at once (`maxresults` of Get Secrets).
const PAGE_NAMES: usize = 25;

/// The query parameter that says where the next page begins, in Key Vault's links to it.
const NEXT: &str = "$skiptoken";

/// An assumed role.
#[derive(Debug)]
pub(super) struct AzureSession {
    pub(super) role: Role,
    pub(super) pod_uid: String,
    pub(super) ends: Instant,
    /// How long one call may take.
    pub(super) timeout: Duration,
    /// This session's own, with its access token in it.
    pub(super) client: Client,
}

/// The SDK's client, with a `Debug` that prints nothing of it.
pub(super) struct Client(pub(super) SecretClient);

// === impl AzureSession ===

impl AzureSession {
    /// Makes a call under an id that the vault's log keeps.
    async fn call<T, F>(
        &self,
        request_id: &str,
        call: impl Fn(Context<'static>) -> F,
    ) -> Result<(T, Arc<str>), BackendError>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        let correlation: Arc<str> = wire::correlation(request_id, &self.pod_uid).into();
        let outcome = tried(self.timeout, || {
            call(wire::context(request_id, &correlation))
        })
        .await;
        match outcome {
            Ok(answer) => Ok((answer, correlation)),
            Err(failed) => Err(BackendError {
                cloud_request_id: Some(correlation),
                ..errors::of_vault(&failed, &self.role)
            }),
        }
    }

    /// Returns one page of the vault's with at most `wanted` names.
    async fn page(
        &self,
        wanted: usize,
        from: Option<String>,
        request_id: &str,
    ) -> Result<Page, BackendError> {
        let most = i32::try_from(wanted).unwrap_or(i32::MAX);
        // The caller's cursor only ever becomes this one parameter, whatever it contains.
        let continuation = from.map(|from| {
            let mut link = self.client.0.endpoint().clone();
            link.set_path("/secrets");
            link.query_pairs_mut()
                .append_pair(NEXT, &from)
                .append_pair("maxresults", &most.to_string());
            PagerContinuation::Link(link)
        });
        let (page, _) = self
            .call(request_id, |context| {
                let options = SecretClientListSecretPropertiesOptions {
                    maxresults: Some(most),
                    method_options: PagerOptions {
                        context,
                        continuation: continuation.clone(),
                    },
                };
                async move {
                    let mut pages = self
                        .client
                        .0
                        .list_secret_properties(Some(options))?
                        .into_pages();
                    let page = pages.try_next().await?;
                    page.map(|page| page.into_model()).transpose()
                }
            })
            .await?;
        let page = page.ok_or_else(errors::garbage)?;
        let next = match page.next_link.filter(|link| !link.is_empty()) {
            None => None,
            // Only the position of the page is taken from the link, never its host or path.
            Some(link) => Some(
                self.client
                    .0
                    .endpoint()
                    .join(&link)
                    .ok()
                    .and_then(|link| {
                        let mut pairs = link.query_pairs();
                        pairs
                            .find(|(name, _)| name == NEXT)
                            .map(|(_, from)| from.into_owned())
                    })
                    .ok_or_else(errors::garbage)?,
            ),
        };
        // A secret that cannot be asked for is not shown.
        let names = page
            .value
            .into_iter()
            .filter_map(|secret| answer::listed(&secret, self.client.0.endpoint()))
            .filter_map(|name| role::read(&self.role, &name))
            .map(|name| name.to_string())
            .collect();
        Ok(Page {
            names,
            next,
            more_calls: 0,
        })
    }
}

#[async_trait]
impl Session for AzureSession {
    fn lives_for(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    async fn read(
        &self,
        name: &SecretName,
        selector: &Selector,
        request_id: &str,
    ) -> Result<Secret, BackendError> {
        let id = role::written(&self.role, name)?;
        let version = selector.version.as_deref();
        let (answer, correlation) = self
            .call(request_id, |context| {
                let options = SecretClientGetSecretOptions {
                    secret_version: version.map(str::to_owned),
                    method_options: ClientMethodOptions { context },
                    ..SecretClientGetSecretOptions::default()
                };
                let id = &id;
                async move { self.client.0.get_secret(id, Some(options)).await }
            })
            .await?;
        match answer::secret(answer.into_body(), self.client.0.endpoint(), &id, version) {
            Ok(secret) => Ok(Secret {
                cloud_request_id: Some(correlation),
                ..secret
            }),
            Err(error) => Err(BackendError {
                cloud_request_id: Some(correlation),
                ..error
            }),
        }
    }

    async fn list(
        &self,
        limit: usize,
        cursor: Option<String>,
        request_id: &str,
    ) -> Result<Page, BackendError> {
        paging::collect(limit, PAGE_NAMES, cursor, |wanted, from| {
            self.page(wanted, from, request_id)
        })
        .await
    }
}

// === impl Client ===

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretClient(..)")
    }
}
