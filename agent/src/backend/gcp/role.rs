//! What annotations and names mean to Google Cloud: service accounts, principals, projects, secret names.

use crate::account::Annotations;
use crate::backend::Selector;
use crate::backend::dashes::GCP;
use crate::config::gcp::{is_account, is_project};
use crate::config::{GcpConfig, LocalRole};
use crate::error::RequestError;
use crate::role::{MACHINE, NoRole, PREFIX_KEY, Proof, Role};
use crate::secret::SecretName;
use hyper::header::HeaderValue;
use latchkey_client::protocol::words::NAMES_NO;

/// The annotation of GKE's own workload identity.
const ACCOUNT_KEY: &str = "iam.gke.io/gcp-service-account";
/// The delegates on the way to it, as the CSI driver of Google Cloud reads them.
const DELEGATES_KEY: &str = "iam.gke.io/gcp-service-account-delegates";
const PROJECT_KEY: &str = "latchkey.dev/gcp-project";

/// The most delegates that an annotation may name. Nobody has that many.
const DELEGATES: usize = 8;

/// The maximum number of digits of a version.
const VERSION_DIGITS: usize = 19;

/// The role that the annotations ask for: a service account, or the workload's own principal.
pub(super) fn of(annotations: &Annotations, settings: &GcpConfig) -> Result<Role, NoRole> {
    let (namespace, account) = annotations.owner();
    let provider = settings.provider.as_ref().ok_or_else(|| {
        NoRole::new(format!(
            "the agent's configuration {NAMES_NO} provider of identities in Google Cloud"
        ))
    })?;
    let (name, via) = match annotations.first(&[ACCOUNT_KEY])? {
        None => (provider.principal(namespace, account), None),
        Some(email) if is_account(email) => {
            let chain = annotations.first(&[DELEGATES_KEY])?.map(delegates);
            (email.to_owned(), chain.transpose()?)
        }
        Some(other) => {
            return Err(NoRole::new(format!(
                "the annotation {ACCOUNT_KEY} of the service account or its namespace is no email address of a \
                 Google service account: {other:?}"
            )));
        }
    };
    let project = annotations
        .first(&[PROJECT_KEY])?
        .unwrap_or(&settings.project);
    if !is_project(project) {
        return Err(NoRole::new(format!(
            "{PROJECT_KEY} {project:?} is no id of a Google Cloud project"
        )));
    }
    let prefix = annotations
        .first(&[PREFIX_KEY])?
        .unwrap_or(&settings.prefix);
    if !GCP.takes_prefix(prefix) {
        return Err(NoRole::new(format!(
            "{PREFIX_KEY} {prefix:?} is no beginning of a secret's name in Google Cloud"
        )));
    }
    Ok(Role {
        name: name.into(),
        proof: Proof::Token(provider.audience().into()),
        prefix: prefix.into(),
        place: project.into(),
        via,
    })
}

/// The role of a principal of the machine: a service account that the machine's credentials may impersonate, or
/// whatever those are.
///
/// # Errors
///
/// If the name is not a service account's.
pub(super) fn of_machine(role: &LocalRole, settings: &GcpConfig) -> Result<Role, NoRole> {
    let name = match role {
        LocalRole::None => return Err(NoRole::NONE_WRITTEN),
        LocalRole::Machine => MACHINE,
        LocalRole::Named(email) if is_account(email) => email,
        LocalRole::Named(other) => {
            let text = format!("{other:?} is no email address of a Google service account");
            return Err(NoRole::new(text));
        }
    };
    Ok(Role {
        name: name.into(),
        proof: Proof::Machine,
        prefix: settings.prefix.as_str().into(),
        place: settings.project.as_str().into(),
        via: None,
    })
}

/// Whether a service account must be impersonated, beyond the principal whose credentials are already there.
pub(super) fn impersonates(role: &Role) -> bool {
    is_account(&role.name)
}

