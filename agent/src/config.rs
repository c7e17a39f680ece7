//! The configuration: defaults, file, environment and flags become one typed [`Config`].
//!
//! Only this module reads the environment. All mistakes are found in one go, each reported with the place where it was
//! written; what the machine or cluster lacks is left to the preflight.

pub(crate) mod aws;
mod azure;
mod backends;
mod csi;
mod fault;
pub(crate) mod gcp;
mod limits;
mod principal;
mod reader;
mod settings;
mod stores;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::header::HeaderName;

use crate::attest::cgroup::PodUid;

pub(crate) use self::aws::{AwsConfig, is_region};
pub(crate) use self::azure::AzureConfig;
pub(crate) use self::azure::{is_client, is_tenant, suffix_of, vault_url};
pub(crate) use self::csi::Csi;
pub(crate) use self::fault::{Faults, Origin};
pub(crate) use self::gcp::{GcpConfig, GcpProvider};
pub(crate) use self::limits::Limits;
pub(crate) use self::principal::{LocalRole, LocalWorkload, Sidecar};
pub(crate) use self::stores::{FileConfig, PassConfig};
use self::{
    reader::Reader,
    settings::{Settings, Value},
    value::Wrong,
};

/// Where the configuration is if no other file is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/latchkey/config.toml";

/// The agent's whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// The backend of a request that names none; a key of `backends`.
    pub default_backend: String,
    /// Where the agent listens.
    pub listen: Listen,
    /// What the agent logs: valid directives for `tracing_subscriber::EnvFilter`.
    pub log_level: String,
    /// How many lines of the audit trail may wait for the writer.
    pub audit_queue: usize,
    /// How a caller becomes a workload.
    pub identity: Identity,
    /// Delivery by CSI.
    pub csi: Csi,
    /// The agent's own place in the cluster.
    pub kubernetes: Kubernetes,
    /// The principals of this machine, if there is no cluster.
    pub local: Vec<LocalWorkload>,
    /// The pod that a sidecar serves.
    pub sidecar: Sidecar,
    /// What one pod, and all of them, may use.
    pub limits: Limits,
    /// The lifetime to request from the clouds for a session.
    pub session_duration: Duration,
    /// The cache of values.
    pub cache: Cache,
    /// The vaults, by the names that requests use; never empty.
    pub backends: BTreeMap<String, BackendConfig>,
}

/// Where the agent listens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listen {
    /// The workload socket: an absolute path of fewer than 100 bytes.
    pub socket: PathBuf,
    /// The address of `/livez`, `/readyz` and `/metrics`.
    pub admin: SocketAddr,
    /// A header that every request on the workload socket must carry.
    pub require_header: Option<HeaderName>,
}

/// How a caller becomes a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// How callers are attested.
    pub mode: IdentityMode,
    /// Whether a namespace's annotation applies to its service accounts that have none.
    pub namespace_annotations: bool,
    /// The cgroup that contains all pods of the node; learned at start if absent.
    pub kubepods_root: Option<String>,
    /// The RuntimeClasses whose pods are attested by their own socket alone, if the peer's cgroup is not a pod's.
    pub csi_only_runtimes: Vec<String>,
}

/// How callers are attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityMode {
    /// By the kernel's cgroups and the API server's pods.
    Kubernetes,
    /// By the kernel's uids and the configuration.
    Local,
    /// By the socket itself, which only the agent's own pod can reach.
    Sidecar,
}

/// The agent's own place in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kubernetes {
    /// Whether to watch pods and request tokens as the node itself, by constrained impersonation.
    pub impersonate_node: bool,
    /// The node whose pods are served; empty if not configured, outside of the mode `kubernetes`.
    pub node: String,
    /// The UID of the agent's own pod, absent outside of one.
    pub pod_uid: Option<PodUid>,
    /// The key of the taint to remove from the node when the agent is ready.
    pub startup_taint: Option<String>,
}

/// The cache of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cache {
    /// How long a cached value may be served; zero turns the cache off.
    pub ttl: Duration,
    /// Prefixes of the names that may be cached; all names if empty.
    pub only: Vec<String>,
    /// How many bytes of values one pod may keep.
    pub max_bytes: u64,
    /// How long past its `ttl` a value may be served while the cloud cannot be reached.
    pub stale_if_error: Duration,
}

