//! Checks what the agent needs from its environment, before it serves and in `latchkey-agent check`.

use crate::account::{Account, Annotations};
use crate::attest::cgroup::{Anchor, AnchorError, CgroupDenial, PodUid, QosClass};
use crate::backend::{Backends, Roots};
use crate::config::{BackendConfig, Config, IdentityMode, LocalWorkload};
use crate::csi::volume::Store;
use crate::handover::{Access, SocketPath, SocketPathError};
use crate::kubernetes::Clients;
use crate::mountinfo;
use crate::peer::Pinning;
use crate::role::{Proof, Role};
use crate::token::{self, projected};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

mod accounts;
mod rights;

/// How many descriptors the agent may need besides those of `limits.connections`: for the clouds and itself.
const OTHER_DESCRIPTORS: u64 = 1024;

/// The same for the volumes of 250 pods, and the few connections that each has of its own.
const DESCRIPTORS_OF_VOLUMES: u64 = 250 * 10;

/// Something that the agent needs is missing. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The port of `listen.admin`.
    #[error("cannot listen on listen.admin {address}: {source}{}", another_port(.address, .source))]
    Admin {
        address: SocketAddr,
        source: io::Error,
    },
    /// The kubepods root.
    #[error("cannot learn the node's kubepods root: {0}")]
    Anchor(#[source] AnchorError),
    /// The thread of the audit trail.
    #[error("cannot start the audit trail's thread: raise the limit on processes ({0})")]
    Audit(#[source] io::Error),
    /// A backend.
    #[error("{0}")]
    Backend(String),
    /// Roots to trust, and what is wrong with those that are there, in parentheses.
    #[error(
        "no CA roots are found: install ca-certificates in the image, or point SSL_CERT_FILE to a bundle{0}"
    )]
    CaRoots(String),
    /// The processes of the node.
    #[error(
        "the node's processes are not visible, so no peer could be named: set hostPID: true in the pod"
    )]
    HostPids,
    /// The API server's address.
    #[error("no Kubernetes API server is configured: run in a pod, or set KUBECONFIG ({0})")]
    Kubernetes(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The workload socket.
    #[error("cannot listen beside listen.socket {}: {source}{}", .socket.display(), more_room(.source))]
    Listen {
        socket: std::path::PathBuf,
        source: io::Error,
    },
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
    /// Any pinning of peers.
    #[error(
        "no peer could be pinned: the kernel has no SO_PEERPIDFD (Linux 6.5), and refuses pidfd_open(2), which an old \
         seccomp profile may forbid ({0})"
    )]
    Pinning(#[source] io::Error),
    /// Where the agent runs.
    #[error("cannot find out where the agent itself runs: {0}")]
    Surroundings(#[source] io::Error),
}

/// What to do where it is the port that is taken.
fn another_port(address: &SocketAddr, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::AddrInUse {
        return String::new();
    }
    let mut address = address.to_string();
    address.truncate(address.rfind(':').unwrap_or_default());
    format!(": name another port, with --set listen.admin={address}:PORT")
}

/// What to do where it is the file system that is full.
fn more_room(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => ": make room on that file system (bytes, or inodes)",
        _ => "",
    }
}

/// One check and how it went.
#[derive(Debug)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) subject: String,
    /// What was found, or what to do.
    pub(crate) outcome: Result<String, String>,
}

impl Finding {
    /// What was found of the subject, or what to do.
    fn of(subject: impl Into<String>, outcome: Result<impl Into<String>, impl ToString>) -> Self {
        Self {
            subject: subject.into(),
            outcome: outcome.map(Into::into).map_err(|error| error.to_string()),
        }
    }
}

/// Whether the agent can do its work here at all; returns the roots to trust, which are none if no cloud is asked.
pub(crate) fn surroundings(config: &Config) -> Result<Roots, StartError> {
    if let Some(complaint) = too_few_descriptors(config) {
        tracing::warn!("{complaint}");
    }
    if config.identity.mode == IdentityMode::Kubernetes {
        host_pids()?;
    }
    if !asks_clouds(config) {
        return Ok(Roots::none());
    }
    let roots = ca_roots()?;
    if let Some(complaint) = roots.complaint() {
        tracing::warn!("{complaint}");
    }
    Ok(roots)
}

/// Whether a backend is asked over the network.
fn asks_clouds(config: &Config) -> bool {
    config.backends.values().any(BackendConfig::is_cloud)
}

/// Opens the socket's directory for those who must be able to reach it.
pub(crate) fn socket_path(config: &Config) -> Result<SocketPath, StartError> {
    Ok(SocketPath::open(&config.listen.socket, access(config))?)
}

