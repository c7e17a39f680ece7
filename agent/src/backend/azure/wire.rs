//! The wire to Azure, as its SDK uses it, and what each request says about the pod that it is for.

use crate::backend::wire::{Wire, WireError};
use crate::secret::SecretValue;
use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{HeaderName, Headers};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::request::options::ClientRequestId;
use azure_core::http::{AsyncRawResponse, Body, Context, HttpClient, Method, RawResponse, Request};
use reqwest::header::{AUTHORIZATION, HeaderName as Header, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// The longest answer, in bytes: a secret has at most 25 KiB, and a page of names is smaller.
const MAX_ANSWER: usize = 1 << 20;

const USER_AGENT: HeaderName = HeaderName::from_static("user-agent");

/// The wire as the SDK's clients use it.
#[derive(Debug)]
pub(super) struct SdkWire {
    wire: Wire,
    /// How long one call may take.
    timeout: Duration,
    /// Whether calls may go without TLS.
    in_clear: bool,
}

/// Writes into each request which pod, and which of the pod's requests, it is for.
#[derive(Debug)]
pub(super) struct Signature {
    agent: String,
}

/// The request that a call is made for.
#[derive(Debug)]
struct RequestId(String);

/// Returns the id of a call in Key Vault's log, which only accepts a UUID: the digits of the request's id in the first
/// half, the end of the pod's UID in the second.
pub(super) fn correlation(request_id: &str, pod_uid: &str) -> String {
    let digits = |text: &str| -> String { text.chars().filter(char::is_ascii_hexdigit).collect() };
    let (request, pod) = (digits(request_id), digits(pod_uid));
    let pod = &pod[pod.len().saturating_sub(16)..];
    let both = format!("{request:0<16.16}{pod:0<16}");
    // These are 32 digits.
    Uuid::try_parse(&both).unwrap_or_default().to_string()
}

/// What a call knows about the request that it is made for.
pub(super) fn context(request_id: &str, correlation: &str) -> Context<'static> {
    Context::new()
        .with_value(ClientRequestId::new(correlation.to_owned()))
        .with_value(RequestId(request_id.to_owned()))
}

// === impl SdkWire ===

impl SdkWire {
    /// Returns the wire for services in the cloud.
    pub(super) fn new(wire: Wire, timeout: Duration) -> Self {
        Self {
            wire,
            timeout,
            in_clear: false,
        }
    }

    /// Returns the wire for services of this machine itself, such as its metadata service: without TLS, and through no
    /// proxy.
    pub(super) fn to_this_machine(timeout: Duration) -> Self {
        Self {
            wire: Wire::to_this_machine(),
            timeout,
            in_clear: true,
        }
    }
}

#[async_trait]
impl HttpClient for SdkWire {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let other = |text| Error::with_message(ErrorKind::Other, text);
        if request.url().scheme() != "https" && !self.in_clear {
            return Err(other("a request without TLS is not made here"));
        }
        let Body::Bytes(body) = request.body().clone() else {
            return Err(other("a request with a stream is not made here"));
        };
        let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes());
        let method = method.map_err(invalid)?;
        let mut asked = reqwest::Request::new(method, request.url().clone());
        *asked.body_mut() = Some(body.into());
        for (name, value) in request.headers().iter() {
            let name = Header::from_bytes(name.as_str().as_bytes()).map_err(invalid)?;
            let mut value = HeaderValue::from_str(value.as_str()).map_err(invalid)?;
            value.set_sensitive(name == AUTHORIZATION);
            asked.headers_mut().insert(name, value);
        }
        let answer = self.wire.ask(asked, self.timeout, MAX_ANSWER).await;
        let (head, body) = answer.map_err(unanswered)?.into_parts();
        let status = head.status.as_u16();
        let mut headers = Headers::new();
        for (name, value) in &head.headers {
            if let Ok(value) = value.to_str() {
                headers.insert(name.as_str().to_owned(), value.to_owned());
            }
        }
        let body = SecretValue::from(body).into_bytes();
        // The SDK parses these as JSON of its own kind, and loses status, headers and text if they are not: this
        // happens to each refusal of Entra ID, the only service that gets POST requests, that has an escaped character
        // in it. The SDK must see a vault's other refusals, as one of them is the challenge.
        if status == 429 || status >= 500 || (status >= 400 && request.method() == Method::Post) {
            let kind = ErrorKind::HttpResponse {
                status: status.into(),
                error_code: None,
                raw_response: Some(Box::new(RawResponse::from_bytes(
                    status.into(),
                    headers,
                    body,
                ))),
            };
            return Err(kind.into_error());
        }
        Ok(AsyncRawResponse::from_bytes(status.into(), headers, body))
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Other, error)
}

fn unanswered(error: WireError) -> Error {
    match error {
        WireError::Lost(error) if error.is_connect() => Error::new(ErrorKind::Connection, error),
        WireError::Lost(error) => Error::new(ErrorKind::Io, error),
        WireError::TooLong(_) => Error::with_message(ErrorKind::DataConversion, error.to_string()),
    }
}

// === impl Signature ===

impl Signature {
    /// Returns the signature of the pod with this UID.
    pub(super) fn of(pod_uid: &str) -> Self {
        let agent = format!("latchkey/{} pod/{pod_uid}", env!("CARGO_PKG_VERSION"));
        Self { agent }
    }
}

#[async_trait]
impl Policy for Signature {
    async fn send(
        &self,
        context: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let agent = match context.value::<RequestId>() {
            Some(RequestId(id)) => format!("{} request/{id}", self.agent),
            None => self.agent.clone(),
        };
        request.insert_header(USER_AGENT, agent);
        let (first, rest) = next
            .split_first()
            .ok_or_else(|| Error::with_message(ErrorKind::Other, "there is no transport"))?;
        first.send(context, request, rest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0f6c2f5ec1f54b0e9a31a4f0c2f8d6b7";

    #[test]
    fn a_call_is_logged_under_the_request_and_the_pod() {
        assert_eq!(
            correlation("1a2b3c4d-0000002a", POD),
            "1a2b3c4d-0000-002a-9a31-a4f0c2f8d6b7"
        );
    }

    #[test]
    fn a_call_is_logged_under_a_uuid_whatever_its_request_is_called() {
        for (request, pod) in [
            ("", ""),
            ("x", "y"),
            ("1a2b3c4d-123456789", POD),
            ("ä", POD),
        ] {
            let id = correlation(request, pod);
            assert!(Uuid::try_parse(&id).is_ok() && id.len() == 36, "{id}");
        }
    }
}
