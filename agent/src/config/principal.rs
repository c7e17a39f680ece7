//! Principals without an API server: the sections `local.workload` and `sidecar`.

use super::{
    Config, IdentityMode, Origin,
    aws::partition_of_role,
    azure::{is_client, tenant},
    gcp::is_account,
    reader::Reader,
    settings::{TABLES, Value},
    stores,
    value::{self, Wrong},
};
use std::path::PathBuf;

/// A principal of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalWorkload {
    /// Its section, such as `local.workload.0`.
    pub section: String,
    /// The uid of its processes, as the kernel reports it.
    pub uid: u32,
    /// The namespace that it counts as.
    pub namespace: String,
    /// The service account that it counts as.
    pub service_account: String,
    /// What it becomes at the clouds.
    pub role: LocalRole,
}

/// What a principal of this machine becomes at the clouds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LocalRole {
    /// Nothing: it reads its namespace's folder of a store, and no cloud.
    None,
    /// Whatever the machine's own credentials stand for.
    Machine,
    /// A role that the machine's credentials may take on: an AWS role's ARN, a GCP service account, or the client id of
    /// an Azure managed identity that the machine has.
    Named(String),
}

/// The agent's own pod, which a sidecar serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sidecar {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its service account.
    pub service_account: String,
    /// The files of its projected tokens.
    pub tokens: Vec<PathBuf>,
    /// The AWS role.
    pub aws_role_arn: String,
    /// The client id of the Azure identity.
    pub azure_client_id: String,
    /// The tenant of the Azure identity.
    pub azure_tenant_id: String,
    /// The GCP service account.
    pub gcp_service_account: String,
}

/// Reads every `local.workload`; they are valid only in local mode.
pub(super) fn read_local(reader: &mut Reader, mode: IdentityMode) -> Vec<LocalWorkload> {
    let mut names: Vec<_> = reader.names_in(TABLES).into_iter().collect();
    // In the order in which they are written, the tenth after the ninth.
    names.sort_by_key(|(number, _)| number.parse().unwrap_or(usize::MAX));
    let mut workloads: Vec<LocalWorkload> = Vec::new();
    for (number, origin) in &names {
        let section = format!("{TABLES}.{number}");
        if mode != IdentityMode::Local {
            if !reader.has_fault("identity.mode") {
                let wrong = Wrong::new(
                    "is written, and identity.mode is not \"local\"",
                    "set identity.mode = \"local\", or leave it out",
                );
                reader.reject(origin.clone(), &section, wrong);
            }
            reader.close(&section);
            continue;
        }
        let Some(workload) = LocalWorkload::read(reader, origin, &section) else {
            continue;
        };
        for other in &workloads {
            let same = |what: &str, remedy: &str| {
                Wrong::new(
                    format!("repeats the {what} of another local.workload"),
                    remedy,
                )
            };
            if other.uid == workload.uid {
                let wrong = same("uid", "give each uid one principal");
                reader.blame(&format!("{section}.uid"), wrong);
            }
            if (&other.namespace, &other.service_account)
                == (&workload.namespace, &workload.service_account)
            {
                let wrong = same("principal", "give each uid a principal of its own");
                reader.blame(&format!("{section}.service_account"), wrong);
            }
        }
        workloads.push(workload);
    }
    if names.is_empty()
        && let Some(origin) = reader.section(TABLES)
    {
        let wrong = Wrong::new(
            "is one section, not a list of them",
            "write it with two brackets: [[local.workload]]",
        );
        reader.reject(origin, TABLES, wrong);
    }
    if mode == IdentityMode::Local && names.is_empty() {
        reader.missing(
            TABLES,
            "is missing, so nobody could ask",
            "write a [[local.workload]] with uid, namespace, service_account and role",
        );
    }
    workloads
}

/// Checks keys against each other.
pub(super) fn check(config: &Config, reader: &mut Reader) {
    for workload in &config.local {
        let LocalRole::Named(role) = &workload.role else {
            continue;
        };
        let kind = match role {
            role if role.starts_with("arn:") => "aws",
            role if role.contains('@') => "gcp",
            _ => "azure",
        };
        let some = config
            .backends
            .values()
            .any(|backend| backend.kind() == kind);
        if !some && !reader.has_fault("backends") {
            let key = format!("{}.role", workload.section);
            let wrong = format!(
                "is of {}, and no backend is of type {kind:?}",
                kind.to_uppercase()
            );
            let remedy = "configure one, or write role = \"none\"";
            reader.blame(&key, Wrong::new(wrong, remedy));
        }
    }
}

// === impl LocalWorkload ===

impl LocalWorkload {
    fn read(reader: &mut Reader, origin: &Origin, section: &str) -> Option<Self> {
        let key = |name: &str| format!("{section}.{name}");
        let uid = reader.read(&key("uid"), |v| uid(v).map(Some), None);
        let name = |v: &_| kubernetes_name(v).map(Some);
        let namespace = reader.read(&key("namespace"), name, None);
        let service_account = reader.read(&key("service_account"), name, None);
        let role = reader.read(&key("role"), |v| local_role(v).map(Some), None);
        for (written, name, remedy) in [
            (
                uid.is_some(),
                "uid",
                "write a uid, or \"self\" for the agent's own",
            ),
            (
                namespace.is_some(),
                "namespace",
                "write what it counts as, such as \"dev\"",
            ),
            (
                service_account.is_some(),
                "service_account",
                "write what it counts as, such as \"me\"",
            ),
            (
                role.is_some(),
                "role",
                "write \"machine\" for the machine's own credentials, a role that these may take on, or \"none\"",
            ),
        ] {
            if !written && !reader.has_fault(&key(name)) {
                reader.reject(origin.clone(), &key(name), Wrong::new("is missing", remedy));
            }
        }
        Some(Self {
            section: section.to_owned(),
            uid: uid?,
            namespace: namespace?,
            service_account: service_account?,
            role: role?,
        })
    }
}

