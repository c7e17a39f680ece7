//! Google Cloud: a provider of workload identity federation, a service account for each namespace, Secret Manager.

use async_trait::async_trait;
use std::any::Any;
use std::io;

use super::{Cloud, Listener, Logged, Trouble};
use crate::agent::AgentSettings;
use crate::gcp::{ACCESSOR, FakeGcp, NUMBER, Operation, PROJECT, ProviderSpec};
use crate::sandbox::{ACCOUNT, Sandbox, password};

/// The annotation that names the Google service account.
const ANNOTATION: &str = "iam.gke.io/gcp-service-account";

/// A project of Google Cloud that trusts the sandbox's cluster.
#[derive(Debug)]
pub struct Gcp {
    /// The cloud.
    pub cloud: FakeGcp,
    /// The full name of the provider that represents the cluster.
    pub provider: String,
}

impl Gcp {
    /// Starts the cloud, which trusts the sandbox's cluster.
    ///
    /// # Errors
    ///
    /// If this machine refuses a port.
    pub async fn start(sandbox: &Sandbox) -> io::Result<Self> {
        let cloud = FakeGcp::start().await?;
        let issuer = sandbox.kube.issuer();
        let provider = cloud.provider_name("clusters", "sandbox");
        let spec = ProviderSpec::new(&provider, issuer.url(), issuer.jwks());
        cloud.add_provider(spec).map_err(io::Error::other)?;
        Ok(Self { cloud, provider })
    }

    /// The principal of a service account of the cluster, as policies name it.
    #[must_use]
    pub fn principal(&self, namespace: &str, account: &str) -> String {
        let pool = self
            .provider
            .split_once("/providers/")
            .map_or("", |(pool, _)| pool);
        format!("principal:{pool}/subject/system:serviceaccount:{namespace}:{account}")
    }

    fn account(namespace: &str) -> String {
        format!("{namespace}-{ACCOUNT}@{PROJECT}.iam.gserviceaccount.com")
    }
}

#[async_trait]
impl Cloud for Gcp {
    fn settings(&self, settings: AgentSettings) -> AgentSettings {
        settings
            .without("backends.aws")
            .set("default_backend", "gcp")
            .set("backends.gcp.project", PROJECT)
            .set("backends.gcp.provider", &self.provider)
            .set("backends.gcp.endpoint", self.cloud.endpoint())
            .set("backends.gcp.sts_endpoint", self.cloud.endpoint())
            .set("backends.gcp.iam_endpoint", self.cloud.endpoint())
    }

    fn namespace(&self, sandbox: &Sandbox, name: &str) {
        let account = self.cloud.create_account(&format!("{name}-{ACCOUNT}"));
        let principal = self.principal(name, ACCOUNT);
        self.cloud
            .bind_account(&account, "roles/iam.workloadIdentityUser", &principal);
        let member = format!("serviceAccount:{account}");
        let own = format!("resource.name.startsWith('projects/{NUMBER}/secrets/{name}--')");
        self.cloud.bind_project(ACCESSOR, &member, Some(&own));
        self.cloud
            .bind_project("roles/secretmanager.viewer", &member, None);
        sandbox.namespace(name, &[(ANNOTATION, &account)]);
        self.put(
            &format!("{name}/database-password"),
            password(name).as_bytes(),
        );
    }

    fn impostor(&self, sandbox: &Sandbox, name: &str, of: &str) {
        sandbox.namespace(name, &[(ANNOTATION, &Self::account(of))]);
    }

    fn put(&self, name: &str, value: &[u8]) -> Option<String> {
        Some(self.cloud.put_secret(&name.replace('/', "--"), value))
    }

    fn trouble(&self, trouble: Trouble) -> Option<Box<dyn Any + Send>> {
        let (exchange, read) = (Operation::ExchangeToken, Operation::AccessSecretVersion);
        super::trouble(&self.cloud, trouble, exchange, read)
    }

    fn listener(&self) -> Option<&Listener> {
        Some(self.cloud.listener())
    }

    fn expire_sessions(&self) -> bool {
        self.cloud.expire_bearers() > 0
    }

    fn revoke(&self, namespace: &str) -> bool {
        self.cloud
            .unbind(&format!("serviceAccount:{}", Self::account(namespace)));
        true
    }

    fn previous_stage(&self) -> Option<&'static str> {
        None
    }

    fn log(&self) -> Vec<Logged> {
        let line = |call: crate::gcp::Call| {
            let who = call.principal.as_deref().unwrap_or("nobody");
            let what = call
                .secret
                .as_deref()
                .or(call.account.as_deref())
                .unwrap_or_default();
            let reason = call.reason.as_deref().unwrap_or("none");
            let told = format!("{:?} {what} by {who} ({reason})", call.operation);
            Logged::new(&told, call.error.as_deref())
        };
        self.cloud.calls().into_iter().map(line).collect()
    }
}
