//! Who is who at Google, and who may do what: pools and their providers, service accounts, bearers, bindings.

use std::collections::{BTreeMap, HashMap};

use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::cel::{Condition, ExpressionError, Path};
use super::machine::Machines;
use super::reply::Refusal;
use crate::jwt::KeySet;

/// The known roles and their permissions.
const ROLES: [(&str, &[&str]); 5] = [
    (
        "roles/iam.serviceAccountTokenCreator",
        &[
            "iam.serviceAccounts.getAccessToken",
            "iam.serviceAccounts.implicitDelegation",
        ],
    ),
    (
        "roles/iam.workloadIdentityUser",
        &["iam.serviceAccounts.getAccessToken"],
    ),
    (
        "roles/secretmanager.secretAccessor",
        &["secretmanager.versions.access"],
    ),
    (
        "roles/secretmanager.secretVersionManager",
        &["secretmanager.versions.list"],
    ),
    (
        "roles/secretmanager.viewer",
        &["secretmanager.secrets.list", "secretmanager.secrets.get"],
    ),
];

/// A provider of workload identity federation.
#[derive(Clone, Debug)]
pub struct ProviderSpec {
    /// `//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`.
    pub name: String,
    /// The issuer whose tokens it accepts.
    pub issuer: String,
    /// The issuer's keys.
    pub jwks: Value,
    /// Audiences instead of its own name, which, with or without `https:`, is accepted only if there are none here.
    pub allowed_audiences: Vec<String>,
    /// Which parts of the token (`assertion`) become `google.subject` and `attribute.NAME`.
    pub mapping: Vec<(String, String)>,
    /// The condition on `assertion`, `google` and `attribute`.
    pub condition: Option<String>,
}

/// What is configured.
#[derive(Debug, Default)]
pub(super) struct Iam {
    providers: BTreeMap<String, Provider>,
    /// GKE's pools: the clusters' issuers, and the number of the pool's project.
    clusters: BTreeMap<(String, String), Cluster>,
    accounts: BTreeMap<String, Account>,
    bearers: HashMap<String, Bearer>,
    /// Bindings, by the name of their resource.
    bindings: BTreeMap<String, Vec<Binding>>,
    pub(super) machines: Machines,
}

#[derive(Debug)]
pub(super) struct Provider {
    pub(super) spec: ProviderSpec,
    pub(super) keys: KeySet,
    mapping: Vec<(String, Path)>,
    condition: Option<Condition>,
}

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) number: String,
    pub(super) keys: KeySet,
}

#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) disabled: bool,
}

/// A token that was issued.
#[derive(Clone, Debug)]
pub(super) struct Bearer {
    /// Its name in audit logs.
    pub(super) principal: String,
    /// All names that policies may give it.
    members: Vec<String>,
    /// Whether its calls must name the project to whose quota they count.
    needs_quota_project: bool,
    pub(super) expires: Timestamp,
}

#[derive(Debug)]
struct Binding {
    role: String,
    member: String,
    condition: Option<Condition>,
}

impl ProviderSpec {
    /// A provider with the mapping of the documentation.
    #[must_use]
    pub fn new(name: impl Into<String>, issuer: impl Into<String>, jwks: Value) -> Self {
        let mapping = [
            ("google.subject", "assertion.sub"),
            (
                "attribute.namespace",
                "assertion['kubernetes.io']['namespace']",
            ),
        ];
        Self {
            name: name.into(),
            issuer: issuer.into(),
            jwks,
            allowed_audiences: Vec::new(),
            mapping: mapping
                .map(|(to, from)| (to.to_owned(), from.to_owned()))
                .to_vec(),
            condition: None,
        }
    }
}

impl Provider {
    fn new(spec: ProviderSpec) -> Result<Self, ExpressionError> {
        let mapping = spec
            .mapping
            .iter()
            .map(|(to, from)| Ok((to.clone(), Path::parse(from)?)));
        Ok(Self {
            keys: KeySet::from_jwks(&spec.jwks),
            mapping: mapping.collect::<Result<_, _>>()?,
            condition: spec
                .condition
                .as_deref()
                .map(Condition::parse)
                .transpose()?,
            spec,
        })
    }

    pub(super) fn takes_audience(&self, audience: &str) -> bool {
        let allowed = &self.spec.allowed_audiences;
        if allowed.is_empty() {
            let name = &*self.spec.name;
            return audience == name || audience.strip_prefix("https:") == Some(name);
        }
        allowed.iter().any(|one| one == audience)
    }

    /// The principal that the claims are mapped to, with all its names.
    pub(super) fn principal(&self, claims: &Value) -> Result<(String, Vec<String>), Refusal> {
        let mut context = json!({"assertion": claims, "google": {}, "attribute": {}});
        for (to, from) in &self.mapping {
            let Some(value) = from.of(&context).map(str::to_owned) else {
                continue;
            };
            if let Some((group, name)) = to.split_once('.') {
                context[group][name] = value.into();
            }
        }
        if self
            .condition
            .as_ref()
            .is_some_and(|condition| !condition.holds(&context))
        {
            let text = "The given credential is rejected by the attribute condition.";
            return Err(Refusal::oauth(401, "unauthorized_client", text));
        }
        let subject = context["google"]["subject"].as_str().unwrap_or_default();
        if subject.is_empty() || subject.len() > 127 {
            let text = "The mapped attribute google.subject must have 1 to 127 bytes.";
            return Err(Refusal::oauth(400, "invalid_grant", text));
        }
        let pool = self
            .spec
            .name
            .split_once("/providers/")
            .map_or("", |(pool, _)| pool);
        let principal = format!("principal:{pool}/subject/{subject}");
        let mut members = vec![principal.clone(), format!("principalSet:{pool}/*")];
        for (name, value) in context["attribute"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            members.push(format!("principalSet:{pool}/attribute.{name}/{value}"));
        }
        Ok((principal, members))
    }
}

