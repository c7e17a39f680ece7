//! How machines outside of any cluster sign in: a client secret, a developer's tools, managed identities.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use http::Method;
use http::request::Parts;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;

use super::call::{Call, Operation};
use super::service;
use super::{AppSpec, FakeAzure, RESOURCE, State};
use crate::fake::Reply;

/// Where the platform issues managed identities' tokens, on Entra ID's host here (App Service's REST protocol).
const IDENTITIES: &str = "/msi/token";

/// Which identities the machine has.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// The header that a program needs to get a token, so that no other program of the machine gets one.
    header: String,
    /// The tenant of each of its identities.
    tenants: BTreeMap<String, String>,
    /// The identity to use if none is named.
    own: Option<String>,
}

/// A request for a managed identity's token.
#[derive(Debug)]
pub(super) struct Ask {
    client: Option<String>,
    resource: String,
    version: String,
    header: String,
}

/// What tests may set up.
impl FakeAzure {
    /// Makes an application that is accepted by its secret alone; returns the secret.
    pub fn put_secret_app(&self, tenant: &str, client: &str) -> String {
        let secret = uuid::Uuid::new_v4().to_string();
        let spec = AppSpec {
            secret: Some(secret.clone()),
            ..AppSpec::new(client, "", "", "")
        };
        self.put_app(tenant, spec);
        secret
    }

    /// Signs a developer in with the id `client`: writes a program `az` into `directory` that prints an access token as
    /// the Azure CLI does, after the shell lines `before`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn sign_in(
        &self,
        tenant: &str,
        client: &str,
        directory: &Path,
        before: &str,
    ) -> io::Result<PathBuf> {
        self.put_app(tenant, AppSpec::new(client, "", "", ""));
        let state = &self.inner.state;
        let now = state.now();
        let (token, seconds) = state.directory.write().grant(tenant, client, now);
        let answer = json!({
            "accessToken": token, "expiresOn": "2038-01-18 00:00:00.000000",
            "expires_on": now.as_second() + seconds, "subscription": "", "tenant": tenant, "tokenType": "Bearer",
        });
        let script = format!(
            "#!/bin/sh\n{before}\n[ \"$*\" = 'account get-access-token -o json --scope {RESOURCE}/.default' ] || \
             {{ echo \"az: $*?\" >&2; exit 2; }}\ncat <<'END'\n{answer}\nEND\n"
        );
        let path = directory.join("az");
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Gives the machine a managed identity; of several, the first is its own. Returns the variables by which programs
    /// on it find the platform.
    pub fn assign(&self, tenant: &str, client: &str) -> [(&'static str, String); 2] {
        self.put_app(tenant, AppSpec::new(client, "", "", ""));
        let mut directory = self.inner.state.directory.write();
        let machine = &mut directory.machine;
        if machine.header.is_empty() {
            machine.header = uuid::Uuid::new_v4().to_string();
        }
        machine.own.get_or_insert_with(|| client.to_owned());
        machine.tenants.insert(client.to_owned(), tenant.to_owned());
        [
            (
                "IDENTITY_ENDPOINT",
                format!("{}{IDENTITIES}", self.authority()),
            ),
            ("IDENTITY_HEADER", machine.header.clone()),
        ]
    }
}

impl Ask {
    /// Parses the request, if this is the endpoint's path.
    pub(super) fn parse(parts: &Parts) -> Option<Self> {
        if parts.method != Method::GET || parts.uri.path() != IDENTITIES {
            return None;
        }
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let of = |name: &str| query.get(name).cloned();
        let header = parts.headers.get("x-identity-header");
        Some(Self {
            client: of("client_id"),
            resource: of("resource").unwrap_or_default(),
            version: of("api-version").unwrap_or_default(),
            header: header
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
        })
    }

    /// Records the request.
    pub(super) fn describe(&self, call: &mut Call) {
        call.operation = Operation::MachineToken;
        call.client = self.client.clone();
    }

    pub(super) fn answer(&self, state: &State, call: &mut Call) -> Reply {
        let now = state.now();
        let mut directory = state.directory.write();
        let machine = &directory.machine;
        let client = self.client.clone().or_else(|| machine.own.clone());
        let found = client.and_then(|client| Some((machine.tenants.get(&client)?.clone(), client)));
        let right = !machine.header.is_empty()
            && self.header == machine.header
            && self.version == "2019-08-01"
            && self.resource == RESOURCE;
        let Some((tenant, client)) = found.filter(|_| right) else {
            call.error = Some("invalid_request".to_owned());
            let text = "The identity is not assigned to this resource.";
            return service::json(400, &json!({"statusCode": 400, "message": text}));
        };
        call.client = Some(client.clone());
        let (token, seconds) = directory.grant(&tenant, &client, now);
        let ends = (now.as_second() + seconds).to_string();
        service::json(
            200,
            &json!({
                "access_token": token, "expires_on": ends, "resource": RESOURCE, "token_type": "Bearer",
                "client_id": client,
            }),
        )
    }
}
