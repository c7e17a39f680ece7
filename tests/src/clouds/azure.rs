//! Azure: a tenant that trusts the sandbox's cluster, a client for each namespace, Key Vault.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Cloud, Listener, Logged, Trouble};
use crate::agent::AgentSettings;
use crate::azure::{Access, AppSpec, FakeAzure, Operation, SecretSpec};
use crate::sandbox::{ACCOUNT, Sandbox, password};

/// The tenant that the agent is configured for.
pub const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

/// The vault that the agent is configured for; role assignments say who may read what.
pub const VAULT: &str = "node-vault";

/// Another vault of the same tenant, with an access policy.
pub const OTHER_VAULT: &str = "other-vault";

/// A vault of another tenant.
pub const FOREIGN_VAULT: &str = "foreign-vault";

/// The tenant of [`FOREIGN_VAULT`].
pub const OTHER_TENANT: &str = "33e01921-4d64-4f8c-a055-5bdaffd5e33d";

/// The annotation that names the client.
const ANNOTATION: &str = "azure.workload.identity/client-id";

/// A tenant of Azure that trusts the sandbox's cluster, and its vaults.
#[derive(Debug)]
pub struct Azure {
    /// The cloud.
    pub cloud: FakeAzure,
    issuer: String,
    /// The directory of files for the agent.
    directory: PathBuf,
    /// The client of each namespace.
    clients: Mutex<BTreeMap<String, String>>,
}

impl Azure {
    /// Starts the cloud, which trusts the sandbox's cluster.
    ///
    /// # Errors
    ///
    /// If this machine refuses a port or a file.
    pub async fn start(sandbox: &Sandbox) -> io::Result<Self> {
        let cloud = FakeAzure::start().await?;
        let issuer = sandbox.kube.issuer();
        cloud.publish_issuer(issuer.url(), &issuer.jwks());
        cloud.make_vault(VAULT, TENANT, Access::Roles);
        cloud.make_vault(OTHER_VAULT, TENANT, Access::Policy);
        cloud.make_vault(FOREIGN_VAULT, OTHER_TENANT, Access::Roles);
        Ok(Self {
            issuer: issuer.url().to_owned(),
            directory: sandbox.directory().to_owned(),
            clients: Mutex::default(),
            cloud,
        })
    }

    /// An application that trusts one service account of the cluster.
    #[must_use]
    pub fn app(&self, client: &str, namespace: &str, account: &str) -> AppSpec {
        AppSpec::new(client, &self.issuer, namespace, account)
    }

    /// Makes a client that trusts one service account, and may not read anything yet. Returns its id.
    pub fn client(&self, namespace: &str, account: &str) -> String {
        let client = uuid::Uuid::new_v4().to_string();
        let app = self.app(&client, namespace, account);
        self.cloud.put_app(TENANT, app);
        client
    }

    /// The client of a namespace that [`Cloud::namespace`] made.
    #[must_use]
    pub fn client_of(&self, namespace: &str) -> Option<String> {
        self.clients().get(namespace).cloned()
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Cloud for Azure {
    fn settings(&self, settings: AgentSettings) -> AgentSettings {
        let vaults = [VAULT, OTHER_VAULT, FOREIGN_VAULT];
        self.cloud
            .in_reach(settings, &self.directory, &vaults)
            .expect("the sandbox has a directory")
            .without("backends.aws")
            .set("default_backend", "azure")
            .set("backends.azure.vault_url", self.cloud.vault_url(VAULT))
            .set("backends.azure.tenant", TENANT)
    }

    fn namespace(&self, sandbox: &Sandbox, name: &str) {
        let client = self.client(name, ACCOUNT);
        sandbox.namespace(name, &[(ANNOTATION, &client)]);
        self.cloud.show(VAULT, &client);
        // Azure has no rule for prefixes of names. An assignment on a secret outlives the secret.
        for missing in ["nothing", "database"] {
            let missing = format!("{name}--{missing}");
            self.cloud.admit(VAULT, &client, Some(&missing));
        }
        self.clients().insert(name.to_owned(), client);
        self.put(
            &format!("{name}/database-password"),
            password(name).as_bytes(),
        );
    }

    fn impostor(&self, sandbox: &Sandbox, name: &str, of: &str) {
        let client = self.client_of(of).unwrap_or_default();
        sandbox.namespace(name, &[(ANNOTATION, &client)]);
    }

    fn put(&self, name: &str, value: &[u8]) -> Option<String> {
        let namespace = name.split('/').next().unwrap_or_default();
        let written = name.replace('/', "--");
        if let Some(client) = self.client_of(namespace) {
            self.cloud.admit(VAULT, &client, Some(&written));
        }
        let spec = match std::str::from_utf8(value) {
            Ok(text) => SecretSpec::text(text),
            Err(_) => SecretSpec {
                content_type: Some("application/octet-stream".to_owned()),
                ..SecretSpec::text(BASE64.encode(value))
            },
        };
        Some(self.cloud.put_secret(VAULT, &written, spec))
    }

    fn trouble(&self, trouble: Trouble) -> Option<Box<dyn Any + Send>> {
        let (exchange, read) = (Operation::Token, Operation::GetSecret);
        super::trouble(&self.cloud, trouble, exchange, read)
    }

    fn listener(&self) -> Option<&Listener> {
        Some(self.cloud.listener())
    }

    fn expire_sessions(&self) -> bool {
        let clients = self.clients();
        for client in clients.values() {
            self.cloud.revoke_tokens(client);
        }
        !clients.is_empty()
    }

    fn revoke(&self, namespace: &str) -> bool {
        let client = self.client_of(namespace);
        if let Some(client) = &client {
            self.cloud.expel(VAULT, client);
        }
        client.is_some()
    }

    fn previous_stage(&self) -> Option<&'static str> {
        None
    }

    fn log(&self) -> Vec<Logged> {
        let line = |call: crate::azure::Call| {
            let who = call.client.as_deref().unwrap_or("nobody");
            let what = call.secret.as_deref().unwrap_or_default();
            let told = format!("{:?} {what} by {who} ({})", call.operation, call.user_agent);
            Logged::new(&told, call.error.as_deref())
        };
        self.cloud.calls().into_iter().map(line).collect()
    }
}
