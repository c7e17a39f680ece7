//! The startup taint: pods that do not tolerate it get to a node only once its agent is ready.

use crate::error::chain;
use crate::waits::Waits;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The timeout for each try.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The waits after failed tries.
const RETRY_WAITS: Waits = Waits {
    next: Duration::from_millis(500),
    longest: Duration::from_secs(30),
};

/// Removes the taints with this key from the node, trying until it succeeds; the agent serves meanwhile.
pub(crate) async fn take_off(client: kube::Client, node: &str, key: &str) {
    let nodes = Api::<Node>::all(client);
    let mut waits = RETRY_WAITS;
    loop {
        match timeout(ANSWER_TIMEOUT, try_once(&nodes, node, key)).await {
            Ok(Ok(true)) => {
                tracing::info!(taint = key, "the node's startup taint is taken off");
                return;
            }
            Ok(Ok(false)) => return,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = chain(&error),
                    taint = key,
                    "cannot take the startup taint off the node"
                );
            }
            Err(_) => {
                tracing::warn!(
                    taint = key,
                    "the API server does not answer about the node's taint"
                );
            }
        }
        sleep(waits.take()).await;
    }
}

/// Removes such a taint and returns whether there was one. With the version, the API server refuses the patch if
/// somebody else has changed the node since it was read.
async fn try_once(nodes: &Api<Node>, name: &str, key: &str) -> kube::Result<bool> {
    let node = nodes.get(name).await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let (ours, others): (Vec<Taint>, Vec<Taint>) =
        taints.into_iter().partition(|taint| taint.key == key);
    if ours.is_empty() {
        return Ok(false);
    }
    let patch = serde_json::json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": others},
    });
    nodes
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(true)
}
