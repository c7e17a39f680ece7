//! AWS: `AssumeRoleWithWebIdentity` with the pod's own token, then Secrets Manager with the session's credentials.
//!
//! In a cluster the agent has no credentials of its own, and its clients never look for any, neither in the environment
//! nor at the machine's metadata service. Outside a cluster the machine's credentials are the proof, and assume each
//! principal's role (`aws/machine.rs`). All sessions share one Secrets Manager client, which has no credentials either:
//! each call brings those of its session, and nothing keeps them beyond the session.

mod answer;
mod errors;
mod health;
pub(super) mod machine;
mod role;
mod wire;

use super::wire::{CONNECT_TIMEOUT, Wire};
use super::{
    Backend, BackendError, Caller, Details, Page, Secret, Selector, Session, must_have, paging,
};
use crate::account::Annotations;
use crate::config::{AwsConfig, LocalRole, is_region};
use crate::error::RequestError;
use crate::role::{NoRole, Proof, Role};
use crate::secret::{SecretName, SecretValue, SubjectToken};
use answer::{is_about, listed};
use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_secretsmanager as secretsmanager;
use aws_sdk_secretsmanager::config::retry::ReconnectMode;
use aws_sdk_secretsmanager::config::{Credentials, IdentityCache};
use aws_sdk_secretsmanager::operation::RequestId;
use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType};
use aws_sdk_sts as sts;
use aws_sdk_sts::config::retry::{RetryPartition, TokenBucket};
use health::Health;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;
use wire::SdkWire;

/// How often a call is tried in one region. More would outlast the request's deadline.
const ATTEMPTS: u32 = 2;

/// How long the machine's metadata service may take to name the region, once, at start.
const REGION_TIMEOUT: Duration = Duration::from_secs(2);

/// The most names that `ListSecrets` returns at once (its `MaxResults`).
const PAGE_NAMES: usize = 100;

/// The separator of region and token in a list's cursor.
const CURSOR: char = ':';

/// The longest session name (`RoleSessionName` of `AssumeRoleWithWebIdentity`), in characters.
const SESSION_NAME: usize = 64;

/// AWS Secrets Manager, with sessions from STS.
#[derive(Debug)]
pub(super) struct Aws {
    settings: AwsConfig,
    /// The region of roles that name no other.
    region: Arc<str>,
    /// Whether the global token service can be used, which has no endpoints for FIPS or dual-stack.
    has_global: bool,
    /// The duration to request from the token service, in seconds.
    duration: i32,
    sts: sts::Client,
    store: secretsmanager::Client,
    /// Separate for token service and vault: if one cannot be reached in a region, the other may well be.
    sts_health: Health,
    store_health: Arc<Health>,
}

/// An assumed role.
#[derive(Debug)]
struct AwsSession {
    role: Role,
    ends: SystemTime,
    credentials: Credentials,
    store: secretsmanager::Client,
    /// The regions to try, the role's own first.
    regions: Vec<Arc<str>>,
    health: Arc<Health>,
}

// === impl Aws ===

impl Aws {
    /// Creates clients for the settings of `backends.<name>`.
    pub(super) async fn open(
        name: &str,
        settings: &AwsConfig,
        duration: Duration,
        wire: &Wire,
    ) -> Result<Self, String> {
        let tries = if settings.fallback_regions.is_empty() {
            ATTEMPTS
        } else {
            1
        };
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .no_credentials()
            .http_client(SdkWire::new(wire.clone(), settings.timeout))
            // Each attempt already has a timeout that covers the answer's body; more timers would only cost every call.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(tries)
                    // Otherwise the SDK logs an error for each answer of 500 and above: its connections are its own.
                    .with_reconnect_mode(ReconnectMode::ReuseAllConnections),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_attempt_timeout(settings.timeout)
                    .operation_timeout(settings.timeout * tries + CONNECT_TIMEOUT)
                    .build(),
            );
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let base = timeout(REGION_TIMEOUT, loader.load())
            .await
            .map_err(|_| no_region(name))?;
        // The SDK accepts what the configuration does not: a variable that is set but empty.
        let region = base.region().map(Region::as_ref);
        let region = region.filter(|region| is_region(region));
        let region: Arc<str> = region.ok_or_else(|| no_region(name))?.into();
        let mut sts = sts::config::Builder::from(&base)
            .http_client(SdkWire::new(wire.unshared(), settings.timeout))
            .retry_partition(unshared());
        sts.set_endpoint_url(settings.sts_endpoint.clone());
        let mut store = secretsmanager::config::Builder::from(&base).retry_partition(unshared());
        store.set_endpoint_url(settings.endpoint.clone());
        Ok(Self {
            has_global: !base.use_fips().unwrap_or(false)
                && !base.use_dual_stack().unwrap_or(false),
            settings: settings.clone(),
            region,
            duration: i32::try_from(duration.as_secs()).unwrap_or(i32::MAX),
            sts: sts::Client::from_conf(sts.build()),
            store: secretsmanager::Client::from_conf(store.build()),
            sts_health: Health::default(),
            store_health: Arc::default(),
        })
    }

    /// Returns the role's own region, then the fallback regions in the same partition.
    fn regions(&self, role: &Role) -> Vec<Arc<str>> {
        let mut regions = vec![role.place.clone()];
        for region in &self.settings.fallback_regions {
            let same_cloud = role::partition_of(region) == role::partition_of(&role.place);
            if same_cloud && !regions.iter().any(|other| **other == **region) {
                regions.push(region.as_str().into());
            }
        }
        regions
    }

    async fn assume(
        &self,
        role: &Role,
        region: &str,
        token: &SubjectToken,
        session_name: &str,
    ) -> Result<Credentials, BackendError> {
        // The call is not signed, so the region only selects the endpoint.
        let config = sts::config::Builder::new().region(Region::new(region.to_owned()));
        let answer = self
            .sts
            .assume_role_with_web_identity()
            .role_arn(&*role.name)
            .role_session_name(session_name)
            .web_identity_token(token.expose())
            .duration_seconds(self.duration)
            .customize()
            .config_override(config)
            .send()
            .await
            .map_err(|error| errors::of_exchange(&error, role, region))?;
        session_credentials(
            role,
            session_name,
            answer.assumed_role_user,
            answer.credentials,
        )
    }
}

