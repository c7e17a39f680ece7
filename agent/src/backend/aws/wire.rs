//! The wire to AWS, as its SDK uses it.

use crate::backend::wire::{Wire, WireError};
use crate::secret::SecretValue;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::HttpError;
use reqwest::Request;
use std::time::Duration;

/// The longest answer, in bytes: a value has at most 64 KiB, and each of a hundred listed secrets has a description,
/// tags and versions.
const MAX_ANSWER: usize = 4 << 20;

/// The wire as the SDK's clients use it.
#[derive(Clone, Debug)]
pub(super) struct SdkWire {
    wire: Wire,
    /// How long one call may take, where the SDK sets no limit of its own.
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
        let timeout = settings.read_timeout().unwrap_or(self.timeout);
        SharedHttpConnector::new(Self::new(self.wire.clone(), timeout))
    }
}

impl HttpConnector for SdkWire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (wire, timeout) = (self.wire.clone(), self.timeout);
        HttpConnectorFuture::new(async move {
            let request = written(request).map_err(ConnectorError::user)?;
            let answer = wire.ask(request, timeout, MAX_ANSWER).await;
            let answer = answer.map_err(unanswered)?;
            answer
                .map(|body| SecretValue::from(body).into_bytes().into())
                .try_into()
                .map_err(|error: HttpError| ConnectorError::other(error.into(), None))
        })
    }
}

/// Returns the request as the wire takes it.
fn written(request: HttpRequest) -> Result<Request, Box<dyn std::error::Error + Send + Sync>> {
    let (head, body) = request.try_into_http1x()?.into_parts();
    let body = body
        .bytes()
        .ok_or("a request with a stream is not made here")?;
    Ok(http::Request::from_parts(head, body.to_vec()).try_into()?)
}

/// The SDK tries again what broke or was too slow, but not what is too long.
fn unanswered(error: WireError) -> ConnectorError {
    match error {
        WireError::Lost(error) if error.is_timeout() && !error.is_connect() => {
            ConnectorError::timeout(error.into())
        }
        WireError::Lost(error) => ConnectorError::io(error.into()),
        WireError::TooLong(_) => ConnectorError::other(error.into(), None),
    }
}
