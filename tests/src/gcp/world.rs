//! What tests may change at Google: providers, accounts, bindings, bearers, secrets. None of it can be changed over
//! HTTP.

use std::sync::atomic::Ordering;

use serde_json::Value;

use super::cel::ExpressionError;
use super::iam::{Account, ProviderSpec};
use super::store::VersionState;
use super::{FakeGcp, NUMBER, PROJECT};

/// Identity and access.
impl FakeGcp {
    /// The full name of a provider in the project.
    #[must_use]
    pub fn provider_name(&self, pool: &str, provider: &str) -> String {
        format!(
            "//iam.googleapis.com/projects/{NUMBER}/locations/global/workloadIdentityPools/{pool}/providers/{provider}"
        )
    }

    /// Creates a provider of workload identity federation, or replaces it.
    ///
    /// # Errors
    ///
    /// If its mapping or condition needs more than the fake knows.
    pub fn add_provider(&self, spec: ProviderSpec) -> Result<(), ExpressionError> {
        self.inner.state.iam.write().add_provider(spec)
    }

    /// Makes a cluster one of GKE's, in the project's pool.
    pub fn add_cluster(&self, issuer: &str, jwks: &Value) -> String {
        let pool = format!("{PROJECT}.svc.id.goog");
        let mut iam = self.inner.state.iam.write();
        iam.add_cluster(&pool, issuer, NUMBER, jwks);
        pool
    }

    /// Creates a service account; returns its email address.
    pub fn create_account(&self, name: &str) -> String {
        let email = format!("{name}@{PROJECT}.iam.gserviceaccount.com");
        let mut iam = self.inner.state.iam.write();
        iam.accounts().insert(email.clone(), Account::default());
        email
    }

    /// Disables a service account.
    pub fn disable_account(&self, email: &str) {
        let mut iam = self.inner.state.iam.write();
        iam.accounts().entry(email.to_owned()).or_default().disabled = true;
    }

    /// Grants a role on a service account.
    pub fn bind_account(&self, email: &str, role: &str, member: &str) {
        self.bind(&format!("serviceAccounts/{email}"), role, member, None);
    }

    /// Grants a role on a secret of the project.
    pub fn bind_secret(&self, secret: &str, role: &str, member: &str) {
        self.bind(
            &format!("projects/{NUMBER}/secrets/{secret}"),
            role,
            member,
            None,
        );
    }

    /// Grants a role on the project, optionally under a condition.
    pub fn bind_project(&self, role: &str, member: &str, condition: Option<&str>) {
        self.bind(&format!("projects/{NUMBER}"), role, member, condition);
    }

    /// Revokes everything granted to a member; existing bearers can then do nothing either, as at Google.
    pub fn unbind(&self, member: &str) {
        self.inner.state.iam.write().unbind(member);
    }

    /// Every bearer that was issued, so that tests can search for them where they must not be.
    #[must_use]
    pub fn bearers(&self) -> Vec<String> {
        let mut iam = self.inner.state.iam.write();
        iam.bearers().keys().cloned().collect()
    }

    /// Ends all bearers now, as if they had expired; returns how many there were.
    pub fn expire_bearers(&self) -> usize {
        let now = self.inner.state.now();
        let mut iam = self.inner.state.iam.write();
        let bearers = iam.bearers();
        bearers.values_mut().for_each(|bearer| bearer.expires = now);
        bearers.len()
    }

    fn bind(&self, resource: &str, role: &str, member: &str, condition: Option<&str>) {
        let mut iam = self.inner.state.iam.write();
        let bound = iam.bind(resource, role, member, condition);
        bound.expect("the fake knows the condition");
    }
}

/// Secrets, all in the project.
impl FakeGcp {
    /// Creates a secret or adds a version to it; returns the version.
    pub fn put_secret(&self, name: &str, data: &[u8]) -> String {
        let mut store = self.inner.state.store.write();
        store.put(PROJECT, name, data).to_string()
    }

    /// Disables, enables or destroys a version; returns whether there is one.
    pub fn set_version_state(&self, name: &str, version: &str, state: VersionState) -> bool {
        let mut store = self.inner.state.store.write();
        let secrets = &mut store.project_mut(PROJECT).secrets;
        let at = version
            .parse::<usize>()
            .ok()
            .and_then(|number| number.checked_sub(1));
        let found = at.and_then(|at| secrets.get_mut(name)?.versions.get_mut(at));
        found.map(|version| version.state = state).is_some()
    }

    /// Removes a secret; returns whether it existed.
    pub fn delete_secret(&self, name: &str) -> bool {
        let mut store = self.inner.state.store.write();
        store.project_mut(PROJECT).secrets.remove(name).is_some()
    }

    /// Limits the names in one answer to a list, as Google reserves the right to.
    pub fn set_page_limit(&self, limit: usize) {
        self.inner.state.page_limit.store(limit, Ordering::Relaxed);
    }

    /// Creates another project, with nothing in it.
    pub fn add_project(&self, id: &str, number: &str) {
        self.inner.state.store.write().add_project(id, number);
    }
}