/// One vault, by its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackendConfig {
    /// AWS Secrets Manager.
    Aws(AwsConfig),
    /// Azure Key Vault.
    Azure(AzureConfig),
    /// A folder of secrets.
    File(FileConfig),
    /// Google Cloud Secret Manager.
    Gcp(GcpConfig),
    /// The password store of `pass`.
    Pass(PassConfig),
}

impl BackendConfig {
    /// Whether it is reached over the network.
    #[must_use]
    pub(crate) fn is_cloud(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Pass(_))
    }

    /// Its type, as in the configuration.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Aws(_) => "aws",
            Self::Azure(_) => "azure",
            Self::File(_) => "file",
            Self::Gcp(_) => "gcp",
            Self::Pass(_) => "pass",
        }
    }

    /// How long one call to it may take.
    fn timeout(&self) -> Duration {
        match self {
            Self::Aws(settings) => settings.timeout,
            Self::Azure(settings) => settings.timeout,
            Self::File(settings) => settings.timeout,
            Self::Gcp(settings) => settings.timeout,
            Self::Pass(settings) => settings.timeout,
        }
    }
}

impl Config {
    /// Loads the configuration from defaults, file, environment and flags, each overriding the previous.
    ///
    /// Without `file`, [`DEFAULT_FILE`] is read if it exists. `flags` are pairs of a dotted key and its value.
    ///
    /// # Errors
    ///
    /// All mistakes at once; if the file is not TOML, only that.
    pub(crate) fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, Faults> {
        let mut reader = Reader::over(Settings::collect(file, env, flags)?);
        let config = Self::read(&mut reader);
        config.check(&mut reader);
        let faults = reader.finish();
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(Faults::of(faults))
        }
    }

    fn read(reader: &mut Reader) -> Self {
        let identity = Identity::read(reader);
        let mode = identity.mode;
        let backends = backends::read(reader, mode);
        // A single backend is the default, whatever its name.
        let default = match backends.len() {
            1 => backends.keys().next().cloned(),
            _ => None,
        };
        let default = default.unwrap_or_else(|| "aws".to_owned());
        reader.overrule("log.level", "RUST_LOG");
        // STS grants no session shorter than 15 minutes or longer than 12 hours.
        let session = Duration::from_secs(15 * 60)..=Duration::from_secs(12 * 3600);
        Self {
            default_backend: reader.read("default_backend", value::name, default),
            listen: Listen::read(reader, mode),
            log_level: reader.read("log.level", value::log_level, "info".to_owned()),
            audit_queue: reader.read("audit.queue", value::count(1..=1 << 20), 8192),
            identity,
            csi: Csi::read(reader),
            kubernetes: Kubernetes::read(reader, mode),
            local: principal::read_local(reader, mode),
            sidecar: Sidecar::read(reader, mode),
            limits: Limits::read(reader),
            session_duration: reader.read(
                "sessions.duration",
                value::duration(session),
                Duration::from_secs(3600),
            ),
            cache: Cache::read(reader),
            backends,
        }
    }

    /// Checks keys against each other that are each valid alone.
    fn check(&self, reader: &mut Reader) {
        let deadline = self.limits.request_deadline;
        if self.limits.attest_wait > deadline {
            reader.contradict("limits.attest_wait", "limits.request_deadline", || {
                format!("must not be longer than that ({})", value::spell(deadline))
            });
        }
        if self.limits.connections_per_pod > self.limits.connections {
            reader.contradict("limits.connections_per_pod", "limits.connections", || {
                format!("must not be more than that ({})", self.limits.connections)
            });
        }
        if self.csi.enabled && self.identity.mode != IdentityMode::Kubernetes {
            reader.contradict("csi.enabled", "identity.mode", || {
                "is for the mode \"kubernetes\" alone: nowhere else does a kubelet mount volumes"
                    .to_owned()
            });
        }
        backends::check(self, reader);
        principal::check(self, reader);
    }
}

/// The environment of this process, with replacement characters for what is not Unicode.
#[expect(clippy::disallowed_methods, reason = "this is the configuration")]
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            value.to_string_lossy().into_owned(),
        )
    })
}

/// Checks what a program without a configuration file is told to log.
///
/// # Errors
///
/// As of `log.level`: what is wrong, and what would be right.
pub(crate) fn check_log_level(text: &str) -> Result<(), String> {
    value::log_level(&value::untyped(text))
        .map(drop)
        .map_err(|Wrong { wrong, remedy }| format!("{wrong}; {remedy}"))
}

