//! The pipeline: what a request meets, step by step.

mod batch;
mod record;

use crate::account::Accounts;
use crate::attest::Workload;
use crate::audit::Audit;
use crate::backend::{BackendError, BackendId, Backends, Caller, Fault, Offer, Secret, Session};
use crate::cache::{Read, ReadKey};
use crate::error::RequestError;
use crate::metrics::{Metrics, Route};
use crate::readiness::Readiness;
use crate::request::{self, Ask, ListAsk, SecretAsk, Target};
use crate::response::{self, Answer};
use crate::role::{self, Proof};
use crate::server::Connection;
use crate::session::SessionKey;
use crate::token::SubjectTokens;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use latchkey_client::protocol::{Code, Health, Identity, SecretList};
use record::Record;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long the answer to one that is no workload, or over its pod's limit, is held back. Each has left an audit
/// line: without a rest, one pod could write the trail faster than anybody keeps it.
const REFUSED_REST: Duration = Duration::from_millis(50);

/// What every request is answered with.
pub(crate) struct Services {
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) audit: Audit,
    pub(crate) backends: Arc<Backends>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tokens: SubjectTokens,
    pub(crate) node: String,
    pub(crate) require_header: Option<HeaderName>,
    pub(crate) deadline: Duration,
    pub(crate) requests: AtomicU64,
    pub(crate) readiness: Readiness,
}

/// One request, on its connection.
struct Exchange {
    id: Arc<str>,
    services: Arc<Services>,
    connection: Arc<Connection>,
}

/// Answers a request. It cannot fail: a failure is an answer too.
pub(crate) async fn handle(
    services: Arc<Services>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let started = Instant::now();
    connection.request_began();
    let exchange = Exchange {
        id: services.next_id(),
        services,
        connection,
    };
    let (head, body) = request.into_parts();
    let (route, parsed) = request::parse(&head);
    let required = exchange.services.require_header.as_ref();
    let admitted = request::admit(&head, !body.is_end_stream(), required);
    if admitted.is_err() {
        // Whoever sends such a request may see its end elsewhere than we do.
        exchange.connection.close_after_answer();
    }
    let parsed = admitted.and(parsed);
    let outcome = match parsed {
        Ok(Target::Open(route)) => exchange.health(route),
        Ok(Target::Attested(ask)) => exchange.answer(ask, body).await,
        Err(error) => Err(error),
    };
    let code = outcome.as_ref().err().map(|error| error.code);
    let mut answer = outcome.unwrap_or_else(|error| {
        exchange.log(&head.method, route, &error);
        let mut answer = response::error(&error, route, &exchange.id);
        if head
            .uri
            .path_and_query()
            .is_some_and(|t| t.as_str().len() > request::TARGET_LIMIT)
        {
            *answer.status_mut() = StatusCode::URI_TOO_LONG;
        }
        answer
    });
    if exchange.connection.is_closing() || matches!(code, Some(Code::NotAttested)) {
        answer
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    exchange
        .services
        .metrics
        .request(route, code, started.elapsed());
    if matches!(code, Some(Code::Busy | Code::NotAttested)) {
        sleep(REFUSED_REST).await;
    }
    exchange.connection.request_ended();
    Ok(answer)
}

// === impl Services ===

impl Services {
    /// An id that no other request of this or any other run has.
    fn next_id(&self) -> Arc<str> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let boot = self.audit.boot_id().get(..8).unwrap_or_default();
        format!("{boot}-{number:08x}").into()
    }

    /// The session for `key`, exchanged where there is none at hand.
    async fn session(
        self: &Arc<Self>,
        workload: &Workload,
        key: &SessionKey,
        asker: &Arc<str>,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let (services, exchanged, role) = (self.clone(), workload.clone(), key.role.clone());
        let backend = key.backend;
        workload
            .pod()
            .sessions
            .open(key, asker, || async move {
                let offer = match &role.proof {
                    Proof::Token(audience) => {
                        Offer::Token(services.tokens.issue(&exchanged, audience).await?)
                    }
                };
                let facts = exchanged.facts();
                let caller = Caller {
                    pod_uid: exchanged.pod().uid.simple().to_string(),
                    namespace: facts.namespace.clone(),
                    service_account: facts.service_account.clone(),
                };
                let started = Instant::now();
                let outcome = services
                    .backends
                    .at(backend)
                    .exchange(&role, offer, &caller)
                    .await;
                let error = outcome.as_ref().err().map(|failed| &failed.error);
                let name = services.backends.name(backend);
                services
                    .metrics
                    .backend_call(name, "exchange", started.elapsed(), error);
                services.metrics.exchange(name, error);
                if outcome.as_ref().is_err_and(BackendError::is_refusal) {
                    exchanged.pod().values.forget(&role);
                }
                outcome
            })
            .await
    }

    /// Reads from the vault, with a new session if the one at hand has ended before its time.
    async fn fetch(
        self: Arc<Self>,
        workload: Workload,
        key: ReadKey,
        asker: Arc<str>,
    ) -> Result<Arc<Secret>, BackendError> {
        let sessions = SessionKey {
            backend: key.backend,
            role: key.role.clone(),
            account: key.account.clone(),
        };
        let mut tries = 2;
        loop {
            tries -= 1;
            let session = self.session(&workload, &sessions, &asker).await?;
            let started = Instant::now();
            let outcome = session.read(&key.name, &key.selector, &asker).await;
            let error = outcome.as_ref().err().map(|failed| &failed.error);
            let name = self.backends.name(key.backend);
            self.metrics
                .backend_call(name, "read", started.elapsed(), error);
            match outcome {
                Ok(secret) => return Ok(Arc::new(secret)),
                Err(error) => {
                    let ended = error.fault == Fault::SessionEnded;
                    if ended || error.is_refusal() {
                        workload.pod().sessions.put_away(&sessions, &session, ended);
                    }
                    if error.is_refusal() {
                        workload.pod().values.forget(&key.role);
                    }
                    if !ended || tries == 0 {
                        return Err(error);
                    }
                }
            }
        }
    }
}

