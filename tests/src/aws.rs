//! A fake AWS that is as strict as the real one: STS `AssumeRoleWithWebIdentity` and `AssumeRole`, and Secrets
//! Manager's reads.
//!
//! STS accepts a subject token only by its signature, issuer, expiry and audience, and gives a session only if the
//! role's trust policy allows it. Secrets Manager checks the Signature Version 4 of every request, the session's expiry
//! and revocation, and the role's policy on the secret's ARN. Over HTTP everything is read-only, as the agent is; tests
//! write secrets, roles and faults through [`FakeAws`].
//!
//! Not here: KMS keys, resource policies, session policies and tags, and conditions beyond strings; whatever the fake
//! does not know is refused, never ignored.

mod assume;
mod call;
mod fault;
mod iam;
mod listing;
mod policy;
mod reply;
mod secret;
mod secretsmanager;
mod service;
mod sigv4;
mod sts;
mod world;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;

pub use crate::fake::Gate;
pub use call::{Call, Operation};
pub use fault::{Behaviour, Fault, Special};
pub use iam::RoleSpec;
pub use policy::{
    PolicyError, machine_trust_policy, read_and_list_policy, read_policy, trust_policy,
};
pub use secret::SecretInput;

use crate::fake::{Calls, Locked, Server};
use iam::Iam;
use secret::Store;

/// A fault that is in force until this is dropped.
pub type FaultGuard = crate::fake::FaultGuard<Call, Special>;

/// The settings of a fake AWS; [`FakeAwsConfig::default`] suits most tests.
#[derive(Clone, Debug)]
pub struct FakeAwsConfig {
    /// Where it listens; port 0: any port.
    pub listen: SocketAddr,
    /// The account that [`FakeAws::put_secret`] and its like work in.
    pub account: String,
    /// The regions that exist.
    pub regions: Vec<String>,
    /// The most names in one `ListSecrets` answer, however many were requested, as AWS reserves the right to.
    pub page_limit: usize,
    /// Whether every call is also written to stdout, one JSON line each.
    pub echo_calls: bool,
}

/// A running fake AWS; clones are handles to the same one, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct FakeAws {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<State>,
    server: Server<Call, Special>,
}

/// What the services work on.
#[derive(Debug)]
struct State {
    config: FakeAwsConfig,
    iam: Locked<Iam>,
    store: Locked<Store>,
    calls: Arc<Calls<Call, Special>>,
}

impl Default for FakeAwsConfig {
    fn default() -> Self {
        let regions = [
            "ap-southeast-2",
            "cn-north-1",
            "cn-northwest-1",
            "eu-central-1",
            "eu-west-1",
            "us-east-1",
            "us-east-2",
            "us-gov-east-1",
            "us-gov-west-1",
            "us-west-2",
        ];
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            account: "111122223333".to_owned(),
            regions: regions.map(str::to_owned).to_vec(),
            page_limit: 100,
            echo_calls: false,
        }
    }
}

/// The ARN of an OIDC provider: the issuer's URL without its scheme, in an account.
#[must_use]
pub fn provider_arn(partition: &str, account: &str, issuer: &str) -> String {
    let host = issuer
        .strip_prefix("https://")
        .unwrap_or(issuer)
        .trim_end_matches('/');
    format!("arn:{partition}:iam::{account}:oidc-provider/{host}")
}

/// The `Resource` of a policy that covers secrets by name, which may contain `*`, in one region or in `*`.
///
/// The name must end with `*` or `-??????` to match a real ARN, which ends with six random characters.
#[must_use]
pub fn secret_arn(region: &str, account: &str, name: &str) -> String {
    secret::arn_without_suffix(account, region, name)
}

/// Running it.
impl FakeAws {
    /// Binds its listener and serves it on the current runtime, which is why this is an async function.
    ///
    /// # Errors
    ///
    /// If its address cannot be bound.
    pub async fn start(config: FakeAwsConfig) -> io::Result<Self> {
        let state = Arc::new(State {
            iam: Locked::default(),
            store: Locked::default(),
            calls: Calls::new(config.echo_calls),
            config,
        });
        let served = Arc::clone(&state);
        let server = Server::open(
            state.config.listen,
            None,
            Arc::clone(&state.calls),
            move |request| service::serve(Arc::clone(&served), request),
        )?;
        Ok(Self {
            inner: Arc::new(Inner { state, server }),
        })
    }
}

/// Its address, its calls, what goes wrong and its clock.
impl Deref for FakeAws {
    type Target = Server<Call, Special>;

    fn deref(&self) -> &Self::Target {
        &self.inner.server
    }
}

impl State {
    fn now(&self) -> Timestamp {
        self.calls.now()
    }

    fn knows_region(&self, region: &str) -> bool {
        self.config.regions.iter().any(|known| known == region)
    }

    fn page_limit(&self) -> usize {
        self.config.page_limit.max(1)
    }
}
