//! HTTP/1.1 over the agent's socket: one request and its whole answer.

use crate::error::{ClientError, Refusal};
use crate::protocol::{Code, TARGET_LIMIT};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyperlocal::{UnixConnector, Uri};
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroize;

/// The largest answer that the client reads, in bytes: a batch of 4 MiB in base64, with room for its JSON.
const ANSWER_LIMIT: usize = 8 * 1024 * 1024;

/// How many idle connections are kept; a burst opens more and closes them again. The agent counts all connections of a
/// pod together, so what one process keeps, another one lacks.
const IDLE_CONNECTIONS: usize = 4;

/// How long idle connections are kept, or up to twice as long.
const IDLE: Duration = Duration::from_secs(5);

/// Connections to agents, which are reused.
pub(crate) type Pool = HttpClient<UnixConnector, Full<Bytes>>;

/// The pool of connections to one agent. Cloning it shares the pool.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    socket: PathBuf,
    pub(crate) http: Pool,
}

/// A request, which may be retried.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// A whole answer, whose body is wiped when it is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Bytes,
}

// === impl Transport ===

impl Transport {
    pub(crate) fn new(socket: PathBuf) -> Self {
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(UnixConnector);
        Self { socket, http }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes the request once.
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer, ClientError> {
        if call.target.len() > TARGET_LIMIT {
            let text = format!("what is asked for takes more than {TARGET_LIMIT} bytes to name");
            return Err(not_asked(text));
        }
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(hyper::Uri::from(Uri::new(&self.socket, &call.target)))
            .header(header::HOST, "localhost");
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(call.body.clone()))
            .map_err(|error| not_asked(error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| {
            if error.is_connect() {
                ClientError::Unreachable {
                    socket: self.socket.clone(),
                    reason: cause(&error),
                }
            } else {
                ClientError::Interrupted(cause(&error))
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| ClientError::Interrupted(cause(&*error)))?
            .to_bytes();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }
}

// === impl Call ===

impl Call {
    pub(crate) fn get(target: String) -> Self {
        Self {
            method: Method::GET,
            target,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn add(&mut self, name: HeaderName, value: &str) {
        self.headers.push((name.to_string(), value.to_owned()));
    }
}

// === impl Answer ===

impl Answer {
    /// Parses the body of a success.
    ///
    /// # Errors
    ///
    /// If the answer is not a success, or no JSON of this shape.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body)
                .map_err(|error| ClientError::Unreadable(described(&error)));
        }
        Err(self.failure())
    }

    /// The error in an answer that is not a success.
    pub(crate) fn failure(&self) -> ClientError {
        let retry_after = self
            .header(header::RETRY_AFTER)
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs);
        match Refusal::of(self.status.as_u16(), retry_after, &self.body) {
            Some(refusal) => ClientError::Refused(refusal),
            None => ClientError::Unreadable(format!("status {} without a reason", self.status)),
        }
    }

    pub(crate) fn header(&self, name: HeaderName) -> Option<String> {
        let value = self.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // The copies in hyper's own buffers are out of reach.
        if let Ok(mut body) = std::mem::take(&mut self.body).try_into_mut() {
            body.zeroize();
        }
    }
}

/// Refuses here what no agent would accept.
pub(crate) fn not_asked(message: String) -> ClientError {
    ClientError::Refused(Refusal {
        code: Code::InvalidRequest,
        message,
        request_id: String::new(),
        step: None,
        retry_after: None,
    })
}

/// Where the JSON is wrong, never what it holds there.
fn described(error: &serde_json::Error) -> String {
    format!(
        "no JSON of the shape that was expected, at line {} column {}",
        error.line(),
        error.column()
    )
}

/// The socket's error beneath an error of hyper's, otherwise its innermost text.
fn cause(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut innermost = error;
    loop {
        if let Some(error) = innermost.downcast_ref::<io::Error>() {
            return match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::new(error.kind(), error.to_string()),
            };
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => return io::Error::other(innermost.to_string()),
        }
    }
}