/// Returns the secret's name at the vault, and the requested version: nothing else gets into a request's path.
///
/// # Errors
///
/// `invalid_request`, saying what is wrong with the name, version or stage.
pub(super) fn place(
    role: &Role,
    name: &SecretName,
    selector: &Selector,
) -> Result<(String, String), RequestError> {
    if name.is_arn() {
        return Err(RequestError::invalid(
            "an ARN names a secret of AWS, and this backend is Google Cloud's",
        ));
    }
    let secret = GCP
        .write(&role.prefix, name)
        .map_err(RequestError::invalid)?;
    if selector.stage.is_some() {
        return Err(RequestError::invalid(
            "Google Cloud has no stages: ask for a version by its number, or for latest",
        ));
    }
    let version = selector.version.as_deref().unwrap_or("latest");
    let is_number = (1..=VERSION_DIGITS).contains(&version.len())
        && version.bytes().all(|byte| byte.is_ascii_digit());
    if version != "latest" && !is_number {
        return Err(RequestError::invalid(
            "a version in Google Cloud is a number, or latest",
        ));
    }
    Ok((secret, version.to_owned()))
}

/// Returns the chain of delegates in its order, separated by commas.
fn delegates(text: &str) -> Result<std::sync::Arc<str>, NoRole> {
    let wrong = || {
        NoRole::new(format!(
            "iam.gke.io/gcp-service-account-delegates is no JSON list of up to 8 email addresses: {text:?}"
        ))
    };
    let chain: Vec<String> = serde_json::from_str(text).map_err(|_| wrong())?;
    if chain.len() > DELEGATES || !chain.iter().all(|email| is_account(email)) {
        return Err(wrong());
    }
    Ok(chain.join(",").into())
}

