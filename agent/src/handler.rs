//! The pipeline that every request goes through, step by step.

mod batch;
mod clouds;
mod record;
mod volume;
mod wait;

use crate::account::Accounts;
use crate::attest::{Attestor, Workload};
use crate::audit::Audit;
use crate::backend::{BackendId, Backends, Session};
use crate::cache::{Read, ReadKey};
use crate::error::RequestError;
use crate::metrics::Metrics;
use crate::request::{self, Ask, ListAsk, RequestId, Route, SecretAsk, Target};
use crate::response::{self, Answer};
use crate::role;
use crate::server::Connection;
use crate::session::SessionKey;
pub(crate) use clouds::Clouds;
use futures::FutureExt;
use http_body_util::BodyExt;
use http_body_util::combinators::Fuse;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use latchkey_client::protocol::{Code, Health, Identity, SecretList};
use record::Record;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// The message to a caller whose request took too long.
const AGAIN: &str = "the request's deadline passed; try again";

/// What the agent needs to answer requests.
pub(crate) struct Services {
    pub(crate) accounts: Accounts,
    pub(crate) audit: Audit,
    pub(crate) backends: Arc<Backends>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clouds: Arc<Clouds>,
    pub(crate) node: String,
    pub(crate) require_header: Option<HeaderName>,
    pub(crate) deadline: Duration,
    pub(crate) requests: AtomicU64,
    pub(crate) attestor: Arc<Attestor>,
}

/// One request on its connection.
struct Handling {
    id: RequestId,
    services: Arc<Services>,
    connection: Arc<Connection>,
    began: Instant,
}

/// Answers a request. It cannot fail: a failure is an answer too.
pub(crate) fn handle(
    services: Arc<Services>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Answer, Infallible>> {
    connection.request_began();
    let began = Instant::now();
    // Split here, and not in an async fn: a future reserves space twice for what it moves within itself, and each
    // request's future is copied.
    let (head, body) = request.into_parts();
    // A chunked body does not report by itself that it was read to its end.
    let mut body = body.fuse();
    if !body.is_end_stream() {
        connection.body_began();
    }
    async move {
        connection.turn().await;
        let handling = Handling {
            id: services.next_id(),
            services,
            connection,
            began,
        };
        let (route, parsed) = request::parse(&head);
        let required = handling.services.require_header.as_ref();
        let admitted = request::admit(&head, !body.is_end_stream(), required);
        if admitted.is_err() {
            // The peer may disagree with us about where such a request ends.
            handling.connection.close_after_answer();
        }
        let outcome = match admitted.map(|()| parsed) {
            Ok(Ok(Target::Open(route))) => handling.health(route),
            Ok(Ok(Target::Attested(mut ask))) => handling.answer(&mut ask, &mut body).await,
            Ok(Err(error)) if route.is_open() => Err(error),
            Ok(Err(error)) => Err(handling.counted(error).await),
            Err(error) => Err(error),
        };
        if outcome.is_err() && !body.is_end_stream() {
            // The rest of the body would be read as the next request.
            handling.connection.close_after_answer();
        }
        let code = code_of(&outcome);
        let answer = handling.told(outcome, &head, route);
        handling
            .services
            .metrics
            .request(route, code, handling.began.elapsed());
        if matches!(code, Some(Code::Busy | Code::NotAttested)) {
            handling.connection.rest().await;
        }
        if body.is_end_stream() {
            handling.connection.body_ended();
        }
        handling.connection.request_ended();
        Ok(answer)
    }
}

/// The code that is counted for an outcome; none for a success.
fn code_of(outcome: &Result<Answer, RequestError>) -> Option<Code> {
    match outcome {
        // A failed readiness check is an answer with its own body, not an error.
        Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => Some(Code::Unavailable),
        Ok(_) => None,
        Err(error) => Some(error.code),
    }
}

// === impl Services ===

impl Services {
    /// Returns what the agent lacks to answer; empty when it is ready.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let mut missing = self.attestor.missing();
        if self.audit.is_broken() {
            missing.push("an audit trail that can be written");
        }
        missing
    }

    /// Returns an id that no other request has, in this run or any other.
    fn next_id(&self) -> RequestId {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        RequestId::new(self.audit.boot_id(), number)
    }

    /// The steps of a read: workload → role → session → secret.
    async fn read(
        self: &Arc<Self>,
        asker: RequestId,
        workload: &Workload,
        ask: &SecretAsk,
        record: &mut Record<'_>,
    ) -> Result<(Read, BackendId), RequestError> {
        let now = Instant::now();
        let backend = self.backend(ask.backend.as_deref())?;
        record.backend = Some(self.backends.name(backend).clone());
        let account = self.accounts.find(workload, now).await?;
        let role = role::of(workload, &account, &self.backends, backend)?;
        record.role = Some(role.name.clone());
        self.backends
            .at(backend)
            .check(&role, &ask.name, &ask.selector)?;
        let key = ReadKey {
            session: SessionKey {
                backend,
                role,
                account: account.uid.clone(),
            },
            name: ask.name.clone(),
            selector: ask.selector.clone(),
        };
        let values = &workload.pod().values;
        let at_hand = (!ask.fresh).then(|| values.at_hand(&key, now)).flatten();
        // Set now, so that the line of a cancelled read has it too.
        let without_value = values.without_value(&key.name);
        record.cache = without_value.as_str();
        let outcome = match at_hand {
            Some(read) => Ok(read),
            None => {
                let fetch = || {
                    let (clouds, key) = (self.clouds.clone(), key.clone());
                    clouds.fetch(workload.clone(), key, asker)
                };
                // Boxed, so that a request answered from the cache does not carry it.
                Box::pin(values.read(&key, ask.fresh, asker, fetch)).await
            }
        };
        match outcome {
            Ok(read) => {
                self.metrics.cache(read.cache);
                if let Some(error) = &read.instead_of {
                    self.clouds.served_stale(backend, error);
                }
                record.cache = read.cache.as_str();
                record.shared_with = read.shared_with;
                record.version = Some(read.secret.version.clone());
                record.cloud_request_id = read.secret.cloud_request_id.clone();
                Ok((read, backend))
            }
            Err(error) => {
                self.metrics.cache(without_value);
                record.cloud_request_id = error.cloud_request_id;
                Err(error.error)
            }
        }
    }

    fn backend(&self, name: Option<&str>) -> Result<BackendId, RequestError> {
        self.backends
            .find(name)
            .ok_or_else(|| RequestError::invalid("the agent has no backend of that name"))
    }

    /// Normalizes the name where the vault ignores case, so that all spellings of one secret make the same keys.
    fn fold(&self, ask: &mut SecretAsk) {
        let backend = self.backends.find(ask.backend.as_deref());
        if backend.is_some_and(|backend| self.backends.at(backend).ignores_case()) {
            ask.name = ask.name.lowercased();
        }
    }
}

