//! The interface to the clouds: a [`Backend`] turns a role and a subject token into a [`Session`], and a session reads.
//! Credentials stay inside the backend's own module.

mod aws;
mod azure;
mod beneath;
pub(crate) mod dashes;
mod error;
mod file;
mod gcp;
pub(crate) mod machine;
mod paging;
mod pass;
mod program;
mod store;
mod wire;

pub(crate) use error::{BackendError, Fault};
pub(crate) use wire::LOOKUPS;

use crate::account::Annotations;
use crate::config::{BackendConfig, Config, LocalRole};
use crate::error::RequestError;
use crate::request::RequestId;
use crate::role::{NoRole, Role};
use crate::secret::{SecretName, SecretValue, SubjectToken};
use async_trait::async_trait;
use backon::ConstantBuilder;
use bytes::Bytes;
use latchkey_client::protocol::Code;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
pub(crate) use wire::Roots;
use wire::Wire;

/// A call that has taken this long when it is cancelled, because nobody waits for it any more, counts as one that timed
/// out.
pub(crate) const HANGS: Duration = Duration::from_secs(1);

/// How a call that could not reach the cloud is retried: once, since more would outlast the request's deadline, and
/// with jitter, so that calls that failed together are not retried together.
const SECOND_TRY: ConstantBuilder = ConstantBuilder::new()
    .with_delay(Duration::from_millis(75))
    .with_jitter()
    .with_max_times(1);

/// One cloud's store, and the exchange that opens it.
#[async_trait]
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// The role that the annotations ask for.
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole>;

    /// The role of a principal of the machine, outside Kubernetes, that counts as one of `namespace`.
    ///
    /// # Errors
    ///
    /// If it has none here, saying what to write instead.
    fn machine_role(&self, role: &LocalRole, namespace: &str) -> Result<Role, NoRole>;

    /// What it is and where, for the operator.
    fn describe(&self) -> String;

    /// What the configuration leaves to each service account, one line each, for the operator.
    fn left_open(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the vault ignores case in names.
    fn ignores_case(&self) -> bool {
        false
    }

    /// The pod annotation that exempts containers from a role here, if there is one.
    fn skip_annotation(&self) -> Option<&'static str> {
        None
    }

    /// Checks that this backend can hold a secret of this name under this role.
    ///
    /// # Errors
    ///
    /// `invalid_request`, saying what is wrong with the name.
    fn check(
        &self,
        role: &Role,
        name: &SecretName,
        selector: &Selector,
    ) -> Result<(), RequestError>;

    /// Exchanges for a session what the role's [`Proof`](crate::role::Proof) requires: `token` is the pod's own, if it
    /// is that. Whether the machine's credentials may be used is said by the role alone.
    ///
    /// # Errors
    ///
    /// If the cloud refuses or cannot be reached.
    async fn exchange(
        &self,
        role: &Role,
        token: Option<SubjectToken>,
        caller: &Caller,
    ) -> Result<Arc<dyn Session>, BackendError>;
}

/// An assumed role, until it expires.
#[async_trait]
pub(crate) trait Session: fmt::Debug + Send + Sync {
    /// How long the session lives from now.
    fn lives_for(&self) -> Duration;

    /// Reads one version of one secret, for the request with this id.
    ///
    /// # Errors
    ///
    /// If the cloud refuses, has no such secret, or cannot be reached.
    async fn read(
        &self,
        name: &SecretName,
        selector: &Selector,
        request_id: &str,
    ) -> Result<Secret, BackendError>;

    /// Lists up to `limit` names, as the application writes them, from `cursor` on, for the request with this id.
    ///
    /// # Errors
    ///
    /// If the cloud refuses or cannot be reached.
    async fn list(
        &self,
        limit: usize,
        cursor: Option<String>,
        request_id: &str,
    ) -> Result<Page, BackendError>;
}

/// On whose behalf a session is requested; the cloud's own log shows it.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The pod's UID, 32 hexadecimal digits; `local` outside Kubernetes.
    pub(crate) pod_uid: String,
    /// The pod's namespace.
    pub(crate) namespace: Arc<str>,
    /// The pod's service account.
    pub(crate) service_account: Arc<str>,
    /// The request that the session is made for; later ones of the pod may use it too.
    pub(crate) request_id: RequestId,
}

