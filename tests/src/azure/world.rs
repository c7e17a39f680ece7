//! What tests may change in the cloud: issuers, applications, vaults, secrets. None of it can be changed over HTTP.

use serde_json::Value;

use super::FakeAzure;
use super::directory::AppSpec;
use super::vault::{Access, SecretSpec};

/// Entra ID.
impl FakeAzure {
    /// Makes the keys of a cluster's issuer available, as if it published them on the Internet.
    pub fn publish_issuer(&self, issuer: &str, jwks: &Value) {
        self.inner.state.directory.write().publish(issuer, jwks);
    }

    /// Makes an application in a tenant, or changes the one with this client id.
    pub fn put_app(&self, tenant: &str, spec: AppSpec) {
        self.inner.state.directory.write().add(tenant, spec);
    }

    /// Ends a client's access tokens early.
    pub fn revoke_tokens(&self, client: &str) {
        let now = self.inner.state.now();
        self.inner.state.directory.write().revoke(client, now);
    }

    /// Every access token that was issued, so that tests can search for them where they must not be.
    #[must_use]
    pub fn access_tokens(&self) -> Vec<String> {
        self.inner.state.directory.read().given().to_vec()
    }
}

/// Key Vault. All of these panic if a test names a vault that it has not made.
impl FakeAzure {
    /// Makes an empty vault that nobody may read.
    pub fn make_vault(&self, vault: &str, tenant: &str, access: Access) {
        self.inner.state.vaults.write().make(vault, tenant, access);
    }

    /// Lets a client get one secret, or get and list all.
    pub fn admit(&self, vault: &str, client: &str, secret: Option<&str>) {
        let mut vaults = self.inner.state.vaults.write();
        vaults.vault(vault).admit(client, secret);
    }

    /// Lets a client list what is there, but not get it.
    pub fn show(&self, vault: &str, client: &str) {
        self.inner.state.vaults.write().vault(vault).show(client);
    }

    /// Takes all of a client's rights in a vault away.
    pub fn expel(&self, vault: &str, client: &str) {
        self.inner.state.vaults.write().vault(vault).expel(client);
    }

    /// Closes the vault's firewall, or opens it.
    pub fn close_vault(&self, vault: &str, is_closed: bool) {
        self.inner.state.vaults.write().vault(vault).is_closed = is_closed;
    }

    /// Makes a secret, or a new version of it; returns the version.
    pub fn put_secret(&self, vault: &str, name: &str, spec: SecretSpec) -> String {
        let now = self.inner.state.now();
        self.inner
            .state
            .vaults
            .write()
            .vault(vault)
            .put(name, spec, now)
    }

    /// Deletes a secret.
    pub fn remove_secret(&self, vault: &str, name: &str) {
        self.inner.state.vaults.write().vault(vault).remove(name);
    }
}
