//! Workload → subject token: the pod's own service account token, for one audience.
//!
//! The kubelet hands it over by CSI where it can: then the agent needs no right to issue tokens. Otherwise the API
//! server issues it.

mod kubelet;
pub(crate) mod projected;

pub(crate) use kubelet::{HandedError, KubeletTokens};

use crate::attest::Workload;
use crate::error::RequestError;
use crate::secret::SubjectToken;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use kubelet::FromKubelet;
use latchkey_client::protocol::Code;
use latchkey_client::protocol::words::NAMESPACE_MUST_ALLOW;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;

/// The shortest life that the API server gives a token (TokenRequest v1), in seconds. Clouds verify tokens
/// offline, so a stolen one outlives its pod by up to this long.
const TOKEN_SECONDS: i64 = 600;

/// How long the API server may take to issue a token.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(3);

/// The API server's reason to create nothing in a namespace that is being deleted (Kubernetes API,
/// `NamespaceTerminatingCause`).
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";

/// Where subject tokens come from.
pub(crate) enum SubjectTokens {
    /// The API server's TokenRequest.
    Kubernetes(kube::Client),
    /// Nowhere: a machine's principals have none.
    None,
    /// The kubelet, which keeps them fresh in these files.
    Projected(Vec<PathBuf>),
}

impl SubjectTokens {
    /// Returns a token of the pod's service account for `audience`: the newest that the kubelet handed over by CSI,
    /// otherwise one from the API server; with [`Self::Projected`], one from the kubelet's files.
    ///
    /// # Errors
    ///
    /// `not_attested` if the API server no longer knows the pod, `denied` if the agent may not issue tokens for that
    /// account, `no_role` outside a cluster, otherwise `unavailable`.
    pub(crate) async fn issue(
        &self,
        workload: &Workload,
        audience: &str,
    ) -> Result<SubjectToken, RequestError> {
        match self {
            Self::Kubernetes(client) => {
                let kubelets = workload.pod().tokens.newest(audience);
                if let FromKubelet::Token(token) = kubelets {
                    return Ok(token);
                }
                request(client, workload, audience)
                    .await
                    .map_err(|error| without_the_kubelets(error, &kubelets))
            }
            Self::None => Err(RequestError::new(
                Code::NoRole,
                "the caller is in no cluster, so it has no service account token",
            )),
            Self::Projected(files) => {
                let facts = workload.facts();
                let subject = subject(&facts.namespace, &facts.service_account);
                projected::find(files, audience, &subject)
            }
        }
    }
}

/// Returns the `sub` of a service account's tokens.
pub(crate) fn subject(namespace: &str, service_account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{service_account}")
}

/// Requests a token of the pod's service account for `audience`. It is bound to the pod: it ends with the pod wherever
/// tokens are reviewed online, and its claims name the pod.
async fn request(
    client: &kube::Client,
    workload: &Workload,
    audience: &str,
) -> Result<SubjectToken, RequestError> {
    let facts = workload.facts();
    // A token that is not bound to a UID would outlive the pod.
    let uid = workload.pod().uid.ok_or_else(unavailable)?;
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(facts.name.to_string()),
                uid: Some(uid.to_string()),
            }),
        },
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &facts.namespace);
    let parameters = PostParams::default();
    let call = accounts.create_token_request(&facts.service_account, &parameters, &request);
    let status = match timeout(ISSUE_TIMEOUT, call).await {
        Ok(Ok(answer)) => answer.status,
        Ok(Err(error)) => return Err(refusal(&error)),
        Err(elapsed) => return Err(unavailable().because(&elapsed)),
    };
    let status = status.ok_or_else(unavailable)?;
    if status.expiration_timestamp.0 <= crate::time::now() {
        return Err(RequestError::unavailable(
            "the API server issued a token that has expired: the clocks of node and API server differ",
        ));
    }
    Ok(SubjectToken::from(status.token))
}

/// Returns the error as it looks to a pod whose tokens come, or should come, from the kubelet.
fn without_the_kubelets(error: RequestError, kubelets: &FromKubelet) -> RequestError {
    match (error.code, kubelets) {
        (Code::Denied, FromKubelet::NotYet) => RequestError::unavailable(
            "the kubelet has not handed this pod's tokens over yet; it does so each minute: try again",
        ),
        (Code::Denied, FromKubelet::NotThisAudience) => RequestError::new(
            Code::Denied,
            "the kubelet hands over no token for this audience: add it to tokenRequests of the CSIDriver object",
        ),
        _ => error,
    }
}

fn refusal(error: &kube::Error) -> RequestError {
    match error {
        kube::Error::Api(status) if has_cause(status, NAMESPACE_TERMINATING) => RequestError::new(
            Code::Denied,
            "the pod's namespace is being deleted, so no more tokens are issued in it",
        ),
        kube::Error::Api(status) if status.code == 403 => RequestError::new(
            Code::Denied,
            format!(
                "the agent may not issue tokens for this pod's service account: {NAMESPACE_MUST_ALLOW} it"
            ),
        ),
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => RequestError::new(
            Code::NotAttested,
            "the API server no longer knows this pod or its service account",
        )
        .reason("pod_deleted"),
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => RequestError::new(
            Code::Denied,
            "the API server refused a token for this pod's service account",
        ),
        // The API server is overloaded or failing, and may say for how long.
        kube::Error::Api(status) => unavailable().retry_after(wait_of(status)),
        _ => unavailable(),
    }
    .because(error)
}

fn has_cause(status: &kube::core::Status, cause: &str) -> bool {
    let details = status.details.as_ref();
    details.is_some_and(|details| details.causes.iter().any(|known| known.reason == cause))
}

/// Returns how long the API server asks to wait, if its answer is a `Status` that says so (Kubernetes API,
/// `StatusDetails`); the client library does not pass on a bare `Retry-After`.
fn wait_of(status: &kube::core::Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

fn unavailable() -> RequestError {
    RequestError::unavailable("no token for the pod's service account can be had now; try again")
}

#[cfg(test)]
mod tests;
