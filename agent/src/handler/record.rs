//! What is known about an ask until it is written to the audit trail.

use super::Handling;
use crate::attest::Workload;
use crate::audit::{Line, Reservation};
use crate::error::RequestError;
use crate::request::RequestId;
use crate::server::Connection;
use std::sync::Arc;
use tokio::time::Instant;

/// What is known about an ask; the pipeline fills it in step by step. It is written to the audit trail however the
/// request ends: as `cancelled` if it is dropped, because its peer died.
pub(super) struct Record<'a> {
    place: Option<Reservation<'a>>,
    id: RequestId,
    asker: Asker<'a>,
    secret: &'a str,
    pub(super) began: Instant,
    pub(super) workload: Option<Workload>,
    pub(super) backend: Option<Arc<str>>,
    pub(super) role: Option<Arc<str>>,
    pub(super) version: Option<Arc<str>>,
    pub(super) cache: &'static str,
    pub(super) shared_with: Option<RequestId>,
    pub(super) cloud_request_id: Option<Arc<str>>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) enum Asker<'a> {
    /// A process of the pod.
    Peer(&'a Connection),
    /// The pod's volume of this name, which the agent fills with files.
    Volume(&'a str),
}

impl<'a> Record<'a> {
    /// A record of an ask about which nothing else is known yet.
    pub(super) fn new(
        place: Reservation<'a>,
        id: RequestId,
        asker: Asker<'a>,
        secret: &'a str,
    ) -> Self {
        Self {
            place: Some(place),
            id,
            asker,
            secret,
            began: Instant::now(),
            workload: None,
            backend: None,
            role: None,
            version: None,
            cache: "off",
            shared_with: None,
            cloud_request_id: None,
        }
    }

    /// Writes the line of an ask that has been answered.
    pub(super) fn close(mut self, error: Option<&RequestError>) -> Result<(), RequestError> {
        match error {
            None => self.write("ok", None, None),
            Some(error) => self.write("error", Some(error.code.as_str()), error.reason),
        }
    }

    fn write(
        &mut self,
        outcome: &str,
        code: Option<&str>,
        reason: Option<&str>,
    ) -> Result<(), RequestError> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        let busy = match self.asker {
            Asker::Peer(peer) if self.workload.is_none() => peer.busy(),
            _ => None,
        };
        let workload = self.workload.as_ref().or(busy.as_ref());
        let facts = workload.map(|workload| workload.facts());
        let (pid, uid, volume) = match self.asker {
            Asker::Peer(peer) => (Some(peer.pid()), Some(peer.uid()), None),
            Asker::Volume(name) => (None, None, Some(name)),
        };
        place.fill(Line {
            request_id: self.id.as_str(),
            namespace: facts.map(|facts| &*facts.namespace),
            service_account: facts.map(|facts| &*facts.service_account),
            // Outside Kubernetes there is none.
            pod: facts
                .map(|facts| &*facts.name)
                .filter(|name| !name.is_empty()),
            pod_uid: workload.and_then(|workload| workload.pod().uid),
            container_id: workload.and_then(Workload::container),
            container_confirmed: workload.is_some_and(Workload::container_confirmed),
            pid,
            uid,
            volume,
            backend: self.backend.as_deref(),
            role: self.role.as_deref(),
            secret: self.secret,
            version: self.version.as_deref(),
            outcome,
            code,
            reason,
            cache: self.cache,
            shared_with: self.shared_with.as_ref().map(RequestId::as_str),
            cloud_request_id: self.cloud_request_id.as_deref(),
            duration_ms: self.began.elapsed().as_secs_f64() * 1000.0,
            ..Line::default()
        })
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.place.is_some() {
            let _ = self.write("cancelled", None, None);
        }
    }
}

impl Handling {
    /// Reserves a place in the audit trail, and returns a record of the ask.
    pub(super) async fn record<'a>(&'a self, secret: &'a str) -> Result<Record<'a>, RequestError> {
        let place = self.services.audit.reserve(self.deadline()).await?;
        Ok(Record::new(
            place,
            self.id,
            Asker::Peer(&self.connection),
            secret,
        ))
    }
}
