//! Google Cloud: the pod's own token is exchanged at the Security Token Service, then, if the role is a service
//! account, for that account's token, and Secret Manager is read with that bearer alone.
//!
//! In a cluster the agent has no credentials of its own; outside a cluster the machine's are the proof, and impersonate
//! each principal's service account (`gcp/machine.rs`).

mod bearer;
mod errors;
mod exchange;
pub(super) mod machine;
mod role;
mod vault;

use super::wire::Wire;
use super::{
    Backend, BackendError, Caller, Fault, Page, SECOND_TRY, Secret, Selector, Session, must_have,
    paging,
};
use crate::account::Annotations;
use crate::backend::dashes::GCP;
use crate::config::gcp::{GcpProvider, LONGEST_SESSION};
use crate::config::{GcpConfig, LocalRole};
use crate::error::RequestError;
use crate::role::{NoRole, Proof, Role};
use crate::secret::{SecretName, SecretValue, SubjectToken};
use async_trait::async_trait;
use backon::Retryable;
use bearer::Bearer;
use exchange::{Exchange, Granted};
use google_cloud_secretmanager_v1::client::SecretManagerService;
use google_cloud_secretmanager_v1::model::AccessSecretVersionResponse;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use vault::Vault;

/// The most names that one `ListSecrets` is asked for.
const PAGE_NAMES: usize = 1000;

const STS: &str = "https://sts.googleapis.com";
const IAM: &str = "https://iamcredentials.googleapis.com";
const STORE: &str = "https://secretmanager.googleapis.com";

/// Google Cloud Secret Manager, with sessions from the Security Token Service.
#[derive(Debug)]
pub(super) struct Gcp {
    settings: GcpConfig,
    exchange: Exchange,
    vault: Vault,
}

/// An assumed role.
#[derive(Debug)]
struct GcpSession {
    role: Role,
    /// The pod's UID, for Google's audit log.
    pod_uid: String,
    bearer: Bearer,
    ends: Instant,
    vault: Vault,
}

// === impl Gcp ===

impl Gcp {
    /// Creates the backend for its settings.
    pub(super) fn open(settings: &GcpConfig, duration: Duration, wire: &Wire) -> Self {
        let url = |own: &Option<String>, public: &str| {
            let url = own.as_deref().unwrap_or(public);
            url.trim_end_matches('/').to_owned()
        };
        let timeout = settings.timeout;
        Self {
            exchange: Exchange {
                wire: wire.unshared(),
                timeout,
                sts: url(&settings.sts_endpoint, STS),
                iam: url(&settings.iam_endpoint, IAM),
                provider: settings.provider.clone(),
                lifetime: duration.min(LONGEST_SESSION),
            },
            vault: Vault {
                wire: wire.clone(),
                url: url(&settings.endpoint, STORE).into(),
                timeout,
            },
            settings: settings.clone(),
        }
    }

    async fn take_on(
        &self,
        role: &Role,
        token: Option<SubjectToken>,
        caller: &Caller,
    ) -> Result<Granted, BackendError> {
        let own = match role.proof {
            Proof::Machine => machine::granted(self.settings.timeout).await?,
            Proof::None | Proof::Token(_) => {
                let token = must_have(token)?;
                again(|| self.exchange.federate(&token, role, caller)).await?
            }
        };
        if role::impersonates(role) {
            again(|| self.exchange.impersonate(&own.bearer, role, caller)).await
        } else {
            Ok(own)
        }
    }
}

#[async_trait]
impl Backend for Gcp {
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole> {
        role::of(annotations, &self.settings)
    }

    fn machine_role(&self, role: &LocalRole, _namespace: &str) -> Result<Role, NoRole> {
        role::of_machine(role, &self.settings)
    }

    fn describe(&self) -> String {
        let audience = self.settings.provider.as_ref().map(GcpProvider::audience);
        let tokens = audience.map(|audience| format!(", tokens for {audience}"));
        format!(
            "Google Cloud Secret Manager in {}{}",
            self.settings.project,
            tokens.unwrap_or_default()
        )
    }

    fn check(
        &self,
        role: &Role,
        name: &SecretName,
        selector: &Selector,
    ) -> Result<(), RequestError> {
        role::place(role, name, selector).map(drop)
    }