/// Returns what Google's audit log shows about a call: the pod and the request.
pub(super) fn reason(pod_uid: &str, request_id: &str) -> HeaderValue {
    let pod =
        uuid::Uuid::try_parse(pod_uid).map_or_else(|_| pod_uid.to_owned(), |uid| uid.to_string());
    let text = format!("latchkey pod_uid={pod} request_id={request_id}");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("latchkey"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GcpProvider;

    const EMAIL: &str = "test-app@acme-prod.iam.gserviceaccount.com";
    const PROVIDER: &str = "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/clusters/providers/east";

    fn settings(provider: &str) -> GcpConfig {
        GcpConfig {
            project: "acme-prod".into(),
            provider: GcpProvider::parse(provider),
            ..GcpConfig::default()
        }
    }

    fn role(account: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Role, NoRole> {
        of(&Annotations::of(account, namespace), &settings(PROVIDER))
    }

    #[test]
    fn without_an_annotation_the_workload_is_its_own_principal() {
        let own = role(&[], &[]).expect("a role");
        assert_eq!(
            &*own.name,
            "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/clusters\
             /subject/system:serviceaccount:test:app"
        );
        assert!(!impersonates(&own));
        assert_eq!(own.proof, Proof::Token(format!("https:{PROVIDER}").into()));
        let own = of(
            &Annotations::of(&[], &[]),
            &settings("acme-prod.svc.id.goog"),
        )
        .expect("a role");
        assert_eq!(
            &*own.name,
            "principal://iam.googleapis.com/projects/acme-prod/locations/global/workloadIdentityPools\
             /acme-prod.svc.id.goog/subject/ns/test/sa/app"
        );
        assert_eq!(own.proof, Proof::Token("acme-prod.svc.id.goog".into()));
    }

    #[test]
    fn the_annotation_of_gke_names_the_account_to_take_on() {
        let own = role(&[(ACCOUNT_KEY, EMAIL)], &[]).expect("a role");
        assert_eq!((&*own.name, own.via.as_deref()), (EMAIL, None));
        assert!(impersonates(&own));
        assert_eq!((&*own.place, &*own.prefix), ("acme-prod", ""));
        let stood_in = role(&[], &[(ACCOUNT_KEY, EMAIL)]).expect("a role");
        assert_eq!(&*stood_in.name, EMAIL);
    }

    #[test]
    fn what_is_no_email_of_a_service_account_is_no_role() {
        for wrong in [
            "test-app",
            "me@example.com",
            "a/b@acme-prod.iam.gserviceaccount.com",
            "a@b@acme-prod.iam.gserviceaccount.com",
            "a:b@acme-prod.iam.gserviceaccount.com",
            "@acme-prod.iam.gserviceaccount.com",
            "a@.gserviceaccount.com",
            "a@acme-prod.iam.gserviceaccount.com:signBlob",
            "a@acme-prod.iam.gserviceaccount.com?x",
            "principal://iam.googleapis.com/x",
            "../../x@acme-prod.iam.gserviceaccount.com",
        ] {
            assert!(role(&[(ACCOUNT_KEY, wrong)], &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_principal_of_the_machine_is_a_service_account_or_the_machine_itself() {
        let bare = GcpConfig {
            provider: None,
            ..settings(PROVIDER)
        };
        let named = |name: &str| of_machine(&LocalRole::Named(name.to_owned()), &bare);
        let account = named(EMAIL).expect("a role");
        assert_eq!((&*account.name, &account.proof), (EMAIL, &Proof::Machine));
        assert!(impersonates(&account));
        let own = of_machine(&LocalRole::Machine, &bare).expect("a role");
        assert_eq!((&*own.name, &*own.place), ("machine", "acme-prod"));
        assert!(!impersonates(&own));
        assert!(named("arn:aws:iam::111122223333:role/x").is_err());
        assert!(named("a@evil.iam.gserviceaccount.com:signBlob").is_err());
        assert!(of(&Annotations::of(&[], &[]), &bare).is_err());
    }

    #[test]
    fn delegates_are_a_list_of_accounts_in_their_order() {
        let with = |text| role(&[(ACCOUNT_KEY, EMAIL), (DELEGATES_KEY, text)], &[]);
        let (one, two) = (
            "one@a.iam.gserviceaccount.com",
            "two@b.iam.gserviceaccount.com",
        );
        let text = format!("[\"{one}\", \"{two}\"]");
        let chain = with(&text).expect("a role").via;
        assert_eq!(chain.as_deref(), Some(&*format!("{one},{two}")));
        for wrong in [
            one,
            "{}",
            "[1]",
            "[\"me@example.com\"]",
            "[\"a,b@x.iam.gserviceaccount.com\"]",
        ] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
        let many = serde_json::to_string(&vec![one; 9]).expect("JSON");
        assert!(with(&many).is_err());
    }

    #[test]
    fn another_project_is_taken_if_it_is_one() {
        let with = |project| role(&[(PROJECT_KEY, project)], &[]);
        for right in ["acme-test", "123456789012", "example.com:old"] {
            assert_eq!(&*with(right).expect("a role").place, right);
        }
        for wrong in [
            "a/b", "../x", "a:b:c", "Acme", "-a", "a-", "a b", "a?b", ".:a", "a..b:c",
        ] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_prefix_may_hold_what_names_may_hold() {
        let with = |prefix| role(&[(PREFIX_KEY, prefix)], &[]);
        assert_eq!(&*with("team/").expect("a role").prefix, "team/");
        let (longest, longer) = ("a".repeat(128), "a".repeat(129));
        assert!(with(&longest).is_ok());
        for wrong in ["a.b", "a b", "a:b", "/", "/a", "a//", &longer] {
            let none = with(wrong).expect_err(wrong).to_string();
            assert!(none.contains(PREFIX_KEY), "{none}");
        }
    }

    #[test]
    fn nothing_but_a_name_and_a_number_gets_into_the_path() {
        let role = role(&[], &[]).expect("a role");
        let at = |name: &str, version: Option<&str>, stage: Option<&str>| {
            let selector = Selector {
                version: version.map(Into::into),
                stage: stage.map(Into::into),
            };
            place(&role, &SecretName::parse(name).expect("a name"), &selector)
        };
        let both = |secret: &str, version: &str| (secret.to_owned(), version.to_owned());
        assert_eq!(
            at("test/db", None, None).ok(),
            Some(both("test--db", "latest"))
        );
        assert_eq!(
            at("db", Some("latest"), None).ok(),
            Some(both("db", "latest"))
        );
        assert_eq!(at("db", Some("12"), None).ok(), Some(both("db", "12")));
        for version in [
            "",
            "latest:destroy",
            "1/../2",
            "..",
            "-1",
            "1a",
            "LATEST",
            "12345678901234567890",
        ] {
            assert!(at("db", Some(version), None).is_err(), "{version}");
        }
        assert!(at("db", None, Some("AWSCURRENT")).is_err());
        assert!(at("arn:aws:secretsmanager:x", None, None).is_err());
    }

    #[test]
    fn the_reason_names_pod_and_request() {
        let uid = "0b1a7c0e6a5d4c3e9a430123456789ab";
        assert_eq!(
            reason(uid, "ab-1").to_str().ok(),
            Some("latchkey pod_uid=0b1a7c0e-6a5d-4c3e-9a43-0123456789ab request_id=ab-1")
        );
    }
}
