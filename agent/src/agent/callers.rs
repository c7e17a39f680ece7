//! How callers are identified, built for `identity.mode`: attestor, accounts and subject tokens.

use crate::account::{Account, Accounts, Annotations, Directory, LookUp};
use crate::attest::Attestor;
use crate::attest::cgroup::AnchorError;
use crate::attest::local::Local;
use crate::attest::node::Node;
use crate::attest::pods::{self, Facts, Pod, Pods};
use crate::backend::Backends;
use crate::cache::NodesValues;
use crate::config::{Config, IdentityMode};
use crate::kubernetes::Clients;
use crate::metrics::Metrics;
use crate::preflight::{self, StartError};
use crate::quota::Shared;
use crate::token::SubjectTokens;
use std::collections::HashMap;
use std::sync::Arc;

/// How callers are identified.
pub(super) struct Callers {
    pub(super) attestor: Arc<Attestor>,
    pub(super) accounts: Accounts,
    pub(super) tokens: SubjectTokens,
    /// The node's pods, if an API server reports them.
    pub(super) pods: Option<Arc<Pods>>,
    /// A client with the agent's own service account, if there is a cluster.
    pub(super) own_account: Option<kube::Client>,
}

// === impl Callers ===

impl Callers {
    /// Builds everything that the mode needs.
    ///
    /// # Errors
    ///
    /// Says what is missing.
    pub(super) async fn bind(
        config: &Config,
        backends: &Arc<Backends>,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let settings = pods::Settings {
            limits: config.limits.clone(),
            cache: Arc::new(config.cache.clone()),
            shared: Shared::default(),
            values: NodesValues::default(),
        };
        match config.identity.mode {
            IdentityMode::Kubernetes => Self::kubernetes(config, backends, settings, metrics).await,
            IdentityMode::Local => Self::local(config, backends, &settings),
            IdentityMode::Sidecar => Self::sidecar(config, backends, &settings),
        }
    }

    async fn kubernetes(
        config: &Config,
        backends: &Arc<Backends>,
        settings: pods::Settings,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let clients = Clients::new(&config.kubernetes).await?;
        let name = &config.kubernetes.node;
        let failures = metrics.watch_failures.clone();
        let pods = Pods::new(clients.node.clone(), name, settings, failures);
        let pods = Arc::new(pods);
        let node = Node::new(
            pods.clone(),
            name.clone(),
            config.kubernetes.pod_uid,
            config.limits.attest_wait,
            config.identity.csi_only_runtimes.clone(),
        );
        match preflight::anchor(config, None) {
            Ok(anchor) => node.anchor(anchor),
            // The pod's own entry will say so once the pods are known.
            Err(AnchorError::UnknownQos) => {}
            Err(error) => return Err(StartError::Anchor(error)),
        }
        let look_up = LookUp {
            client: clients.own.clone(),
            backends: backends.clone(),
            with_namespace: config.identity.namespace_annotations,
        };
        let directory = Directory::new(look_up, metrics.lookup_failures.clone());
        Ok(Self {
            attestor: Arc::new(Attestor::Kubernetes(Arc::new(node))),
            accounts: Accounts::Kubernetes(Arc::new(directory)),
            tokens: SubjectTokens::Kubernetes(clients.node),
            pods: Some(pods),
            own_account: Some(clients.own),
        })
    }

    fn local(
        config: &Config,
        backends: &Backends,
        settings: &pods::Settings,
    ) -> Result<Self, StartError> {
        let mut principals = HashMap::new();
        let mut accounts = HashMap::new();
        for workload in &config.local {
            let account = Account::of_machine(workload, backends)?;
            let facts = Facts::of_principal(&workload.namespace, &workload.service_account, "");
            let name = (facts.namespace.clone(), facts.service_account.clone());
            accounts.insert(name, Arc::new(account));
            principals.insert(workload.uid, Arc::new(Pod::new(None, facts, settings)));
        }
        let local = Local::new(principals).map_err(StartError::Surroundings)?;
        Ok(Self {
            attestor: Arc::new(Attestor::Local(local)),
            accounts: Accounts::Configured(accounts),
            tokens: SubjectTokens::None,
            pods: None,
            own_account: None,
        })
    }

    fn sidecar(
        config: &Config,
        backends: &Backends,
        settings: &pods::Settings,
    ) -> Result<Self, StartError> {
        let uid = preflight::pod_volume(config)?;
        let pod = &config.sidecar;
        let facts = Facts::of_principal(&pod.namespace, &pod.service_account, &pod.pod);
        let account = Account::annotated("own", &Annotations::of_sidecar(pod), backends);
        let name = (facts.namespace.clone(), facts.service_account.clone());
        let pod = Arc::new(Pod::new(Some(uid), facts, settings));
        Ok(Self {
            attestor: Arc::new(Attestor::Sidecar(pod)),
            accounts: Accounts::Configured(HashMap::from([(name, Arc::new(account))])),
            tokens: SubjectTokens::Projected(config.sidecar.tokens.clone()),
            pods: None,
            own_account: None,
        })
    }
}
