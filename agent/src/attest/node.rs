//! In Kubernetes: a peer is in the pod that its cgroup names, unless its entrance contradicts that, and is who the API
//! server says this pod is.

use super::cgroup::{Anchor, CgroupDenial, PodCgroup, PodUid};
use super::pods::{ContainerKind, Facts, Pod, Pods};
use super::{AttestError, Denial, Entrance, InPod, Location, Workload};
use crate::peer::{Peer, Pinning};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SetOnce;
use tokio::time::{Instant, timeout_at};

/// Says which pod of a node a peer is.
#[derive(Debug)]
pub(crate) struct Node {
    anchor: SetOnce<Anchor>,
    pods: Arc<Pods>,
    node: String,
    own_pod: Option<PodUid>,
    wait: Duration,
    /// The RuntimeClasses whose pods are attested by their own socket alone.
    csi_only_runtimes: Vec<String>,
}

// === impl Node ===

impl Node {
    /// An attestor for the pods of `node`. It denies everybody until it is [anchored](Self::anchor). A peer whose
    /// cgroup is not a pod's is attested as the pod whose own socket it came in by, if that pod's RuntimeClass is one
    /// of `csi_only_runtimes`.
    pub(crate) fn new(
        pods: Arc<Pods>,
        node: String,
        own_pod: Option<PodUid>,
        wait: Duration,
        csi_only_runtimes: Vec<String>,
    ) -> Self {
        Self {
            anchor: SetOnce::new(),
            pods,
            node,
            own_pod,
            wait,
            csi_only_runtimes,
        }
    }

