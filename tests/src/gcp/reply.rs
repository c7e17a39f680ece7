//! Answers and refusals, as Google writes them.

use serde_json::{Value, json};

use crate::fake::Reply;

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
        json(self.status, &body)
    }
}

pub(super) fn json(status: u16, body: &Value) -> Reply {
    Reply::new(status, "application/json; charset=UTF-8", body.to_string())
}
