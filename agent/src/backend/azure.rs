//! Azure: the pod's own token is a client assertion at Entra ID, and the access token that it is exchanged for reads
//! Key Vault.
//!
//! A session is one exchange: it has its own `SecretClient`, which holds its own access token and no other. The SDK
//! keeps one token for each client, whoever calls, so a client that two pods shared would read for one with the token
//! of the other. The clients share one pool of connections, which knows no tokens; exchanges share none.

mod answer;
mod entra;
mod errors;
pub(super) mod machine;
mod role;
mod session;
mod wire;

use super::wire::Wire;
use super::{Backend, BackendError, Caller, SECOND_TRY, Selector, Session, must_have};
use crate::account::Annotations;
use crate::config::{self, AzureConfig, LocalRole};
use crate::error::RequestError;
use crate::role::{NoRole, Proof, Role};
use crate::secret::{SecretName, SubjectToken};
use async_trait::async_trait;
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions};
use backon::Retryable;
use session::{AzureSession, Client};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use wire::{SdkWire, Signature};

/// Azure Key Vault, with sessions from Entra ID.
#[derive(Debug)]
pub(super) struct Azure {
    /// Its name in the configuration.
    name: String,
    settings: AzureConfig,
    /// The longest time that a session is kept.
    duration: Duration,
    to_entra: Transport,
    to_vaults: Transport,
}

// === impl Azure ===

impl Azure {
    /// Creates the backend for the settings of `backends.<name>`.
    pub(super) fn open(
        name: &str,
        settings: &AzureConfig,
        duration: Duration,
        wire: &Wire,
    ) -> Self {
        let transport = |wire: Wire| Transport::new(Arc::new(SdkWire::new(wire, settings.timeout)));
        Self {
            name: name.to_owned(),
            settings: settings.clone(),
            duration,
            to_entra: transport(wire.unshared()),
            to_vaults: transport(wire.clone()),
        }
    }

    /// Returns the options of a client that acts for one pod alone.
    fn options(transport: &Transport, pod_uid: &str) -> ClientOptions {
        ClientOptions {
            per_call_policies: vec![Arc::new(Signature::of(pod_uid))],
            retry: RetryOptions::none(),
            transport: Some(transport.clone()),
            ..ClientOptions::default()
        }
    }
}

#[async_trait]
impl Backend for Azure {
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole> {
        role::of(annotations, &self.settings, &self.name)
    }

    fn machine_role(&self, role: &LocalRole, _namespace: &str) -> Result<Role, NoRole> {
        role::of_machine(role, &self.settings, &self.name)
    }

    fn describe(&self) -> String {
        let vault = self
            .settings
            .vault_url
            .as_deref()
            .unwrap_or("at the vault that each service account names");
        let AzureConfig {
            authority,
            audience,
            ..
        } = &self.settings;
        format!("Azure Key Vault {vault}, by {authority}, tokens for {audience}")
    }

    fn left_open(&self) -> Vec<String> {
        let (name, settings) = (&self.name, &self.settings);
        let tenant = settings.tenant.is_none().then(|| {
            format!(
                "backends.{name}.tenant is not set: each service account must name its own by {}",
                role::TENANT_KEY
            )
        });
        let vault = settings.vault_url.is_none().then(|| {
            format!("backends.{name}.vault_url is not set: each service account must name its own by {}", role::VAULT_KEY)
        });
        tenant.into_iter().chain(vault).collect()
    }

    fn ignores_case(&self) -> bool {
        true
    }

    fn skip_annotation(&self) -> Option<&'static str> {
        Some(crate::role::AZURE_SKIP_CONTAINERS)
    }

    fn check(
        &self,
        role: &Role,
        name: &SecretName,
        selector: &Selector,
    ) -> Result<(), RequestError> {
        role::check_name(role, name, selector)
    }

    async fn exchange(
        &self,
        role: &Role,
        token: Option<SubjectToken>,
        caller: &Caller,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let suffix = config::suffix_of(&role.place, &self.settings.vault_suffixes)
            .ok_or_else(errors::garbage)?;
        let bearer = match role.proof {
            Proof::Machine => self.of_machine(role, suffix).await?,
            Proof::None | Proof::Token(_) => {
                let token = must_have(token)?;
                let request_id = caller.request_id.as_str();
                let exchange = entra::Exchange {
                    authority: &self.settings.authority,
                    role,
                    suffix,
                    options: Self::options(&self.to_entra, &caller.pod_uid),
                    context: wire::context(
                        request_id,
                        &wire::correlation(request_id, &caller.pod_uid),
                    ),
                };
                exchange.run(token, self.settings.timeout).await?
            }
        };
        let life = bearer.lives_for().min(self.duration);
        let options = SecretClientOptions {
            client_options: Self::options(&self.to_vaults, &caller.pod_uid),
            ..SecretClientOptions::default()
        };
        let client = SecretClient::new(&role.place, Arc::new(bearer), Some(options))
            .map_err(|error| RequestError::internal(&error))?;
        Ok(Arc::new(AzureSession {
            role: role.clone(),
            pod_uid: caller.pod_uid.clone(),
            ends: Instant::now() + life,
            timeout: self.settings.timeout,
            client: Client(client),
        }))
    }
}

/// Makes a call to Azure, and retries it once if Azure could not be reached.
async fn tried<T, F>(limit: Duration, mut call: impl FnMut() -> F) -> Result<T, errors::Failed>
where
    F: Future<Output = azure_core::Result<T>>,
{
    let call = || {
        let call = timeout(limit, call());
        async {
            let outcome = call.await.map_err(|_| errors::Failed::Late)?;
            outcome.map_err(errors::Failed::Answer)
        }
    };
    call.retry(SECOND_TRY)
        .when(errors::Failed::is_worth_another)
        .await
}