    /// Whether it attests the pods of the node called `name`.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        self.node == name
    }

    /// What is still missing before anybody can be attested.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.pods.is_synced() {
            missing.push("the list of this node's pods");
        }
        if !self.is_anchored() {
            missing.push("the node's kubepods root");
        }
        missing
    }

    /// Whether this pod is known on this node.
    pub(super) fn knows(&self, pod: PodUid) -> bool {
        self.pods.by_uid(pod).is_some()
    }

    /// The entries of all known pods.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.all()
    }

    /// Ties the attestor to the node's kubepods root; only the first call counts.
    pub(crate) fn anchor(&self, anchor: Anchor) {
        let _ = self.anchor.set(anchor);
    }

    /// Whether the kubepods root is known.
    pub(crate) fn is_anchored(&self) -> bool {
        self.anchor.initialized()
    }

    /// Which pod the peer is in now: its cgroup says so, and its entrance must not contradict it.
    ///
    /// # Errors
    ///
    /// If its cgroup is not a pod's or is another pod's, or it has exited.
    pub(crate) fn locate(&self, peer: &Peer, entrance: Entrance) -> Result<InPod, AttestError> {
        let anchor = self
            .anchor
            .get()
            .ok_or(AttestError::NotYet("kubepods_root"))?;
        let mut text = Vec::with_capacity(512);
        peer.read_cgroup(&mut text)?;
        self.located(anchor.parse(&text), entrance)
    }

    /// Where a peer with this `cgroup`, which came in by `entrance`, is.
    fn located(
        &self,
        cgroup: Result<PodCgroup, CgroupDenial>,
        entrance: Entrance,
    ) -> Result<InPod, AttestError> {
        match (cgroup, entrance) {
            (Ok(cgroup), _) if self.own_pod == Some(cgroup.pod) => {
                Err(AttestError::Denied(Denial::OwnPod))
            }
            (Ok(cgroup), Entrance::Pod(uid)) if cgroup.pod != uid => {
                Err(AttestError::Denied(Denial::ListenerMismatch))
            }
            (Ok(cgroup), _) => Ok(InPod {
                pod: cgroup.pod,
                container: Some(cgroup.container),
                nested_pod: cgroup.nested_pod,
                entrance,
            }),
            // `known` checks whether the pod has one of these RuntimeClasses.
            (Err(CgroupDenial::NotAPod), Entrance::Pod(pod))
                if !self.csi_only_runtimes.is_empty() =>
            {
                Ok(InPod {
                    pod,
                    container: None,
                    nested_pod: false,
                    entrance,
                })
            }
            (Err(denial), _) => Err(AttestError::Denied(Denial::Cgroup(denial))),
        }
    }

    /// Checks that the peer is in the agent's own pod or in a pod of the same service account: the other agent of a
    /// handover. If the agent is outside of all pods, its peer must be too.
    ///
    /// # Errors
    ///
    /// If it is not, or that cannot be decided yet.
    pub(crate) fn must_be_own(&self, peer: &Peer) -> Result<(), AttestError> {
        self.is_among_own(self.locate(peer, Entrance::Shared))
    }

    /// The same check, given where the peer was located.
    fn is_among_own(&self, in_pod: Result<InPod, AttestError>) -> Result<(), AttestError> {
        let in_pod = match in_pod {
            Err(AttestError::Denied(
                Denial::OwnPod | Denial::Cgroup(CgroupDenial::SamePodElided),
            )) => return Ok(()),
            Err(AttestError::Denied(Denial::Cgroup(CgroupDenial::NotAPod)))
                if self.own_pod.is_none() =>
            {
                return Ok(());
            }
            outcome => outcome?,
        };
        let own = self
            .own_pod
            .ok_or(AttestError::Denied(Denial::AnotherAccount))?;
        let (own, theirs) = match (self.pods.by_uid(own), self.pods.by_uid(in_pod.pod)) {
            (Some(own), Some(theirs)) => (own.facts(), theirs.facts()),
            _ => return Err(AttestError::NotYet("own_pod")),
        };
        let is_own =
            (&own.namespace, &own.service_account) == (&theirs.namespace, &theirs.service_account);
        if is_own {
            Ok(())
        } else {
            Err(AttestError::Denied(Denial::AnotherAccount))
        }
    }

    fn is_csi_only(&self, facts: &Facts) -> bool {
        let class = facts.runtime_class.as_ref();
        class.is_some_and(|class| self.csi_only_runtimes.contains(class))
    }

    /// Whether a pod with these facts may make requests at all.
    pub(super) fn may_ask(&self, facts: &Facts) -> Result<(), AttestError> {
        let why = if facts.node != self.node {
            Denial::OtherNode
        } else if facts.mirror {
            Denial::StaticPod
        } else if facts.finished {
            Denial::PodFinished
        } else if facts.grace_ended() {
            Denial::PodDeleted
        } else {
            return Ok(());
        };
        Err(AttestError::Denied(why))
    }

    /// The pod on whose behalf the files of its volume are read. That it has a volume, the kubelet says by way of the
    /// mounter; who it is, the API server says.
    ///
    /// # Errors
    ///
    /// If the pod may not make requests, or is not known.
    pub(crate) fn of_volume(&self, pod: PodUid) -> Result<Workload, AttestError> {
        let pod = self
            .pods
            .by_uid(pod)
            .ok_or(AttestError::NotYet("unknown_pod"))?;
        let facts = pod.facts();
        self.may_ask(&facts)?;
        Ok(Workload {
            pod,
            facts,
            location: Location::Volume,
        })
    }

    /// The workload at `in_pod`, if the API server has already named its pod.
    ///
    /// # Errors
    ///
    /// If the pod is known and may not make requests.
    pub(crate) fn known(
        &self,
        peer: &Peer,
        in_pod: InPod,
    ) -> Result<Option<Workload>, AttestError> {
        let Some(pod) = self.pods.by_uid(in_pod.pod) else {
            return Ok(None);
        };
        let facts = pod.facts();
        self.may_ask(&facts)?;
        // Its cgroup puts the peer in no pod; only for some RuntimeClasses is the socket proof enough.
        if in_pod.container.is_none() && !self.is_csi_only(&facts) {
            return Err(AttestError::Denied(Denial::Cgroup(CgroupDenial::NotAPod)));
        }
        // On the pod's own socket, a PID reused within that pod changes nothing.
        if peer.pinning() == Pinning::ByNumber
            && (facts.host_network || peer.is_on_nodes_network())
            && in_pod.entrance == Entrance::Shared
        {
            return Err(AttestError::Denied(Denial::HostNetworkWithoutPidfd));
        }
        let container = in_pod.container.and_then(|id| facts.containers.get(&id));
        match container.map(|container| container.kind) {
            Some(ContainerKind::Ephemeral) => {
                return Err(AttestError::Denied(Denial::EphemeralContainer));
            }
            // An ephemeral container may run any image: where there are any, a container must be named to be accepted.
            None if facts.has_ephemeral => return Ok(None),
            // The same where some containers get no role. A peer whose cgroup names no container never gets a name.
            None if in_pod.container.is_some() && facts.exempts_containers() => return Ok(None),
            Some(ContainerKind::Ordinary) | None => {}
        }
        Ok(Some(Workload {
            pod,
            facts,
            location: Location::Pod(in_pod),
        }))
    }

    /// Attests the peer as a workload: at once if its pod is known, else after a bounded wait for the watch and then
    /// one look of the agent's own, which all waiting requests share. An agent that has just started may learn the
    /// kubepods root only from the pods: that is part of the wait.
    ///
    /// # Errors
    ///
    /// If it is not one, or that cannot be decided yet.
    pub(crate) async fn attest(
        &self,
        peer: &Peer,
        entrance: Entrance,
    ) -> Result<Workload, AttestError> {
        let deadline = Instant::now() + self.wait;
        // If the root is still unknown after the wait, `locate` says so.
        let _ = timeout_at(deadline, self.anchor.wait()).await;
        let in_pod = self.locate(peer, entrance)?;
        if let Some(workload) = self.known(peer, in_pod)? {
            return Ok(workload);
        }
        let waited = timeout_at(deadline, async {
            loop {
                let change = self.pods.changed();
                if let Some(workload) = self.known(peer, in_pod)? {
                    return Ok::<_, AttestError>(workload);
                }
                change.await;
            }
        })
        .await;
        if let Ok(outcome) = waited {
            outcome?;
        } else {
            // A task of its own, since many wait for the same list: it goes on if the one that began it leaves.
            let pods = self.pods.clone();
            let look = tokio::spawn(async move { pods.look().await });
            if !matches!(look.await, Ok(Ok(_))) {
                return Err(AttestError::NotYet("api_server"));
            }
        }
        // Time has passed, so the peer is located again.
        let in_pod = self.locate(peer, entrance)?;
        self.known(peer, in_pod)?
            .ok_or_else(|| match self.pods.by_uid(in_pod.pod) {
                Some(pod) if pod.facts().has_ephemeral => {
                    AttestError::Denied(Denial::UnconfirmedContainer)
                }
                // The container is in the pod; only which one it is, is not known yet.
                Some(_) => AttestError::NotYet("unconfirmed_container"),
                None => AttestError::Denied(Denial::UnknownPod),
            })
    }
}

#[cfg(test)]
mod tests;