/// Who must be able to reach the socket.
fn access(config: &Config) -> Access {
    let own = geteuid().as_raw();
    match config.identity.mode {
        IdentityMode::Kubernetes => Access::Everybody,
        IdentityMode::Sidecar => Access::OwnPod,
        // Root may enter any directory.
        IdentityMode::Local if config.local.iter().all(|w| [0, own].contains(&w.uid)) => {
            Access::OwnUser
        }
        IdentityMode::Local => Access::AsItIs,
    }
}

/// The socket's directory, or the nearest one above it, if others than its owner and group may not enter it although
/// the configuration names users of this machine. It may be meant so, for users of that group.
fn closed_to_users(config: &Config) -> Option<&Path> {
    let is_closed = |path: &&Path| {
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
    };
    let directory = config.listen.socket.parent()?;
    let serves_users = access(config) == Access::AsItIs;
    serves_users.then(|| directory.ancestors().find(is_closed))?
}

/// The UID of the agent's own pod, once the socket's directory is proved to be a volume of that pod: an emptyDir, which
/// the kubelet keeps under the pod's UID and mounts only into the pod's containers.
///
/// A sidecar cannot tell from its peers' processes whose they are, since the containers of a pod mostly do not see each
/// other. It relies on the kernel's table of its own mounts (proc_pid_mountinfo(5)), which nobody else can write.
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

/// Whether the processes of other pods are visible. If not, PID 1 is this process or a process of this pod.
pub(crate) fn host_pids() -> Result<(), StartError> {
    if std::process::id() == 1 {
        Err(StartError::HostPids)
    } else {
        Ok(())
    }
}

/// What is wrong with the number of descriptors that the agent may have, if anything.
fn too_few_descriptors(config: &Config) -> Option<String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    // A connection is a socket and a pidfd; the pods' own sockets have as many connections again.
    let (each, of_volumes) = match config.csi.enabled {
        true => (4, DESCRIPTORS_OF_VOLUMES),
        false => (2, 0),
    };
    let needed = each * config.limits.connections as u64 + OTHER_DESCRIPTORS + of_volumes;
    (hard < needed).then(|| {
        format!(
            "{hard} descriptors are fewer than {needed}, which limits.connections may need: one pod could use them up, so \
             raise the hard limit (ulimit -Hn), or lower limits.connections"
        )
    })
}

/// How this kernel can pin peers. In a sidecar the socket proves who they are, so nothing more is needed.
pub(crate) fn pinning(config: &Config) -> Result<Pinning, StartError> {
    let pinning = Pinning::probe().map_err(StartError::Probe)?;
    if config.identity.mode != IdentityMode::Sidecar {
        pinning.must_work().map_err(StartError::Pinning)?;
    }
    Ok(pinning)
}

/// The roots to check the clouds' certificates against, of which there must be one.
pub(crate) fn ca_roots() -> Result<Roots, StartError> {
    let roots = Roots::load();
    if roots.is_empty() {
        let why = roots.complaint().map(|why| format!(" ({why})"));
        return Err(StartError::CaRoots(why.unwrap_or_default()));
    }
    Ok(roots)
}

/// The anchor: from the configured root, otherwise learned from the agent's own cgroup.
pub(crate) fn anchor(config: &Config, qos: Option<QosClass>) -> Result<Anchor, AnchorError> {
    let read =
        |file| std::fs::read(file).map_err(|error| AnchorError::Hidden(file, error.to_string()));
    let (own, init) = (read("/proc/self/cgroup")?, read("/proc/1/cgroup")?);
    match (&config.identity.kubepods_root, config.kubernetes.pod_uid) {
        (Some(root), _) => Anchor::with_root(root, &own, &init),
        (None, Some(uid)) => Anchor::learn(&own, &init, uid, qos),
        (None, None) => Err(AnchorError::UnknownOwnPod),
    }
}