impl Listen {
    fn read(reader: &mut Reader, mode: IdentityMode) -> Self {
        let mut default = Self::default();
        if mode == IdentityMode::Local && !reader.is_written("listen.socket") {
            let remedy = "set listen.socket to a path in a directory of your own, such as \
                          \"/run/user/1000/latchkey/agent.sock\"";
            match reader.variable("XDG_RUNTIME_DIR") {
                Some(directory) => {
                    let socket = Path::new(directory).join("latchkey/agent.sock");
                    // Without the slashes that say nothing.
                    let socket = socket.components().collect::<PathBuf>();
                    let socket = Value::Untyped(socket.to_string_lossy().into_owned());
                    match value::socket_path(&socket) {
                        Ok(socket) => default.socket = socket,
                        Err(Wrong { wrong, .. }) => {
                            let wrong = format!("the socket's path in it {wrong}");
                            reader.blame_variable("XDG_RUNTIME_DIR", Wrong::new(wrong, remedy));
                        }
                    }
                }
                None => reader.missing(
                    "listen.socket",
                    "is not written and XDG_RUNTIME_DIR is not set",
                    remedy,
                ),
            }
        }
        Self {
            socket: reader.read("listen.socket", value::socket_path, default.socket),
            admin: reader.read("listen.admin", value::address, default.admin),
            require_header: reader.optional("listen.require_header", &[], value::header),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/latchkey/agent.sock"),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 9642)),
            require_header: None,
        }
    }
}

impl Identity {
    fn read(reader: &mut Reader) -> Self {
        let default = Self::default();
        Self {
            mode: reader.read("identity.mode", value::identity_mode, default.mode),
            namespace_annotations: reader.read(
                "identity.namespace_annotations",
                value::boolean,
                default.namespace_annotations,
            ),
            kubepods_root: reader.optional("identity.kubepods_root", &[], value::cgroup_root),
            csi_only_runtimes: reader.read(
                "identity.csi_only_runtimes",
                csi::runtime_classes,
                default.csi_only_runtimes,
            ),
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            mode: IdentityMode::Kubernetes,
            namespace_annotations: true,
            kubepods_root: None,
            csi_only_runtimes: Vec::new(),
        }
    }
}

impl Kubernetes {
    fn read(reader: &mut Reader, mode: IdentityMode) -> Self {
        let node = reader.optional("kubernetes.node", &["NODE_NAME"], value::node);
        // If the mode is invalid, it is unknown whether a node is needed.
        let in_cluster = mode == IdentityMode::Kubernetes && !reader.has_fault("identity.mode");
        if node.is_none() && in_cluster {
            let wrong = if reader.has_file() {
                "is empty and NODE_NAME is not set".to_owned()
            } else {
                format!("is empty, NODE_NAME is not set, and {DEFAULT_FILE} is not there")
            };
            reader.missing(
                "kubernetes.node",
                &wrong,
                "give the pod NODE_NAME from spec.nodeName by the downward API; outside of a cluster set \
                 identity.mode = \"local\" (deploy/local.toml)",
            );
        }
        Self {
            impersonate_node: reader.read("kubernetes.impersonate_node", value::boolean, false),
            node: node.unwrap_or_default(),
            pod_uid: reader.optional("kubernetes.pod_uid", &["POD_UID"], value::pod_uid),
            startup_taint: reader.optional("kubernetes.startup_taint", &[], value::taint),
        }
    }
}

impl Cache {
    fn read(reader: &mut Reader) -> Self {
        let default = Self::default();
        let day = Duration::from_secs(24 * 3600);
        Self {
            ttl: reader.read(
                "cache.ttl",
                value::duration(Duration::ZERO..=day),
                default.ttl,
            ),
            only: reader.read("cache.only", value::name_prefixes, default.only),
            // A value counts as itself and as its JSON, so the minimum fits values of some 30 KiB.
            max_bytes: reader.read(
                "cache.max_bytes",
                value::bytes(64 << 10..=1 << 30),
                default.max_bytes,
            ),
            stale_if_error: reader.read(
                "cache.stale_if_error",
                value::duration(Duration::ZERO..=day),
                default.stale_if_error,
            ),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            ttl: Duration::ZERO,
            only: Vec::new(),
            max_bytes: 16 << 20,
            stale_if_error: Duration::ZERO,
        }
    }
}
