//! One request from arrival to answer: which service, which fault, what goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use super::State;
use super::call::{Call, Operation};
use super::fault::{Behaviour, Special};
use super::reply::{Refusal, Reply, Service};
use super::{assume, secretsmanager, sts};
use crate::fake::{self, BrokenOff, ReplyBody};

/// A request that has been read.
struct Arrived {
    state: Arc<State>,
    pinned_region: Option<Arc<str>>,
    service: Service,
    parts: Parts,
    body: Bytes,
    call: Call,
    fault: Option<Behaviour>,
}

pub(super) async fn serve(
    state: Arc<State>,
    pinned_region: Option<Arc<str>>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, BrokenOff> {
    let (parts, body) = fake::whole(request).await?;
    let request_id = uuid::Uuid::new_v4().to_string();
    let mut call = Call::new(Operation::Unknown, request_id, state.now());
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
    let fault = state.faults.strike(&call).map(|fault| fault.behaviour);
    let arrived = Arrived {
        state,
        pinned_region,
        service,
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
        self.call.at = self.state.now();
        if matches!(self.fault, Some(Behaviour::Special(Special::Tampered))) {
            self.body = [&*self.body, b" "].concat().into();
        }
        let reply = self.reply();
        let cut = matches!(self.fault, Some(Behaviour::CutBody));
        let response = reply.into_response(&self.call.request_id, self.call.at, cut);
        self.state.calls.push(self.call);
        response
    }

    fn reply(&mut self) -> Reply {
        let refusal = match &self.fault {
            Some(fault @ Behaviour::Html(status)) => {
                self.call.error = Some(fault.name().to_owned());
                let page = "<html><head><title>502 Bad Gateway</title></head></html>\n";
                return Reply::foreign(*status, "text/html", page);
            }
            Some(Behaviour::Echo) => {
                let text = fake::echo(&self.parts, &self.body);
                Some((Refusal::new(403, "AccessDenied", text), None))
            }
            Some(Behaviour::InternalError) => Some(self.internal_error()),
            Some(Behaviour::IssuerSilent) => Some((sts::no_key(), None)),
            Some(Behaviour::ServiceUnavailable) => Some((
                Refusal::new(503, "ServiceUnavailable", "Service Unavailable"),
                None,
            )),
            Some(Behaviour::Throttle(seconds)) => Some((self.throttled(), *seconds)),
            _ => None,
        };
        if let (Some((refusal, retry_after)), Some(fault)) = (refusal, &self.fault) {
            self.call.error = Some(fault.name().to_owned());
            let reply = refusal.into_reply(self.service, &self.call.request_id);
            return reply.with_retry_after(retry_after);
        }
        let reply = match self.judge() {
            Ok(reply) => reply,
            Err(refusal) => {
                self.call.error = Some(refusal.code.to_owned());
                refusal.into_reply(self.service, &self.call.request_id)
            }
        };
        match &self.fault {
            Some(fault @ Behaviour::TruncatedBody) => {
                self.call.error = Some(fault.name().to_owned());
                reply.truncated()
            }
            Some(fault @ (Behaviour::CutBody | Behaviour::Endless | Behaviour::Misdirect)) => {
                self.call.error = Some(fault.name().to_owned());
                reply
            }
            _ => reply,
        }
    }

    /// What AWS itself would answer.
    fn judge(&mut self) -> Result<Reply, Refusal> {
        if self.parts.method != Method::POST {
            return Err(Refusal::new(405, "MethodNotAllowed", "only POST is served"));
        }
        match self.service {
            Service::SecretsManager => secretsmanager::answer(
                &self.state,
                self.pinned_region.as_deref(),
                &self.parts,
                &self.body,
                self.call.at,
                self.call.operation,
                self.fault.as_ref(),
            ),
            Service::Sts => {
                if let Some(form) = assume::Form::parse(&self.body) {
                    return form.answer(
                        &self.state,
                        self.pinned_region.as_deref(),
                        &self.parts,
                        &self.body,
                        &mut self.call,
                    );
                }
                let form = sts::Form::parse(&self.body)?;
                form.answer(&self.state, self.call.at, &mut self.call)
            }
        }
    }

    fn internal_error(&self) -> (Refusal, Option<u64>) {
        let refusal = match self.service {
            Service::SecretsManager => Refusal::new(
                500,
                "InternalServiceError",
                "An error occurred on the server side.",
            ),
            Service::Sts => Refusal::new(500, "InternalFailure", "An internal error occurred."),
        };
        (refusal, None)
    }

    fn throttled(&self) -> Refusal {
        match self.service {
            Service::SecretsManager => Refusal::new(400, "ThrottlingException", "Rate exceeded"),
            Service::Sts => Refusal::new(400, "Throttling", "Rate exceeded"),
        }
    }
}
