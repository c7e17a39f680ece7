//! What tests may change in the cloud: providers, roles, sessions, secrets. None of it can be changed over HTTP.

use serde_json::Value;

use super::iam::{Role, RoleSpec};
use super::policy::{Policy, PolicyError};
use super::secret::{Secret, SecretInput};
use super::{FakeAws, provider_arn};

/// Identity and access.
impl FakeAws {
    /// The account of the secrets.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.inner.state.config.account
    }

    /// The ARN of a role of this name in [`FakeAws::account`].
    #[must_use]
    pub fn role_arn(&self, name: &str) -> String {
        format!("arn:aws:iam::{}:role/{name}", self.account())
    }

    /// Trusts an issuer's keys in [`FakeAws::account`], for tokens of the audiences `client_ids`; returns its ARN.
    ///
    /// Adding the same issuer again replaces the provider.
    pub fn add_oidc_provider(&self, issuer: &str, client_ids: &[&str], jwks: &Value) -> String {
        let arn = provider_arn("aws", self.account(), issuer);
        self.add_oidc_provider_at(&arn, client_ids, jwks);
        arn
    }

    /// Trusts an issuer's keys in any partition and account, as the ARN (of [`provider_arn`]) says.
    pub fn add_oidc_provider_at(&self, arn: &str, client_ids: &[&str], jwks: &Value) {
        self.inner
            .state
            .iam
            .write()
            .add_provider(arn, client_ids, jwks);
    }

    /// Forgets an issuer.
    pub fn remove_oidc_provider(&self, arn: &str) {
        self.inner.state.iam.write().remove_provider(arn);
    }

    /// Creates a role, or replaces one of the same name, whose sessions do not belong to the new one.
    ///
    /// # Errors
    ///
    /// If a policy is malformed or needs more than the fake knows.
    pub fn create_role(&self, spec: RoleSpec) -> Result<(), PolicyError> {
        self.inner.state.iam.write().create_role(spec)
    }

    /// Deletes a role, and all its sessions; returns whether it existed.
    pub fn delete_role(&self, arn: &str) -> bool {
        self.inner.state.iam.write().delete_role(arn)
    }

    /// Changes who may assume a role; existing sessions stay valid, as in AWS.
    ///
    /// # Errors
    ///
    /// If the policy is malformed.
    ///
    /// # Panics
    ///
    /// If there is no such role.
    pub fn set_trust(&self, arn: &str, trust_policy: &Value) -> Result<(), PolicyError> {
        let policy = Policy::trust(trust_policy)?;
        self.change_role(arn, |role| role.trust = policy);
        Ok(())
    }

    /// Changes what a role may do, for existing sessions too.
    ///
    /// # Errors
    ///
    /// If the policy is malformed.
    ///
    /// # Panics
    ///
    /// If there is no such role.
    pub fn set_policy(&self, arn: &str, policy: &Value) -> Result<(), PolicyError> {
        let policy = Policy::identity(policy)?;
        self.change_role(arn, |role| role.policy = policy);
        Ok(())
    }

    /// Denies everything to the sessions of a role that were issued until now; new ones are valid.
    ///
    /// # Panics
    ///
    /// If there is no such role.
    pub fn revoke_role_sessions(&self, arn: &str) {
        let now = self.inner.state.now();
        self.change_role(arn, |role| role.revoked_until = Some(now));
    }

    /// Access key id, secret key and session token of every session that was issued, so that tests can search for them
    /// where they must not be.
    #[must_use]
    pub fn credentials(&self) -> Vec<[String; 3]> {
        self.inner.state.iam.read().credentials()
    }

    /// Begins a session of a role for a machine whose own role it is, as with an instance's profile. Returns access key
    /// id, secret key and session token.
    ///
    /// # Panics
    ///
    /// If there is no such role.
    #[must_use]
    pub fn begin_session(&self, arn: &str, name: &str) -> [String; 3] {
        let now = self.inner.state.now();
        self.inner
            .state
            .iam
            .write()
            .begin_session(arn, name, now)
            .expect("the role exists")
    }

    /// Ends the sessions of a role now, as if they had expired; returns how many there were.
    pub fn expire_role_sessions(&self, arn: &str) -> usize {
        let now = self.inner.state.now();
        self.inner.state.iam.read().end_sessions(arn, now)
    }

    fn change_role(&self, arn: &str, change: impl FnOnce(&mut Role)) {
        let mut iam = self.inner.state.iam.write();
        change(iam.role_mut(arn).expect("the role exists"));
    }
}

/// Secrets, all in [`FakeAws::account`]; the `_in_account` forms name another.
impl FakeAws {
    /// Creates or rotates a secret: its value becomes `AWSCURRENT`, the previous `AWSPREVIOUS`. Returns the version.
    pub fn put_secret(&self, region: &str, name: &str, value: SecretInput) -> String {
        self.put_secret_in_account(self.account(), region, name, value)
    }

    /// [`FakeAws::put_secret`] in any account.
    pub fn put_secret_in_account(
        &self,
        account: &str,
        region: &str,
        name: &str,
        value: SecretInput,
    ) -> String {
        let state = &self.inner.state;
        let stages = ["AWSCURRENT"];
        state
            .store
            .write()
            .add_version(account, region, name, value, &stages, state.now())
    }

    /// Adds a version with other stages, such as `AWSPENDING`, or with none; returns the version.
    pub fn add_version(
        &self,
        region: &str,
        name: &str,
        value: SecretInput,
        stages: &[&str],
    ) -> String {
        let state = &self.inner.state;
        state
            .store
            .write()
            .add_version(self.account(), region, name, value, stages, state.now())
    }

    /// Moves a stage to a version; returns whether there is such a version.
    pub fn move_stage(&self, region: &str, name: &str, stage: &str, version: &str) -> bool {
        self.change_secret(region, name, |secret| secret.move_stage(stage, version))
            .unwrap_or(false)
    }

    /// Removes a secret at once; returns whether it existed.
    pub fn delete_secret(&self, region: &str, name: &str) -> bool {
        self.inner
            .state
            .store
            .write()
            .remove(self.account(), region, name)
    }

    /// Marks a secret for deletion, as `DeleteSecret` with a recovery window does; returns whether it existed.
    pub fn mark_for_deletion(&self, region: &str, name: &str) -> bool {
        let now = self.inner.state.now();
        self.change_secret(region, name, |secret| {
            secret.marked_for_deletion = Some(now)
        })
        .is_some()
    }

    /// Removes the mark, as `RestoreSecret` does; returns whether the secret existed.
    pub fn restore_secret(&self, region: &str, name: &str) -> bool {
        self.change_secret(region, name, |secret| secret.marked_for_deletion = None)
            .is_some()
    }

    /// The ARN of a secret, with its six random characters.
    #[must_use]
    pub fn arn_of(&self, region: &str, name: &str) -> Option<String> {
        let store = self.inner.state.store.read();
        Some(store.shelf(self.account(), region)?.get(name)?.arn.clone())
    }

    fn change_secret<T>(
        &self,
        region: &str,
        name: &str,
        change: impl FnOnce(&mut Secret) -> T,
    ) -> Option<T> {
        let mut store = self.inner.state.store.write();
        store.secret_mut(self.account(), region, name).map(change)
    }
}
