//! `backends.<name>` of type `gcp`.

use std::time::Duration;

use super::{
    IdentityMode,
    reader::Reader,
    settings::Value,
    value::{self, Wrong},
};
use crate::backend::dashes::GCP;

/// The longest lifetime that Google Cloud grants a token unless an organisation allows more.
pub(crate) const LONGEST_SESSION: Duration = Duration::from_secs(3600);

/// How the name of GKE's own pool ends.
const GKE_END: &str = ".svc.id.goog";

/// The end of every service account's email address.
const ACCOUNT_END: &str = ".gserviceaccount.com";

/// Google Cloud Secret Manager, and the token services that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GcpConfig {
    /// The id or number of the project whose secrets are read.
    pub project: String,
    /// How Google Cloud verifies the cluster's tokens. Outside of a cluster there are none.
    pub provider: Option<GcpProvider>,
    /// Precedes every name at the vault, as applications write names.
    pub prefix: String,
    /// Secret Manager's URL, if not the public one.
    pub endpoint: Option<String>,
    /// The URL of the Security Token Service, if not the public one.
    pub sts_endpoint: Option<String>,
    /// The URL of the IAM Service Account Credentials API, if not the public one.
    pub iam_endpoint: Option<String>,
    /// The timeout of one call.
    pub timeout: Duration,
}

/// How Google Cloud verifies the cluster's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GcpProvider {
    /// A provider of workload identity federation, by its full name
    /// `//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
    Federation(String),
    /// GKE's own pool, `PROJECT.svc.id.goog`.
    Gke(String),
}

// === impl GcpConfig ===

impl GcpConfig {
    pub(super) fn read(reader: &mut Reader, section: &str, mode: IdentityMode) -> Self {
        let default = Self::default();
        let key = |name: &str| format!("{section}.{name}");
        let project = reader.optional(&key("project"), &["GOOGLE_CLOUD_PROJECT"], project);
        if project.is_none() {
            reader.missing(
                &key("project"),
                "is empty and GOOGLE_CLOUD_PROJECT is not set",
                PROJECT_REMEDY,
            );
        }
        let provider = reader.optional(&key("provider"), &[], provider);
        if provider.is_none() && mode != IdentityMode::Local {
            reader.missing(&key("provider"), "is empty", PROVIDER_REMEDY);
        }
        let mut endpoint = |name: &str| reader.optional(&key(name), &[], value::endpoint);
        let (store, sts, iam) = (
            endpoint("endpoint"),
            endpoint("sts_endpoint"),
            endpoint("iam_endpoint"),
        );
        Self {
            project: project.unwrap_or(default.project),
            provider,
            prefix: reader.read(&key("prefix"), prefix, default.prefix),
            endpoint: store,
            sts_endpoint: sts,
            iam_endpoint: iam,
            timeout: reader.read(&key("timeout"), value::call_timeout, default.timeout),
        }
    }
}

/// Has no project, although one is required.
impl Default for GcpConfig {
    fn default() -> Self {
        Self {
            project: String::new(),
            provider: None,
            prefix: String::new(),
            endpoint: None,
            sts_endpoint: None,
            iam_endpoint: None,
            timeout: value::CALL_TIMEOUT,
        }
    }
}

// === impl GcpProvider ===

impl GcpProvider {
    /// Parses what `text` names, if it names either.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(project) = text.strip_suffix(GKE_END) {
            return is_part(project).then(|| Self::Gke(text.to_owned()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let [
            "",
            "",
            "iam.googleapis.com",
            "projects",
            number,
            "locations",
            "global",
            "workloadIdentityPools",
            pool,
            "providers",
            provider,
        ] = parts[..]
        else {
            return None;
        };
        let fits = [number, pool, provider].into_iter().all(is_part);
        fits.then(|| Self::Federation(text.to_owned()))
    }

    /// The audience that a subject token needs for this provider.
    pub(crate) fn audience(&self) -> String {
        match self {
            Self::Federation(name) => format!("https:{name}"),
            Self::Gke(pool) => pool.clone(),
        }
    }

    /// The name that policies use for a service account of the cluster. With a federation provider, this requires its
    /// mapping to be `google.subject=assertion.sub`, as in the documentation.
    pub(crate) fn principal(&self, namespace: &str, account: &str) -> String {
        match self {
            Self::Federation(name) => {
                let pool = name
                    .split_once("/providers/")
                    .map_or(&**name, |(pool, _)| pool);
                format!("principal:{pool}/subject/system:serviceaccount:{namespace}:{account}")
            }
            Self::Gke(pool) => {
                let project = pool.strip_suffix(GKE_END).unwrap_or(pool);
                format!(
                    "principal://iam.googleapis.com/projects/{project}/locations/global/workloadIdentityPools/{pool}\
                     /subject/ns/{namespace}/sa/{account}"
                )
            }
        }
    }
}

/// Whether `text` is a project's id or number; an older id may follow its domain.
pub(crate) fn is_project(text: &str) -> bool {
    match text.split_once(':') {
        Some((domain, id)) => is_part(domain) && is_part(id) && !id.contains('.'),
        None => is_part(text) && !text.contains('.'),
    }
}

/// Whether `text` is a service account's email address. It becomes part of a URL's path, so it may hold nothing else.
pub(crate) fn is_account(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else {
        return false;
    };
    let fits = |part: &str, others: &[u8]| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || others.contains(&b))
    };
    text.len() <= 254
        && fits(local, b"-._")
        && fits(domain, b"-.")
        && !domain.starts_with('.')
        && domain.ends_with(ACCOUNT_END)
}

/// Whether `text` may be one part of a resource name: lower-case letters, digits, dashes and single dots.
fn is_part(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.starts_with(is_end)
        && text.ends_with(is_end)
        && !text.contains("..")
        && text.chars().all(|c| is_end(c) || c == '-' || c == '.')
}

const PROJECT_REMEDY: &str =
    "write the id of the project whose secrets are read, such as \"acme-prod\"";

fn project(value: &Value) -> Result<String, Wrong> {
    let text = value::string(value)?;
    let right = is_project(&text);
    Wrong::unless(right, &text, "no id of a project", PROJECT_REMEDY)?;
    Ok(text)
}

const PROVIDER_REMEDY: &str = "write PROJECT.svc.id.goog on GKE, elsewhere \
     //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER";

fn provider(value: &Value) -> Result<GcpProvider, Wrong> {
    let text = value::string(value)?;
    GcpProvider::parse(&text)
        .ok_or_else(|| Wrong::text(&text, "no provider of identities", PROVIDER_REMEDY))
}

/// What precedes every name, as applications write names, in the characters that Google Cloud Secret Manager allows.
fn prefix(value: &Value) -> Result<String, Wrong> {
    let remedy = "write up to 128 of A-Z, a-z, 0-9 and /_-, without // and not / alone";
    value::text_that(|text| GCP.takes_prefix(text), value, "no prefix", remedy)
}