impl Cluster {
    /// The principal of a service account, in the new form and in the old one.
    pub(super) fn principal(&self, pool: &str, subject: &str) -> Option<(String, Vec<String>)> {
        let (namespace, account) = subject
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')?;
        let number = &self.number;
        let base = format!(
            "//iam.googleapis.com/projects/{number}/locations/global/workloadIdentityPools/{pool}"
        );
        let principal = format!("principal:{base}/subject/ns/{namespace}/sa/{account}");
        let members = vec![
            principal.clone(),
            format!("principalSet:{base}/namespace/{namespace}"),
            format!("serviceAccount:{pool}[{namespace}/{account}]"),
        ];
        Some((principal, members))
    }
}

impl Bearer {
    pub(super) fn of_principal(
        (principal, members): (String, Vec<String>),
        expires: Timestamp,
    ) -> Self {
        Self {
            principal,
            members,
            needs_quota_project: false,
            expires,
        }
    }

    pub(super) fn of_account(email: &str, expires: Timestamp) -> Self {
        Self {
            principal: email.to_owned(),
            members: vec![format!("serviceAccount:{email}")],
            needs_quota_project: false,
            expires,
        }
    }

    pub(super) fn of_person(email: &str, expires: Timestamp) -> Self {
        Self {
            principal: email.to_owned(),
            members: vec![format!("user:{email}")],
            needs_quota_project: true,
            expires,
        }
    }
}

impl Iam {
    pub(super) fn add_provider(&mut self, spec: ProviderSpec) -> Result<(), ExpressionError> {
        let provider = Provider::new(spec)?;
        self.providers.insert(provider.spec.name.clone(), provider);
        Ok(())
    }

    pub(super) fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.get(name)
    }

    pub(super) fn add_cluster(&mut self, pool: &str, issuer: &str, number: &str, jwks: &Value) {
        let cluster = Cluster {
            number: number.to_owned(),
            keys: KeySet::from_jwks(jwks),
        };
        self.clusters
            .insert((pool.to_owned(), issuer.to_owned()), cluster);
    }

    pub(super) fn cluster(&self, pool: &str, issuer: &str) -> Option<&Cluster> {
        self.clusters.get(&(pool.to_owned(), issuer.to_owned()))
    }

    pub(super) fn accounts(&mut self) -> &mut BTreeMap<String, Account> {
        &mut self.accounts
    }

    pub(super) fn account(&self, email: &str) -> Option<&Account> {
        self.accounts.get(email)
    }

    pub(super) fn give(&mut self, token: String, bearer: Bearer) {
        self.bearers.insert(token, bearer);
    }

    pub(super) fn bearers(&mut self) -> &mut HashMap<String, Bearer> {
        &mut self.bearers
    }

    /// The bearer in a call's headers.
    pub(super) fn believe(&self, headers: &HeaderMap, now: Timestamp) -> Result<Bearer, Refusal> {
        let refused = || {
            Refusal::api(
                "UNAUTHENTICATED",
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or \
                 other valid authentication credential.",
            )
        };
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let token = text("authorization")
            .and_then(|header| header.strip_prefix("Bearer "))
            .ok_or_else(refused)?;
        let given = self.bearers.get(token).cloned();
        let bearer = given
            .or_else(|| self.machines.self_signed(token, now))
            .ok_or_else(refused)?;
        if bearer.expires <= now {
            return Err(refused());
        }
        let account = self.accounts.get(&bearer.principal);
        if account.is_some_and(|account| account.disabled) {
            return Err(refused());
        }
        if bearer.needs_quota_project && text("x-goog-user-project").is_none() {
            let text = "Your application is authenticating by using local Application Default Credentials. The API \
                        requires a quota project, which is not set by default.";
            return Err(Refusal::api("PERMISSION_DENIED", text));
        }
        Ok(bearer)
    }

    pub(super) fn bind(
        &mut self,
        resource: &str,
        role: &str,
        member: &str,
        condition: Option<&str>,
    ) -> Result<(), ExpressionError> {
        assert!(
            ROLES.iter().any(|(name, _)| *name == role),
            "the fake does not know {role}"
        );
        let condition = condition.map(Condition::parse).transpose()?;
        self.bindings
            .entry(resource.to_owned())
            .or_default()
            .push(Binding {
                role: role.to_owned(),
                member: member.to_owned(),
                condition,
            });
        Ok(())
    }

    /// Removes everything that was granted to a member, everywhere.
    pub(super) fn unbind(&mut self, member: &str) {
        for bindings in self.bindings.values_mut() {
            bindings.retain(|binding| binding.member != member);
        }
    }

    /// Whether `who` has a permission by a binding on one of `places`, the first of which is the resource itself, with
    /// this name and type in conditions.
    pub(super) fn allows(
        &self,
        who: &Bearer,
        permission: &str,
        places: &[&str],
        name: &str,
        kind: &str,
    ) -> bool {
        let service = kind.split('/').next().unwrap_or_default();
        let context = json!({"resource": {"name": name, "type": kind, "service": service}});
        let holds = |role: &str| {
            let known = ROLES.iter().find(|(name, _)| *name == role);
            known.is_some_and(|(_, permissions)| permissions.contains(&permission))
        };
        places
            .iter()
            .filter_map(|place| self.bindings.get(*place))
            .flatten()
            .any(|binding| {
                holds(&binding.role)
                    && who.members.contains(&binding.member)
                    && binding
                        .condition
                        .as_ref()
                        .is_none_or(|condition| condition.holds(&context))
            })
    }
}
