//! Whether the agent can say who anybody is. Vaults do not matter here: one that is away must not take the node's
//! agent out of service.

use crate::attest::Attestor;
use std::sync::Arc;
use tokio::sync::watch;

/// What has to be there before the agent serves.
#[derive(Debug)]
pub(crate) struct Readiness {
    synced: Option<watch::Receiver<bool>>,
    attestor: Arc<Attestor>,
}

impl Readiness {
    /// Ready when the pods are synced, if there are any to be known, and the attestor is anchored.
    pub(crate) fn new(synced: Option<watch::Receiver<bool>>, attestor: Arc<Attestor>) -> Self {
        Self { synced, attestor }
    }

    /// What is still missing; empty when the agent is ready.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.synced.as_ref().is_some_and(|synced| !*synced.borrow()) {
            missing.push("the list of this node's pods");
        }
        if !self.attestor.is_anchored() {
            missing.push("the node's kubepods root");
        }
        missing
    }
}
