//! Calls to the clouds on a pod's behalf: exchanges, and calls with the sessions that they gave.

use crate::attest::Workload;
use crate::backend::{BackendError, BackendId, Backends, Caller, Fault, HANGS, Secret, Session};
use crate::cache::ReadKey;
use crate::error::RequestError;
use crate::metrics::Metrics;
use crate::request::RequestId;
use crate::role::{Proof, Role};
use crate::server::{About, Warnings};
use crate::session::SessionKey;
use crate::token::SubjectTokens;
use latchkey_client::protocol::{Code, Step};
use std::sync::Arc;
use tokio::time::Instant;

/// What these calls need. The audit trail is not among it: an exchange continues after its caller has left, and an
/// agent that stops waits until nobody holds the trail.
pub(crate) struct Clouds {
    pub(crate) backends: Arc<Backends>,
    pub(crate) tokens: SubjectTokens,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) warnings: Warnings,
}

/// The time of one call. A call that hangs is recorded even if its caller gives up and it is dropped unfinished.
struct Timing<'a> {
    clouds: &'a Clouds,
    backend: BackendId,
    operation: &'a str,
    began: Instant,
    is_over: bool,
}

// === impl Clouds ===

impl Clouds {
    /// Returns the session for `key`, from an exchange if there is none at hand.
    async fn session(
        self: &Arc<Self>,
        workload: &Workload,
        key: &SessionKey,
        asker: RequestId,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let exchange = || self.clone().exchange(workload.clone(), key.clone(), asker);
        let (clouds, of, backend) = (self.clone(), workload.clone(), key.backend);
        let failed = move |error: &BackendError| clouds.renewal_failed(&of, backend, error);
        let sessions = &workload.pod().sessions;
        let session = sessions.open(key, asker, exchange, failed).await;
        session.map_err(|failed| failed.at(Step::Exchange))
    }

    /// Assumes the role of `key`.
    async fn exchange(
        self: Arc<Self>,
        workload: Workload,
        key: SessionKey,
        asker: RequestId,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let SessionKey { backend, role, .. } = key;
        let token = match &role.proof {
            Proof::Machine | Proof::None => None,
            Proof::Token(audience) => {
                let issued = self.tokens.issue(&workload, audience).await;
                Some(issued.map_err(|error| error.at(Step::Token))?)
            }
        };
        let facts = workload.facts();
        let caller = Caller {
            pod_uid: workload
                .pod()
                .uid
                .map_or_else(|| "local".into(), |uid| uid.simple().to_string()),
            namespace: facts.namespace.clone(),
            service_account: facts.service_account.clone(),
            request_id: asker,
        };
        let call = self.backends.at(backend).exchange(&role, token, &caller);
        let outcome = self.timed(backend, "exchange", call).await;
        let error = outcome.as_ref().err().map(|failed| &failed.error);
        self.metrics.exchange(self.backends.name(backend), error);
        if outcome.as_ref().is_err_and(BackendError::is_refusal) {
            forget(&workload, &role);
        }
        outcome
    }

    /// Warns that a session could not be renewed. No request fails for it yet, so nothing else says so before the
    /// sessions end, and then those of all the node's pods do.
    fn renewal_failed(&self, workload: &Workload, backend: BackendId, failed: &BackendError) {
        let error = &failed.error;
        let code = error.code.as_str();
        if self.warnings.is_due(code, Some(About::Backend(backend))) {
            let facts = workload.facts();
            tracing::warn!(
                backend = %self.backends.name(backend),
                namespace = %facts.namespace,
                pod = %facts.name,
                code,
                cause = error.cause.as_deref(),
                error = %error,
                "cannot renew a session"
            );
        }
    }

    /// Warns that an old value is served, and why a new one could not be read.
    pub(super) fn served_stale(&self, backend: BackendId, error: &RequestError) {
        if self.warnings.is_due("stale", Some(About::Backend(backend))) {
            tracing::warn!(
                backend = %self.backends.name(backend),
                code = error.code.as_str(),
                cause = error.cause.as_deref(),
                error = %error,
                "an old value is served"
            );
        }
    }

    /// Makes a call to a cloud, and records its time and outcome in the metrics.
    async fn timed<T>(
        &self,
        backend: BackendId,
        operation: &str,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        let mut timing = Timing {
            clouds: self,
            backend,
            operation,
            began: Instant::now(),
            is_over: false,
        };
        let outcome = call.await;
        timing.is_over = true;
        timing.record(outcome.as_ref().err().map(|failed| failed.error.code));
        outcome
    }

    /// Makes a call with the session for `key`, and once more with a new session if that one ended early.
    pub(super) async fn call<T, F>(
        self: &Arc<Self>,
        workload: &Workload,
        key: &SessionKey,
        asker: RequestId,
        operation: &str,
        call: impl Fn(Arc<dyn Session>) -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let mut tries = 2;
        loop {
            tries -= 1;
            let session = self.session(workload, key, asker).await?;
            let permit = workload.pod().quota.call().await;
            let _permit = permit.ok_or_else(BackendError::crowded)?;
            let call = call(session.clone());
            let outcome = self.timed(key.backend, operation, call).await;
            let outcome = outcome.map_err(|failed| failed.at(Step::Secret));
            let Err(failed) = &outcome else {
                return outcome;
            };
            if failed.is_refusal() {
                forget(workload, &key.role);
            }
            let ended = failed.fault == Fault::SessionEnded;
            if ended {
                workload
                    .pod()
                    .sessions
                    .put_away(key, &session, failed, tries == 0);
            }
            if !ended || tries == 0 {
                return outcome;
            }
        }
    }

    /// Reads from the vault.
    pub(super) async fn fetch(
        self: Arc<Self>,
        workload: Workload,
        key: ReadKey,
        asker: RequestId,
    ) -> Result<Arc<Secret>, BackendError> {
        let read = |session: Arc<dyn Session>| {
            let key = &key;
            async move { session.read(&key.name, &key.selector, asker.as_str()).await }
        };
        let outcome = self
            .call(&workload, &key.session, asker, "read", read)
            .await;
        outcome.map(Arc::new)
    }
}

// === impl Timing ===

impl Timing<'_> {
    fn record(&self, code: Option<Code>) {
        let name = self.clouds.backends.name(self.backend);
        let took = self.began.elapsed();
        let metrics = &self.clouds.metrics;
        metrics.backend_call(name, self.operation, took, code);
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.began.elapsed() >= HANGS {
            self.record(Some(Code::Timeout));
        }
    }
}

/// Drops what the pod has of a role that its cloud refuses.
fn forget(workload: &Workload, role: &Role) {
    workload.pod().values.forget(role);
    workload.pod().sessions.forget(role);
}

#[cfg(test)]
mod tests;
