//! The client: the requests that an agent answers, each with its deadline.

use crate::ask::{Ask, ListAsk, batch_target};
use crate::error::{ClientError, Refusal};
use crate::protocol::{
    BATCH_NAMES, BatchRequest, BatchResponse, Code, DEFAULT_SOCKET, HEADER_VARIABLE, Health,
    Identity, SOCKET_VARIABLE, SecretList,
};
use crate::retry;
use crate::secret::{Secret, Tag};
use crate::transport::{Answer, Call, Transport};
use hyper::{Method, StatusCode, header};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a request may take, all retries included. An agent answers within ten seconds unless configured otherwise.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest that anything may take, so that no deadline is beyond the end of the clock.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How long to leave an agent alone that ends a wait early: it is stopping, and leaves once no connection has come for
/// a second.
const LEAVING_REST: Duration = Duration::from_secs(5);

/// A client of one agent. Cloning it shares its connections.
///
/// ```no_run
/// # async fn example() -> Result<(), latchkey_client::ClientError> {
/// use latchkey_client::{Ask, Client, ListAsk};
/// use std::time::Duration;
///
/// let client = Client::from_env().patience(Duration::from_secs(5));
///
/// // One member of a secret that is a JSON object.
/// let password = client.get_json_key("prod/db", "password").await?;
///
/// // Many at once.
/// let batch = client.batch_get(["prod/db", "prod/api-key"]).await?;
/// for (name, refusal) in &batch.refused {
///     eprintln!("{name}: {refusal}");
/// }
///
/// // What there is.
/// let page = client.list(&ListAsk::default()).await?;
///
/// // The next version, when there is one.
/// let ask = Ask::latest("prod/api-key");
/// let mut secret = client.read(&ask).await?;
/// loop {
///     if let Some(newer) = client.wait(&ask, &secret.tag, Duration::from_secs(60)).await? {
///         secret = newer;
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    patience: Duration,
    /// A header that every request carries.
    header: Option<(String, String)>,
    retries: bool,
}

/// What became of a batch of names.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Batch {
    /// The secrets that were read, in the order of the request, each once.
    pub secrets: Vec<Secret>,
    /// The names that were not read, in the order of the request, and why.
    pub refused: Vec<(String, Refusal)>,
}

// === impl Client ===