/// Which version of a secret is meant: the latest if neither is set.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Selector {
    /// The backend's id of a version.
    pub(crate) version: Option<Arc<str>>,
    /// A stage or label (AWS).
    pub(crate) stage: Option<Arc<str>>,
}

/// A secret as a backend gave it.
pub(crate) struct Secret {
    /// The value.
    pub(crate) value: SecretValue,
    /// Whether the backend holds it as text.
    pub(crate) is_text: bool,
    /// The backend's id of the version.
    pub(crate) version: Arc<str>,
    /// What else the backend tells, for AWS's answer shape.
    pub(crate) details: Details,
    /// The id of the read in the cloud's log.
    pub(crate) cloud_request_id: Option<Arc<str>>,
    /// The answer in JSON, written by the first request that needs it.
    pub(crate) json: OnceLock<Bytes>,
}

/// What a backend tells about a secret in addition to its value.
#[derive(Debug, Default)]
pub(crate) struct Details {
    /// The full name of the resource.
    pub(crate) arn: Option<String>,
    /// The name at the cloud, with its prefix.
    pub(crate) name: Option<String>,
    /// The stages or labels of the version.
    pub(crate) stages: Vec<String>,
    /// When the version was made, in seconds of Unix time.
    pub(crate) created: Option<f64>,
}

/// One page of names.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Names, as the application writes them.
    pub(crate) names: Vec<String>,
    /// Where the next page begins; none after the last.
    pub(crate) next: Option<String>,
    /// How many calls it took beyond the first.
    pub(crate) more_calls: usize,
}

/// An exchange that needs a token was offered none.
#[derive(Debug, thiserror::Error)]
#[error("the exchange wants a token, and was offered none")]
struct NoToken;

/// One of the configured backends. Only the [table](Backends) hands it out, so the backend always exists.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct BackendId(usize);

/// The configured backends, in the order of their names.
#[derive(Debug)]
pub(crate) struct Backends {
    rows: Vec<Row>,
    default: BackendId,
}

#[derive(Debug)]
struct Row {
    name: Arc<str>,
    backend: Box<dyn Backend>,
}

// === impl Secret ===

impl fmt::Debug for Secret {
    /// Without the value, and without the JSON answer, which contains it too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Secret {
    /// A secret about which nothing else is known.
    pub(crate) fn new(value: SecretValue, is_text: bool, version: impl Into<Arc<str>>) -> Self {
        Self {
            value,
            is_text,
            version: version.into(),
            details: Details::default(),
            cloud_request_id: None,
            json: OnceLock::new(),
        }
    }

    /// Returns how many bytes the value takes, including the JSON answer that may still be written for it.
    pub(crate) fn footprint(&self) -> usize {
        let value = self.value.expose();
        let written: usize = if self.is_text {
            value.iter().map(|byte| json_length(*byte)).sum()
        } else {
            value.len().div_ceil(3) * 4
        };
        value.len() + written
    }
}

