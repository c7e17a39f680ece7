//! What the agent needs of its surroundings, looked at before it serves, and by `latchkey-agent check`.

use crate::account::{Account, Annotations};
use crate::attest::cgroup::{Anchor, AnchorError, PodUid, QosClass};
use crate::backend::Backends;
use crate::config::{BackendConfig, Config, IdentityMode, LocalWorkload};
use crate::csi::volume::Store;
use crate::handover::{Access, SocketPath, SocketPathError};
use crate::kubernetes::Clients;
use crate::mountinfo;
use crate::peer::Pinning;
use crate::role::{Proof, Role};
use crate::token::{self, projected};
use nix::unistd::geteuid;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

mod accounts;
mod rights;

/// Something that the agent needs is missing. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The port of `listen.admin`.
    #[error("cannot listen on listen.admin {0}: {1}")]
    Admin(SocketAddr, #[source] io::Error),
    /// The kubepods root.
    #[error("cannot learn the node's kubepods root: {0}")]
    Anchor(#[source] AnchorError),
    /// The thread of the audit trail.
    #[error("cannot start the audit trail: {0}")]
    Audit(#[source] io::Error),
    /// A backend.
    #[error("{0}")]
    Backend(String),
    /// Roots to trust.
    #[error(
        "no CA roots are found: install ca-certificates in the image, or point SSL_CERT_FILE to a bundle"
    )]
    CaRoots,
    /// The processes of the node.
    #[error(
        "the node's processes are not visible, so no peer could be named: set hostPID: true in the pod"
    )]
    HostPids,
    /// The API server's address.
    #[error("no Kubernetes API server is configured: run in a pod, or set KUBECONFIG ({0})")]
    Kubernetes(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The workload socket.
    #[error("cannot listen beside listen.socket: {0}")]
    Listen(#[source] io::Error),
    /// The metrics registry.
    #[error("cannot set up the metrics: {0}")]
    Metrics(#[source] prometheus::Error),
    /// The role of a principal of this machine.
    #[error("{0}.role {1:?} is no backend's: {2}")]
    LocalRole(String, String, String),
    /// The socket's directory.
    #[error(transparent)]
    SocketPath(#[from] SocketPathError),
    /// The socket's directory is no volume of the agent's own pod.
    #[error(
        "the socket's directory {0} is no emptyDir of this pod, so others than its containers could reach it: mount an \
         emptyDir there (without medium: Memory), and give the container POD_UID from metadata.uid by the downward API"
    )]
    PodVolume(std::path::PathBuf),
    /// How peers can be pinned.
    #[error("cannot find out how this kernel names peers: {0}")]
    Probe(#[source] io::Error),
    /// Where the agent runs.
    #[error("cannot find out where the agent itself runs: {0}")]
    Surroundings(#[source] io::Error),
}

/// One check and how it went.
#[derive(Debug)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) subject: String,
    /// What was found, or what to do.
    pub(crate) outcome: Result<String, String>,
}

/// Whether the agent can do its work here at all.
pub(crate) fn surroundings(config: &Config) -> Result<(), StartError> {
    if config.identity.mode == IdentityMode::Kubernetes {
        host_pids()?;
    }
    if asks_clouds(config) {
        ca_roots()?;
    }
    Ok(())
}

/// Whether a backend is asked over the network.
fn asks_clouds(config: &Config) -> bool {
    config.backends.values().any(BackendConfig::is_cloud)
}

/// The socket's directory, for those who are to reach it.
pub(crate) fn socket_path(config: &Config) -> Result<SocketPath, StartError> {
    let own = geteuid().as_raw();
    let access = match config.identity.mode {
        IdentityMode::Kubernetes => Access::Everybody,
        IdentityMode::Sidecar => Access::OwnPod,
        // Root gets everywhere.
        IdentityMode::Local if config.local.iter().all(|w| [0, own].contains(&w.uid)) => {
            Access::OwnUser
        }
        IdentityMode::Local => Access::AsItIs,
    };
    Ok(SocketPath::open(&config.listen.socket, access)?)
}

/// The agent's own pod, whose volume the socket's directory is proved to be: an emptyDir, which the kubelet keeps under
/// the pod's UID and mounts into its containers alone.
///
/// A sidecar cannot tell by their processes whose its peers are, since the containers of a pod mostly do not see each
/// other. It goes by the kernel's table of the agent's own mounts (proc_pid_mountinfo(5)), which nobody else can write.
pub(crate) fn pod_volume(config: &Config) -> Result<PodUid, StartError> {
    let directory = config.listen.socket.parent().unwrap_or(Path::new("/"));
    let no_volume = || StartError::PodVolume(directory.to_owned());
    let uid = config.kubernetes.pod_uid.ok_or_else(no_volume)?;
    let mounts = mountinfo::mounts().map_err(StartError::Surroundings)?;
    let volume = format!("/pods/{uid}/volumes/kubernetes.io~empty-dir/");
    match mountinfo::nearest(&mounts, directory) {
        Some(mount) if mount.root.to_string_lossy().contains(&volume) => Ok(uid),
        _ => Err(no_volume()),
    }
}

/// Whether the processes of other pods can be seen. Where they cannot, PID 1 is this process or a process of this pod.
pub(crate) fn host_pids() -> Result<(), StartError> {
    if std::process::id() == 1 {
        Err(StartError::HostPids)
    } else {
        Ok(())
    }
}

/// Whether there is anything to check a cloud's certificate against. Without, the AWS client panics at its first use.
pub(crate) fn ca_roots() -> Result<(), StartError> {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(StartError::CaRoots);
    }
    Ok(())
}

/// The anchor: by the configured root, else learned from the agent's own cgroup.
pub(crate) fn anchor(config: &Config, qos: Option<QosClass>) -> Result<Anchor, AnchorError> {
    let read = |file| std::fs::read(file).unwrap_or_default();
    let (own, init) = (read("/proc/self/cgroup"), read("/proc/1/cgroup"));
    match (&config.identity.kubepods_root, config.kubernetes.pod_uid) {
        (Some(root), _) => Anchor::with_root(root, &own, &init),
        (None, Some(uid)) => Anchor::learn(&own, &init, uid, qos),
        (None, None) => Err(AnchorError::UnknownOwnPod),
    }
}

/// Looks at everything and keeps going: all that is missing is said at once.
pub(crate) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |subject: &str, outcome: Result<String, String>| {
        findings.push(Finding {
            subject: subject.to_owned(),
            outcome,
        });
    };
    let text = |error: StartError| error.to_string();
    let in_cluster = config.identity.mode == IdentityMode::Kubernetes;
    if in_cluster {
        note(
            "host processes",
            host_pids().map(|()| "visible".into()).map_err(text),
        );
    }
    if asks_clouds(config) {
        note(
            "CA roots",
            ca_roots().map(|()| "found".into()).map_err(text),
        );
    }
    note(
        "peer pinning",
        Pinning::probe()
            .map(|pinning| match pinning {
                Pinning::ByPidfd => "SO_PEERPIDFD".into(),
                Pinning::ByNumber if in_cluster => {
                    "by number: pods of the node's own network are refused".into()
                }
                Pinning::ByNumber => "by number".into(),
            })
            .map_err(|error| StartError::Probe(error).to_string()),
    );
    note(
        "socket directory",
        socket_path(config)
            .map(|_| config.listen.socket.display().to_string())
            .map_err(text),
    );
    let mut opened = None;
    // Without roots the clients panic.
    if !asks_clouds(config) || ca_roots().is_ok() {
        let backends = Backends::open(config).await.map(Arc::new);
        let open = backends.iter().flat_map(|backends| backends.iter());
        let open: Vec<String> = open.flat_map(|backend| backend.left_open()).collect();
        let known = match &backends {
            Ok(backends) => roles(config, backends),
            Err(_) => Vec::new(),
        };
        opened = backends.as_ref().ok().cloned();
        note("backends", backends.map(|backends| backends.describe()));
        for key in open {
            note("backends", Ok(key));
        }
        for finding in known {
            note(&finding.subject, finding.outcome);
        }
    }
    match config.identity.mode {
        IdentityMode::Kubernetes => check_cluster(config, opened.as_ref(), &mut note).await,
        IdentityMode::Local => {}
        IdentityMode::Sidecar => {
            let volume = pod_volume(config).map(|uid| format!("an emptyDir of pod {uid}"));
            note("socket volume", volume.map_err(text));
            for token in &config.sidecar.tokens {
                let subject = format!("projected token {}", token.display());
                let found = std::fs::metadata(token).map(|_| "there".to_owned());
                note(&subject, found.map_err(|error| error.to_string()));
            }
        }
    }
    findings
}