impl Client {
    /// A client of the agent behind `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            transport: Transport::new(socket.into()),
            patience: PATIENCE,
            header: None,
            retries: true,
        }
    }

    /// A client of the agent behind the socket that `LATCHKEY_SOCKET` names, else `/run/latchkey/agent.sock`, else
    /// `$XDG_RUNTIME_DIR/latchkey/agent.sock`. If `LATCHKEY_HEADER` names a header, every request carries it.
    #[must_use]
    pub fn from_env() -> Self {
        let client = Self::new(socket_of_env());
        match variable(HEADER_VARIABLE).and_then(|name| name.into_string().ok()) {
            Some(name) => client.header(name, "1"),
            None => client,
        }
    }

    /// Returns the same client for another socket.
    #[must_use]
    pub fn at(mut self, socket: impl Into<PathBuf>) -> Self {
        self.transport = Transport::new(socket.into());
        self
    }

    /// Returns the same client with another limit for the time that each request may take, all retries included: 15 s
    /// by default, and at most a day.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.min(LONGEST);
        self
    }

    /// Returns the same client with a header on every request, for agents that require one (`listen.require_header`).
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.header = Some((name.into(), value.into()));
        self
    }

    /// Returns the same client without retries: for callers that look for a fault, or retry on their own.
    #[must_use]
    pub fn without_retries(mut self) -> Self {
        self.retries = false;
        self
    }

    /// The socket that requests go to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.transport.socket()
    }

    /// Its connections, for requests that it does not make itself.
    #[cfg(feature = "cli")]
    pub(crate) fn pool(&self) -> crate::transport::Pool {
        self.transport.http.clone()
    }

    /// Reads the latest version of a secret.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn get(&self, name: &str) -> Result<Secret, ClientError> {
        self.read(&Ask::latest(name)).await
    }

    /// Reads one member of a secret that is a JSON object.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses: `key_not_found`, `not_json`.
    pub async fn get_json_key(&self, name: &str, key: &str) -> Result<Secret, ClientError> {
        let ask = Ask {
            key: Some(key),
            ..Ask::latest(name)
        };
        self.read(&ask).await
    }

    /// Reads a secret as the ask says.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn read(&self, ask: &Ask<'_>) -> Result<Secret, ClientError> {
        let mut call = Call::get(ask.target(None)?);
        if ask.fresh {
            call.add(header::CACHE_CONTROL, "no-cache");
        }
        secret(&self.ask(call).await?)
    }

    /// Waits until a secret no longer has the tag `known`, for `at_most`. The agent checks every ten seconds or so, and
    /// refuses to wait for more than a minute. Returns `None` if it saw no change.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn wait(
        &self,
        ask: &Ask<'_>,
        known: &Tag,
        at_most: Duration,
    ) -> Result<Option<Secret>, ClientError> {
        let end = Instant::now() + at_most.min(LONGEST);
        let left = || end.saturating_duration_since(Instant::now());
        loop {
            let call = || {
                let mut call = Call::get(ask.target(Some(left()))?);
                call.add(header::IF_NONE_MATCH, &known.0);
                Ok(call)
            };
            let answer = self.ask_until(end + self.patience, call).await?;
            if answer.status != StatusCode::NOT_MODIFIED {
                return secret(&answer).map(Some);
            }
            // Before its time is over: the agent leaves.
            sleep(left().min(LEAVING_REST)).await;
            if left().is_zero() {
                return Ok(None);
            }
        }
    }

    /// Reads the latest versions of many secrets, a hundred at a time; each gets the name that it was requested by.
    ///
    /// What a batch has no time or room for is requested once more on its own, all of these together within the time
    /// that one request may take.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses a whole batch.
    pub async fn batch_get<N: Into<String>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Batch, ClientError> {
        self.batch_get_from(None, names).await
    }

    /// The same from a backend by its name; from the agent's default one if `None`.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses a whole batch.
    pub async fn batch_get_from<N: Into<String>>(
        &self,
        backend: Option<&str>,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Batch, ClientError> {
        let mut order = HashMap::new();
        let mut asked = Vec::new();
        for name in names.into_iter().map(Into::into) {
            let place = order.len();
            order.entry(name.clone()).or_insert_with(|| {
                asked.push(name);
                place
            });
        }
        let mut batch = Batch::default();
        for names in asked.chunks(BATCH_NAMES) {
            self.one_batch(backend, names, &mut batch).await?;
        }
        let place = |name: &str| order.get(name).copied();
        batch.secrets.sort_by_key(|secret| place(&secret.name));
        batch.refused.sort_by_key(|(name, _)| place(name));
        Ok(batch)
    }

    async fn one_batch(
        &self,
        backend: Option<&str>,
        names: &[String],
        batch: &mut Batch,
    ) -> Result<(), ClientError> {
        let request = BatchRequest {
            names: names.to_vec(),
        };
        let mut call = Call {
            method: Method::POST,
            body: serde_json::to_vec(&request)
                .map_err(|error| ClientError::Unreadable(error.to_string()))?
                .into(),
            ..Call::get(batch_target(backend)?)
        };
        call.add(header::CONTENT_TYPE, "application/json");
        let answer = self.ask(call).await?;
        let id = answer.header(header::HeaderName::from_static("x-request-id"));
        // As long as one request may take, however many there are.
        let until = Instant::now() + self.patience;
        let response: BatchResponse = answer.read()?;
        let has_failed = |name: &&String| response.errors.iter().any(|e| e.name == **name);
        let mut open: Vec<&String> = names.iter().filter(|name| !has_failed(name)).collect();
        for wire in response.secrets {
            let mut secret = Secret::of(wire, None)?;
            // A vault that does not tell spellings apart answers all of them under one.
            let asked = open
                .iter()
                .position(|name| **name == secret.name)
                .or_else(|| {
                    let is_it = |name: &&String| name.eq_ignore_ascii_case(&secret.name);
                    open.iter().position(is_it)
                });
            if let Some(asked) = asked {
                secret.name.clone_from(open.swap_remove(asked));
            }
            batch.secrets.push(secret);
        }
        for error in response.errors {
            let passes = matches!(
                error.code,
                Code::Busy | Code::Throttled | Code::Timeout | Code::TooLarge | Code::Unavailable
            );
            let refusal = Refusal {
                code: error.code,
                message: error.error,
                request_id: id.clone().unwrap_or_default(),
                step: error.step,
                retry_after: None,
            };
            let patience = until.saturating_duration_since(Instant::now());
            let ask = Ask {
                backend,
                ..Ask::latest(&error.name)
            };
            let again = if passes && !patience.is_zero() {
                self.clone().patience(patience).read(&ask).await
            } else {
                Err(ClientError::TimedOut)
            };
            match again {
                Ok(secret) => batch.secrets.push(Secret {
                    name: error.name,
                    ..secret
                }),
                Err(ClientError::Refused(newer)) => batch.refused.push((error.name, newer)),
                // The batch's own error says more.
                Err(ClientError::TimedOut) => batch.refused.push((error.name, refusal)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Lists names that the workload's role may see; the `next` of a page is the `cursor` for the following page.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn list(&self, ask: &ListAsk<'_>) -> Result<SecretList, ClientError> {
        self.ask(Call::get(ask.target()?)).await?.read()
    }

    /// Asks who the agent says this process is.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn identity(&self) -> Result<Identity, ClientError> {
        let call = Call::get("/v1/identity".to_owned());
        self.ask(call).await?.read()
    }

    /// Asks whether the agent is ready, and what it lacks.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached, or says neither that it is ready nor what it lacks.
    pub async fn readiness(&self) -> Result<Health, ClientError> {
        let call = Call::get("/ready".to_owned());
        let mut answer = self.once(call, Instant::now() + self.patience).await?;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            // The body says what is missing, in the same shape.
            answer.status = StatusCode::OK;
        }
        answer.read()
    }

    /// Makes a request, with retries where they help.
    async fn ask(&self, call: Call) -> Result<Answer, ClientError> {
        self.ask_until(Instant::now() + self.patience, || Ok(call.clone()))
            .await
    }

    /// Makes a request until the deadline, with a new call for each attempt.
    async fn ask_until(
        &self,
        deadline: Instant,
        call: impl Fn() -> Result<Call, ClientError>,
    ) -> Result<Answer, ClientError> {
        let attempt = || async {
            let answer = self.once(call()?, deadline).await?;
            if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED {
                Ok(answer)
            } else {
                Err(answer.failure())
            }
        };
        if self.retries {
            retry::until(deadline, attempt).await
        } else {
            attempt().await
        }
    }

    async fn once(&self, mut call: Call, deadline: Instant) -> Result<Answer, ClientError> {
        call.headers.extend(self.header.clone());
        timeout_at(deadline, self.transport.send(&call))
            .await
            .map_err(|_| ClientError::TimedOut)?
    }
}

fn socket_of_env() -> PathBuf {
    if let Some(path) = variable(SOCKET_VARIABLE) {
        return path.into();
    }
    let default = Path::new(DEFAULT_SOCKET);
    if !default.exists()
        && let Some(socket) = socket_of_user()
        && socket.exists()
    {
        return socket;
    }
    default.to_owned()
}

/// Where an agent listens that a user runs for themselves.
fn socket_of_user() -> Option<PathBuf> {
    let runtime = variable("XDG_RUNTIME_DIR")?;
    Some(Path::new(&runtime).join("latchkey/agent.sock"))
}

/// Where else a client has looked that found nothing at this socket, for a person; `None` if it was told where to look,
/// or has nowhere else to look.
#[cfg(feature = "cli")]
pub(crate) fn also_looked_at(socket: &Path) -> Option<String> {
    if socket != Path::new(DEFAULT_SOCKET) || variable(SOCKET_VARIABLE).is_some() {
        return None;
    }
    match socket_of_user() {
        Some(also) if also.exists() => None,
        Some(also) => Some(format!("there is none at {} either", also.display())),
        // No user runs an agent in a pod.
        None if is_in_pod() => None,
        None => Some(
            "XDG_RUNTIME_DIR is not set, below which a user's own agent listens, at latchkey/agent.sock"
                .to_owned(),
        ),
    }
}

/// The socket of the user's own agent, if it is there and not asked: a client that was not told where to look has found
/// this one first.
#[cfg(feature = "cli")]
pub(crate) fn hidden_by(socket: &Path) -> Option<PathBuf> {
    if socket != Path::new(DEFAULT_SOCKET) || variable(SOCKET_VARIABLE).is_some() {
        return None;
    }
    socket_of_user().filter(|own| socket.exists() && own.exists())
}

/// Whether this is a container of a pod, as far as can be told without the agent: the kubelet sets this variable in
/// every container.
#[cfg(feature = "cli")]
pub(crate) fn is_in_pod() -> bool {
    variable("KUBERNETES_SERVICE_HOST").is_some()
}

/// Reads a variable, if it is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "a client is configured by nothing else"
)]
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn secret(answer: &Answer) -> Result<Secret, ClientError> {
    Secret::of(answer.read()?, answer.header(header::ETAG))
}

#[cfg(test)]
pub(crate) mod tests;