/// How many bytes a byte of text becomes in a JSON string (RFC 8259 section 7).
const fn json_length(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

// === impl BackendId ===

impl BackendId {
    /// Its position in the table.
    pub(crate) const fn index(self) -> usize {
        self.0
    }

    #[cfg(test)]
    pub(crate) const fn synthetic(index: usize) -> Self {
        Self(index)
    }
}

// === impl Backends ===

impl Backends {
    /// Opens the configured backends; the only place that lists all kinds.
    ///
    /// # Errors
    ///
    /// If one lacks what it needs, naming the key of the configuration.
    pub(crate) async fn open(config: &Config, roots: Roots) -> Result<Self, String> {
        let duration = config.session_duration;
        let wire = Wire::new(roots);
        let mut rows = Vec::new();
        for (name, settings) in &config.backends {
            let name: Arc<str> = name.as_str().into();
            let backend: Box<dyn Backend> = match settings {
                BackendConfig::Aws(settings) => {
                    Box::new(aws::Aws::open(&name, settings, duration, &wire).await?)
                }
                BackendConfig::Azure(settings) => {
                    Box::new(azure::Azure::open(&name, settings, duration, &wire))
                }
                BackendConfig::Gcp(settings) => Box::new(gcp::Gcp::open(settings, duration, &wire)),
                BackendConfig::File(settings) => Box::new(file::Files::open(&name, settings)?),
                BackendConfig::Pass(settings) => Box::new(pass::Pass::open(&name, settings)?),
            };
            rows.push(Row { name, backend });
        }
        let default = rows
            .iter()
            .position(|row| *row.name == *config.default_backend)
            .map(BackendId)
            .ok_or("default_backend names no configured backend")?;
        Ok(Self { rows, default })
    }

    /// A table without rows.
    #[cfg(test)]
    pub(crate) const fn none() -> Self {
        Self {
            rows: Vec::new(),
            default: BackendId(0),
        }
    }

    /// Returns the backend `name`, or the default one if no name is given.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<BackendId> {
        match name {
            None => Some(self.default),
            Some(name) => self
                .rows
                .iter()
                .position(|row| *row.name == *name)
                .map(BackendId),
        }
    }

    /// Describes the backends on one line, for the operator.
    pub(crate) fn describe(&self) -> String {
        self.rows
            .iter()
            .map(|row| format!("{} ({})", row.name, row.backend.describe()))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The name of the default backend.
    pub(crate) fn default_name(&self) -> &str {
        self.name(self.default)
    }

    /// The backend's name.
    pub(crate) fn name(&self, id: BackendId) -> &Arc<str> {
        &self.rows[id.0].name
    }

    /// All backends with their names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = (BackendId, &Arc<str>)> {
        (0..)
            .map(BackendId)
            .zip(self.rows.iter().map(|row| &row.name))
    }

    /// The backend itself.
    pub(crate) fn at(&self, id: BackendId) -> &dyn Backend {
        &*self.rows[id.0].backend
    }

    /// All backends, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn Backend> {
        self.rows.iter().map(|row| &*row.backend)
    }
}

/// Returns the token of a role that needs one.
///
/// # Errors
///
/// `internal` if there is none, which does not happen to a role with [`Proof::Token`](crate::role::Proof).
fn must_have(token: Option<SubjectToken>) -> Result<SubjectToken, BackendError> {
    token.ok_or_else(|| {
        let text = "the agent offered no token; its log knows the request id";
        let error = RequestError::new(Code::Internal, text);
        error.because(&NoToken).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Proof;

    /// Otherwise the machine's credentials would read for a pod whose token got lost.
    #[tokio::test]
    async fn a_token_that_is_missing_is_an_error_at_every_cloud_and_never_means_the_machine() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("config.toml");
        let text = "[identity]\nmode = \"kubernetes\"\n[kubernetes]\nnode = \"node\"\n\
                    [backends.aws]\nregion = \"eu-central-1\"\n\
                    [backends.azure]\n\
                    [backends.gcp]\nproject = \"acme-prod\"\nprovider = \"acme-prod.svc.id.goog\"\n";
        std::fs::write(&file, text).expect("a file");
        let config = Config::load(Some(&file), std::iter::empty(), Vec::new());
        let backends = Backends::open(&config.expect("a configuration"), Roots::none()).await;
        let backends = backends.expect("three clouds");
        let caller = Caller {
            pod_uid: "0".repeat(32),
            namespace: "test".into(),
            service_account: "app".into(),
            request_id: RequestId::new("1f0c77aa", 42),
        };
        for (id, place) in backends.names().map(|(id, _)| id).zip([
            "eu-central-1",
            "https://v1.vault.azure.net",
            "acme-prod",
        ]) {
            let role = Role {
                name: "role".into(),
                proof: Proof::Token("audience".into()),
                prefix: "".into(),
                place: place.into(),
                via: None,
            };
            let failed = backends.at(id).exchange(&role, None, &caller).await;
            let failed = failed.expect_err(place);
            assert_eq!(
                (failed.error.code, failed.fault),
                (Code::Internal, Fault::Call),
                "{place}"
            );
            let cause = failed.error.cause.expect("a cause");
            assert!(cause.contains("token"), "{cause}");
        }
    }
}
