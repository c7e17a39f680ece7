//! The same node with Azure as its cloud, and what tests of Azure alone want to change.

use super::Sandbox;
use crate::agent::{AgentProcess, AgentSettings};
use crate::azure::{AppSpec, FakeAzure, SecretSpec};
use crate::clouds::Cloud;
use crate::clouds::azure::Azure;
use std::io;

pub use crate::clouds::azure::{FOREIGN_VAULT, OTHER_TENANT, OTHER_VAULT, TENANT, VAULT};

/// A node without its agent, with Azure as its cloud.
#[derive(Debug)]
pub struct AzureSandbox {
    /// The cluster and the pods.
    pub sandbox: Sandbox,
    /// The cloud.
    pub azure: FakeAzure,
    tenant: Azure,
}

impl AzureSandbox {
    /// Starts cluster and cloud.
    ///
    /// # Errors
    ///
    /// If this machine refuses a port or a directory.
    pub async fn start() -> io::Result<Self> {
        let sandbox = Sandbox::start().await?;
        let tenant = Azure::start(&sandbox).await?;
        let azure = tenant.cloud.clone();
        Ok(Self {
            sandbox,
            azure,
            tenant,
        })
    }

    /// Makes a namespace as the documentation says: a service account with a client of its own, and the secret
    /// `NAMESPACE/database-password`, which only that client may get. Returns the client's id.
    ///
    /// # Panics
    ///
    /// Never: the namespace has just been made.
    pub fn namespace(&self, name: &str) -> String {
        self.tenant.namespace(&self.sandbox, name);
        let client = self.tenant.client_of(name);
        client.expect("the namespace has a client")
    }

    /// Makes a client that trusts one service account, and may not read anything yet. Returns its id.
    pub fn client(&self, namespace: &str, account: &str) -> String {
        self.tenant.client(namespace, account)
    }

    /// An application that trusts a service account of a namespace.
    #[must_use]
    pub fn app(&self, client: &str, namespace: &str, account: &str) -> AppSpec {
        self.tenant.app(client, namespace, account)
    }

    /// Puts a text into the node's vault, under its name there, for one client. Returns its version.
    pub fn secret(&self, client: &str, name: &str, value: &str) -> String {
        self.azure.admit(VAULT, client, Some(name));
        self.azure.put_secret(VAULT, name, SecretSpec::text(value))
    }

    /// The settings of an agent of this sandbox.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub fn settings(&self) -> io::Result<AgentSettings> {
        Ok(self.tenant.settings(self.sandbox.settings()?))
    }

    /// Starts an agent with the default settings and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready; the text has its output.
    pub async fn agent(&self) -> io::Result<AgentProcess> {
        self.agent_with(|settings| settings).await
    }

    /// Starts an agent with changed settings and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready; the text has its output.
    pub async fn agent_with(
        &self,
        change: impl FnOnce(AgentSettings) -> AgentSettings,
    ) -> io::Result<AgentProcess> {
        let agent = change(self.settings()?).start().await?;
        agent.until_ready().await?;
        Ok(agent)
    }
}
