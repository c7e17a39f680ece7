//! Answers the mounter's requests. Any other process of root's on the node is refused, unless it is in a pod of the
//! agent's own account.

use super::Volumes;
use crate::attest::cgroup::PodUid;
use crate::attest::pods::{Pod, Pods};
use crate::attest::{AttestError, Denial};
use crate::csi::control::{Ask, Departed, Failure, FailureKind, Message, Reply};
use crate::csi::volume::{Key, PodReference, Volume};
use crate::passed::Listener;
use crate::peer::Peer;
use crate::server::{EXHAUSTED_REST, Warnings};
use crate::token::HandedError;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

/// How long a request may take to arrive, and a reply to be read: whoever asked may have been stopped since.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most requests at a time.
const ASKERS: usize = 128;

/// Which pods' tokens follow one another in a message, and the length of each pod's.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Inventory {
    pods: Vec<(PodUid, usize)>,
}

impl Volumes {
    /// Answers the mounter until the task ends.
    pub(super) async fn serve(self: Arc<Self>, listener: Arc<Listener>) {
        let askers = Arc::new(Semaphore::new(ASKERS));
        let warnings = Warnings::default();
        while let Ok(permit) = askers.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let volumes = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = volumes.converse(stream).await {
                            tracing::debug!(%error, "the mounter's connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    if warnings.is_due("cannot_accept", None) {
                        tracing::error!(%error, "cannot accept the mounter's connection now");
                    }
                    sleep(EXHAUSTED_REST).await;
                }
            }
        }
    }

    async fn converse(self: &Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let mut standing = self.must_be_mounter(&stream);
        if let Err(AttestError::NotYet(_)) = standing {
            // The watch may not have reported the pod of an agent that takes over yet.
            let _ = self.pods.look().await;
            standing = self.must_be_mounter(&stream);
        }
        if let Err(error) = standing {
            if let AttestError::Gone = error {
                // It was killed, and asks again when it is back.
                return Err(io::Error::other(error));
            }
            let asked = timeout(MESSAGE_TIMEOUT, Message::<Ask>::read(&mut stream)).await;
            let failure = match error {
                AttestError::NotYet(_) => {
                    Failure::unavailable("the agent has just started; it is tried again")
                }
                _ => {
                    self.metrics.attestation("not_the_mounter");
                    let asked = asked.is_ok();
                    tracing::warn!(
                        %error,
                        asked,
                        "a process that is not the agent's own mounter asked on the control socket"
                    );
                    Failure::new(
                        FailureKind::Denied,
                        "the asker is not the agent's own mounter",
                    )
                }
            };
            return reply(&mut stream, Err(failure)).await;
        }
        let Message { body, tokens } = timeout(MESSAGE_TIMEOUT, Message::<Ask>::read(&mut stream))
            .await
            .map_err(io::Error::other)??;
        match body {
            Ask::Publish(volume) => {
                let outcome = self.publish(volume, tokens.expose()).await;
                self.metrics
                    .publish(outcome.as_ref().err().map(|failure| failure.kind));
                reply(&mut stream, outcome).await
            }
            Ask::Unpublish(id) => {
                self.let_go(&Key::of(&id));
                reply(&mut stream, Ok(())).await
            }
            Ask::Departed(pods) => {
                let pods = self.departed(pods).await;
                send(&mut stream, &Message::plain(Departed { pods })).await
            }
            Ask::Tokens => {
                let (inventory, tokens) = self.inventory();
                let tokens = tokens.into();
                let message = Message {
                    body: inventory,
                    tokens,
                };
                send(&mut stream, &message).await
            }
        }
    }

    /// The mounter is root, and in the agent's own pod or, in a handover, the other agent's.
    fn must_be_mounter(&self, stream: &UnixStream) -> Result<(), AttestError> {
        let peer = Peer::of(stream, self.pinning)?;
        if peer.uid() != 0 {
            return Err(AttestError::Denied(Denial::NotRoot));
        }
        self.node.must_be_own(&peer)
    }

    async fn publish(self: &Arc<Self>, volume: Volume, tokens: &[u8]) -> Result<(), Failure> {
        let pod = self.pod(&volume.pod).await?;
        // An agent that has taken over in the meantime has the volumes, and should get the tokens.
        if !self.is_asked() {
            return Err(Failure::unavailable(
                "another agent has taken over; it is tried again",
            ));
        }
        // Checked before its tokens are taken: they would outlive the volume.
        let key = volume.key();
        if self.volume_of(&key).as_ref() != Some(&volume) {
            return Err(Failure::unavailable("the volume's record is gone"));
        }
        if !tokens.is_empty() {
            let told = &volume.pod;
            pod.tokens
                .take(tokens, told.uid, &told.namespace, &told.service_account)
                .map_err(|error| {
                    let kind = match error {
                        HandedError::Expired => FailureKind::Unavailable,
                        HandedError::Foreign | HandedError::Malformed => FailureKind::Denied,
                    };
                    Failure::new(kind, error.to_string())
                })?;
        }
        let filling = self.keep_open(&key).map_err(|failure| {
            if failure.kind == FailureKind::Invalid {
                return failure;
            }
            tracing::error!(error = failure.text, uid = %volume.pod.uid, "cannot listen in a pod's volume");
            // The mounter takes the volume back, and nothing else would drop them.
            self.drop_tokens_without_volume(volume.pod.uid);
            Failure::unavailable("the agent cannot listen in the pod's directory; its log says why")
        })?;
        match filling {
            Some(filling) => self.fill_first(&key, &filling).await,
            None => Ok(()),
        }
    }

    /// Those of these pods that the API server no longer knows; none if it cannot be asked. A UID never comes back.
    pub(super) async fn departed(&self, mut pods: Vec<PodUid>) -> Vec<PodUid> {
        pods.retain(|uid| self.pods.by_uid(*uid).is_none());
        if pods.is_empty() {
            return pods;
        }
        // What the watch has not reported may be new, or be known to nobody yet.
        let Ok(named) = self.pods.look().await else {
            return Vec::new();
        };
        pods.retain(|uid| !named.contains(uid));
        pods
    }

    /// Returns the pod, if the API server and the kubelet agree on what it is.
    async fn pod(&self, told: &PodReference) -> Result<Arc<Pod>, Failure> {
        let known = self
            .pods
            .know(told.uid, &told.namespace, &told.name)
            .await
            .map_err(|_| {
                Failure::unavailable("the agent cannot ask the API server about the pod")
            })?;
        let Some(pod) = known else {
            return Err(Failure::unavailable(
                "the API server does not know the pod, or no longer",
            ));
        };
        let facts = pod.facts();
        let agrees = *facts.namespace == told.namespace
            && *facts.name == told.name
            && *facts.service_account == told.service_account
            && self.node.is_of(&facts.node);
        if agrees {
            Ok(pod)
        } else {
            Err(Failure::new(
                FailureKind::Denied,
                "the API server says otherwise than the kubelet who the pod is",
            ))
        }
    }
}

