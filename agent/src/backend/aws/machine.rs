//! The machine's own credentials, outside of a cluster: what the AWS CLI would use here, by the SDK's default chain
//! (environment, profile with `credential_process`, web identity, container, instance).

use super::{Aws, BackendError, Role, errors, session_credentials};
use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_sdk_secretsmanager::config::{Credentials, IdentityCache, ProvideCredentials};
use aws_sdk_sts as sts;
use std::time::Duration;
use tokio::time::timeout;

/// The name of the role that is the machine's own credentials, whatever they are.
pub(super) const ROLE: &str = "machine";

/// How long credentials are used that do not say when they end.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(15 * 60);

/// Where the machine's credentials come from.
#[derive(Debug)]
pub(super) struct Machine(DefaultCredentialsChain);

// === impl Machine ===

impl Machine {
    /// The default chain, for a machine in `region`. It is not asked yet.
    pub(super) async fn open(region: &str) -> Self {
        let chain = DefaultCredentialsChain::builder().region(Region::new(region.to_owned()));
        Self(chain.build().await)
    }

    /// What the chain gives now; nothing is kept beyond the session that is made with it.
    ///
    /// # Errors
    ///
    /// `unavailable` if it gives nothing within `limit`.
    pub(super) async fn credentials(&self, limit: Duration) -> Result<Credentials, BackendError> {
        match timeout(limit, self.0.provide_credentials()).await {
            Ok(Ok(credentials)) => Ok(credentials),
            Ok(Err(error)) => Err(errors::no_credentials(&error)),
            Err(elapsed) => Err(errors::no_credentials(&elapsed)),
        }
    }
}

impl Aws {
    /// Takes on a role with the machine's credentials.
    pub(super) async fn assume_by_machine(
        &self,
        role: &Role,
        own: Credentials,
        session_name: &str,
    ) -> Result<Credentials, BackendError> {
        let config = sts::config::Builder::new()
            .region(Region::new(role.place.to_string()))
            .credentials_provider(own)
            .identity_cache(IdentityCache::no_cache());
        let answer = self
            .sts
            .assume_role()
            .role_arn(&*role.name)
            .role_session_name(session_name)
            .duration_seconds(self.duration)
            .customize()
            .config_override(config)
            .send()
            .await
            .map_err(|error| errors::of_machine(&error, role))?;
        session_credentials(answer.credentials)
    }
}
