//! One request from arrival to answer: which service, which fault, what goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{DATE, HeaderName};
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use super::State;
use super::call::{Call, Operation};
use super::fault::{Behaviour, Special};
use super::reply::{Refusal, Service};
use super::{assume, secretsmanager, sts};
use crate::fake::{self, Asked, BrokenOff, Reply, ReplyBody};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// A request that has been read.
struct Arrived {
    state: Arc<State>,
    service: Service,
    parts: Parts,
    body: Bytes,
    request_id: String,
}

pub(super) async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, BrokenOff> {
    let (parts, body) = fake::whole(request).await?;
    let request_id = uuid::Uuid::new_v4().to_string();
    let mut call = Call::new(Operation::Unknown, request_id.clone(), state.now());
    let service = if parts.headers.contains_key("x-amz-target") {
        secretsmanager::describe(&parts, &body, &state, &mut call);
        Service::SecretsManager
    } else {
        if let Some(form) = assume::Form::parse(&body) {
            form.describe(&mut call);
        } else if let Ok(form) = sts::Form::parse(&body) {
            form.describe(&mut call);
        }
        Service::Sts
    };
    let calls = Arc::clone(&state.calls);
    let arrived = Arrived {
        state,
        service,
        parts,
        body,
        request_id,
    };
    calls.serve(call, arrived).await
}

impl Asked<Call, Special> for Arrived {
    fn failure(&self, behaviour: &Behaviour) -> Option<Reply> {
        let refusal = match behaviour {
            Behaviour::Echo => {
                Refusal::new(403, "AccessDenied", fake::echo(&self.parts, &self.body))
            }
            Behaviour::InternalError => self.internal_error(),
            Behaviour::IssuerSilent => sts::no_key(),
            Behaviour::ServiceUnavailable => {
                Refusal::new(503, "ServiceUnavailable", "Service Unavailable")
            }
            Behaviour::Throttle(_) => self.throttled(),
            _ => return None,
        };
        Some(refusal.into_reply(self.service, &self.request_id))
    }

    fn answer(&self, call: &mut Call, behaviour: Option<&Behaviour>) -> Reply {
        call.at = self.state.now();
        self.judge(call, behaviour).unwrap_or_else(|refusal| {
            call.error = Some(refusal.code.to_owned());
            refusal.into_reply(self.service, &self.request_id)
        })
    }

    fn complete(&self, reply: Reply) -> Reply {
        let date = self.state.now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        reply
            .with_header(REQUEST_ID, &self.request_id)
            .with_header(DATE, date)
    }
}

impl Arrived {
    /// What AWS itself would answer.
    fn judge(&self, call: &mut Call, behaviour: Option<&Behaviour>) -> Result<Reply, Refusal> {
        if self.parts.method != Method::POST {
            return Err(Refusal::new(405, "MethodNotAllowed", "only POST is served"));
        }
        let state = &*self.state;
        let body = match behaviour {
            Some(Behaviour::Special(Special::Tampered)) => &[&*self.body, b" "].concat(),
            _ => &*self.body,
        };
        match self.service {
            Service::SecretsManager => {
                secretsmanager::answer(state, &self.parts, body, call.at, call.operation, behaviour)
            }
            Service::Sts => match assume::Form::parse(body) {
                Some(form) => form.answer(state, &self.parts, body, call),
                None => sts::Form::parse(body)?.answer(state, call.at, call),
            },
        }
    }

    fn internal_error(&self) -> Refusal {
        match self.service {
            Service::SecretsManager => Refusal::new(
                500,
                "InternalServiceError",
                "An error occurred on the server side.",
            ),
            Service::Sts => Refusal::new(500, "InternalFailure", "An internal error occurred."),
        }
    }

    fn throttled(&self) -> Refusal {
        match self.service {
            Service::SecretsManager => Refusal::new(400, "ThrottlingException", "Rate exceeded"),
            Service::Sts => Refusal::new(400, "Throttling", "Rate exceeded"),
        }
    }
}
