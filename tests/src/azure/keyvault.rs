//! Key Vault's data plane: Get Secret and Get Secrets (its REST API, 7.4 to 2025-07-01).

use http::Method;
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use serde_json::{Map, Value, json};

use super::call::{Call, Operation};
use super::directory::{Grant, Spent};
use super::fault::{Behaviour, Special};
use super::service;
use super::vault::{Access, Vault, Version};
use super::{RESOURCE, State, VAULT_SUFFIX};
use crate::fake::{OTHER, Reply};

const API_VERSIONS: [&str; 4] = ["7.4", "7.5", "7.6", "2025-07-01"];

/// The most names in one answer.
const PAGE: usize = 25;

/// A request to a vault.
#[derive(Debug)]
pub(super) struct Ask {
    vault: String,
    what: What,
    query: Vec<(String, String)>,
    bearer: Option<String>,
}

#[derive(Debug)]
enum What {
    Get {
        name: String,
        version: Option<String>,
    },
    List,
    Other,
}

/// A refusal: status, code, inner code, message.
struct Refused(u16, &'static str, Option<&'static str>, String);

impl Ask {
    pub(super) fn parse(vault: &str, parts: &Parts) -> Self {
        let segments: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
        let what = match segments[..] {
            _ if parts.method != Method::GET => What::Other,
            ["secrets"] => What::List,
            ["secrets", name] | ["secrets", name, ""] => What::Get {
                name: name.to_owned(),
                version: None,
            },
            ["secrets", name, version] => What::Get {
                name: name.to_owned(),
                version: Some(version.to_owned()),
            },
            _ => What::Other,
        };
        let query = parts.uri.query().unwrap_or_default();
        let bearer = parts
            .headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        Self {
            vault: vault.to_owned(),
            what,
            query: form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            bearer: bearer.map(str::to_owned),
        }
    }

    /// Records the request.
    pub(super) fn describe(&self, call: &mut Call) {
        call.vault = Some(self.vault.clone());
        call.with_token = self.bearer.is_some();
        match &self.what {
            What::Get { name, version } => {
                call.operation = Operation::GetSecret;
                call.secret = Some(name.clone());
                call.version = version.clone();
            }
            What::List => call.operation = Operation::ListSecrets,
            What::Other => {}
        }
    }

    pub(super) fn answer(
        &self,
        state: &State,
        call: &mut Call,
        fault: Option<&Behaviour>,
    ) -> Reply {
        match self.judge(state, call, fault) {
            Ok(reply) => reply,
            Err(Refused(status, code, inner, message)) => {
                call.error = Some(inner.unwrap_or(code).to_owned());
                let mut error = json!({"code": code, "message": message});
                if let Some(inner) = inner {
                    error["innererror"] = json!({"code": inner});
                }
                let reply = service::json(status, &json!({"error": error}));
                if status != 401 {
                    return reply;
                }
                let resource = match fault {
                    Some(Behaviour::Special(Special::Divert(host))) => format!("https://{host}"),
                    _ => RESOURCE.to_owned(),
                };
                let tenant = state
                    .vaults
                    .read()
                    .get(&self.vault)
                    .map(|vault| vault.tenant.clone())
                    .unwrap_or_default();
                reply.with_header(WWW_AUTHENTICATE, format!(
                    "Bearer authorization=\"https://login.test/{tenant}\", resource=\"{resource}\""
                ))
            }
        }
    }

