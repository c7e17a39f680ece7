//! Secret Manager's reads, v1: `AccessSecretVersion` and `ListSecrets`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::json;

use super::State;
use super::call::{Call, Operation};
use super::fault::{Behaviour, Special};
use super::reply::{self, Refusal};
use super::store::VersionState;
use crate::fake::{OTHER, Reply};

/// The most names in one answer.
const PAGE_LIMIT: usize = 25_000;

/// What a path asks for. Google decodes a path once; what is still encoded here fits no name, and so finds nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask<'a> {
    Access {
        project: &'a str,
        secret: &'a str,
        version: &'a str,
    },
    List {
        project: &'a str,
    },
}

impl<'a> Ask<'a> {
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            [
                "",
                "v1",
                "projects",
                project,
                "secrets",
                secret,
                "versions",
                version,
            ] => Some(Self::Access {
                project,
                secret,
                version: version.strip_suffix(":access")?,
            }),
            ["", "v1", "projects", project, "secrets"] => Some(Self::List { project }),
            _ => None,
        }
    }

    pub(super) fn describe(self, call: &mut Call) {
        match self {
            Self::Access {
                secret, version, ..
            } => {
                call.operation = Operation::AccessSecretVersion;
                call.secret = Some(secret.to_owned());
                call.version = Some(version.to_owned());
            }
            Self::List { .. } => call.operation = Operation::ListSecrets,
        }
    }

    pub(super) fn answer(
        self,
        state: &State,
        now: Timestamp,
        parts: &Parts,
        fault: Option<&Behaviour>,
        call: &mut Call,
    ) -> Result<Reply, Refusal> {
        let iam = state.iam.read();
        let who = iam.believe(&parts.headers, now)?;
        drop(iam);
        call.principal = Some(who.principal.clone());
        match self {
            Self::Access {
                project,
                secret,
                version,
            } => access(state, &who, project, secret, version, fault),
            Self::List { project } => {
                list(state, &who, project, parts.uri.query().unwrap_or_default())
            }
        }
    }
}

fn access(
    state: &State,
    who: &super::iam::Bearer,
    project: &str,
    secret: &str,
    version: &str,
    fault: Option<&Behaviour>,
) -> Result<Reply, Refusal> {
    check_name(secret)?;
    let is_number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    if version != "latest" && !is_number {
        return Err(invalid(format!("Invalid version {version:?}")));
    }
    let store = state.store.read();
    let denied = || {
        Refusal::api(
            "PERMISSION_DENIED",
            format!(
                "Permission 'secretmanager.versions.access' denied for resource \
                 'projects/{project}/secrets/{secret}/versions/{version}' (or it may not exist)."
            ),
        )
    };
    let found = store.project(project).ok_or_else(denied)?;
    // Conditions see the project's number, however the request named the project.
    let resource = format!("projects/{}/secrets/{secret}", found.number);
    let name = format!("{resource}/versions/{version}");
    let places = [&*resource, &*format!("projects/{}", found.number)];
    let kind = "secretmanager.googleapis.com/SecretVersion";
    if !state
        .iam
        .read()
        .allows(who, "secretmanager.versions.access", &places, &name, kind)
    {
        return Err(denied());
    }
    let missing = || {
        Refusal::api(
            "NOT_FOUND",
            format!("Secret [{resource}] not found or has no versions."),
        )
    };
    let held = found
        .secrets
        .get(secret)
        .filter(|secret| !secret.versions.is_empty())
        .ok_or_else(missing)?;
    let number = match version {
        "latest" => held.versions.len(),
        number => number.parse().unwrap_or(usize::MAX),
    };
    let gone = || Refusal::api("NOT_FOUND", format!("Secret Version [{name}] not found."));
    let read = number
        .checked_sub(1)
        .and_then(|at| held.versions.get(at))
        .ok_or_else(gone)?;
    if read.state != VersionState::Enabled {
        let text = format!(
            "Secret Version [{name}] is in {} state.",
            format!("{:?}", read.state).to_uppercase()
        );
        return Err(Refusal::api("FAILED_PRECONDITION", text));
    }
    let mut data = read.data.clone();
    let sum = crc32c::crc32c(&data);
    if matches!(fault, Some(Behaviour::Special(Special::BadChecksum))) {
        data.push(b'!');
    }
    let mut payload = json!({"dataCrc32c": sum.to_string()});
    // Proto3's JSON omits what is empty.
    if !data.is_empty() {
        payload["data"] = BASE64.encode(data).into();
    }
    let secret = match fault {
        Some(Behaviour::Misdirect) => OTHER,
        _ => secret,
    };
    let name = format!(
        "projects/{}/secrets/{secret}/versions/{number}",
        found.number
    );
    Ok(reply::json(200, &json!({"name": name, "payload": payload})))
}

