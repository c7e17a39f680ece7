//! Google Cloud: the exchange, principals and service accounts, and what is its own among vaults.

mod endpoints;
mod failures;
mod identity;
mod vault;

use testkit::agent::AgentProcess;
use testkit::clouds::Cloud as _;
use testkit::clouds::gcp::Gcp;
use testkit::gcp::{ACCESSOR, NUMBER, Operation};
use testkit::kube::FakeKubeConfig;
use testkit::sandbox::{ACCOUNT, Sandbox, SandboxPod};

const SECRET: &str = "test/database-password";

/// A cluster with the namespaces `test` and `prod`, and the project that trusts it.
struct Google {
    sandbox: Sandbox,
    gcp: Gcp,
}

impl Google {
    async fn start() -> Self {
        Self::with(FakeKubeConfig::default()).await
    }

    async fn with(kube: FakeKubeConfig) -> Self {
        let sandbox = Sandbox::with(kube, Default::default())
            .await
            .expect("a sandbox");
        let gcp = Gcp::start(&sandbox).await.expect("a cloud");
        for namespace in ["test", "prod"] {
            gcp.namespace(&sandbox, namespace);
        }
        Self { sandbox, gcp }
    }

    async fn agent(&self, keys: &[(&str, &str)]) -> AgentProcess {
        self.sandbox
            .agent_with(|settings| self.gcp.settings(settings).set_all(keys))
            .await
            .expect("an agent")
    }

    async fn pod(&self) -> SandboxPod {
        self.sandbox.pod("test", "web").await.expect("a pod")
    }

    /// Another service account of `test`, which the project knows nothing of, and a pod of it.
    async fn pod_of(&self, account: &str, annotations: &[(&str, &str)]) -> SandboxPod {
        let pod = self.sandbox.pod_as("test", account, annotations);
        pod.await.expect("a pod")
    }

    /// Lets a member read what is under `test/`.
    fn admit(&self, member: &str) {
        let own = format!("resource.name.startsWith('projects/{NUMBER}/secrets/test--')");
        self.gcp.cloud.bind_project(ACCESSOR, member, Some(&own));
    }

    fn count(&self, operation: Operation) -> usize {
        self.gcp.cloud.count_of(operation)
    }
}

/// The Google service account of `test/app`.
fn account() -> String {
    format!("test-{ACCOUNT}@acme-prod.iam.gserviceaccount.com")
}
