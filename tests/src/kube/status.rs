//! The API server's error answers: `Status` objects in its own words.

use http::StatusCode;
use serde_json::{Value, json};

use super::store::Key;

/// A `Status` with its HTTP code, and the `Retry-After` that goes with it.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) code: StatusCode,
    pub(super) body: Value,
    pub(super) retry_after: Option<u64>,
}

impl Status {
    pub(super) fn new(code: StatusCode, reason: &str, message: &str) -> Self {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        });
        if reason.is_empty() {
            body.as_object_mut().map(|body| body.remove("reason"));
        }
        Self {
            code,
            body,
            retry_after: None,
        }
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// `field` is what is wrong, `cause` the machine-readable word for how.
    pub(super) fn invalid(
        group: &str,
        kind: &str,
        field: &str,
        cause: &str,
        message: &str,
    ) -> Self {
        let text = format!("{kind}.{group} \"\" is invalid: {field}: {message}");
        let mut status = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &text);
        status.body["details"] = json!({
            "group": group, "kind": kind,
            "causes": [{"reason": cause, "message": message, "field": field}],
        });
        status
    }

    pub(super) fn not_found(key: &Key) -> Self {
        let (resource, name) = (key.kind.resource(), &key.name);
        let message = format!("{resource} \"{name}\" not found");
        let mut status = Self::new(StatusCode::NOT_FOUND, "NotFound", &message);
        status.body["details"] = json!({"name": name, "kind": resource});
        status
    }

    pub(super) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub(super) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        let mut status = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        status.body["details"] = json!({});
        status
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let mut status = Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
        status.body["details"] = json!({});
        status
    }

    pub(super) fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub(super) fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types include: \
                       application/json";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            message,
        )
    }

    pub(super) fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        let mut status = Self::new(StatusCode::CONFLICT, "Conflict", &message);
        status.body["details"] = json!({"name": name, "kind": resource});
        status
    }

    /// What the request asks for has been compacted away.
    pub(super) fn expired(message: &str) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The client has seen a revision that this server has not seen.
    pub(super) fn revision_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let text = format!("Timeout: {message}");
        let mut status = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", &text);
        status.body["details"] = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": message}],
            "retryAfterSeconds": 1,
        });
        status.retry_after = Some(1);
        status
    }

    /// A failure that a test asked for.
    pub(super) fn failure(code: StatusCode, retry_after: Option<u64>) -> Self {
        let (reason, message) = match code {
            StatusCode::TOO_MANY_REQUESTS => (
                "TooManyRequests",
                "Too many requests, please try again later.",
            ),
            StatusCode::INTERNAL_SERVER_ERROR => (
                "InternalError",
                "Internal error occurred: etcdserver: request timed out",
            ),
            StatusCode::SERVICE_UNAVAILABLE => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            StatusCode::GATEWAY_TIMEOUT => (
                "Timeout",
                "request did not complete within the allotted timeout",
            ),
            StatusCode::UNAUTHORIZED => ("Unauthorized", "Unauthorized"),
            StatusCode::GONE => (
                "Expired",
                "The resourceVersion for the provided list is too old.",
            ),
            _ => ("", code.canonical_reason().unwrap_or("unknown")),
        };
        let mut status = Self::new(code, reason, message);
        status.retry_after = retry_after;
        if let Some(seconds) = retry_after {
            status.body["details"] = json!({"retryAfterSeconds": seconds});
        }
        status
    }
}