/// Retries without a budget. The SDK's own retry budget is shared by all calls to the same service, so a pod that makes
/// the agent call an endpoint where nothing answers would use up the others'; each call has two tries at most.
fn unshared() -> RetryPartition {
    RetryPartition::custom("each call for itself")
        .token_bucket(TokenBucket::unlimited())
        .build()
}

/// Returns the credentials from the token service's answer, if they are those of this session: something between agent
/// and token service may mix up answers.
fn session_credentials(
    role: &Role,
    session_name: &str,
    user: Option<sts::types::AssumedRoleUser>,
    given: Option<sts::types::Credentials>,
) -> Result<Credentials, BackendError> {
    let wanted = role::session_arn(&role.name, session_name);
    // IAM's names differ in more than case.
    let is_ours = user
        .zip(wanted)
        .is_some_and(|(user, wanted)| user.arn.eq_ignore_ascii_case(&wanted));
    if !is_ours {
        return Err(errors::garbage());
    }
    let given = given.ok_or_else(errors::garbage)?;
    // The SDK's stand-in where the answer has none, as when it breaks off.
    if given.expiration.secs() == 0 {
        return Err(errors::garbage());
    }
    let ends = SystemTime::try_from(given.expiration).map_err(|_| errors::garbage())?;
    Ok(Credentials::new(
        given.access_key_id,
        given.secret_access_key,
        Some(given.session_token),
        Some(ends),
        "latchkey",
    ))
}

#[async_trait]
impl Backend for Aws {
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole> {
        role::of(annotations, &self.settings, &self.region)
    }

    fn machine_role(&self, role: &LocalRole, _namespace: &str) -> Result<Role, NoRole> {
        role::of_machine(role, &self.settings, &self.region)
    }

    fn describe(&self) -> String {
        let audiences = self.settings.audiences.join(", ");
        format!(
            "AWS Secrets Manager in {}, tokens for {audiences}",
            self.region
        )
    }

    fn skip_annotation(&self) -> Option<&'static str> {
        Some(crate::role::EKS_SKIP_CONTAINERS)
    }

    fn check(
        &self,
        role: &Role,
        name: &SecretName,
        selector: &Selector,
    ) -> Result<(), RequestError> {
        role::check_name(&self.settings, role, name, selector)
    }

    async fn exchange(
        &self,
        role: &Role,
        token: Option<SubjectToken>,
        caller: &Caller,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let mut session_name = format!(
            "{}.{}.{}",
            caller.pod_uid, caller.namespace, caller.service_account
        );
        session_name.truncate(SESSION_NAME);
        let regions = self.regions(role);
        let credentials = match role.proof {
            Proof::Machine => {
                let own = self.of_machine().await?;
                if *role.name == *role::MACHINE {
                    own
                } else {
                    self.assume_by_machine(role, own, &session_name).await?
                }
            }
            Proof::None | Proof::Token(_) => {
                let token = must_have(token)?;
                let global = role.via.as_ref().filter(|_| self.has_global);
                let regions = global.map_or(&*regions, slice::from_ref);
                self.sts_health
                    .ask(regions, |region| {
                        self.assume(role, region, &token, &session_name)
                    })
                    .await?
            }
        };
        Ok(Arc::new(AwsSession {
            role: role.clone(),
            ends: credentials.expiry().unwrap_or_else(|| {
                // A user's keys do not expire, but may be replaced.
                crate::time::system_now() + super::machine::LOOK_AGAIN
            }),
            credentials,
            store: self.store.clone(),
            regions,
            health: self.store_health.clone(),
        }))
    }
}

// === impl AwsSession ===

