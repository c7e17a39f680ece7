//! What callers are known by, put together as `identity.mode` says: attestor, accounts and subject tokens.

use crate::account::{Account, Accounts, Annotations, Directory};
use crate::attest::Attestor;
use crate::attest::local::Local;
use crate::attest::node::Node;
use crate::attest::pods::{self, Facts, Pod, Pods};
use crate::backend::Backends;
use crate::cache::NodesValues;
use crate::config::{Config, IdentityMode, LocalRole, LocalWorkload};
use crate::kubernetes::Clients;
use crate::preflight::{self, StartError};
use crate::quota::NodesUnread;
use crate::role::NoRole;
use crate::token::SubjectTokens;
use std::collections::HashMap;
use std::sync::Arc;

/// What callers are known by.
pub(super) struct Callers {
    pub(super) attestor: Arc<Attestor>,
    pub(super) accounts: Accounts,
    pub(super) tokens: SubjectTokens,
    /// The node's pods, where there is an API server to tell of them.
    pub(super) pods: Option<Arc<Pods>>,
    /// The agent's own account in the cluster, where there is one.
    pub(super) own_account: Option<kube::Client>,
}

// === impl Callers ===

impl Callers {
    /// Everything that the mode needs.
    ///
    /// # Errors
    ///
    /// Saying what is missing.
    pub(super) async fn bind(
        config: &Config,
        backends: &Arc<Backends>,
    ) -> Result<Self, StartError> {
        let settings = pods::Settings {
            limits: config.limits.clone(),
            cache: Arc::new(config.cache.clone()),
            unread: NodesUnread::default(),
            values: NodesValues::default(),
        };
        match config.identity.mode {
            IdentityMode::Kubernetes => Self::kubernetes(config, backends, settings).await,
            IdentityMode::Local => Self::local(config, backends, &settings),
            IdentityMode::Sidecar => Self::sidecar(config, backends, &settings),
        }
    }

    async fn kubernetes(
        config: &Config,
        backends: &Arc<Backends>,
        settings: pods::Settings,
    ) -> Result<Self, StartError> {
        let clients = Clients::new(&config.kubernetes).await?;
        let name = &config.kubernetes.node;
        let pods = Arc::new(Pods::new(clients.node.clone(), name, settings));
        let node = Node::new(
            pods.clone(),
            name.clone(),
            config.kubernetes.pod_uid,
            config.limits.attest_wait,
            config.identity.csi_only_runtimes.clone(),
        );
        let directory = Directory::new(
            clients.own.clone(),
            backends.clone(),
            config.identity.namespace_annotations,
        );
        Ok(Self {
            attestor: Arc::new(Attestor::Kubernetes(node)),
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
        for (number, workload) in config.local.iter().enumerate() {
            let account = account_of(number, workload, backends)?;
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
        let annotations = Annotations::of_sidecar(pod);
        let roles = backends
            .iter()
            .map(|backend| backend.role(&annotations).map(Arc::new))
            .collect();
        let name = (facts.namespace.clone(), facts.service_account.clone());
        let account = Arc::new(Account::new("own", roles));
        let pod = Arc::new(Pod::new(Some(uid), facts, settings));
        Ok(Self {
            attestor: Arc::new(Attestor::Sidecar(pod)),
            accounts: Accounts::Configured(HashMap::from([(name, account)])),
            tokens: SubjectTokens::Projected(config.sidecar.tokens.clone()),
            pods: None,
            own_account: None,
        })
    }
}

/// The account of a principal of the machine. A role that no backend has is a mistake.
///
/// # Errors
///
/// If the workload's role is no backend's.
pub(crate) fn account_of(
    number: usize,
    workload: &LocalWorkload,
    backends: &Backends,
) -> Result<Account, StartError> {
    let roles: Vec<_> = backends
        .iter()
        .map(|backend| backend.machine_role(&workload.role, &workload.namespace))
        .map(|role| role.map(Arc::new))
        .collect();
    let none = |named: &str| {
        let is_for = |role: &Result<Arc<_>, NoRole>| {
            role.as_ref()
                .is_ok_and(|role: &Arc<crate::role::Role>| role.name.eq_ignore_ascii_case(named))
        };
        !roles.iter().any(is_for)
    };
    if let LocalRole::Named(named) = &workload.role
        && none(named)
    {
        let why = roles.iter().find_map(|role| role.as_ref().err());
        let why = why.map(ToString::to_string).unwrap_or_default();
        return Err(StartError::LocalRole(number, named.clone(), why));
    }
    Ok(Account::new(&format!("uid {}", workload.uid), roles))
}
