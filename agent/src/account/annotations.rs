//! What asks for a role: a service account's annotations, or what stands for them in a sidecar.

use crate::config::Sidecar;
use crate::role::NoRole;
use std::collections::BTreeMap;

/// The longest annotation that is used, in bytes. The longest useful one is a chain of Google Cloud service accounts.
const ANNOTATION_LIMIT: usize = 2048;

/// The annotations of a service account, and those of its namespace if they may stand in for them.
#[derive(Debug, Default)]
pub(crate) struct Annotations {
    /// The namespace and the name of the service account.
    owner: (String, String),
    account: BTreeMap<String, String>,
    namespace: BTreeMap<String, String>,
    /// Whether a sidecar's configuration stands for them.
    of_sidecar: bool,
}

// === impl Annotations ===

impl Annotations {
    /// The first of `keys` that is annotated and not empty: on the service account or, only if that has none of them,
    /// on its namespace.
    ///
    /// # Errors
    ///
    /// If it is longer than anything meaningful: Kubernetes allows annotations of up to 256 KiB, and what is read here
    /// gets into answers, the log and the audit trail.
    pub(crate) fn first(&self, keys: &[&'static str]) -> Result<Option<&str>, NoRole> {
        Ok(self.first_with_key(keys)?.map(|(_, value)| value))
    }

    /// The same, after the one of `keys` that it is under.
    ///
    /// # Errors
    ///
    /// As [`Annotations::first`].
    pub(crate) fn first_with_key(
        &self,
        keys: &[&'static str],
    ) -> Result<Option<(&'static str, &str)>, NoRole> {
        let first = [&self.account, &self.namespace]
            .into_iter()
            .find_map(|annotations| {
                keys.iter()
                    .filter_map(|key| Some((*key, annotations.get(*key)?.trim())))
                    .find(|(_, value)| !value.is_empty())
            });
        match first {
            Some((key, value)) if value.len() > ANNOTATION_LIMIT => Err(NoRole::new(format!(
                "the annotation {key} is longer than {ANNOTATION_LIMIT} bytes"
            ))),
            first => Ok(first),
        }
    }

    /// The namespace and name of the service account that they belong to.
    pub(crate) fn owner(&self) -> (&str, &str) {
        (&self.owner.0, &self.owner.1)
    }

    /// Why there is no role: in the words for whoever annotates an account, or else configures a sidecar.
    pub(crate) fn no_role(&self, annotates: String, configures: String) -> NoRole {
        let told = if self.of_sidecar {
            configures
        } else {
            annotates
        };
        NoRole::new(told)
    }

    /// The annotations of a service account by its namespace and name, and those of the namespace.
    pub(super) fn new(
        (namespace, name): (&str, &str),
        of_account: BTreeMap<String, String>,
        of_namespace: BTreeMap<String, String>,
    ) -> Self {
        Self {
            owner: (namespace.to_owned(), name.to_owned()),
            account: of_account,
            namespace: of_namespace,
            of_sidecar: false,
        }
    }

    /// The annotations that a service account would have for what a sidecar's configuration says.
    pub(crate) fn of_sidecar(pod: &Sidecar) -> Self {
        let account = [
            ("eks.amazonaws.com/role-arn", &pod.aws_role_arn),
            ("azure.workload.identity/client-id", &pod.azure_client_id),
            ("azure.workload.identity/tenant-id", &pod.azure_tenant_id),
            ("iam.gke.io/gcp-service-account", &pod.gcp_service_account),
        ];
        Self {
            owner: (pod.namespace.clone(), pod.service_account.clone()),
            of_sidecar: true,
            ..Self::of_account(account.map(|(key, value)| (key, value.as_str())))
        }
    }

    /// The annotations of an account that has only these.
    pub(crate) fn of_account<'a>(account: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let account = account.into_iter();
        Self {
            account: account
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            ..Self::default()
        }
    }

    #[cfg(test)]
    pub(crate) fn in_namespace(self, name: &str) -> Self {
        Self {
            owner: (name.to_owned(), self.owner.1),
            ..self
        }
    }

    /// Those of the service account `app` in the namespace `test`.
    #[cfg(test)]
    pub(crate) fn of(account: &[(&str, &str)], namespace: &[(&str, &str)]) -> Self {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        Self::new(("test", "app"), map(account), map(namespace))
    }
}