async fn reply(stream: &mut UnixStream, outcome: Result<(), Failure>) -> io::Result<()> {
    let failure = outcome.err();
    send(stream, &Message::plain(Reply { failure })).await
}

async fn send<T: Serialize>(stream: &mut UnixStream, message: &Message<T>) -> io::Result<()> {
    timeout(MESSAGE_TIMEOUT, message.write(stream)).await?
}

/// Puts the tokens of several pods into one message.
pub(super) fn inventory(held: &[(PodUid, Zeroizing<Vec<u8>>)]) -> (Inventory, Zeroizing<Vec<u8>>) {
    let length = held.iter().map(|(_, tokens)| tokens.len()).sum();
    // Allocated at full size: a buffer that grows leaves copies behind.
    let mut all = Zeroizing::new(Vec::with_capacity(length));
    let mut pods = Vec::new();
    for (uid, tokens) in held {
        pods.push((*uid, tokens.len()));
        all.extend_from_slice(tokens);
    }
    (Inventory { pods }, all)
}

/// Gives the pods the tokens that another agent held for them.
pub(super) fn take_over(pods: &Pods, inventory: &Message<Inventory>) {
    let mut rest = inventory.tokens.expose();
    let mut taken = 0_usize;
    for (uid, length) in &inventory.body.pods {
        let Some((tokens, after)) = rest.split_at_checked(*length) else {
            return;
        };
        rest = after;
        let Some(pod) = pods.by_uid(*uid) else {
            continue;
        };
        let facts = pod.facts();
        let took = pod
            .tokens
            .inherit(tokens, *uid, &facts.namespace, &facts.service_account);
        taken += usize::from(took.is_ok());
    }
    tracing::info!(
        pods = taken,
        "took the pods' tokens over from the agent before"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As by an agent that is stopped while it takes over: the tokens would stay in memory, and the place be taken.
    #[tokio::test(start_paused = true)]
    async fn a_reply_that_nobody_reads_is_given_up() {
        let (mut ours, _theirs) = UnixStream::pair().expect("a pair");
        let tokens = Message::with((), vec![b'x'; 1 << 20]);
        let sent = timeout(2 * MESSAGE_TIMEOUT, send(&mut ours, &tokens)).await;
        let error = sent.expect("in time").expect_err("nobody reads it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
