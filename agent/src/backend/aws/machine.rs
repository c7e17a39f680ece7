//! The machine's own credentials, outside a cluster: what the AWS CLI would use here, by the SDK's default chain
//! (environment, profile with `credential_process`, web identity, container, instance).

use super::wire::SdkWire;
use super::{Aws, BackendError, Role, errors, session_credentials};
use crate::backend::machine;
use crate::backend::wire::Wire;
use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_secretsmanager::config::{Credentials, IdentityCache, ProvideCredentials};
use aws_sdk_secretsmanager::error::DisplayErrorContext;
use aws_sdk_sts as sts;
use serde::{Deserialize, Serialize};
use std::time::{Duration, UNIX_EPOCH};

/// The message to a caller if the machine has none.
const NO_CREDENTIALS: &str =
    "this machine has no AWS credentials now: sign in, or check AWS_PROFILE and credential_process";

/// How long one call of the chain's may take. All of them together have less.
const LONGEST: Duration = Duration::from_secs(60);

/// What the chain gives, as one process passes it to the other.
#[derive(Deserialize, Serialize)]
pub(in crate::backend) struct Keys {
    access_key: String,
    secret_key: String,
    token: Option<String>,
    /// In seconds of Unix time.
    ends: Option<u64>,
}

/// Returns what the chain gives now, for a machine in `region`.
///
/// # Errors
///
/// If it gives nothing, with the error of each link.
pub(in crate::backend) async fn find(region: String) -> Result<Keys, String> {
    let wire = SdkWire::new(Wire::of_a_process(), LONGEST);
    let settings = ProviderConfig::default().with_http_client(wire);
    let chain = DefaultCredentialsChain::builder()
        .configure(settings)
        .region(Region::new(region));
    let found = chain.build().await.provide_credentials().await;
    let found = found.map_err(|error| DisplayErrorContext(error).to_string())?;
    let since = |ends: std::time::SystemTime| ends.duration_since(UNIX_EPOCH).ok();
    Ok(Keys {
        access_key: found.access_key_id().to_owned(),
        secret_key: found.secret_access_key().to_owned(),
        token: found.session_token().map(str::to_owned),
        ends: found.expiry().and_then(since).map(|ends| ends.as_secs()),
    })
}

impl Aws {
    /// Returns the machine's own credentials.
    ///
    /// # Errors
    ///
    /// `unavailable` if there are none within the time of a call.
    pub(super) async fn of_machine(&self) -> Result<Credentials, BackendError> {
        let source = ["aws", "--region", &self.region];
        let keys: Keys = machine::ask(&source, self.settings.timeout)
            .await
            .map_err(|none| none.told(NO_CREDENTIALS))?;
        let seconds = keys.ends.and_then(|ends| i64::try_from(ends).ok());
        machine::must_last(seconds.unwrap_or(i64::MAX))
            .map_err(|expired| expired.told(NO_CREDENTIALS))?;
        let ends = keys.ends.map(|ends| UNIX_EPOCH + Duration::from_secs(ends));
        Ok(Credentials::new(
            keys.access_key,
            keys.secret_key,
            keys.token,
            ends,
            "latchkey",
        ))
    }

    /// Assumes a role with the machine's credentials.
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
        session_credentials(
            role,
            session_name,
            answer.assumed_role_user,
            answer.credentials,
        )
    }
}
