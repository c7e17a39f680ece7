//! One request from arrival to answer: which service, which fault, what goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::json;

use super::State;
use super::call::{Call, Operation};
use super::fault::{Behaviour, Special};
use super::reply::{Refusal, Reply};
use super::secretmanager::Ask;
use super::{credentials, machine, sts};
use crate::fake::{self, BrokenOff, ReplyBody};

/// A request that has been read.
struct Arrived {
    state: Arc<State>,
    parts: Parts,
    body: Bytes,
    call: Call,
    fault: Option<Behaviour>,
}

pub(super) async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, BrokenOff> {
    let (parts, body) = fake::whole(request).await?;
    let mut call = Call::new(state.now());
    let path = parts.uri.path();
    if let Some(account) = credentials::account_of(path) {
        credentials::describe(account, &mut call);
    } else if path == "/v1/token" {
        if let Ok(form) = sts::Form::parse(&body) {
            form.describe(&mut call);
        }
    } else if let Some(ask) = Ask::parse(path) {
        ask.describe(&mut call);
    } else {
        machine::describe(path, &mut call);
    }
    let reason = parts.headers.get("x-goog-request-reason");
    call.reason = reason.and_then(|reason| Some(reason.to_str().ok()?.to_owned()));
    call.with_authorization = parts.headers.contains_key(http::header::AUTHORIZATION);
    let fault = state.faults.strike(&call).map(|fault| fault.behaviour);
    let arrived = Arrived {
        state,
        parts,
        body,
        call,
        fault,
    };
    let (fault, state, mut call) = (
        arrived.fault.clone(),
        arrived.state.clone(),
        arrived.call.clone(),
    );
    let unanswered = move |name: &str| {
        call.error = Some(name.to_owned());
        state.calls.push(call);
    };
    Behaviour::answer(fault.as_ref(), unanswered, move || arrived.answer()).await
}

impl Arrived {
    fn answer(mut self) -> Response<ReplyBody> {
        let reply = self.reply();
        let cut = matches!(self.fault, Some(Behaviour::CutBody));
        self.state.calls.push(self.call);
        reply.into_response(cut)
    }

    fn reply(&mut self) -> Reply {
        let fault = self.fault.clone();
        let error = |call: &mut Call, behaviour: &Behaviour| {
            call.error = Some(behaviour.name().to_owned());
        };
        let throttled = || {
            Refusal::api(
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for quota metric 'Access requests'.",
            )
        };
        if let Some(behaviour) = &fault {
            let reply = match behaviour {
                Behaviour::Html(status) => Some(Reply::foreign(
                    *status,
                    "<html><title>502 Bad Gateway</title></html>\n",
                )),
                Behaviour::Echo => {
                    let text = fake::echo(&self.parts, &self.body);
                    let refusal = match self.call.operation {
                        Operation::ExchangeToken => sts::invalid_grant(text),
                        _ => Refusal::api("PERMISSION_DENIED", text),
                    };
                    Some(refusal.into_reply(&[]))
                }
                Behaviour::InternalError => {
                    Some(Refusal::api("INTERNAL", "Internal error encountered.").into_reply(&[]))
                }
                Behaviour::IssuerSilent => Some(sts::issuer_silent().into_reply(&[])),
                Behaviour::Special(Special::Redirect(url)) => Some(Reply::elsewhere(url)),
                Behaviour::ServiceUnavailable => Some(
                    Refusal::api("UNAVAILABLE", "The service is currently unavailable.")
                        .into_reply(&[]),
                ),
                Behaviour::Throttle(seconds) => {
                    Some(throttled().into_reply(&[]).with_retry_after(*seconds))
                }
                Behaviour::Special(Special::ThrottleInDetails(seconds)) => {
                    let kind = "type.googleapis.com/google.rpc.RetryInfo";
                    let details = json!({"@type": kind, "retryDelay": format!("{seconds}s")});
                    Some(throttled().into_reply(&[details]))
                }
                _ => None,
            };
            if let Some(reply) = reply {
                error(&mut self.call, behaviour);
                return reply;
            }
        }
        let reply = match self.judge() {
            Ok(reply) => reply,
            Err(refusal) => {
                self.call.error = Some(refusal.code.to_owned());
                return refusal.into_reply(&[]);
            }
        };
        match &fault {
            Some(behaviour @ Behaviour::TruncatedBody) => {
                error(&mut self.call, behaviour);
                reply.truncated()
            }
            Some(
                behaviour @ (Behaviour::Special(Special::BadChecksum)
                | Behaviour::CutBody
                | Behaviour::Endless
                | Behaviour::Misdirect),
            ) => {
                error(&mut self.call, behaviour);
                reply
            }
            _ => reply,
        }
    }

    /// What Google itself would answer.
    fn judge(&mut self) -> Result<Reply, Refusal> {
        let (state, now) = (&self.state, self.call.at);
        let path = self.parts.uri.path();
        let not_found = || {
            Refusal::api(
                "NOT_FOUND",
                "The requested URL was not found on this server.",
            )
        };
        if let Some(account) = credentials::account_of(path) {
            if self.parts.method != Method::POST {
                return Err(not_found());
            }
            let call = &mut self.call;
            let headers = &self.parts.headers;
            return credentials::answer(state, now, account, headers, &self.body, call);
        }
        if path == "/v1/token" {
            if self.parts.method != Method::POST {
                return Err(not_found());
            }
            return sts::Form::parse(&self.body)?.answer(state, now, &mut self.call);
        }
        match (&self.parts.method, path) {
            (&Method::POST, machine::REFRESH) => {
                return machine::refresh(state, now, &self.body, &mut self.call);
            }
            (&Method::GET, machine::METADATA) => {
                return machine::metadata(state, now, &self.parts, &mut self.call);
            }
            _ => {}
        }
        let ask = Ask::parse(path).filter(|_| self.parts.method == Method::GET);
        let fault = self.fault.as_ref();
        ask.ok_or_else(not_found)?
            .answer(state, now, &self.parts, fault, &mut self.call)
    }
}
