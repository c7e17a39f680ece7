//! Admission: what a peer is when it connects, and which permit it gets.

use super::doorman::{Doorman, Origin, Waiting};
use super::remains::Orphans;
use super::warnings::{About, Warnings};
use crate::attest::{AttestError, Attestor, Denial, Entrance, Location, Workload};
use crate::metrics::Metrics;
use crate::peer::Peer;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// What admitting a peer needs; all connections share it.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) attestor: Arc<Attestor>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) doorman: Doorman,
    pub(super) orphans: Orphans,
    pub(super) warnings: Warnings,
}

/// What the peer is, and the permit that it holds.
#[derive(Debug)]
pub(super) enum Standing {
    /// A workload, last checked at `checked`.
    Attested {
        workload: Workload,
        checked: Instant,
        permit: OwnedSemaphorePermit,
    },
    /// Not admitted, or not yet.
    AtTheDoor { found: Found, place: Waiting },
}

/// What a peer at the door is.
#[derive(Debug)]
pub(super) enum Found {
    /// A workload whose pod may have no more connections, and why.
    Busy {
        workload: Workload,
        why: &'static str,
    },
    /// Not a workload.
    Denied(AttestError),
    /// Undecided, since its pod is not known. It is looked for at the peer's first request.
    Unknown,
}

// === impl Standing ===

impl Standing {
    /// The workload, if it is one, whether or not it may have the connection.
    pub(super) fn workload(&self) -> Option<&Workload> {
        match self {
            Self::Attested { workload, .. }
            | Self::AtTheDoor {
                found: Found::Busy { workload, .. },
                ..
            } => Some(workload),
            Self::AtTheDoor { .. } => None,
        }
    }
}

// === impl Admission ===

impl Admission {
    /// What a peer that came in by `entrance` is at first; none if it has exited, or if there is no room for a peer
    /// that is not attested.
    pub(super) fn admit(&self, peer: &Peer, entrance: Entrance) -> Option<Standing> {
        let metrics = &self.metrics;
        let location = self.locate(peer, entrance);
        let known = |location| self.attestor.known(peer, location);
        let verdict = location.clone().and_then(known);
        let at_the_door = |found| {
            // Only here, since some origins need another read of the peer's cgroup.
            let origin = Origin::of(peer, entrance, location.as_ref().ok().copied());
            let place = self.doorman.let_in(origin, matches!(found, Found::Unknown));
            if place.is_none() {
                metrics.refused("unattested_limit");
            }
            Some(Standing::AtTheDoor {
                found,
                place: place?,
            })
        };
        match verdict {
            Ok(Some(workload)) => match self.connection_of(&workload) {
                Ok(permit) => Some(Standing::Attested {
                    workload,
                    checked: Instant::now(),
                    permit,
                }),
                Err(why) => at_the_door(Found::Busy { workload, why }),
            },
            Err(AttestError::Gone) => {
                metrics.refused(AttestError::Gone.reason());
                None
            }
            // What is missing may arrive before the peer's first request.
            Ok(None) | Err(AttestError::NotYet(_)) => at_the_door(Found::Unknown),
            Err(error @ AttestError::Denied(reason)) => {
                metrics.attestation(reason.as_str());
                let advice = match reason {
                    Denial::OutsidePidNamespace => Some(
                        "a peer is outside of the agent's PID namespace: run the agent with hostPID: true",
                    ),
                    Denial::UnreadablePeer => Some(
                        "a peer's /proc cannot be read: is it hidden from the agent, by hidepid or a security module?",
                    ),
                    _ => None,
                };
                if let Some(advice) = advice
                    && self.warnings.is_due(reason.as_str(), None)
                {
                    tracing::warn!(pid = peer.pid(), "{advice}");
                }
                at_the_door(Found::Denied(error))
            }
        }
    }

    /// Locates the peer, with a warning if it may be trying to pass for another pod.
    fn locate(&self, peer: &Peer, entrance: Entrance) -> Result<Location, AttestError> {
        let location = self.attestor.locate(peer, entrance)?;
        if let Location::Pod(in_pod) = location
            && in_pod.nested_pod
        {
            self.metrics.attestation("nested_pod_seen");
            let about = Some(About::Pod(in_pod.pod));
            if self.warnings.is_due("nested_pod_seen", about) {
                tracing::warn!(
                    pid = peer.pid(),
                    pod_uid = %in_pod.pod,
                    "a cgroup below a container is named like a pod: somebody may be trying to pass for it"
                );
            }
        }
        Ok(location)
    }

    /// A permit for one more connection of the workload, or why it gets none; both are counted.
    pub(super) fn connection_of(
        &self,
        workload: &Workload,
    ) -> Result<OwnedSemaphorePermit, &'static str> {
        let permit = self.permit_of(workload);
        let outcome = if permit.is_ok() { "ok" } else { "busy" };
        self.metrics.attestation(outcome);
        permit
    }

    fn permit_of(&self, workload: &Workload) -> Result<OwnedSemaphorePermit, &'static str> {
        if self.orphans.are_many(&workload.facts().namespace) {
            return Err(
                "somebody holds connections of this namespace's pods that are gone, with answers unread; end who does",
            );
        }
        let permit = workload.pod().quota.connection();
        permit.ok_or("this pod has too many connections; keep fewer and reuse them")
    }
}