// === impl Handling ===

impl Handling {
    fn health(&self, route: Route) -> Result<Answer, RequestError> {
        let missing = if route == Route::Ready {
            self.services.missing()
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
        let mut answer = response::json(&health, self.id.as_str())?;
        if !missing.is_empty() {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(answer)
    }

    async fn answer(
        &self,
        ask: &mut Ask,
        body: &mut Fuse<Incoming>,
    ) -> Result<Answer, RequestError> {
        match ask {
            Ask::Secret(ask) => {
                self.services.fold(ask);
                self.secret(ask).await
            }
            // Boxed, because otherwise each request would carry the largest of them.
            Ask::Batch { backend, fresh } => {
                Box::pin(self.batch(body, backend.as_deref(), *fresh)).await
            }
            Ask::List(ask) => self.in_time(AGAIN, Box::pin(self.list(ask))).await,
            Ask::Identity => self.in_time(AGAIN, Box::pin(self.identity())).await,
        }
    }

    async fn secret(&self, ask: &SecretAsk) -> Result<Answer, RequestError> {
        match ask.wait {
            Some(wait) => Box::pin(self.wait(ask, wait)).await,
            None => self.read_once(ask, &mut None).await,
        }
    }

    /// Reads once and writes the line. A wait takes its place among the pod's waits at its first read, and keeps it.
    async fn read_once(
        &self,
        ask: &SecretAsk,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Answer, RequestError> {
        let mut record = self.record(ask.name.as_str()).await?;
        let work = async {
            let workload = self.connection.workload(record.began).await?;
            record.workload = Some(workload.clone());
            if ask.wait.is_some() && place.is_none() {
                *place = Some(workload.pod().quota.wait()?);
            }
            let _permit = workload.pod().quota.request()?;
            let services = &self.services;
            let (read, backend) = services.read(self.id, &workload, ask, &mut record).await?;
            let backend = services.backends.name(backend);
            let answer = response::secret(&read, ask, backend, self.id.as_str())?;
            self.connection.hold(answer)
        };
        let outcome = self.in_time(AGAIN, work).await;
        record.close(outcome.as_ref().err())?;
        outcome
    }

    async fn list(&self, ask: &ListAsk) -> Result<Answer, RequestError> {
        let workload = self.connection.workload(self.began).await?;
        let _permit = workload.pod().quota.request()?;
        let services = &self.services;
        let backend = services.backend(ask.backend.as_deref())?;
        let account = services.accounts.find(&workload, Instant::now()).await?;
        let key = SessionKey {
            backend,
            role: role::of(&workload, &account, &services.backends, backend)?,
            account: account.uid.clone(),
        };
        let list = |session: Arc<dyn Session>| async move {
            session
                .list(ask.limit, ask.cursor.clone(), self.id.as_str())
                .await
        };
        let page = services
            .clouds
            .call(&workload, &key, self.id, "list", list)
            .await
            .map_err(|failed| failed.error)?;
        // Each further page of the vault counts as a request too, as far as the quota has any left.
        let _ = (0..page.more_calls).try_for_each(|_| workload.pod().quota.spend());
        let answer = response::json(
            &SecretList {
                secrets: page.names,
                next: page.next,
            },
            self.id.as_str(),
        )?;
        self.connection.hold(answer)
    }

    async fn identity(&self) -> Result<Answer, RequestError> {
        let workload = self.connection.workload(self.began).await?;
        let _permit = workload.pod().quota.request()?;
        let facts = workload.facts();
        let services = &self.services;
        let account = services.accounts.find(&workload, Instant::now()).await?;
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
            pod_uid: text(workload.pod().uid),
            service_account: facts.service_account.to_string(),
            container_id: text(workload.container()),
            host_network: facts.host_network,
            node: services.node.clone(),
            roles,
        };
        response::json(&identity, self.id.as_str())
    }

    /// Counts an invalid request towards its pod's quota like any other, and returns the error to answer with.
    async fn counted(&self, error: RequestError) -> RequestError {
        let counted = async {
            let workload = self.connection.workload(self.began).await?;
            workload.pod().quota.request().map(drop)
        };
        let counted = self.in_time(AGAIN, Box::pin(counted)).await;
        counted.err().unwrap_or(error)
    }

    /// Returns the answer to the peer, with `Connection: close` if it is the last one on the connection.
    fn told(&self, outcome: Result<Answer, RequestError>, head: &Parts, route: Route) -> Answer {
        let is_nobody = |error: &RequestError| error.code == Code::NotAttested;
        let is_last = self.connection.is_closing() || outcome.as_ref().is_err_and(is_nobody);
        let mut answer = outcome.unwrap_or_else(|error| {
            self.log(&head.method, route, None, &error);
            let mut answer = response::error(&error, route, self.id.as_str());
            if request::is_long(&head.uri) {
                *answer.status_mut() = StatusCode::URI_TOO_LONG;
            }
            answer
        });
        if is_last {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        answer
    }

    /// The time by which the request must be answered: one deadline, however much it asks for.
    fn deadline(&self) -> Instant {
        self.began + self.services.deadline
    }

    /// Returns the outcome of `work`, or a timeout with the message `hint` if the request's deadline comes first.
    fn in_time<T>(
        &self,
        hint: &'static str,
        work: impl Future<Output = Result<T, RequestError>>,
    ) -> impl Future<Output = Result<T, RequestError>> {
        timeout_at(self.deadline(), work).map(move |outcome| {
            outcome.unwrap_or_else(|_| Err(RequestError::new(Code::Timeout, hint)))
        })
    }

    /// Logs why a request failed, or why reads of a batch did, of which `secret` was one.
    fn log(&self, method: &Method, route: Route, secret: Option<&str>, error: &RequestError) {
        let request_id = self.id.as_str();
        let cause = error.cause.as_deref();
        let code = error.code.as_str();
        match error.code {
            Code::Internal => {
                tracing::error!(request_id, code, cause, secret, %method, ?route, error = %error, "request failed");
            }
            Code::Unavailable | Code::Timeout | Code::Throttled => {
                tracing::warn!(request_id, code, cause, secret, ?route, error = %error, "request failed");
            }
            Code::Denied | Code::NoRole | Code::NotAttested => {
                let (reason, pid) = (error.reason, self.connection.pid());
                tracing::info!(request_id, code, cause, secret, reason, pid, ?route, error = %error, "request refused");
            }
            _ => {
                tracing::debug!(request_id, code, cause, secret, ?route, error = %error, "request refused")
            }
        }
    }
}

/// Returns the value as text, or an empty text if there is none.
fn text(what: Option<impl ToString>) -> String {
    what.map(|what| what.to_string()).unwrap_or_default()
}
