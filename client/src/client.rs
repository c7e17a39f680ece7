//! A client over the agent's Unix socket.

use crate::error::ClientError;
use crate::protocol::{
    BatchRequest, BatchResponse, DEFAULT_SOCKET, ErrorBody, Identity, SOCKET_VARIABLE, Secret,
    SecretList,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use hyperlocal::{UnixConnector, Uri};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The largest answer that the client reads, in bytes: a batch of 4 MiB in base64, with room for its JSON.
const ANSWER_LIMIT: usize = 8 * 1024 * 1024;

/// A connection pool to one agent. Cloning it shares the pool.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    http: HttpClient<UnixConnector, Full<Bytes>>,
}

impl Client {
    /// A client for the agent behind `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let http = HttpClient::builder(TokioExecutor::new()).build(UnixConnector);
        Self {
            socket: socket.into(),
            http,
        }
    }

    /// A client for the socket that `LATCHKEY_SOCKET` names, else `/run/latchkey/agent.sock`, else
    /// `$XDG_RUNTIME_DIR/latchkey/agent.sock`.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "a client's only configuration is where the socket is"
    )]
    pub fn from_env() -> Self {
        if let Some(path) = std::env::var_os(SOCKET_VARIABLE) {
            return Self::new(path);
        }
        if !Path::new(DEFAULT_SOCKET).exists()
            && let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR")
        {
            return Self::new(Path::new(&runtime).join("latchkey/agent.sock"));
        }
        Self::new(DEFAULT_SOCKET)
    }

    /// Reads the latest version of a secret.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn get(&self, name: &str) -> Result<Secret, ClientError> {
        self.ask(
            Method::GET,
            &format!("/v1/secrets/{}", encoded(name)),
            Bytes::new(),
        )
        .await
    }

    /// Lists the names that the workload's role may see; `cursor` is the `next` of the page before.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn list(&self, cursor: Option<&str>) -> Result<SecretList, ClientError> {
        let target = match cursor {
            Some(cursor) => format!("/v1/secrets?cursor={}", encoded(cursor)),
            None => "/v1/secrets".to_owned(),
        };
        self.ask(Method::GET, &target, Bytes::new()).await
    }

    /// Reads many secrets at once.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses the batch; what a single name got is in the answer.
    pub async fn batch_get(&self, names: Vec<String>) -> Result<BatchResponse, ClientError> {
        let body = serde_json::to_vec(&BatchRequest { names })
            .map_err(|e| ClientError::Unreadable(e.to_string()))?;
        self.ask(Method::POST, "/v1/secrets:batchGet", body.into())
            .await
    }

    /// Asks who the agent says this process is.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached or refuses.
    pub async fn identity(&self) -> Result<Identity, ClientError> {
        self.ask(Method::GET, "/v1/identity", Bytes::new()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let uri: hyper::Uri = Uri::new(&self.socket, target).into();
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(hyper::header::HOST, "localhost")
            .body(Full::new(body))
            .map_err(|e| ClientError::Unreadable(e.to_string()))?;
        let response = self
            .http
            .request(request)
            .await
            .map_err(|e| ClientError::Unreachable(e.into()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(ClientError::Unreachable)?
            .to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|e| ClientError::Unreadable(e.to_string()));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(refusal) => Err(ClientError::Refused(refusal)),
            Err(_) => Err(ClientError::Unreadable(format!(
                "status {status} without a reason"
            ))),
        }
    }
}

/// A text as it may stand in a target: whatever is neither unreserved nor a slash is encoded.
fn encoded(text: &str) -> percent_encoding::PercentEncode<'_> {
    const RESERVED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'/')
        .remove(b'_')
        .remove(b'~');
    percent_encoding::utf8_percent_encode(text, RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_name_or_cursor_holds_the_target_says_that_and_no_more() {
        assert_eq!(encoded("prod/db_1.x-y~z").to_string(), "prod/db_1.x-y~z");
        assert_eq!(
            encoded("a b?version=1#c%2F+=").to_string(),
            "a%20b%3Fversion%3D1%23c%252F%2B%3D"
        );
        // An unencoded one would make this panic.
        let _ = Uri::new(
            "/run/x.sock",
            &format!("/v1/secrets/{}", encoded("a b\u{e9}\n")),
        );
    }
}