fn list(
    state: &State,
    who: &super::iam::Bearer,
    project: &str,
    query: &str,
) -> Result<Reply, Refusal> {
    let (mut size, mut token, mut filter) = (PAGE_LIMIT, String::new(), String::new());
    let mut is_short = false;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "pageSize" => match value.parse() {
                Ok(0) => {}
                Ok(asked) => size = PAGE_LIMIT.min(asked),
                Err(_) => return Err(invalid("The page size is no number.")),
            },
            "pageToken" => token = value.into_owned(),
            "filter" => filter = value.into_owned(),
            "$alt" if value == "json;enum-encoding=int" => {}
            "$fields" if value == "nextPageToken,secrets.name" => is_short = true,
            other => {
                return Err(invalid(format!(
                    "this fake does not know the parameter {other}"
                )));
            }
        }
    }
    let wanted = match filter.split_once(':') {
        Some(("name", text)) if !text.contains([' ', '*', ':']) => text,
        None if filter.is_empty() => "",
        _ => {
            return Err(invalid(format!(
                "this fake does not know the filter {filter:?}"
            )));
        }
    };
    let store = state.store.read();
    let denied = || {
        let text = format!(
            "Permission 'secretmanager.secrets.list' denied on resource 'projects/{project}'."
        );
        Refusal::api("PERMISSION_DENIED", text)
    };
    let found = store.project(project).ok_or_else(denied)?;
    let resource = format!("projects/{}", found.number);
    let kind = "cloudresourcemanager.googleapis.com/Project";
    let permission = "secretmanager.secrets.list";
    if !state
        .iam
        .read()
        .allows(who, permission, &[&resource], &resource, kind)
    {
        return Err(denied());
    }
    let size = size.min(state.page_limit());
    let from: usize = match token.strip_prefix("at-") {
        Some(at) => at
            .parse()
            .map_err(|_| invalid("The page token is invalid."))?,
        None if token.is_empty() => 0,
        None => return Err(invalid("The page token is invalid.")),
    };
    let mut newest: Vec<_> = found.secrets.iter().collect();
    newest.sort_by_key(|(_, secret)| std::cmp::Reverse(secret.created));
    let matching: Vec<&str> = newest
        .into_iter()
        .map(|(name, _)| &**name)
        .filter(|name| name.to_lowercase().contains(&wanted.to_lowercase()))
        .collect();
    let page: Vec<_> = matching
        .iter()
        .skip(from)
        .take(size)
        .map(|name| match format!("{resource}/secrets/{name}") {
            name if is_short => json!({"name": name}),
            name => json!({"name": name, "createTime": "2026-01-01T00:00:00Z"}),
        })
        .collect();
    let mut answer = json!({"secrets": page});
    if !is_short {
        answer["totalSize"] = matching.len().into();
    }
    if from + size < matching.len() {
        answer["nextPageToken"] = format!("at-{}", from + size).into();
    }
    Ok(reply::json(200, &answer))
}

fn check_name(secret: &str) -> Result<(), Refusal> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=255).contains(&secret.len()) && secret.chars().all(fits) {
        Ok(())
    } else {
        Err(invalid(format!("The secret id {secret:?} is invalid.")))
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::api("INVALID_ARGUMENT", message)
}