impl AwsSession {
    /// Returns the settings of a call with this session's credentials, in `region`.
    fn own(&self, region: &str) -> secretsmanager::config::Builder {
        secretsmanager::config::Builder::new()
            .region(Region::new(region.to_owned()))
            .credentials_provider(self.credentials.clone())
            // The client's cache would keep the credentials of every past session.
            .identity_cache(IdentityCache::no_cache())
    }

    async fn read_in(
        &self,
        region: &str,
        id: &str,
        selector: &Selector,
    ) -> Result<Secret, BackendError> {
        let answer = self
            .store
            .get_secret_value()
            .secret_id(id)
            .set_version_id(selector.version.as_deref().map(str::to_owned))
            .set_version_stage(selector.stage.as_deref().map(str::to_owned))
            .customize()
            .config_override(self.own(region))
            .send()
            .await
            .map_err(|error| errors::of_read(&error, &self.role, region))?;
        if !is_about(&answer, id, selector, &self.role, region) {
            return Err(errors::garbage());
        }
        let cloud_request_id = answer.request_id().map(Into::into);
        let (value, is_text) = match (answer.secret_string, answer.secret_binary) {
            (Some(text), _) => (SecretValue::from(text), true),
            (None, Some(bytes)) => (SecretValue::from(bytes.into_inner()), false),
            (None, None) => return Err(errors::garbage()),
        };
        let version = answer.version_id.ok_or_else(errors::garbage)?;
        Ok(Secret {
            details: Details {
                arn: answer.arn,
                name: answer.name,
                stages: answer.version_stages.unwrap_or_default(),
                created: answer.created_date.map(|date| date.as_secs_f64()),
            },
            cloud_request_id,
            ..Secret::new(value, is_text, version)
        })
    }

    /// Returns the region where the list of `cursor` began, and the token with which it continues there.
    fn begun<'a>(&self, cursor: &'a str) -> Result<(&Arc<str>, &'a str), RequestError> {
        cursor
            .split_once(CURSOR)
            .and_then(|(place, token)| {
                let region = self.regions.iter().find(|region| ***region == *place)?;
                Some((region, token))
            })
            .ok_or_else(|| {
                RequestError::invalid("the cursor is of no list of this role: begin without one")
            })
    }

    /// Returns one page of the vault's with at most `wanted` names. A list continues in the region where it began,
    /// because no other knows its token.
    async fn page(&self, wanted: usize, cursor: Option<String>) -> Result<Page, BackendError> {
        let (regions, token) = match &cursor {
            Some(cursor) => {
                let (region, token) = self.begun(cursor)?;
                (slice::from_ref(region), Some(token))
            }
            None => (&*self.regions, None),
        };
        self.health
            .ask(regions, |region| self.page_in(region, wanted, token))
            .await
    }

    async fn page_in(
        &self,
        region: &str,
        wanted: usize,
        token: Option<&str>,
    ) -> Result<Page, BackendError> {
        let mut call = self
            .store
            .list_secrets()
            .max_results(i32::try_from(wanted).unwrap_or(i32::MAX))
            .set_next_token(token.map(str::to_owned));
        if !self.role.prefix.is_empty() {
            let prefix = Filter::builder()
                .key(FilterNameStringType::Name)
                .values(&*self.role.prefix)
                .build();
            call = call.filters(prefix);
        }
        let answer = call
            .customize()
            .config_override(self.own(region))
            .send()
            .await
            .map_err(|error| errors::of_read(&error, &self.role, region))?;
        let names = answer
            .secret_list
            .unwrap_or_default()
            .into_iter()
            .filter_map(|secret| listed(&secret, &self.role, region))
            .collect();
        Ok(Page {
            names,
            next: answer
                .next_token
                .map(|token| format!("{region}{CURSOR}{token}")),
            more_calls: 0,
        })
    }
}

#[async_trait]
impl Session for AwsSession {
    fn lives_for(&self) -> Duration {
        self.ends
            .duration_since(crate::time::system_now())
            .unwrap_or_default()
    }

    async fn read(
        &self,
        name: &SecretName,
        selector: &Selector,
        _request_id: &str,
    ) -> Result<Secret, BackendError> {
        if let Some(region) = role::region_of_arn(name.as_str()) {
            // An ARN names its region: it is read there and nowhere else.
            return self.read_in(region, name.as_str(), selector).await;
        }
        let id = format!("{}{name}", self.role.prefix);
        self.health
            .ask(&self.regions, |region| self.read_in(region, &id, selector))
            .await
    }

    async fn list(
        &self,
        limit: usize,
        cursor: Option<String>,
        _request_id: &str,
    ) -> Result<Page, BackendError> {
        paging::collect(limit, PAGE_NAMES, cursor, |wanted, cursor| {
            self.page(wanted, cursor)
        })
        .await
    }
}

fn no_region(name: &str) -> String {
    format!("backends.{name}.region is not set and cannot be found out: set it, or AWS_REGION")
}

#[cfg(test)]
mod tests;
