//! What the agent needs of its surroundings, looked at before it serves, and by `latchkey-agent check`.

use crate::attest::cgroup::{Anchor, AnchorError, PodUid, QosClass};
use crate::backend::Backends;
use crate::config::Config;
use crate::handover::{Place, PlaceError};
use crate::peer::Pinning;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// How long the API server may take to answer a check.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection to the API server may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Something that the agent needs is missing. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum StartError {
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
    /// The agent's own pod UID.
    #[error(
        "kubernetes.pod_uid (POD_UID) {0:?} is no pod UID: take it from metadata.uid by the downward API"
    )]
    OwnPod(String),
    /// The socket's directory.
    #[error("{0}")]
    Place(String),
    /// How peers can be pinned.
    #[error("cannot find out how this kernel names peers: {0}")]
    Probe(#[source] io::Error),
}

impl StartError {
    pub(crate) fn place(error: PlaceError) -> Self {
        Self::Place(error.to_string())
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

/// The agent's own pod, which may not ask itself.
pub(crate) fn own_pod(config: &Config) -> Result<Option<PodUid>, StartError> {
    config
        .kubernetes
        .pod_uid
        .as_deref()
        .map(|uid| uid.parse().map_err(|_| StartError::OwnPod(uid.to_owned())))
        .transpose()
}

/// The anchor: by the configured root, else learned from the agent's own cgroup.
pub(crate) fn anchor(
    config: &Config,
    own_pod: Option<PodUid>,
    qos: Option<QosClass>,
) -> Result<Anchor, AnchorError> {
    let read = |file| std::fs::read(file).unwrap_or_default();
    let (own, init) = (read("/proc/self/cgroup"), read("/proc/1/cgroup"));
    match (&config.identity.kubepods_root, own_pod) {
        (Some(root), _) => Anchor::with_root(root, &own, &init),
        (None, Some(uid)) => Anchor::learn(&own, &init, uid, qos),
        (None, None) => Err(AnchorError::UnknownOwnPod),
    }
}

/// A client of the API server, by the pod's own service account or by a kubeconfig.
///
/// # Errors
///
/// If neither is there.
pub(crate) async fn kube_client() -> Result<kube::Client, StartError> {
    let mut config = kube::Config::infer()
        .await
        .map_err(|error| StartError::Kubernetes(error.into()))?;
    // Its own retries wait for up to 1000 s; ours are bounded by the request.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    kube::Client::try_from(config).map_err(|error| StartError::Kubernetes(error.into()))
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
    note(
        "host processes",
        host_pids().map(|()| "visible".into()).map_err(text),
    );
    note(
        "CA roots",
        ca_roots().map(|()| "found".into()).map_err(text),
    );
    note(
        "peer pinning",
        Pinning::probe()
            .map(|pinning| match pinning {
                Pinning::ByPidfd => "SO_PEERPIDFD".into(),
                Pinning::ByNumber => "by number: pods of the node's own network are refused".into(),
            })
            .map_err(|error| StartError::Probe(error).to_string()),
    );
    note(
        "socket directory",
        Place::open(&config.listen.socket)
            .map(|_| config.listen.socket.display().to_string())
            .map_err(|error| error.to_string()),
    );
    let own = own_pod(config);
    let root = match &own {
        Ok(own) => match anchor(config, *own, None) {
            Ok(anchor) => Ok(anchor.to_string()),
            Err(AnchorError::UnknownQos) => Ok("learned once the agent's own pod is known".into()),
            Err(error) => Err(error.to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    note("kubepods root", root);
    // Without roots the clients panic.
    if ca_roots().is_ok() {
        let backends = Backends::open(config).await;
        note("backends", backends.map(|backends| backends.describe()));
    }
    match kube_client().await {
        Ok(client) => {
            for (verb, resource, subresource) in [
                ("watch", "pods", ""),
                ("list", "pods", ""),
                ("get", "serviceaccounts", ""),
                ("get", "namespaces", ""),
            ] {
                let subject = format!("right to {verb} {resource}{subresource}");
                note(&subject, may(&client, verb, resource, subresource).await);
            }
            let everywhere = may(&client, "create", "serviceaccounts", "token").await;
            note(
                "right to create serviceaccounts/token",
                Ok(match everywhere {
                    Ok(_) => "in every namespace: narrower is safer, see docs/operations.md".into(),
                    Err(_) => "only where a namespace grants it".into(),
                }),
            );
        }
        Err(error) => note("API server", Err(error.to_string())),
    }
    findings
}

async fn may(
    client: &kube::Client,
    verb: &str,
    resource: &str,
    subresource: &str,
) -> Result<String, String> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                resource: Some(resource.into()),
                subresource: (!subresource.is_empty()).then(|| subresource.into()),
                version: Some("v1".into()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let parameters = PostParams::default();
    match timeout(API_TIMEOUT, reviews.create(&parameters, &review)).await {
        Ok(Ok(review)) if review.status.as_ref().is_some_and(|status| status.allowed) => {
            Ok("granted".into())
        }
        Ok(Ok(_)) => Err(format!(
            "not granted: bind a ClusterRole that allows {verb} on {resource}"
        )),
        Ok(Err(error)) => Err(format!("the API server cannot be asked: {error}")),
        Err(_) => Err("the API server does not answer".into()),
    }
}
