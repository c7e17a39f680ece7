//! What goes back over the wire: answers and refusals.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::fake::ReplyBody;

/// The two services, which format their answers differently.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Service {
    /// JSON 1.1.
    SecretsManager,
    /// The query protocol: XML.
    Sts,
}

/// An error answer as AWS names it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: u16,
    pub(super) code: &'static str,
    message: String,
}

/// An HTTP answer, not yet a body.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    content_type: &'static str,
    body: Bytes,
    retry_after: Option<u64>,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    /// The refusal in the format of its service.
    pub(super) fn into_reply(self, service: Service, request_id: &str) -> Reply {
        match service {
            Service::SecretsManager => {
                // As in the real one: errors of the front end have a `message`, those of the service itself a
                // `Message`.
                let front = ["Signature", "Token", "Client", "Throttling", "Unknown"];
                let front = front.iter().any(|word| self.code.contains(word));
                let member = if front { "message" } else { "Message" };
                Reply::json(
                    self.status,
                    &json!({"__type": self.code, member: self.message}),
                )
            }
            Service::Sts => {
                let fault = if self.status < 500 {
                    "Sender"
                } else {
                    "Receiver"
                };
                Reply::xml(
                    self.status,
                    format!(
                        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  \
                         <Error>\n    <Type>{fault}</Type>\n    <Code>{}</Code>\n    \
                         <Message>{}</Message>\n  </Error>\n  <RequestId>{request_id}</RequestId>\n\
                         </ErrorResponse>\n",
                        self.code,
                        escaped(&self.message)
                    ),
                )
            }
        }
    }
}

impl Reply {
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        let body = body.to_string().into();
        Self {
            status,
            content_type: "application/x-amz-json-1.1",
            body,
            retry_after: None,
        }
    }

    pub(super) fn xml(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "text/xml",
            body: body.into(),
            retry_after: None,
        }
    }

    /// What a broken proxy or load balancer sends instead of the service.
    pub(super) fn foreign(status: u16, content_type: &'static str, body: &'static str) -> Self {
        Self {
            status,
            content_type,
            body: Bytes::from_static(body.as_bytes()),
            retry_after: None,
        }
    }

    pub(super) fn with_retry_after(mut self, seconds: Option<u64>) -> Self {
        self.retry_after = seconds;
        self
    }

    /// Half of the body with the length of that half, so that the JSON or XML does not parse.
    pub(super) fn truncated(mut self) -> Self {
        self.body.truncate(self.body.len() / 2);
        self
    }

    /// The response; with `cut`, the connection ends in the middle of the body.
    pub(super) fn into_response(
        self,
        request_id: &str,
        now: jiff::Timestamp,
        cut: bool,
    ) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::new(self.body, cut));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        for (name, value) in [("x-amzn-requestid", request_id), ("date", &date)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Text as XML character data.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
