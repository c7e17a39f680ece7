//! Azure: the exchange, the session, the vault, and what the cloud's refusals and failures become.

mod failures;
mod hanging;
mod names;
mod proxy;
mod refusals;
mod sessions;

use testkit::agent::{AgentProcess, AgentSettings};
use testkit::azure::{Call, FakeAzure, Operation, SecretSpec};
use testkit::clouds::Cloud as _;
use testkit::clouds::azure::{Azure, VAULT};
use testkit::sandbox::Sandbox;

const SECRET: &str = "test/database-password";

/// What the secret is called at the vault.
const WRITTEN: &str = "test--database-password";

/// A node without its agent, with Azure as its cloud.
struct Node {
    sandbox: Sandbox,
    azure: FakeAzure,
    tenant: Azure,
}

impl Node {
    async fn start() -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        let tenant = Azure::start(&sandbox).await.expect("a cloud");
        Self {
            sandbox,
            azure: tenant.cloud.clone(),
            tenant,
        }
    }

    /// Makes a namespace as the documentation says; returns its client's id.
    fn namespace(&self, name: &str) -> String {
        self.tenant.namespace(&self.sandbox, name);
        let client = self.tenant.client_of(name);
        client.expect("the namespace has a client")
    }

    /// Puts a text into the node's vault, under its name there, for one client. Returns its version.
    fn secret(&self, client: &str, name: &str, value: &str) -> String {
        self.azure.admit(VAULT, client, Some(name));
        self.azure.put_secret(VAULT, name, SecretSpec::text(value))
    }

    fn settings(&self) -> AgentSettings {
        let settings = self.sandbox.settings().expect("settings");
        self.tenant.settings(settings)
    }

    async fn agent(&self) -> AgentProcess {
        self.agent_with(|settings| settings).await
    }

    async fn agent_with(
        &self,
        change: impl FnOnce(AgentSettings) -> AgentSettings,
    ) -> AgentProcess {
        let agent = change(self.settings()).start_ready().await;
        agent.expect("an agent")
    }

    fn exchanges(&self) -> Vec<Call> {
        self.azure.calls_of(Operation::Token)
    }

    /// The calls to a vault that carried a token.
    fn with_token(&self) -> Vec<Call> {
        self.azure.calls_where(|call| call.with_token)
    }
}