    async fn exchange(
        &self,
        role: &Role,
        token: Option<SubjectToken>,
        caller: &Caller,
    ) -> Result<Arc<dyn Session>, BackendError> {
        let granted = self.take_on(role, token, caller).await?;
        Ok(Arc::new(GcpSession {
            role: role.clone(),
            pod_uid: caller.pod_uid.clone(),
            bearer: granted.bearer,
            ends: granted.ends,
            vault: self.vault.clone(),
        }))
    }
}

// === impl GcpSession ===

impl GcpSession {
    /// Makes a call with this session's bearer and no other's, and retries it once if the vault could not be reached.
    async fn call<T, F>(
        &self,
        request_id: &str,
        call: impl Fn(SecretManagerService) -> F,
    ) -> Result<T, BackendError>
    where
        F: Future<Output = google_cloud_secretmanager_v1::Result<T>>,
    {
        again(|| async {
            let reason = role::reason(&self.pod_uid, request_id);
            call(self.vault.client(&self.bearer, reason))
                .await
                .map_err(|error| errors::of_read(&error, &self.role))
        })
        .await
    }

    /// Returns one page of the vault's with at most `wanted` names.
    async fn page(
        &self,
        filter: &str,
        wanted: usize,
        from: Option<String>,
        request_id: &str,
    ) -> Result<Page, BackendError> {
        let parent = format!("projects/{}", self.role.place);
        let from = from.unwrap_or_default();
        let list = |vault: SecretManagerService| {
            vault
                .list_secrets()
                .set_parent(&parent)
                .set_filter(filter)
                .set_page_size(i32::try_from(wanted).unwrap_or(i32::MAX))
                .set_page_token(&from)
                .send()
        };
        let answer = self.call(request_id, list).await?;
        let names = answer
            .secrets
            .iter()
            .filter_map(|secret| listed(&secret.name, &self.role))
            .collect();
        Ok(Page {
            names,
            next: Some(answer.next_page_token).filter(|token| !token.is_empty()),
            more_calls: 0,
        })
    }
}