/// Checks everything and keeps going, so that all that is missing is reported at once.
pub(crate) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let in_cluster = config.identity.mode == IdentityMode::Kubernetes;
    if in_cluster {
        let visible = host_pids().map(|()| "visible");
        findings.push(Finding::of("host processes", visible));
    }
    let descriptors = too_few_descriptors(config).unwrap_or_else(|| "enough".to_owned());
    findings.push(Finding::of("descriptors", Ok::<_, String>(descriptors)));
    let mut roots = Roots::none();
    if asks_clouds(config) {
        let found = ca_roots().map(|found| {
            roots = found;
            roots.complaint().map_or("found".to_owned(), |complaint| {
                format!("found, but {complaint}")
            })
        });
        findings.push(Finding::of("CA roots", found));
    }
    let pinning = pinning(config).map(|pinning| match pinning {
        Pinning::ByPidfd => "SO_PEERPIDFD",
        Pinning::ByNumber if in_cluster => "by number: pods of the node's own network are refused",
        Pinning::ByNumber => "by number",
    });
    findings.push(Finding::of("peer pinning", pinning));
    let directory = socket_path(config).map(|_| config.listen.socket.display().to_string());
    findings.push(Finding::of("socket directory", directory));
    findings.extend(closed_to_users(config).map(|closed| {
        let text = format!(
            "others may not enter {}: a user who is named reaches the socket only if its group lets them in",
            closed.display()
        );
        Finding::of("socket directory", Ok::<_, String>(text))
    }));
    let mut opened = None;
    let backends = Backends::open(config, roots).await;
    let described = backends.as_ref().map(Backends::describe);
    findings.push(Finding::of("backends", described));
    if let Ok(backends) = backends {
        let open = backends.iter().flat_map(|backend| backend.left_open());
        findings.extend(open.map(|key| Finding::of("backends", Ok::<_, String>(key))));
        findings.extend(roles(config, &backends));
        opened = Some(Arc::new(backends));
    }
    match config.identity.mode {
        IdentityMode::Kubernetes => findings.extend(check_cluster(config, opened.as_ref()).await),
        IdentityMode::Local => {}
        IdentityMode::Sidecar => {
            let volume = pod_volume(config).map(|uid| format!("an emptyDir of pod {uid}"));
            findings.push(Finding::of("socket volume", volume));
            findings.extend(config.sidecar.tokens.iter().map(|token| {
                let found = std::fs::metadata(token).map(|_| "there");
                Finding::of(format!("projected token {}", token.display()), found)
            }));
        }
    }
    findings
}

/// What callers become at each backend, and the audience that tokens need for it, where the configuration says so
/// rather than each service account.
fn roles(config: &Config, backends: &Backends) -> Vec<Finding> {
    match config.identity.mode {
        IdentityMode::Kubernetes => Vec::new(),
        IdentityMode::Local => {
            let of = |workload: &LocalWorkload| {
                let account = Account::of_machine(workload, backends);
                let described = account.map(|account| account.describe(backends));
                Finding::of(format!("uid {}", workload.uid), described)
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
                    let found = token.map(|_| format!("made out to {audience}"));
                    let found = found.map_err(|error| match &error.cause {
                        Some(cause) => format!("{error}: {cause}"),
                        None => error.to_string(),
                    });
                    findings.push(Finding::of(format!("token for {name}"), found));
                }
                let named = role.map(|role| role.name.to_string());
                findings.push(Finding::of(format!("role for {name}"), named));
            }
            findings
        }
    }
}

/// Checks what the agent needs from a cluster.
async fn check_cluster(config: &Config, backends: Option<&Arc<Backends>>) -> Vec<Finding> {
    let root = match anchor(config, None) {
        Err(AnchorError::UnknownQos) => Ok("learned once the agent's own pod is known".to_owned()),
        anchor => anchor.map(|anchor| match pods_below(&anchor) {
            // One that was learned is where the agent's own pod is.
            Err(why) if config.identity.kubepods_root.is_some() => format!("{anchor}, but {why}"),
            _ => anchor.to_string(),
        }),
    };
    let mut findings = vec![Finding::of("kubepods root", root)];
    if config.csi.enabled {
        findings.push(Finding::of(
            "CSI",
            mounter(&Store::of(&config.csi.directory)),
        ));
    }
    match Clients::new(&config.kubernetes).await {
        Ok(clients) => {
            findings.extend(rights::check(&clients, config).await);
            if let Some(backends) = backends {
                findings.extend(accounts::check(&clients, config, backends).await);
            }
        }
        Err(error) => findings.push(Finding::of("API server", Err::<String, _>(error))),
    }
    findings
}

/// Whether any process of the node is in a pod below the kubepods root. If none is, the root may be wrong, or no pod
/// runs yet, which nobody can tell from here.
fn pods_below(anchor: &Anchor) -> Result<(), String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    // Many end before they are read.
    let cgroups = processes.filter_map(|entry| std::fs::read(entry.path().join("cgroup")).ok());
    let mut elsewhere = 0;
    for cgroup in cgroups {
        match anchor.parse(&cgroup) {
            Ok(_) => return Ok(()),
            Err(CgroupDenial::OutsideRoot) => elsewhere += 1,
            Err(_) => {}
        }
    }
    Err(match elsewhere {
        0 => "no process here is in a pod, below it or elsewhere, so it is not known whether it is right".to_owned(),
        _ => format!(
            "no process is in a pod below it, and {elsewhere} are in what looks like a pod elsewhere: correct \
             identity.kubepods_root unless these are no pods of this node's kubelet"
        ),
    })
}

/// Whether the mounter has made the tmpfs that it shares with the agent.
fn mounter(store: &Store) -> Result<String, String> {
    let root = store.root().display();
    match store.is_there() {
        Ok(true) => Ok(format!("the mounter has been at {root}")),
        Ok(false) => Err(format!(
            "{root} is not there, or no memory of root's alone: run latchkey-csi beside the agent, and mount \
             csi.directory with mountPropagation HostToContainer"
        )),
        Err(error) => Err(format!("{root}: {error}")),
    }
}