// === impl Sidecar ===

impl Sidecar {
    pub(super) fn read(reader: &mut Reader, mode: IdentityMode) -> Self {
        // In other modes these variables are meant for other programs.
        let in_use = mode == IdentityMode::Sidecar;
        let mut named = |key: &str, variable: &str, path: &str| {
            let key = format!("sidecar.{key}");
            let variables = [variable];
            let variables = if in_use { &variables[..] } else { &[] };
            let name = reader.optional(&key, variables, kubernetes_name);
            if name.is_none() && in_use {
                reader.missing(
                    &key,
                    &format!("is empty and {variable} is not set"),
                    &format!("give the container {variable} from {path} by the downward API"),
                );
            }
            name.unwrap_or_default()
        };
        let namespace = named("namespace", "POD_NAMESPACE", "metadata.namespace");
        let pod = named("pod", "POD_NAME", "metadata.name");
        let service_account = named(
            "service_account",
            "POD_SERVICE_ACCOUNT",
            "spec.serviceAccountName",
        );
        let mut tokens = reader.read("sidecar.tokens", stores::paths, Vec::new());
        if in_use {
            for variable in ["AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE"] {
                let Some(path) = reader.variable(variable) else {
                    continue;
                };
                match stores::path(&value::untyped(path)) {
                    Ok(path) => tokens.push(path),
                    Err(wrong) => reader.blame_variable(variable, wrong),
                }
            }
        }
        let mut asked =
            |key: &str, variables: &[&str], parse: fn(&Value) -> Result<String, Wrong>| {
                let variables = if in_use { variables } else { &[] };
                reader
                    .optional(&format!("sidecar.{key}"), variables, parse)
                    .unwrap_or_default()
            };
        Self {
            namespace,
            pod,
            service_account,
            tokens,
            aws_role_arn: asked("aws_role_arn", &["AWS_ROLE_ARN"], aws_role),
            azure_client_id: asked("azure_client_id", &["AZURE_CLIENT_ID"], azure_client),
            azure_tenant_id: asked("azure_tenant_id", &["AZURE_TENANT_ID"], tenant),
            gcp_service_account: asked("gcp_service_account", &[], gcp_account),
        }
    }
}

/// The ARN of an AWS role.
fn aws_role(value: &Value) -> Result<String, Wrong> {
    let remedy = "write a role's ARN, such as \"arn:aws:iam::111122223333:role/app\"";
    let is_role = |arn: &str| partition_of_role(arn).is_some();
    value::text_that(is_role, value, "no ARN of an IAM role", remedy)
}

/// The client id of an Azure identity.
fn azure_client(value: &Value) -> Result<String, Wrong> {
    let remedy = "write the identity's client id, a UUID with dashes";
    value::text_that(is_client, value, "no client id", remedy)
}

/// The email address of a GCP service account.
fn gcp_account(value: &Value) -> Result<String, Wrong> {
    let remedy = "write its email address, such as \"app@acme-prod.iam.gserviceaccount.com\"";
    let wrong = "no email address of a GCP service account";
    value::text_that(is_account, value, wrong, remedy)
}

/// The name of a namespace or service account: a DNS subdomain.
fn kubernetes_name(value: &Value) -> Result<String, Wrong> {
    let remedy = "write a name of a-z, 0-9 and '-', such as \"dev\"";
    let wrong = "no name that Kubernetes would take";
    value::text_that(value::is_subdomain, value, wrong, remedy)
}

/// A uid of this machine.
fn uid(value: &Value) -> Result<u32, Wrong> {
    let remedy = "write a uid as \"id -u\" shows it, or \"self\" for the agent's own";
    if matches!(value, Value::String(text) | Value::Untyped(text) if text == "self") {
        return Ok(nix::unistd::geteuid().as_raw());
    }
    if let Value::String(text) = value {
        return Err(Wrong::text(text, "no uid", remedy));
    }
    let Ok(uid) = value::count::<u32>(0..=u32::MAX - 1)(value) else {
        return Err(Wrong::new("is no uid", remedy));
    };
    // The kernel shows this uid for users of another user namespace that are unknown in this one (user_namespaces(7)).
    if uid == 65_534 {
        let remedy = "give the processes a user of their own";
        return Err(Wrong::new(
            "is 65534, which stands for every user unknown here",
            remedy,
        ));
    }
    Ok(uid)
}

/// What a principal of the machine becomes at the clouds.
fn local_role(value: &Value) -> Result<LocalRole, Wrong> {
    let remedy = "write \"machine\", \"none\", the ARN of an AWS role, the e-mail address of a GCP service account, or \
                  the client id of an Azure managed identity";
    let role = value::text(value, remedy)?;
    if role == "machine" {
        Ok(LocalRole::Machine)
    } else if role == "none" {
        Ok(LocalRole::None)
    } else if partition_of_role(role).is_some() || is_account(role) || is_client(role) {
        Ok(LocalRole::Named(role.to_owned()))
    } else {
        Err(Wrong::text(role, "no role", remedy))
    }
}