#[async_trait]
impl Session for GcpSession {
    fn lives_for(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    async fn read(
        &self,
        name: &SecretName,
        selector: &Selector,
        request_id: &str,
    ) -> Result<Secret, BackendError> {
        // Nothing in a path is escaped, so what goes into it is checked here, whoever calls.
        let (secret, version) = role::place(&self.role, name, selector)?;
        let resource = format!(
            "projects/{}/secrets/{secret}/versions/{version}",
            self.role.place
        );
        let read =
            |vault: SecretManagerService| vault.access_secret_version().set_name(&resource).send();
        let answer = self.call(request_id, read).await?;
        secret_of(answer, &self.role.place, &secret, &version)
            .ok_or_else(|| BackendError::garbage(errors::STORE))
    }

    async fn list(
        &self,
        limit: usize,
        cursor: Option<String>,
        request_id: &str,
    ) -> Result<Page, BackendError> {
        let written = GCP
            .write_prefix(&self.role.prefix)
            .map_err(RequestError::invalid)?;
        // Secret Manager matches it anywhere in a name; each page checks that it is the prefix.
        let filter = if written.is_empty() {
            written
        } else {
            format!("name:{written}")
        };
        paging::collect(limit, PAGE_NAMES, cursor, |wanted, from| {
            self.page(&filter, wanted, from, request_id)
        })
        .await
    }
}

/// Returns the secret from an answer, if that is complete and about this version of this secret.
fn secret_of(
    answer: AccessSecretVersionResponse,
    place: &str,
    secret: &str,
    version: &str,
) -> Option<Secret> {
    let parts: Vec<&str> = answer.name.split('/').collect();
    let ["projects", project, "secrets", of, "versions", number] = parts[..] else {
        return None;
    };
    let asked =
        version == "latest" || version.trim_start_matches('0') == number.trim_start_matches('0');
    let payload = answer.payload?;
    let sum = i64::from(crc32c::crc32c(&payload.data));
    let whole = payload.data_crc32c.is_none_or(|told| told == sum);
    if !is_project(project, place) || of != secret || !is_number(number) || !asked || !whole {
        return None;
    }
    // The bytes are taken over in place.
    let value = SecretValue::from(Vec::from(payload.data));
    let is_text = value.expose_str().is_some();
    let mut secret = Secret::new(value, is_text, number);
    secret.details.arn = Some(answer.name);
    Some(secret)
}

/// Returns the name by which an application asks for a listed secret. What cannot be asked for is not shown, nor is
/// what was listed for somebody else.
fn listed(resource: &str, role: &Role) -> Option<String> {
    let parts: Vec<&str> = resource.split('/').collect();
    let ["projects", project, "secrets", name] = parts[..] else {
        return None;
    };
    let name = GCP.read(&role.prefix, name)?;
    is_project(project, &role.place).then(|| name.to_string())
}

/// Whether `told` is the project `asked` as Secret Manager writes it: by its number, also where it was asked for by id.
fn is_project(told: &str, asked: &str) -> bool {
    told == asked || (is_number(told) && !is_number(asked))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Makes a call, and retries it once if the cloud could not be reached.
async fn again<T, F>(call: impl FnMut() -> F) -> Result<T, BackendError>
where
    F: Future<Output = Result<T, BackendError>>,
{
    call.retry(SECOND_TRY)
        .when(|failed| failed.fault == Fault::Unreachable)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_secretmanager_v1::model::SecretPayload;

    fn answer(name: &str, data: &'static [u8], sum: Option<i64>) -> AccessSecretVersionResponse {
        let mut payload = SecretPayload::new().set_data(data);
        payload.data_crc32c = sum;
        AccessSecretVersionResponse::new()
            .set_name(name)
            .set_payload(payload)
    }

    #[test]
    fn a_value_that_does_not_match_its_checksum_is_none() {
        // The check value of CRC-32C (RFC 3720, B.4, and the catalogues): that of "123456789".
        let (name, right) = ("projects/7/secrets/db/versions/3", 0xE306_9283);
        let read = |sum| secret_of(answer(name, b"123456789", sum), "app", "db", "latest");
        let secret = read(Some(right)).expect("a secret");
        assert_eq!(
            (secret.value.expose(), &*secret.version),
            (&b"123456789"[..], "3")
        );
        assert!(secret.is_text && read(None).is_some());
        assert!(read(Some(right + 1)).is_none() && read(Some(-1)).is_none());
        assert!(
            !secret_of(answer(name, b"\xff", None), "app", "db", "3")
                .expect("a secret")
                .is_text
        );
    }

    #[test]
    fn an_answer_about_another_secret_or_version_is_none() {
        let read = |name: &str, version: &str| {
            secret_of(answer(name, b"x", None), "7", "db", version).is_some()
        };
        assert!(
            read("projects/7/secrets/db/versions/3", "3")
                && read("projects/7/secrets/db/versions/3", "03")
        );
        for wrong in [
            "projects/8/secrets/db/versions/3",
            "projects/app/secrets/db/versions/3",
            "projects/7/secrets/other/versions/3",
            "projects/7/secrets/db/versions/4",
            "projects/7/secrets/db/versions/latest",
            "projects/7/secrets/db/versions/",
            "projects/7/secrets/db",
            "",
        ] {
            assert!(!read(wrong, "3"), "{wrong}");
        }
        assert!(
            secret_of(
                AccessSecretVersionResponse::new().set_name("projects/7/secrets/db/versions/3"),
                "7",
                "db",
                "3"
            )
            .is_none()
        );
    }

    #[test]
    fn what_was_listed_for_another_project_is_not_shown() {
        let shown = |resource: &str, place: &str| {
            let role = Role {
                name: "app".into(),
                proof: crate::role::Proof::Machine,
                prefix: "test/".into(),
                place: place.into(),
                via: None,
            };
            listed(resource, &role)
        };
        let (by_id, by_number) = (
            "projects/app/secrets/test--db",
            "projects/7/secrets/test--db",
        );
        assert_eq!(shown(by_number, "7").as_deref(), Some("db"));
        // Which number the project of this id has is not known here.
        assert_eq!(shown(by_number, "app").as_deref(), Some("db"));
        assert_eq!(shown(by_id, "app").as_deref(), Some("db"));
        for (resource, place) in [(by_id, "other"), (by_id, "7"), (by_number, "8")] {
            assert_eq!(shown(resource, place), None, "{resource} in {place}");
        }
    }
}
