//! The service accounts of this node's pods: their UIDs, and the annotations that request a role.
//!
//! An annotation is a request, never authority: the cloud's trust policy decides on the token's `sub`. What is known is
//! used at once and refreshed in the background, so that a change takes effect within [`MUST_REFRESH`], and a known
//! account stays usable while the API server is away. Without an API server, the configuration names the accounts.

mod annotations;

pub(crate) use annotations::Annotations;

use crate::attest::Workload;
use crate::backend::{Backend, BackendId, Backends};
use crate::config::{LocalRole, LocalWorkload};
use crate::error::RequestError;
use crate::preflight::StartError;
use crate::role::{NoRole, Role};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::Api;
use latchkey_client::protocol::{Code, Step};
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// From this age on, an account is looked up again in the background.
const MAY_REFRESH: Duration = Duration::from_secs(10);

/// From this age on, it is looked up before it is used, if the API server can be reached.
const MUST_REFRESH: Duration = Duration::from_secs(25);

/// How long the last known account is used after a failed lookup before the next try.
const RETRY: Duration = Duration::from_secs(5);

/// How long a failed lookup also counts for the requests that follow, if no last known account exists.
const FAILURE_STANDS: Duration = Duration::from_secs(1);

/// The timeout for one object from the API server.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// A service account as the API server last reported it.
#[derive(Debug)]
pub(crate) struct Account {
    /// Its UID: a new account with an old name is another principal.
    pub(crate) uid: Arc<str>,
    /// The role for each backend, in the backends' order, or why there is none.
    roles: Vec<Result<Arc<Role>, NoRole>>,
}

/// Where accounts, and so roles, are known from.
pub(crate) enum Accounts {
    /// From the configuration, by namespace and name.
    Configured(HashMap<FullName, Arc<Account>>),
    /// From the API server.
    Kubernetes(Arc<Directory>),
}

/// What looking an account up at the API server needs.
pub(crate) struct LookUp {
    pub(crate) client: kube::Client,
    pub(crate) backends: Arc<Backends>,
    /// Whether the namespace's annotations stand for an account's.
    pub(crate) with_namespace: bool,
}

/// The service accounts in use on this node.
pub(crate) struct Directory {
    look_up: LookUp,
    /// Counts the look-ups that failed.
    failures: IntCounter,
    /// Kept alive by the pods: an entry ends with the account's last pod.
    known: Mutex<HashMap<FullName, Weak<Principal>>>,
}

/// Namespace and name.
pub(crate) type FullName = (Arc<str>, Arc<str>);

/// A service account by name, and what is known about it. All pods of the account share it.
#[derive(Debug)]
pub(crate) struct Principal {
    namespace: Arc<str>,
    name: Arc<str>,
    known: Mutex<Known>,
    lookup: Arc<tokio::sync::Mutex<()>>,
}

/// What is known about an account.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last known account, and when that lookup began, so that its age is never underestimated.
    last: Option<(Arc<Account>, Instant)>,
    /// When the last lookup ended, if it failed, and how.
    failed: Option<(Instant, RequestError)>,
}

// === impl Account ===

impl Account {
    /// An account with the roles that the annotations request.
    pub(crate) fn annotated(uid: &str, annotations: &Annotations, backends: &Backends) -> Self {
        Self::with(uid, backends, |backend| backend.role(annotations))
    }

    /// The account of a principal of the machine.
    ///
    /// # Errors
    ///
    /// If its role belongs to no backend, which is a mistake.
    pub(crate) fn of_machine(
        workload: &LocalWorkload,
        backends: &Backends,
    ) -> Result<Self, StartError> {
        let account = Self::with(&format!("uid {}", workload.uid), backends, |backend| {
            backend.machine_role(&workload.role, &workload.namespace)
        });
        if let LocalRole::Named(named) = &workload.role {
            let mut roles = account.roles.iter().flatten();
            if !roles.any(|role| role.name.eq_ignore_ascii_case(named)) {
                let why = account.roles.iter().find_map(|role| role.as_ref().err());
                let why = why.map(ToString::to_string).unwrap_or_default();
                let section = workload.section.clone();
                return Err(StartError::LocalRole(section, named.clone(), why));
            }
        }
        Ok(account)
    }