    fn judge(
        &self,
        state: &State,
        call: &mut Call,
        fault: Option<&Behaviour>,
    ) -> Result<Reply, Refused> {
        let query = |name: &str| {
            let mut pairs = self.query.iter().filter(|(other, _)| other == name);
            pairs.next().map(|(_, value)| value.as_str())
        };
        let bad = |text: &str| Refused(400, "BadParameter", None, text.to_owned());
        if !query("api-version").is_some_and(|version| API_VERSIONS.contains(&version)) {
            return Err(bad("The specified version is not recognized."));
        }
        let vaults = state.vaults.read();
        let vault = vaults
            .get(&self.vault)
            .ok_or_else(|| Refused(404, "VaultNotFound", None, "There is no such vault.".into()))?;
        let grant = self.believe(state, vault)?;
        call.client = Some(grant.client.clone());
        if vault.is_closed {
            let text = "Client address is not authorized and caller is not a trusted service.";
            let inner = Some("ForbiddenByFirewall");
            return Err(Refused(403, "Forbidden", inner, text.to_owned()));
        }
        match &self.what {
            What::Get { name, version } => {
                let right = (1..=127).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if !right {
                    return Err(bad("The request URI contains an invalid name."));
                }
                let is_digit = |b: u8| b.is_ascii_hexdigit();
                if version
                    .as_ref()
                    .is_some_and(|id| id.len() != 32 || !id.bytes().all(is_digit))
                {
                    return Err(bad("The request URI contains an invalid version."));
                }
                if !vault.may_get(&grant.client, name) {
                    return Err(forbidden(vault, &grant, "get", name));
                }
                let missing = || {
                    let text =
                        format!("A secret with (name/id) {name} was not found in this key vault.");
                    Refused(404, "SecretNotFound", None, text)
                };
                let secret = vault.secret(name).ok_or_else(missing)?;
                let version = secret.version(version.as_deref()).ok_or_else(missing)?;
                if !version.spec.enabled {
                    let text = "Operation get is not allowed on a disabled secret.";
                    let inner = Some("SecretDisabled");
                    return Err(Refused(403, "Forbidden", inner, text.to_owned()));
                }
                let name = match fault {
                    Some(Behaviour::Misdirect) => OTHER,
                    _ => &secret.name,
                };
                let mut answer = self.properties(name, version, Some(&version.id));
                answer.insert("value".to_owned(), json!(version.spec.value));
                Ok(service::json(200, &Value::Object(answer)))
            }
            What::List => {
                if !vault.may_list(&grant.client) {
                    return Err(forbidden(vault, &grant, "list", ""));
                }
                let asked = query("maxresults").unwrap_or("25").parse();
                let most = asked.ok().filter(|most| (1..=PAGE).contains(most));
                let most = most.ok_or_else(|| bad("maxresults is out of range."))?;
                let begin = match query("$skiptoken") {
                    None => 0,
                    Some(token) => token
                        .strip_prefix("from-")
                        .and_then(|begin| begin.parse().ok())
                        .ok_or_else(|| bad("The skip token is invalid."))?,
                };
                let all: Vec<_> = vault.secrets().collect();
                let page = all.iter().skip(begin).take(most);
                let value: Vec<Value> = page
                    .filter_map(|secret| {
                        let version = secret.version(None)?;
                        Some(Value::Object(self.properties(&secret.name, version, None)))
                    })
                    .collect();
                let end = begin + most;
                let host = match fault {
                    Some(Behaviour::Special(Special::Divert(host))) => host.clone(),
                    _ => format!("{}{VAULT_SUFFIX}:{}", self.vault, state.port()),
                };
                let next = (end < all.len()).then(|| {
                    format!(
                        "https://{host}/secrets?api-version=7.4&$skiptoken=from-{end}&maxresults={most}"
                    )
                });
                Ok(service::json(
                    200,
                    &json!({"value": value, "nextLink": next}),
                ))
            }
            What::Other => Err(Refused(
                404,
                "NotFound",
                None,
                "There is nothing here.".into(),
            )),
        }
    }

    fn believe(&self, state: &State, vault: &Vault) -> Result<Grant, Refused> {
        let unauthorized = |text: &str| Refused(401, "Unauthorized", None, text.to_owned());
        let Some(bearer) = &self.bearer else {
            return Err(unauthorized(
                "AKV10000: Request is missing a Bearer or PoP token.",
            ));
        };
        let grant = state
            .directory
            .read()
            .believe(bearer, state.now())
            .map_err(|spent| match spent {
                Spent::Expired => unauthorized("AKV10046: The token has expired."),
                Spent::Forged => unauthorized("AKV10001: The token's signature is invalid."),
            })?;
        if grant.audience != RESOURCE {
            return Err(unauthorized("AKV10022: Invalid audience."));
        }
        if grant.tenant != vault.tenant {
            let of = |tenant: &str| format!("https://sts.windows.net/{tenant}/");
            return Err(unauthorized(&format!(
                "AKV10032: Invalid issuer. Expected one of {}, found {}.",
                of(&vault.tenant),
                of(&grant.tenant)
            )));
        }
        Ok(grant)
    }

    /// What an answer says about a secret in addition to its value.
    fn properties(&self, name: &str, version: &Version, id: Option<&str>) -> Map<String, Value> {
        let spec = &version.spec;
        let mut url = format!("https://{}{VAULT_SUFFIX}/secrets/{name}", self.vault);
        if let Some(id) = id {
            url = format!("{url}/{id}");
        }
        let mut attributes = json!({
            "enabled": spec.enabled, "created": version.created, "updated": version.created,
            "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
        });
        for (key, time) in [("nbf", spec.not_before), ("exp", spec.expires)] {
            if let Some(time) = time {
                attributes[key] = json!(time);
            }
        }
        let mut properties = Map::new();
        properties.insert("id".to_owned(), json!(url));
        properties.insert("attributes".to_owned(), attributes);
        properties.insert("tags".to_owned(), json!(spec.tags));
        if let Some(kind) = &spec.content_type {
            properties.insert("contentType".to_owned(), json!(kind));
        }
        properties
    }
}

fn forbidden(vault: &Vault, grant: &Grant, action: &str, secret: &str) -> Refused {
    let client = &grant.client;
    let (inner, text) = match vault.access {
        Access::Roles => (
            "ForbiddenByRbac",
            format!(
                "Caller is not authorized to perform action on resource.\r\nCaller: appid={client}\r\n\
                 Action: 'Microsoft.KeyVault/vaults/secrets/{action}'\r\nResource: '{secret}'\r\nAssignment: (not found)"
            ),
        ),
        Access::Policy => (
            "AccessDenied",
            format!(
                "The user, group or application 'appid={client}' does not have secrets {action} permission on key vault."
            ),
        ),
    };
    Refused(403, "Forbidden", Some(inner), text)
}
