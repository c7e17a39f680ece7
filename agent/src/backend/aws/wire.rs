//! The wire to AWS, as its SDK uses it.

use crate::backend::wire::{Wire, WireError};
use crate::secret::SecretValue;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, Request, Url};
use std::time::Duration;

/// The longest answer, in bytes: a value has at most 64 KiB, and each of a hundred listed secrets has a description,
/// tags and versions.
const MAX_ANSWER: usize = 4 << 20;

/// The wire as the SDK's clients use it.
#[derive(Clone, Debug)]
pub(super) struct SdkWire {
    wire: Wire,
    /// How long one call may take for which the SDK sets no limit of its own.
    timeout: Duration,
}

/// The wire with the settings of one call.
#[derive(Debug)]
struct Connector {
    wire: Wire,
    timeout: Duration,
}

// === impl SdkWire ===

impl SdkWire {
    pub(super) fn new(wire: Wire, timeout: Duration) -> Self {
        Self { wire, timeout }
    }
}

impl HttpClient for SdkWire {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            wire: self.wire.clone(),
            timeout: settings.read_timeout().unwrap_or(self.timeout),
        })
    }
}

// === impl Connector ===

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (wire, timeout) = (self.wire.clone(), self.timeout);
        HttpConnectorFuture::new(async move {
            let request = written(&request).map_err(ConnectorError::user)?;
            let answer = wire.ask(request, timeout, MAX_ANSWER).await;
            let (head, body) = answer.map_err(unanswered)?.into_parts();
            let body = SecretValue::from(body).into_bytes();
            let status = head.status.as_u16().try_into();
            let status = status.map_err(|error| ConnectorError::other(Box::new(error), None))?;
            let mut answer = HttpResponse::new(status, body.into());
            for (name, value) in &head.headers {
                if let Ok(value) = value.to_str() {
                    answer
                        .headers_mut()
                        .append(name.as_str().to_owned(), value.to_owned());
                }
            }
            Ok(answer)
        })
    }
}

/// Returns the request as the wire takes it.
fn written(request: &HttpRequest) -> Result<Request, Box<dyn std::error::Error + Send + Sync>> {
    let method = Method::from_bytes(request.method().as_bytes())?;
    let mut written = Request::new(method, Url::parse(request.uri())?);
    for (name, value) in request.headers() {
        let value = HeaderValue::from_str(value)?;
        written
            .headers_mut()
            .append(HeaderName::from_bytes(name.as_bytes())?, value);
    }
    let body = request
        .body()
        .bytes()
        .ok_or("a request with a stream is not made here")?;
    *written.body_mut() = Some(body.to_vec().into());
    Ok(written)
}

/// The SDK tries again what broke or was too slow, but not what is too long.
fn unanswered(error: WireError) -> ConnectorError {
    match error {
        WireError::Lost(error) if error.is_timeout() => ConnectorError::timeout(error.into()),
        WireError::Lost(error) => ConnectorError::io(error.into()),
        WireError::TooLong(_) => ConnectorError::other(error.into(), None),
    }
}
