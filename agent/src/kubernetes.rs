//! Clients for the API server, with the agent's own service account and, if configured, as the agent's node.

use crate::attest::pods::WATCH_SECONDS;
use crate::config;
use crate::preflight::StartError;
use std::time::Duration;

/// The timeout for connecting to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the API server may be silent on a connection with a request pending. A watch ends sooner by itself; a list,
/// and the start of a watch, have no other limit, and the server's machine may die with a request pending.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);

/// The agent's clients for the API server.
#[derive(Clone)]
pub(crate) struct Clients {
    /// With the agent's own service account.
    pub(crate) own: kube::Client,
    /// For this node's pods and their tokens: as the node itself if so configured, else with the service account.
    ///
    /// The API server lets a service account act as the node that its token is bound to, and only for the verbs granted
    /// to it (KEP-5284, Kubernetes 1.36). It then authorizes the request as if the kubelet sent it: no other node's
    /// pods, and tokens only for pods of this node.
    pub(crate) node: kube::Client,
}

impl Clients {
    /// Uses the pod's own service account, or a kubeconfig.
    ///
    /// # Errors
    ///
    /// If there is neither.
    pub(crate) async fn new(settings: &config::Kubernetes) -> Result<Self, StartError> {
        let mut config = kube::Config::infer()
            .await
            .map_err(|error| StartError::Kubernetes(error.into()))?;
        // The environment's proxy is meant for the clouds, but kube uses it for a kubeconfig's cluster too. A proxy
        // that the kubeconfig itself names stays, and is refused by name.
        let is_the_clouds = |(name, value): (String, String)| {
            name.eq_ignore_ascii_case("HTTPS_PROXY") && value.parse().ok() == config.proxy_url
        };
        if config::environment().any(is_the_clouds) {
            config.proxy_url = None;
        }
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

fn client(mut config: kube::Config) -> Result<kube::Client, StartError> {
    // kube's own retries wait for up to 1000 s; the agent's are limited by the request.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // Makes the timeout count from the request, however long the connection was idle before.
    config.reset_reader_on_write = true;
    kube::Client::try_from(config).map_err(|error| StartError::Kubernetes(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::pods::{Pods, Settings};
    use prometheus::IntCounter;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    /// The server's machine may die after it has begun to answer a list.
    #[tokio::test(start_paused = true)]
    async fn pods_are_asked_for_again_where_the_api_server_took_the_question_and_never_answers() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = server.local_addr().expect("its address");
        let url = format!("http://{address}").parse().expect("a URL");
        let client = client(kube::Config::new(url)).expect("a client");
        let failures = IntCounter::new("failures", "how often").expect("a counter");
        let pods = Pods::new(client, "node", Settings::default(), failures.clone());
        let asked_twice = async {
            let _first = server.accept().await.expect("a connection");
            server.accept().await.expect("another one");
        };
        let asked_twice = timeout(Duration::from_secs(600), asked_twice);
        tokio::select! {
            () = pods.follow() => {}
            outcome = asked_twice => outcome.expect("it is asked again"),
        }
        assert_eq!(failures.get(), 1);
    }
}