    fn with(
        uid: &str,
        backends: &Backends,
        role: impl Fn(&dyn Backend) -> Result<Role, NoRole>,
    ) -> Self {
        let roles = backends.iter().map(|backend| role(backend).map(Arc::new));
        Self {
            uid: uid.into(),
            roles: roles.collect(),
        }
    }

    /// Its role for each backend on one line, for the operator.
    pub(crate) fn describe(&self, backends: &Backends) -> String {
        let roles = backends.names().map(|(id, name)| match self.role(id) {
            Ok(role) => format!("{} at {name}", role.name),
            Err(none) => format!("nothing at {name} ({none})"),
        });
        roles.collect::<Vec<_>>().join(", ")
    }

    /// The role for `backend`.
    pub(crate) fn role(&self, backend: BackendId) -> Result<&Arc<Role>, &NoRole> {
        match self.roles.get(backend.index()) {
            Some(Ok(role)) => Ok(role),
            Some(Err(none)) => Err(none),
            None => Err(&NoRole::UNKNOWN_BACKEND),
        }
    }
}

// === impl Accounts ===

impl Accounts {
    /// The service account of `workload`, as known at `now`.
    ///
    /// # Errors
    ///
    /// `no_role` if there is no such account, `unavailable` if it was never seen and the API server cannot be reached.
    pub(crate) async fn find(
        &self,
        workload: &Workload,
        now: Instant,
    ) -> Result<Arc<Account>, RequestError> {
        match self {
            Self::Configured(accounts) => {
                let facts = workload.facts();
                let name = (facts.namespace.clone(), facts.service_account.clone());
                accounts.get(&name).cloned().ok_or_else(|| {
                    RequestError::new(Code::NoRole, "the configuration has no such principal")
                })
            }
            Self::Kubernetes(directory) => directory.find(workload, now).await,
        }
    }
}

// === impl Directory ===

impl Directory {
    /// A directory without any accounts yet.
    pub(crate) fn new(look_up: LookUp, failures: IntCounter) -> Self {
        Self {
            look_up,
            failures,
            known: Mutex::default(),
        }
    }

    async fn find(
        self: &Arc<Self>,
        workload: &Workload,
        now: Instant,
    ) -> Result<Arc<Account>, RequestError> {
        let principal = workload.pod().principal.get_or_init(|| {
            let facts = workload.facts();
            self.principal(&facts.namespace, &facts.service_account)
        });
        self.account(principal, now).await
    }

    async fn account(
        self: &Arc<Self>,
        principal: &Arc<Principal>,
        now: Instant,
    ) -> Result<Arc<Account>, RequestError> {
        let known = principal.known.lock().clone();
        match &known.last {
            Some((account, at)) if now < *at + MAY_REFRESH || known.has_failed(RETRY, now) => {
                Ok(account.clone())
            }
            // If a lookup has failed lately, nobody waits for the next one either.
            Some((account, at))
                if now < *at + MUST_REFRESH || known.has_failed(MUST_REFRESH, now) =>
            {
                if let Ok(turn) = principal.lookup.clone().try_lock_owned() {
                    drop(self.refreshing(principal, turn));
                }
                Ok(account.clone())
            }
            // Boxed: hardly any request gets here, but every request's future would carry it.
            last => {
                let last = last.as_ref().map(|(account, _)| account.clone());
                Box::pin(self.look_up_first(principal, last, now)).await
            }
        }
    }

    /// What is known about an account, shared by the pods that have it.
    fn principal(&self, namespace: &Arc<str>, name: &Arc<str>) -> Arc<Principal> {
        let mut known = self.known.lock();
        let key = (namespace.clone(), name.clone());
        if let Some(principal) = known.get(&key).and_then(Weak::upgrade) {
            return principal;
        }
        known.retain(|_, principal| principal.strong_count() > 0);
        let principal = Arc::new(Principal {
            namespace: namespace.clone(),
            name: name.clone(),
            known: Mutex::default(),
            lookup: Arc::default(),
        });
        known.insert(key, Arc::downgrade(&principal));
        principal
    }

