//! One request from arrival to answer: which service, which fault, what goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION};
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde_json::json;

use super::State;
use super::call::Call;
use super::fault::{Behaviour, Special};
use super::reply::Refusal;
use super::secretmanager::Ask;
use super::{credentials, machine, sts};
use crate::fake::{self, Asked, BrokenOff, Reply, ReplyBody};

/// A request that has been read.
struct Arrived {
    state: Arc<State>,
    parts: Parts,
    body: Bytes,
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
    } else if path == sts::PATH {
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
    call.with_authorization = parts.headers.contains_key(AUTHORIZATION);
    let calls = Arc::clone(&state.calls);
    calls.serve(call, Arrived { state, parts, body }).await
}

impl Asked<Call, Special> for Arrived {
    fn failure(&self, behaviour: &Behaviour) -> Option<Reply> {
        let refused = |refusal: Refusal| refusal.into_reply(&[]);
        let throttled = || {
            Refusal::api(
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for quota metric 'Access requests'.",
            )
        };
        Some(match behaviour {
            Behaviour::Echo => {
                let text = fake::echo(&self.parts, &self.body);
                refused(match self.parts.uri.path() {
                    sts::PATH => sts::invalid_grant(text),
                    _ => Refusal::api("PERMISSION_DENIED", text),
                })
            }
            Behaviour::InternalError => {
                refused(Refusal::api("INTERNAL", "Internal error encountered."))
            }
            Behaviour::IssuerSilent => refused(sts::issuer_silent()),
            Behaviour::ServiceUnavailable => refused(Refusal::api(
                "UNAVAILABLE",
                "The service is currently unavailable.",
            )),
            Behaviour::Throttle(_) => refused(throttled()),
            // RFC 9110, 15.4.8.
            Behaviour::Special(Special::Redirect(url)) => {
                Reply::new(307, "text/html", "").with_header(LOCATION, url)
            }
            Behaviour::Special(Special::ThrottleInDetails(seconds)) => {
                let kind = "type.googleapis.com/google.rpc.RetryInfo";
                let details = json!({"@type": kind, "retryDelay": format!("{seconds}s")});
                throttled().into_reply(&[details])
            }
            _ => return None,
        })
    }

    fn answer(&self, call: &mut Call, behaviour: Option<&Behaviour>) -> Reply {
        self.judge(call, behaviour).unwrap_or_else(|refusal| {
            call.error = Some(refusal.code.to_owned());
            refusal.into_reply(&[])
        })
    }
}

impl Arrived {
    /// What Google itself would answer.
    fn judge(&self, call: &mut Call, behaviour: Option<&Behaviour>) -> Result<Reply, Refusal> {
        let (state, now) = (&self.state, call.at);
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
            let headers = &self.parts.headers;
            return credentials::answer(state, now, account, headers, &self.body, call);
        }
        if path == sts::PATH {
            if self.parts.method != Method::POST {
                return Err(not_found());
            }
            return sts::Form::parse(&self.body)?.answer(state, now, call);
        }
        match (&self.parts.method, path) {
            (&Method::POST, machine::REFRESH) => {
                return machine::refresh(state, now, &self.body, call);
            }
            (&Method::GET, machine::METADATA) => {
                return machine::metadata(state, now, &self.parts, call);
            }
            _ => {}
        }
        let ask = Ask::parse(path).filter(|_| self.parts.method == Method::GET);
        ask.ok_or_else(not_found)?
            .answer(state, now, &self.parts, behaviour, call)
    }
}
