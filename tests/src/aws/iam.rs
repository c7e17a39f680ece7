//! Who may do what: OIDC providers, roles, and the sessions issued for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::policy::{Policy, PolicyError};
use crate::jwt::KeySet;

/// A role to create.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// `arn:aws:iam::ACCOUNT:role/NAME`; the partition may be `aws-cn` or `aws-us-gov`, and the name may have a path.
    pub arn: String,
    /// Who may assume it.
    pub trust_policy: Value,
    /// What it may do.
    pub policy: Value,
    /// The longest session that may be requested, in seconds.
    #[serde(default = "one_hour")]
    pub max_session_duration: u32,
    /// Ends sessions after this many seconds, whatever was requested and whatever AWS's minimum of 900 is, so that
    /// tests need not wait for renewal; `None`: as requested.
    #[serde(default)]
    pub sessions_end_after: Option<u32>,
}

/// The parts of a role's ARN.
#[derive(Debug)]
pub(super) struct RoleArn<'a> {
    pub(super) partition: &'a str,
    pub(super) account: &'a str,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Iam {
    providers: HashMap<String, Provider>,
    roles: HashMap<String, Role>,
    sessions: HashMap<String, Arc<Session>>,
}

/// An IAM OIDC identity provider.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) client_ids: Vec<String>,
    pub(super) keys: KeySet,
}

/// A role as it is now.
#[derive(Debug)]
pub(super) struct Role {
    pub(super) id: String,
    pub(super) trust: Policy,
    pub(super) policy: Policy,
    pub(super) max_session_duration: u32,
    pub(super) sessions_end_after: Option<u32>,
    /// Sessions issued up to this moment are denied everything, as by the console's "Revoke active sessions".
    pub(super) revoked_until: Option<Timestamp>,
}

/// Credentials that were issued.
pub(super) struct Session {
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) token: String,
    pub(super) role: String,
    pub(super) role_id: String,
    pub(super) name: String,
    pub(super) account: String,
    pub(super) partition: String,
    pub(super) issued: Timestamp,
    expires: Timestamp,
    /// Whether a test has ended it early.
    ended: AtomicBool,
}

fn one_hour() -> u32 {
    3600
}

impl RoleSpec {
    /// A role with sessions of up to an hour.
    #[must_use]
    pub fn new(arn: impl Into<String>, trust_policy: Value, policy: Value) -> Self {
        Self {
            arn: arn.into(),
            trust_policy,
            policy,
            max_session_duration: one_hour(),
            sessions_end_after: None,
        }
    }
}

impl<'a> RoleArn<'a> {
    /// The parts of a well-formed role ARN.
    pub(super) fn parse(arn: &'a str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let &[
            "arn",
            partition @ ("aws" | "aws-cn" | "aws-us-gov"),
            "iam",
            "",
            account,
            resource,
        ] = parts.as_slice()
        else {
            return None;
        };
        let path = resource.strip_prefix("role/")?;
        let name = path.rsplit('/').next()?;
        let fits = is_account(account)
            && (1..=64).contains(&name.len())
            && name.bytes().all(is_name_byte)
            && path.bytes().all(|byte| byte == b'/' || is_name_byte(byte));
        fits.then_some(Self { partition, account })
    }
}

impl Iam {
    pub(super) fn add_provider(&mut self, arn: &str, client_ids: &[&str], jwks: &Value) {
        let client_ids = client_ids.iter().map(|&id| id.to_owned()).collect();
        self.providers.insert(
            arn.to_owned(),
            Provider {
                client_ids,
                keys: KeySet::from_jwks(jwks),
            },
        );
    }

    pub(super) fn provider(&self, arn: &str) -> Option<&Provider> {
        self.providers.get(arn)
    }

    pub(super) fn remove_provider(&mut self, arn: &str) {
        self.providers.remove(arn);
    }

