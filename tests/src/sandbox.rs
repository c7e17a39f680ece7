//! A small node: the fake cluster, the fake AWS that trusts its tokens, an agent between them, and pods.

use crate::agent::{AgentProcess, AgentSettings, free_address};
use crate::aws::{
    FakeAws, FakeAwsConfig, RoleSpec, SecretInput, read_and_list_policy, secret_arn, trust_policy,
};
use crate::kube::{AGENT, Container, FakeKube, FakeKubeConfig, Pod, PodSpec};
use crate::workload::{PodCgroup, Request, Response, Volume, Workload, WorkloadSpec};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// The node's name.
pub const NODE: &str = "n1";

/// The region of the sandbox's secrets.
pub const REGION: &str = "eu-central-1";

/// The cluster's issuer, unless a test names another.
const ISSUER: &str = "https://cluster.example";

/// The service account that [`Sandbox::namespace`] makes.
pub const ACCOUNT: &str = "app";

/// The first word of `database-password` in a namespace made by [`Sandbox::aws_namespace`], so that tests can search
/// for it where it must not be.
pub const CANARY: &str = "canary-3f9c1d";

/// A node without its agent, which [`Sandbox::agent`] starts.
#[derive(Debug)]
pub struct Sandbox {
    /// The API server.
    pub kube: FakeKube,
    /// The cloud.
    pub aws: FakeAws,
    aws_provider: String,
    directory: TempDir,
    cgroup: String,
}

/// A pod of the sandbox: its object at the API server, and the process in its container.
#[derive(Debug)]
pub struct SandboxPod {
    /// The object.
    pub object: Pod,
    /// The process.
    pub workload: Workload,
    /// The container's id.
    pub container: String,
}

// === impl Sandbox ===

impl Sandbox {
    /// Starts cluster and cloud.
    ///
    /// # Errors
    ///
    /// If this machine refuses a port or a directory.
    pub async fn start() -> io::Result<Self> {
        Self::with(FakeKubeConfig::default(), FakeAwsConfig::default()).await
    }