// === impl Exchange ===

impl Exchange {
    fn health(&self, route: Route) -> Result<Answer, RequestError> {
        let missing = if route == Route::Ready {
            self.services.readiness.missing()
        } else {
            Vec::new()
        };
        let health = Health {
            status: if missing.is_empty() {
                "healthy"
            } else {
                "not ready"
            }
            .into(),
            backend: self.services.backends.default_name().to_owned(),
            missing: missing.iter().map(|what| (*what).to_owned()).collect(),
        };
        let mut answer = response::json(&health, &self.id)?;
        if !missing.is_empty() {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(answer)
    }

    async fn answer(&self, ask: Ask, body: Incoming) -> Result<Answer, RequestError> {
        match ask {
            Ask::Secret(ask) => self.secret(&ask).await,
            Ask::Batch => self.batch(body).await,
            Ask::List(ask) => self.within_deadline(self.list(&ask)).await,
            Ask::Identity => self.within_deadline(self.identity()).await,
        }
    }

    async fn secret(&self, ask: &SecretAsk) -> Result<Answer, RequestError> {
        let mut record = self.record(ask.name.as_str()).await?;
        let outcome = self
            .within_deadline(async {
                let workload = self.attest(&mut record).await?;
                let _permit = workload.pod().quota.request()?;
                let (read, backend) = self.read(&workload, ask, &mut record).await?;
                response::secret(&read, ask, self.services.backends.name(backend), &self.id)
            })
            .await;
        record.close(outcome.as_ref().err())?;
        outcome
    }

    /// THE PIPELINE: workload → role → session → secret.
    async fn read(
        &self,
        workload: &Workload,
        ask: &SecretAsk,
        record: &mut Record<'_>,
    ) -> Result<(Read, BackendId), RequestError> {
        let services = &self.services;
        let backend = self.backend(ask.backend.as_deref())?;
        record.backend = Some(services.backends.name(backend).clone());
        let facts = workload.facts();
        let account = services
            .accounts
            .find(&facts.namespace, &facts.service_account)
            .await?;
        let role = role::of(workload, &account, &services.backends, backend)?;
        record.role = Some(role.name.clone());
        services
            .backends
            .at(backend)
            .check(&role, &ask.name, &ask.selector)?;
        let key = ReadKey {
            backend,
            role,
            account: account.uid.clone(),
            name: ask.name.clone(),
            selector: ask.selector.clone(),
        };
        let fetch = || {
            services
                .clone()
                .fetch(workload.clone(), key.clone(), self.id.clone())
        };
        match workload
            .pod()
            .values
            .read(&key, ask.latest, &self.id, fetch)
            .await
        {
            Ok(read) => {
                services.metrics.cache(read.cache);
                record.cache = read.cache.as_str();
                record.shared_with = read.shared_with.clone();
                record.version = Some(read.secret.version.clone());
                record.cloud_request_id = read.secret.cloud_request_id.clone();
                Ok((read, backend))
            }
            Err((error, cache)) => {
                services.metrics.cache(cache);
                record.cache = cache.as_str();
                record.cloud_request_id = error.cloud_request_id;
                Err(error.error)
            }
        }
    }

    async fn list(&self, ask: &ListAsk) -> Result<Answer, RequestError> {
        let workload = self.connection.workload().await?;
        let _permit = workload.pod().quota.request()?;
        let services = &self.services;
        let backend = self.backend(ask.backend.as_deref())?;
        let facts = workload.facts();
        let account = services
            .accounts
            .find(&facts.namespace, &facts.service_account)
            .await?;
        let role = role::of(&workload, &account, &services.backends, backend)?;
        let key = SessionKey {
            backend,
            role,
            account: account.uid.clone(),
        };
        let mut tries = 2;
        let page = loop {
            tries -= 1;
            let session = services
                .session(&workload, &key, &self.id)
                .await
                .map_err(|failed| failed.error)?;
            let started = Instant::now();
            let outcome = session.list(ask.limit, ask.cursor.clone(), &self.id).await;
            let error = outcome.as_ref().err().map(|failed| &failed.error);
            services.metrics.backend_call(
                services.backends.name(backend),
                "list",
                started.elapsed(),
                error,
            );
            let failed = match outcome {
                Ok(page) => break page,
                Err(failed) => failed,
            };
            let ended = failed.fault == Fault::SessionEnded;
            if ended || failed.is_refusal() {
                workload.pod().sessions.put_away(&key, &session, ended);
            }
            if !ended || tries == 0 {
                return Err(failed.error);
            }
        };
        response::json(
            &SecretList {
                secrets: page.names,
                next: page.next,
            },
            &self.id,
        )
    }

    async fn identity(&self) -> Result<Answer, RequestError> {
        let workload = self.connection.workload().await?;
        let _permit = workload.pod().quota.request()?;
        let facts = workload.facts();
        let services = &self.services;
        let account = services
            .accounts
            .find(&facts.namespace, &facts.service_account)
            .await?;
        let mut roles = BTreeMap::new();
        for (backend, name) in services.backends.names() {
            let role = role::of(&workload, &account, &services.backends, backend);
            roles.insert(
                name.to_string(),
                role.ok().map(|role| role.name.to_string()),
            );
        }
        let identity = Identity {
            namespace: facts.namespace.to_string(),
            pod: facts.name.to_string(),
            pod_uid: workload.pod().uid.to_string(),
            service_account: facts.service_account.to_string(),
            container_id: workload.container().to_string(),
            host_network: facts.host_network,
            node: services.node.clone(),
            roles,
        };
        response::json(&identity, &self.id)
    }

    async fn attest(&self, record: &mut Record<'_>) -> Result<Workload, RequestError> {
        let workload = self.connection.workload().await?;
        record.workload = Some(workload.clone());
        Ok(workload)
    }

    fn backend(&self, name: Option<&str>) -> Result<BackendId, RequestError> {
        self.services
            .backends
            .find(name)
            .ok_or_else(|| RequestError::invalid("the agent has no backend of that name"))
    }

    async fn within_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, RequestError>>,
    ) -> Result<T, RequestError> {
        timeout(self.services.deadline, work)
            .await
            .unwrap_or_else(|_| {
                Err(RequestError::new(
                    Code::Timeout,
                    "the request's deadline passed; try again",
                ))
            })
    }

    fn log(&self, method: &Method, route: Route, error: &RequestError) {
        let request_id = &*self.id;
        let cause = error.cause.as_deref();
        let code = error.code.as_str();
        match error.code {
            Code::Internal => {
                tracing::error!(request_id, code, cause, %method, ?route, error = %error, "request failed");
            }
            Code::Unavailable | Code::Timeout | Code::Throttled => {
                tracing::warn!(request_id, code, cause, ?route, error = %error, "request failed");
            }
            Code::Denied | Code::NoRole | Code::NotAttested => {
                let (reason, pid) = (error.reason, self.connection.pid());
                tracing::info!(request_id, code, cause, reason, pid, ?route, error = %error, "request refused");
            }
            _ => {
                tracing::debug!(request_id, code, cause, ?route, error = %error, "request refused")
            }
        }
    }
}