    pub(super) fn create_role(&mut self, spec: RoleSpec) -> Result<(), PolicyError> {
        let role = Role {
            id: format!("AROA{}", random_key_id()),
            trust: Policy::trust(&spec.trust_policy)?,
            policy: Policy::identity(&spec.policy)?,
            max_session_duration: spec.max_session_duration,
            sessions_end_after: spec.sessions_end_after,
            revoked_until: None,
        };
        self.roles.insert(spec.arn, role);
        Ok(())
    }

    pub(super) fn role(&self, arn: &str) -> Option<&Role> {
        self.roles.get(arn)
    }

    pub(super) fn role_mut(&mut self, arn: &str) -> Option<&mut Role> {
        self.roles.get_mut(arn)
    }

    pub(super) fn delete_role(&mut self, arn: &str) -> bool {
        self.roles.remove(arn).is_some()
    }

    pub(super) fn session(&self, access_key: &str) -> Option<&Arc<Session>> {
        self.sessions.get(access_key)
    }

    pub(super) fn keep_session(&mut self, session: Arc<Session>) {
        self.sessions.insert(session.access_key.clone(), session);
    }

    /// Access key id, secret key and session token of every session.
    pub(super) fn credentials(&self) -> Vec<[String; 3]> {
        let parts = |session: &Arc<Session>| {
            [&session.access_key, &session.secret_key, &session.token].map(Clone::clone)
        };
        self.sessions.values().map(parts).collect()
    }

    /// Begins a session that nobody requested, of six hours.
    pub(super) fn begin_session(
        &mut self,
        role_arn: &str,
        name: &str,
        now: Timestamp,
    ) -> Option<[String; 3]> {
        let (role, parsed) = (self.roles.get(role_arn)?, RoleArn::parse(role_arn)?);
        let session = Session::begin(role_arn, &parsed, &role.id, name, now, 6 * 3600);
        let keys = [
            session.access_key.clone(),
            session.secret_key.clone(),
            session.token.clone(),
        ];
        self.keep_session(Arc::new(session));
        Some(keys)
    }

    /// Ends all sessions of a role; returns how many there were.
    pub(super) fn end_sessions(&self, role: &str, now: Timestamp) -> usize {
        let sessions = self.sessions.values();
        let live = sessions.filter(|session| session.role == role && session.is_live(now));
        live.map(|session| session.ended.store(true, Ordering::Relaxed))
            .count()
    }
}

impl Session {
    pub(super) fn begin(
        role: &str,
        parts: &RoleArn<'_>,
        role_id: &str,
        name: &str,
        now: Timestamp,
        seconds: u32,
    ) -> Self {
        Self {
            access_key: format!("ASIA{}", &random_key_id()[1..]),
            secret_key: random_base64::<30>(),
            token: random_base64::<270>(),
            role: role.to_owned(),
            role_id: role_id.to_owned(),
            name: name.to_owned(),
            account: parts.account.to_owned(),
            partition: parts.partition.to_owned(),
            issued: now,
            expires: now + SignedDuration::from_secs(i64::from(seconds)),
            ended: AtomicBool::new(false),
        }
    }

    /// `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`: without the role's path, as AWS writes it.
    pub(super) fn arn(&self) -> String {
        let role = self.role.rsplit('/').next().unwrap_or_default();
        format!(
            "arn:{}:sts::{}:assumed-role/{role}/{}",
            self.partition, self.account, self.name
        )
    }

    pub(super) fn expires(&self) -> Timestamp {
        self.expires
    }

    pub(super) fn is_live(&self, now: Timestamp) -> bool {
        now < self.expires && !self.ended.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("access_key", &self.access_key)
            .field("role", &self.role)
            .field("name", &self.name)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Whether it is a 12-digit account id.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The characters of role names and of session names.
pub(super) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte)
}

/// 17 characters of the alphabet of IAM's unique ids.
fn random_key_id() -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    random::<17>()
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

fn random_base64<const N: usize>() -> String {
    BASE64.encode(random::<N>())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system has random bytes");
    bytes
}

/// Six characters, as Secrets Manager appends them to a secret's ARN.
pub(super) fn random_suffix() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789Zz";
    random::<6>()
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 63)]))
        .collect()
}