    /// Looks the account up before it is used; all callers that need this share one lookup.
    async fn look_up_first(
        self: &Arc<Self>,
        principal: &Arc<Principal>,
        last: Option<Arc<Account>>,
        now: Instant,
    ) -> Result<Arc<Account>, RequestError> {
        let turn = principal.lookup.clone().lock_owned().await;
        // Another caller may have looked it up while this one waited.
        let known = principal.known.lock().clone();
        if let Some((account, at)) = &known.last
            && (*at >= now || known.has_failed(RETRY, Instant::now()))
        {
            return Ok(account.clone());
        }
        // Failures are shared too: with the API server away or the account gone, nobody queues for a separate lookup.
        if let Some((at, error)) = known.failed
            && now < at + FAILURE_STANDS
        {
            return Err(error);
        }
        let outcome = self.refreshing(principal, turn).await;
        match outcome.unwrap_or_else(|panic| Err(RequestError::internal(&panic))) {
            Err(error) if error.code == Code::Unavailable => last.ok_or(error),
            outcome => outcome,
        }
    }

    /// Looks it up in a separate task, so that the result is kept even if the caller leaves: otherwise a pod whose
    /// processes send a request and exit would cause lookups as fast as it connects. The turn ends with the task.
    fn refreshing(
        self: &Arc<Self>,
        principal: &Arc<Principal>,
        turn: OwnedMutexGuard<()>,
    ) -> JoinHandle<Result<Arc<Account>, RequestError>> {
        let (this, principal) = (self.clone(), principal.clone());
        tokio::spawn(async move {
            let _turn = turn;
            this.refresh(&principal).await
        })
    }

    async fn refresh(&self, principal: &Principal) -> Result<Arc<Account>, RequestError> {
        let at = Instant::now();
        let (namespace, name) = (&*principal.namespace, &*principal.name);
        match self.look_up.account(namespace, name).await {
            Ok(account) => {
                let account = Arc::new(account);
                *principal.known.lock() = Known {
                    last: Some((account.clone(), at)),
                    failed: None,
                };
                Ok(account)
            }
            Err(error) => {
                // Not of an account that is gone.
                if error.code == Code::Unavailable {
                    self.failures.inc();
                }
                principal.known.lock().fail(error.clone());
                tracing::warn!(
                    namespace, service_account = name, error = %error,
                    cause = error.cause.as_deref(), "cannot look up the service account"
                );
                Err(error)
            }
        }
    }
}

// === impl LookUp ===

impl LookUp {
    /// The service account as the API server has it now.
    ///
    /// # Errors
    ///
    /// `no_role` if there is none of that name, else `unavailable`.
    pub(crate) async fn account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Account, RequestError> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let account = within(accounts.get(name)).await?;
        let of_namespace = if self.with_namespace {
            let namespaces = Api::<Namespace>::all(self.client.clone());
            let found = within(namespaces.get(namespace)).await?;
            found.metadata.annotations.unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        let of_account = account.metadata.annotations.unwrap_or_default();
        let annotations = Annotations::new((namespace, name), of_account, of_namespace);
        let uid = account.metadata.uid.unwrap_or_default();
        Ok(Account::annotated(&uid, &annotations, &self.backends))
    }
}

// === impl Known ===

impl Known {
    /// Whether the last lookup failed, less than `within` before `now`.
    fn has_failed(&self, within: Duration, now: Instant) -> bool {
        let failed = self.failed.as_ref();
        failed.is_some_and(|(at, _)| now < *at + within)
    }

    fn fail(&mut self, error: RequestError) {
        // The account is gone, and so is what was known about it.
        if error.code != Code::Unavailable {
            self.last = None;
        }
        self.failed = Some((Instant::now(), error));
    }
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match timeout(LOOKUP_TIMEOUT, call).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(RequestError::new(
            Code::NoRole,
            "the pod's service account or its namespace no longer exists",
        )
        .at(Step::Role)),
        Ok(Err(error)) => Err(RequestError::unavailable(
            "the pod's service account cannot be looked up now; try again",
        )
        .at(Step::Role)
        .because(&error)),
        Err(elapsed) => Err(RequestError::unavailable(
            "the Kubernetes API server does not answer; try again",
        )
        .at(Step::Role)
        .because(&elapsed)),
    }
}

#[cfg(test)]
mod tests;
