//! Answers and refusals, as Google writes them.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::fake::ReplyBody;

/// An error answer as Google names it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: u16,
    /// `PERMISSION_DENIED` of an API, `invalid_grant` of the token service.
    pub(super) code: &'static str,
    message: String,
    /// The token service speaks OAuth, the others AIP-193.
    oauth: bool,
}

/// An HTTP answer, not yet a body.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    content_type: &'static str,
    body: Bytes,
    retry_after: Option<u64>,
    location: Option<String>,
}

impl Refusal {
    /// A refusal of an API, whose canonical code determines the status (google.rpc.Code).
    pub(super) fn api(code: &'static str, message: impl Into<String>) -> Self {
        let status = match code {
            "FAILED_PRECONDITION" | "INVALID_ARGUMENT" => 400,
            "UNAUTHENTICATED" => 401,
            "PERMISSION_DENIED" => 403,
            "NOT_FOUND" => 404,
            "RESOURCE_EXHAUSTED" => 429,
            "UNAVAILABLE" => 503,
            _ => 500,
        };
        Self {
            status,
            code,
            message: message.into(),
            oauth: false,
        }
    }

    /// A refusal of the token service (RFC 6749, 5.2).
    pub(super) fn oauth(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            oauth: true,
        }
    }

    pub(super) fn into_reply(self, details: &[Value]) -> Reply {
        let body = if self.oauth {
            json!({"error": self.code, "error_description": self.message})
        } else {
            json!({"error": {
                "code": self.status, "message": self.message, "status": self.code, "details": details,
            }})
        };
        Reply::json(self.status, &body)
    }
}

impl Reply {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            content_type: "application/json; charset=UTF-8",
            body: body.to_string().into(),
            retry_after: None,
            location: None,
        }
    }

    /// What something else sends instead of Google.
    pub(super) fn foreign(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: "text/html",
            body: body.into(),
            retry_after: None,
            location: None,
        }
    }

    /// A redirect to another URL (RFC 9110, 15.4.8).
    pub(super) fn elsewhere(url: &str) -> Self {
        Self {
            location: Some(url.to_owned()),
            ..Self::foreign(307, "")
        }
    }

    pub(super) fn with_retry_after(mut self, seconds: Option<u64>) -> Self {
        self.retry_after = seconds;
        self
    }

    /// Half of the body with the length of that half, so that the JSON does not parse.
    pub(super) fn truncated(mut self) -> Self {
        self.body.truncate(self.body.len() / 2);
        self
    }

    /// The response; with `cut`, the connection ends in the middle of the body.
    pub(super) fn into_response(self, cut: bool) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::new(self.body, cut));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        if let Some(url) = self.location.and_then(|url| url.parse().ok()) {
            headers.insert(header::LOCATION, url);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