    /// Starts a cluster and a cloud with other settings than the default ones.
    ///
    /// # Errors
    ///
    /// If this machine refuses a port or a directory.
    pub async fn with(kube: FakeKubeConfig, aws: FakeAwsConfig) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // AWS accepts no issuer whose URL is not https.
        let issuer = kube.issuer.or_else(|| Some(ISSUER.to_owned()));
        let kube = FakeKube::start(FakeKubeConfig { issuer, ..kube }).await?;
        let aws = FakeAws::start(aws).await?;
        let issuer = kube.issuer();
        let aws_provider =
            aws.add_oidc_provider(issuer.url(), &["sts.amazonaws.com"], &issuer.jwks());
        let directory = tempfile::Builder::new().prefix("latchkey-").tempdir()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/latchkey-{}-{number}", std::process::id());
        Ok(Self {
            kube,
            aws,
            aws_provider,
            directory,
            cgroup,
        })
    }

    /// Makes a namespace, and in it the service account [`ACCOUNT`] with these annotations.
    pub fn namespace(&self, name: &str, annotations: &[(&str, &str)]) {
        self.kube.create_namespace(name, &[]);
        self.kube.create_service_account(name, ACCOUNT, annotations);
    }

    /// Makes a namespace as the documentation says: a service account with a role of its own, which may list and read
    /// what is under the namespace's name, and the secret `NAMESPACE/database-password`. Returns the role's ARN.
    ///
    /// # Panics
    ///
    /// If the fake AWS does not accept the policies, which are its own.
    pub fn aws_namespace(&self, name: &str) -> String {
        let role = self.aws_role(name, ACCOUNT, &format!("{name}/*"));
        self.namespace(name, &[("eks.amazonaws.com/role-arn", &role)]);
        self.aws_secret(&format!("{name}/database-password"), &password(name));
        role
    }

    /// Makes a role that one service account may assume, and that may list all and read the secrets whose names match
    /// `secrets`. Returns its ARN.
    ///
    /// # Panics
    ///
    /// If the fake AWS does not accept the policies, which are its own.
    pub fn aws_role(&self, namespace: &str, account: &str, secrets: &str) -> String {
        let arn = self.aws.role_arn(&format!("{namespace}-{account}"));
        let subject = format!("system:serviceaccount:{namespace}:{account}");
        let resource = secret_arn("*", self.aws.account(), secrets);
        self.aws
            .create_role(RoleSpec::new(
                &arn,
                trust_policy(&self.aws_provider, &subject, "sts.amazonaws.com"),
                read_and_list_policy(&[resource]),
            ))
            .expect("the policies are well formed");
        arn
    }

    /// The ARN of the OIDC provider that represents this cluster in the cloud.
    #[must_use]
    pub fn aws_provider(&self) -> &str {
        &self.aws_provider
    }

    /// Puts a text secret, or a new version of it, into the sandbox's region. Returns its version.
    pub fn aws_secret(&self, name: &str, value: &str) -> String {
        self.aws.put_secret(REGION, name, SecretInput::text(value))
    }

    /// Starts a pod of the service account [`ACCOUNT`].
    ///
    /// # Errors
    ///
    /// If this machine refuses its cgroup or its namespaces.
    pub async fn pod(&self, namespace: &str, name: &str) -> io::Result<SandboxPod> {
        self.pod_of(PodSpec::of(namespace, name, ACCOUNT)).await
    }

    /// Makes a service account with these annotations, and starts a pod of it with the same name.
    ///
    /// What the agent knows of one account is good for some seconds, so tests of other annotations take other accounts.
    ///
    /// # Errors
    ///
    /// If this machine refuses its cgroup or its namespaces.
    pub async fn pod_as(
        &self,
        namespace: &str,
        account: &str,
        annotations: &[(&str, &str)],
    ) -> io::Result<SandboxPod> {
        self.kube
            .create_service_account(namespace, account, annotations);
        self.pod_of(PodSpec::of(namespace, account, account)).await
    }

    /// Starts a pod with the object that the test specifies; its only container gets an id.
    ///
    /// # Errors
    ///
    /// If this machine refuses its cgroup or its namespaces.
    pub async fn pod_of(&self, spec: PodSpec) -> io::Result<SandboxPod> {
        self.pod_placed(spec, |_| {}).await
    }

    /// Starts a pod of the service account [`ACCOUNT`] as the documentation says: the directory of the agent's socket
    /// is mounted at `/run/latchkey`, where every client looks for it, and there is a loopback interface.
    ///
    /// # Errors
    ///
    /// If this machine refuses its cgroup or its namespaces, or the agent has not made the directory yet.
    pub async fn application(&self, namespace: &str, name: &str) -> io::Result<SandboxPod> {
        let spec = PodSpec::of(namespace, name, ACCOUNT);
        let mounted = |place: &mut WorkloadSpec| {
            place.socket = "/run/latchkey/agent.sock".into();
            place.volume = Some(Volume {
                directory: self.directory.path().join("run"),
                at: "/run/latchkey".into(),
            });
        };
        let pod = self.pod_placed(spec, mounted).await?;
        let up = ["link", "set", "lo", "up"];
        let said = pod.workload.execute("ip", &up).await?;
        if said.code != Some(0) {
            return Err(io::Error::other(said.stderr));
        }
        Ok(pod)
    }

    /// Starts a pod with the object that the test specifies, and its process where `change` puts it.
    ///
    /// # Errors
    ///
    /// If this machine refuses its cgroup or its namespaces.
    pub async fn pod_placed(
        &self,
        spec: PodSpec,
        change: impl FnOnce(&mut WorkloadSpec),
    ) -> io::Result<SandboxPod> {
        let container = container_id();
        let object = self.kube.create_pod(PodSpec {
            containers: vec![Container::running("app", &container)],
            ..spec
        });
        let mut place = self.place(object.uid(), &container);
        change(&mut place);
        let workload = Workload::start(place).await?;
        Ok(SandboxPod {
            object,
            workload,
            container,
        })
    }

    /// Where a process of this pod's container is, whether or not there is such a pod.
    #[must_use]
    pub fn place(&self, pod_uid: &str, container: &str) -> WorkloadSpec {
        WorkloadSpec::pod(
            PodCgroup::new(&self.cgroup, pod_uid, container),
            &self.socket(),
        )
    }

    /// The path above `kubepods` in this sandbox's cgroup tree.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A directory of this sandbox's own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the agent's socket is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/agent.sock")
    }

    /// The settings of an agent of this sandbox.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "wrappers are looked up where the test's own are"
    )]
    pub fn settings(&self) -> io::Result<AgentSettings> {
        let kubeconfig = self.kube.kubeconfig_file(self.directory.path(), AGENT)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let settings = AgentSettings::default()
            .set("listen.socket", self.socket().display())
            .set("listen.admin", free_address()?)
            .set("kubernetes.node", NODE)
            .set(
                "identity.kubepods_root",
                format!("{}/kubepods", self.cgroup),
            )
            .set("backends.aws.region", REGION)
            .set("backends.aws.endpoint", self.aws.endpoint())
            .set("backends.aws.sts_endpoint", self.aws.endpoint())
            .env("KUBECONFIG", kubeconfig.display())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("PATH", path);
        Ok(settings)
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
        change(self.settings()?).start_ready().await
    }
}

// === impl SandboxPod ===

impl SandboxPod {
    /// Asks for `path` on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn get(&self, path: &str) -> io::Result<Response> {
        self.workload.get(path).await
    }

    /// Asks for a secret on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn secret(&self, name: &str) -> io::Result<Response> {
        self.workload.get(&format!("/v1/secrets/{name}")).await
    }

    /// Makes a request on a new connection.
    ///
    /// # Errors
    ///
    /// If there is no response.
    pub async fn request(&self, request: Request) -> io::Result<Response> {
        self.workload.request(request).await
    }
}

/// A container id that no other container has.
#[must_use]
pub fn container_id() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}

/// The value of `NAMESPACE/database-password`.
#[must_use]
pub fn password(namespace: &str) -> String {
    format!("{CANARY}-{namespace}")
}
