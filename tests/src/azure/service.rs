//! One request from arrival to answer: which host, which fault, what goes into the log.

use std::sync::Arc;

use http::header::{self, HeaderName};
use http::{Request, Response};
use hyper::body::Incoming;

use super::call::{Call, Operation};
use super::entra::Form;
use super::fault::Behaviour;
use super::keyvault::Ask;
use super::reply::Reply;
use super::{LOGIN_HOST, State, VAULT_SUFFIX, entra, machine};
use crate::fake::{self, BrokenOff, ReplyBody};

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

const TROUBLE: &str = "something is wrong here";

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
    let fault = state.faults.strike(&call).map(|fault| fault.behaviour);
    let (log, mut unanswered) = (state.clone(), call.clone());
    let unanswered = move |name: &str| {
        unanswered.error = Some(name.to_owned());
        log.calls.push(unanswered);
    };
    let behaviour = fault.clone();
    let answer = move || {
        let echo = || fake::echo(&parts, &body);
        answer(&state, &to, behaviour, call, echo)
    };
    Behaviour::answer(fault.as_ref(), unanswered, answer).await
}

fn answer(
    state: &State,
    to: &To,
    fault: Option<Behaviour>,
    mut call: Call,
    echo: impl FnOnce() -> String,
) -> Response<ReplyBody> {
    call.error = fault.as_ref().map(|fault| fault.name().to_owned());
    call.at = state.now();
    let reply = match &fault {
        Some(Behaviour::Html(status)) => Reply::html(*status),
        Some(Behaviour::IssuerSilent) => entra::issuer_silent(state.now()),
        Some(Behaviour::Echo) => match to {
            To::Entra(_) => entra::refusal(echo(), state.now()),
            _ => failed(403, "Forbidden", &echo()),
        },
        Some(Behaviour::InternalError) => failed(500, "InternalServerError", TROUBLE),
        Some(Behaviour::ServiceUnavailable) => failed(503, "ServiceUnavailable", TROUBLE),
        Some(Behaviour::Throttle(seconds)) => {
            let reply = failed(429, "Throttled", TROUBLE);
            match seconds {
                Some(seconds) => reply.with_header(header::RETRY_AFTER, seconds),
                None => reply,
            }
        }
        _ => {
            let told = call.error.take();
            let reply = match to {
                To::Entra(form) => form.answer(state, &mut call),
                To::Machine(ask) => ask.answer(state, &mut call),
                To::Vault(ask) => ask.answer(state, &mut call, fault.as_ref()),
                To::Nobody => {
                    call.error = Some("nobody".to_owned());
                    failed(404, "NotFound", TROUBLE)
                }
            };
            let spoils = matches!(
                fault,
                Some(
                    Behaviour::CutBody
                        | Behaviour::Endless
                        | Behaviour::Misdirect
                        | Behaviour::TruncatedBody
                )
            );
            call.error = call.error.or(told.filter(|_| spoils));
            match fault {
                Some(Behaviour::TruncatedBody) => reply.truncated(),
                _ => reply,
            }
        }
    };
    let mut reply = reply.with_header(REQUEST_ID, uuid::Uuid::new_v4());
    if let Some(id) = &call.correlation_id {
        reply = reply.with_header(CLIENT_REQUEST_ID, id);
    }
    state.calls.push(call);
    reply.into_response(matches!(fault, Some(Behaviour::CutBody)))
}

fn failed(status: u16, code: &str, message: &str) -> Reply {
    let error = serde_json::json!({"code": code, "message": message});
    Reply::json(status, &serde_json::json!({"error": error}))
}
