//! The API server, asked as the agent's own account and, where that is configured, as the agent's node.

use crate::config;
use crate::preflight::StartError;
use std::time::Duration;

/// How long a connection to the API server may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The agent's clients of the API server.
#[derive(Clone)]
pub(crate) struct Clients {
    /// The agent's own account.
    pub(crate) own: kube::Client,
    /// For this node's pods and their tokens: the node itself if the configuration says so, else the account.
    ///
    /// The API server lets an account act as the node that its token is bound to, and only for the verbs that it
    /// was given (KEP-5284, Kubernetes 1.36). It then judges the request as it judges the kubelet's: no other node's
    /// pods, no token but for a pod of this node.
    pub(crate) node: kube::Client,
}

impl Clients {
    /// By the pod's own service account or by a kubeconfig.
    ///
    /// # Errors
    ///
    /// If neither is there.
    pub(crate) async fn new(settings: &config::Kubernetes) -> Result<Self, StartError> {
        let mut config = kube::Config::infer()
            .await
            .map_err(|error| StartError::Kubernetes(error.into()))?;
        // The environment's proxy is for the way to the clouds; kube takes it for a kubeconfig's cluster too. One that the
        // kubeconfig itself names stays, and is refused by name.
        let is_the_clouds = |(name, value): (String, String)| {
            name.eq_ignore_ascii_case("HTTPS_PROXY") && value.parse().ok() == config.proxy_url
        };
        if config::environment().any(is_the_clouds) {
            config.proxy_url = None;
        }
        // Its own retries wait for up to 1000 s; ours are bounded by the request.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let own = client(config.clone())?;
        let node = if settings.impersonate_node {
            config.auth_info.impersonate = Some(format!("system:node:{}", settings.node));
            client(config)?
        } else {
            own.clone()
        };
        Ok(Self { own, node })
    }
}

fn client(config: kube::Config) -> Result<kube::Client, StartError> {
    kube::Client::try_from(config).map_err(|error| StartError::Kubernetes(error.into()))
}
