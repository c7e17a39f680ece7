//! What goes back over the wire: answers and refusals.

use serde_json::{Value, json};

use crate::fake::Reply;

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
                json(
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
                xml(
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

pub(super) fn json(status: u16, body: &Value) -> Reply {
    Reply::new(status, "application/x-amz-json-1.1", body.to_string())
}

pub(super) fn xml(status: u16, body: String) -> Reply {
    Reply::new(status, "text/xml", body)
}

/// Text as XML character data.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
