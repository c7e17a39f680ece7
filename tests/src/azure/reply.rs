//! What goes back over the wire.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde_json::Value;

use crate::fake::ReplyBody;

/// An HTTP answer, not yet a body.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    content_type: &'static str,
    body: Bytes,
    headers: Vec<(HeaderName, String)>,
}

impl Reply {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            content_type: "application/json; charset=utf-8",
            // As .NET writes JSON.
            body: body.to_string().replace('\'', "\\u0027").into(),
            headers: Vec::new(),
        }
    }

    /// What a broken proxy or load balancer sends instead of the service.
    pub(super) fn html(status: u16) -> Self {
        Self {
            status,
            content_type: "text/html",
            body: Bytes::from_static(b"<html><head><title>Bad Gateway</title></head></html>\n"),
            headers: Vec::new(),
        }
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn with_challenge(self, challenge: String) -> Self {
        self.with_header(header::WWW_AUTHENTICATE, challenge)
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
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}