/// What callers become at each backend, and whom tokens must be made out to for it, where the configuration says so
/// rather than each service account.
fn roles(config: &Config, backends: &Backends) -> Vec<Finding> {
    match config.identity.mode {
        IdentityMode::Kubernetes => Vec::new(),
        IdentityMode::Local => {
            let of = |workload: &LocalWorkload| Finding {
                subject: format!("uid {}", workload.uid),
                outcome: match Account::of_machine(workload, backends) {
                    Ok(account) => Ok(account.describe(backends)),
                    Err(error) => Err(error.to_string()),
                },
            };
            config.local.iter().map(of).collect()
        }
        IdentityMode::Sidecar => {
            let pod = &config.sidecar;
            let annotations = Annotations::of_sidecar(pod);
            let subject = token::subject(&pod.namespace, &pod.service_account);
            let mut findings = Vec::new();
            for (id, name) in backends.names() {
                let role = backends.at(id).role(&annotations);
                if let Ok(Role {
                    proof: Proof::Token(audience),
                    ..
                }) = &role
                {
                    let token = projected::find(&pod.tokens, audience, &subject);
                    findings.push(Finding {
                        subject: format!("token for {name}"),
                        outcome: token
                            .map(|_| format!("made out to {audience}"))
                            .map_err(|error| error.to_string()),
                    });
                }
                findings.push(Finding {
                    subject: format!("role for {name}"),
                    outcome: role
                        .map(|role| role.name.to_string())
                        .map_err(|none| none.to_string()),
                });
            }
            findings
        }
    }
}

