//! Which of the service accounts in use on this node have a role at each backend.

use super::Finding;
use crate::account::LookUp;
use crate::attest::pods::Listed;
use crate::backend::Backends;
use crate::config::Config;
use crate::kubernetes::Clients;
use kube::api::{Api, ListParams};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the API server may take to list the node's pods.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// The most service accounts to look at.
const ACCOUNTS: usize = 100;

/// The most accounts without a role to name.
const NAMED: usize = 5;

/// Looks at the accounts of the node's pods. One without a role is no fault: not every pod reads secrets.
pub(super) async fn check(
    clients: &Clients,
    config: &Config,
    backends: &Arc<Backends>,
) -> Vec<Finding> {
    let here = format!("spec.nodeName={}", config.kubernetes.node);
    let pods = Api::<Listed>::all(clients.node.clone());
    let parameters = ListParams::default().fields(&here);
    let Ok(Ok(pods)) = timeout(LIST_TIMEOUT, pods.list(&parameters)).await else {
        // Missing rights are reported elsewhere.
        return Vec::new();
    };
    let used: BTreeSet<_> = pods
        .into_iter()
        .filter_map(|pod| Some((pod.metadata.namespace?, pod.spec?.service_account_name?)))
        .collect();
    let look_up = LookUp {
        client: clients.own.clone(),
        backends: backends.clone(),
        with_namespace: config.identity.namespace_annotations,
    };
    let mut accounts = Vec::new();
    for (namespace, name) in used.iter().take(ACCOUNTS) {
        if let Ok(account) = look_up.account(namespace, name).await {
            accounts.push((format!("{namespace}/{name}"), account));
        }
    }
    let of = |(id, backend)| {
        let without: Vec<_> = accounts
            .iter()
            .filter_map(|(name, account)| Some((name, account.role(id).err()?)))
            .collect();
        let (all, with) = (accounts.len(), accounts.len() - without.len());
        let mut found = format!("{with} of {all} service accounts of this node's pods have one");
        for (name, why) in without.iter().take(NAMED) {
            found += &format!("; {name} has not: {why}");
        }
        if without.len() > NAMED {
            found += &format!("; and {} more have not", without.len() - NAMED);
        }
        Finding::of(format!("roles at {backend}"), Ok::<_, String>(found))
    };
    backends.names().map(of).collect()
}
