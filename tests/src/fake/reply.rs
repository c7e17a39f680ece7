//! Answers over HTTP, as the clouds mean them or spoiled.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::{Behaviour, ReplyBody};

/// An HTTP answer, not yet a body.
#[derive(Debug)]
pub(crate) struct Reply {
    status: u16,
    body: Bytes,
    headers: Vec<(HeaderName, String)>,
}

impl Reply {
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            body: body.into(),
            headers: vec![(header::CONTENT_TYPE, content_type.to_owned())],
        }
    }

    /// What a broken proxy or load balancer sends instead of the cloud.
    pub(crate) fn html(status: u16) -> Self {
        let page = "<html><head><title>502 Bad Gateway</title></head></html>\n";
        Self::new(status, "text/html", page)
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// The response, with a body that this behaviour spoils.
    pub(super) fn into_response<S>(
        mut self,
        behaviour: Option<&Behaviour<S>>,
    ) -> Response<ReplyBody> {
        // Half of the body with the length of that half, so that JSON and XML do not parse.
        if matches!(behaviour, Some(Behaviour::TruncatedBody)) {
            self.body.truncate(self.body.len() / 2);
        }
        let body = ReplyBody::new(self.body, matches!(behaviour, Some(Behaviour::CutBody)));
        let mut response = Response::new(match behaviour {
            Some(Behaviour::Endless) => body.endless(),
            _ => body,
        });
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