/// Looks at what the agent needs of a cluster.
async fn check_cluster(
    config: &Config,
    backends: Option<&Arc<Backends>>,
    note: &mut impl FnMut(&str, Result<String, String>),
) {
    let root = match anchor(config, None) {
        Ok(anchor) => Ok(anchor.to_string()),
        Err(AnchorError::UnknownQos) => Ok("learned once the agent's own pod is known".into()),
        Err(error) => Err(error.to_string()),
    };
    note("kubepods root", root);
    if config.csi.enabled {
        let store = Store::of(&config.csi.directory);
        note(
            "CSI",
            match store.is_there() {
                Ok(true) => Ok(format!(
                    "the mounter has been at {}",
                    store.root().display()
                )),
                Ok(false) => Err(format!(
                    "{} is not there, or no memory of root's alone: run latchkey-csi beside the agent, and mount \
                     csi.directory with mountPropagation HostToContainer",
                    store.root().display()
                )),
                Err(error) => Err(format!("{}: {error}", store.root().display())),
            },
        );
    }
    match Clients::new(&config.kubernetes).await {
        Ok(clients) => {
            for finding in rights::check(&clients, config).await {
                note(&finding.subject, finding.outcome);
            }
            if let Some(backends) = backends {
                for finding in accounts::check(&clients, config, backends).await {
                    note(&finding.subject, finding.outcome);
                }
            }
        }
        Err(error) => note("API server", Err(error.to_string())),
    }
}
