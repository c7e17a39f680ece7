//! One request from arrival to answer: which host, which fault, what goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::call::{Call, Operation};
use super::entra::Form;
use super::fault::{Behaviour, Special};
use super::keyvault::Ask;
use super::{LOGIN_HOST, State, VAULT_SUFFIX, entra, machine};
use crate::fake::{self, Asked, BrokenOff, Reply, ReplyBody};

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

const TROUBLE: &str = "something is wrong here";

/// A request that has been read.
struct Arrived {
    state: Arc<State>,
    to: To,
    parts: Parts,
    body: Bytes,
    correlation_id: Option<String>,
}

/// Where a request goes.
enum To {
    Entra(Form),
    Machine(machine::Ask),
    Nobody,
    Vault(Ask),
}

pub(super) async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, BrokenOff> {
    let (parts, body) = fake::whole(request).await?;
    let text = |name: &HeaderName| {
        let value = parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let host = text(&header::HOST);
    let host = host.split(':').next().unwrap_or_default();
    let correlation = Some(text(&CLIENT_REQUEST_ID));
    let mut call = Call {
        at: state.now(),
        operation: Operation::Unknown,
        tenant: None,
        client: None,
        vault: None,
        secret: None,
        version: None,
        token: None,
        with_token: false,
        correlation_id: correlation
            .filter(|id| id.len() == 36 && uuid::Uuid::try_parse(id).is_ok()),
        user_agent: text(&header::USER_AGENT),
        target: parts.uri.to_string(),
        error: None,
    };
    let to = if host == LOGIN_HOST {
        let form = Form::parse(&parts, &body).map(To::Entra);
        form.or_else(|| machine::Ask::parse(&parts).map(To::Machine))
            .unwrap_or(To::Nobody)
    } else {
        match host.strip_suffix(VAULT_SUFFIX) {
            Some(vault) => To::Vault(Ask::parse(vault, &parts)),
            None => To::Nobody,
        }
    };
    match &to {
        To::Entra(form) => form.describe(&mut call),
        To::Machine(ask) => ask.describe(&mut call),
        To::Vault(ask) => ask.describe(&mut call),
        To::Nobody => {}
    }
    let calls = Arc::clone(&state.calls);
    let arrived = Arrived {
        state,
        to,
        parts,
        body,
        correlation_id: call.correlation_id.clone(),
    };
    calls.serve(call, arrived).await
}

impl Asked<Call, Special> for Arrived {
    fn failure(&self, behaviour: &Behaviour) -> Option<Reply> {
        Some(match behaviour {
            Behaviour::Echo => {
                let text = fake::echo(&self.parts, &self.body);
                match self.to {
                    To::Entra(_) => entra::refusal(text, self.state.now()),
                    _ => failed(403, "Forbidden", &text),
                }
            }
            Behaviour::InternalError => failed(500, "InternalServerError", TROUBLE),
            Behaviour::IssuerSilent => entra::issuer_silent(self.state.now()),
            Behaviour::ServiceUnavailable => failed(503, "ServiceUnavailable", TROUBLE),
            Behaviour::Throttle(_) => failed(429, "Throttled", TROUBLE),
            _ => return None,
        })
    }

    fn answer(&self, call: &mut Call, behaviour: Option<&Behaviour>) -> Reply {
        call.at = self.state.now();
        match &self.to {
            To::Entra(form) => form.answer(&self.state, call),
            To::Machine(ask) => ask.answer(&self.state, call),
            To::Vault(ask) => ask.answer(&self.state, call, behaviour),
            To::Nobody => {
                call.error = Some("nobody".to_owned());
                failed(404, "NotFound", TROUBLE)
            }
        }
    }

    fn complete(&self, reply: Reply) -> Reply {
        let reply = reply.with_header(REQUEST_ID, uuid::Uuid::new_v4());
        match &self.correlation_id {
            Some(id) => reply.with_header(CLIENT_REQUEST_ID, id),
            None => reply,
        }
    }
}

fn failed(status: u16, code: &str, message: &str) -> Reply {
    let error = json!({"code": code, "message": message});
    json(status, &json!({"error": error}))
}

pub(super) fn json(status: u16, body: &Value) -> Reply {
    // As .NET writes JSON.
    let body = body.to_string().replace('\'', "\\u0027");
    Reply::new(status, "application/json; charset=utf-8", body)
}
