//! Entra ID's data: tenants, applications with their federated credentials, and the access tokens that it signs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::RESOURCE;
use super::machine::Machine;
use crate::jwt::{Issuer, KeySet};

/// An application, or a managed identity, with one federated credential.
#[derive(Clone, Debug)]
pub struct AppSpec {
    /// Its client id.
    pub client: String,
    /// The issuer whose tokens it trusts.
    pub issuer: String,
    /// The subject that those tokens must have.
    pub subject: String,
    /// The audience that they must have.
    pub audience: String,
    /// The client secret, in place of a federated credential.
    pub secret: Option<String>,
    /// Whether it is disabled.
    pub disabled: bool,
    /// The lifetime of its access tokens, in seconds.
    pub token_seconds: i64,
}

/// All tenants.
#[derive(Debug)]
pub(super) struct Directory {
    tenants: BTreeMap<String, BTreeMap<String, App>>,
    /// The keys that each cluster's issuer publishes.
    issuers: BTreeMap<String, KeySet>,
    signer: Issuer,
    keys: KeySet,
    given: Vec<String>,
    pub(super) machine: Machine,
}

#[derive(Debug)]
pub(super) struct App {
    pub(super) spec: AppSpec,
    /// Tokens issued before this are no longer valid.
    revoked_at: Option<Timestamp>,
    /// How many tokens were issued, so that each is different.
    number: u64,
}

/// What an accepted access token says.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) tenant: String,
    pub(super) client: String,
    pub(super) audience: String,
}

/// Why an access token is not valid.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spent {
    Expired,
    Forged,
}

impl AppSpec {
    /// An application that trusts one service account of a cluster.
    #[must_use]
    pub fn new(client: &str, issuer: &str, namespace: &str, account: &str) -> Self {
        Self {
            client: client.to_owned(),
            issuer: issuer.to_owned(),
            subject: format!("system:serviceaccount:{namespace}:{account}"),
            audience: "api://AzureADTokenExchange".to_owned(),
            secret: None,
            disabled: false,
            token_seconds: 3600,
        }
    }
}

impl Directory {
    pub(super) fn new(url: &str) -> Self {
        let signer = Issuer::new(url);
        Self {
            tenants: BTreeMap::new(),
            issuers: BTreeMap::new(),
            keys: KeySet::from_jwks(&signer.jwks()),
            signer,
            given: Vec::new(),
            machine: Machine::default(),
        }
    }

    pub(super) fn publish(&mut self, issuer: &str, jwks: &Value) {
        self.issuers
            .insert(issuer.to_owned(), KeySet::from_jwks(jwks));
    }

    pub(super) fn add(&mut self, tenant: &str, spec: AppSpec) {
        let app = App {
            spec: spec.clone(),
            revoked_at: None,
            number: 0,
        };
        let tenant = self.tenants.entry(tenant.to_owned()).or_default();
        tenant.insert(spec.client, app);
    }

    pub(super) fn revoke(&mut self, client: &str, now: Timestamp) {
        for app in self.tenants.values_mut().filter_map(|t| t.get_mut(client)) {
            app.revoked_at = Some(now);
        }
    }

    pub(super) fn has_tenant(&self, tenant: &str) -> bool {
        self.tenants.contains_key(tenant)
    }

    pub(super) fn app(&self, tenant: &str, client: &str) -> Option<&App> {
        self.tenants.get(tenant)?.get(client)
    }

    pub(super) fn keys_of(&self, issuer: &str) -> Option<&KeySet> {
        self.issuers.get(issuer)
    }

    /// Every access token so far.
    pub(super) fn given(&self) -> &[String] {
        &self.given
    }

    /// Issues an access token; returns it and its lifetime in seconds.
    pub(super) fn grant(&mut self, tenant: &str, client: &str, now: Timestamp) -> (String, i64) {
        let app = self.tenants.get_mut(tenant).and_then(|t| t.get_mut(client));
        let app = app.expect("the application was found before");
        app.number += 1;
        let seconds = app.spec.token_seconds;
        // Finer than a second, so that a token issued right after a revocation is valid.
        let token = self.signer.sign(&json!({
            "aud": RESOURCE,
            "iss": format!("https://sts.windows.net/{tenant}/"),
            "tid": tenant,
            "appid": client,
            "iat_ms": now.as_millisecond(),
            "exp": now.as_second() + seconds,
            "uti": app.number,
        }));
        self.given.push(token.clone());
        (token, seconds)
    }

    /// What the token says, if it is genuine and still valid.
    pub(super) fn believe(&self, token: &str, now: Timestamp) -> Result<Grant, Spent> {
        let claims = self.keys.verify(token).map_err(|_| Spent::Forged)?;
        let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
        let (tenant, client) = (text("tid"), text("appid"));
        let revoked_at = self.app(&tenant, &client).and_then(|app| app.revoked_at);
        let begun = claims["iat_ms"].as_i64().unwrap_or_default();
        let is_revoked = revoked_at.is_some_and(|at| begun <= at.as_millisecond());
        if claims["exp"].as_i64().unwrap_or_default() <= now.as_second() || is_revoked {
            return Err(Spent::Expired);
        }
        Ok(Grant {
            tenant,
            client,
            audience: text("aud"),
        })
    }
}
