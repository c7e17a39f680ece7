//! The machine's own credentials, outside a cluster: a client secret in the environment, otherwise the developer's
//! login (`az`, `azd`), otherwise the machine's managed identity. Azure has no roles that one identity may assume: a
//! principal with a named role gets another of the machine's managed identities.

use super::entra::Bearer;
use super::errors::Failed;
use super::wire::SdkWire;
use super::{Azure, tried};
use crate::backend::BackendError;
use crate::backend::machine::{self, NoCredentials};
use crate::backend::wire::Wire;
use crate::config;
use crate::role::{MACHINE, Role};
use azure_core::cloud::CustomConfiguration;
use azure_core::credentials::{AccessToken, Secret, TokenCredential};
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_core::time::OffsetDateTime;
use azure_identity::{
    ClientSecretCredential, ClientSecretCredentialOptions, DeveloperToolsCredential,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long one call on the way may take. The process that makes it may have less time.
const CALL: Duration = Duration::from_secs(10);

/// The message to a caller if the machine has none.
const NO_CREDENTIALS: &str = "this machine has no Azure credentials now: sign in with az login, or \
     check AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or the machine's managed identity";

/// An access token, as one process passes it to the other.
#[derive(Deserialize, Serialize)]
pub(in crate::backend) struct Found {
    token: String,
    /// In seconds of Unix time.
    ends: i64,
}

/// Returns an access token for `scope`: of the machine's managed identity `client`, or of the first source that has
/// one.
///
/// # Errors
///
/// If there is none, with the error of each source.
pub(in crate::backend) async fn find(
    authority: &str,
    client: Option<String>,
    scope: &str,
) -> Result<Found, String> {
    let sources = sources(authority, client).map_err(|error| error.to_string())?;
    let scopes = [scope];
    let mut words = Vec::new();
    for source in sources {
        match tried(CALL, || source.get_token(&scopes, None)).await {
            Ok(found) => {
                return Ok(Found {
                    token: found.token.secret().to_owned(),
                    ends: found.expires_on.unix_timestamp(),
                });
            }
            Err(Failed::Answer(error)) => words.push(error.to_string()),
            Err(Failed::Late) => words.push("there is no answer in time".to_owned()),
        }
    }
    Err(words.join("; "))
}

/// Returns the sources to try, in this order.
fn sources(
    authority: &str,
    client: Option<String>,
) -> azure_core::Result<Vec<Arc<dyn TokenCredential>>> {
    let options = |wire| {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = authority.to_owned();
        ClientOptions {
            cloud: Some(Arc::new(cloud.into())),
            retry: RetryOptions::none(),
            transport: Some(Transport::new(Arc::new(wire))),
            ..ClientOptions::default()
        }
    };
    let environment: HashMap<String, String> = config::environment().collect();
    let variable = |name: &str| {
        let value = environment.get(name).filter(|value| !value.is_empty());
        value.cloned()
    };
    let (tenant, id, secret) = (
        variable("AZURE_TENANT_ID"),
        variable("AZURE_CLIENT_ID"),
        variable("AZURE_CLIENT_SECRET"),
    );
    if let (None, Some(tenant), Some(id), Some(secret)) = (&client, tenant, id, secret) {
        let options = ClientSecretCredentialOptions {
            client_options: options(SdkWire::new(Wire::of_a_process(), CALL)),
        };
        let credential =
            ClientSecretCredential::new(&tenant, id, Secret::new(secret), Some(options))?;
        return Ok(vec![credential]);
    }
    let mut sources: Vec<Arc<dyn TokenCredential>> = Vec::new();
    if client.is_none() {
        sources.push(DeveloperToolsCredential::new(None)?);
    }
    let managed = ManagedIdentityCredentialOptions {
        user_assigned_id: client.map(UserAssignedId::ClientId),
        client_options: options(SdkWire::to_this_machine(CALL)),
    };
    sources.push(ManagedIdentityCredential::new(Some(managed))?);
    Ok(sources)
}

impl Azure {
    /// Returns the machine's access token for the vaults with this suffix, as one of its identities.
    ///
    /// # Errors
    ///
    /// `unavailable` if there is none within the time of a call.
    pub(super) async fn of_machine(
        &self,
        role: &Role,
        suffix: &str,
    ) -> Result<Bearer, BackendError> {
        let none = |none: NoCredentials| none.told(NO_CREDENTIALS);
        let scope = super::entra::scope_of(suffix);
        let authority = &self.settings.authority;
        let mut source = vec!["azure", "--authority", authority, "--scope", &scope];
        if *role.name != *MACHINE {
            source.extend(["--client", &role.name]);
        }
        let found: Found = machine::ask(&source, self.settings.timeout)
            .await
            .map_err(none)?;
        machine::must_last(found.ends).map_err(none)?;
        let ends = OffsetDateTime::from_unix_timestamp(found.ends)
            .map_err(|_| none(NoCredentials::Garbage))?;
        Ok(Bearer {
            scope,
            token: AccessToken::new(Secret::new(found.token), ends),
        })
    }
}
