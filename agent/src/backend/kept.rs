//! A backend whose secrets are kept on this machine. `file` and `pass` differ in how a value is read; whose it is, how
//! it is called and how it is listed is the same.

use super::folder::Folder;
use super::{Backend, BackendError, Caller, Offer, Page, Secret, Selector, Session, store};
use crate::account::Annotations;
use crate::config::LocalRole;
use crate::error::RequestError;
use crate::role::{NoRole, Role};
use crate::secret::{SecretName, SecretValue};
use async_trait::async_trait;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a session of a store lives. It holds nothing that could end.
const SESSION: Duration = Duration::from_secs(24 * 3600);

/// Secrets as files in a folder of this machine.
#[async_trait]
pub(super) trait Store: fmt::Debug + Send + Sync {
    /// What it is and where, for the operator.
    fn describe(&self) -> String;

    /// The folder, and how the files of secrets end.
    fn folder(&self) -> (&Path, &'static str);

    /// What stands before every name, and whether each namespace reads the folder of its name alone.
    fn names(&self) -> (&str, bool);

    /// How long one call may take.
    fn timeout(&self) -> Duration;

    /// Reads the value of a name that has been checked.
    ///
    /// # Errors
    ///
    /// If there is none that could be given out.
    async fn read(&self, role: &Role, name: &SecretName) -> Result<Value, BackendError>;
}

/// A value as a store has it.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// By inode, size and time, never by the value.
    pub(super) version: Arc<str>,
}

/// The backend over a store.
#[derive(Debug)]
pub(super) struct Kept<S>(Arc<S>);

/// The store, as one principal sees it.
#[derive(Debug)]
struct KeptSession<S> {
    store: Arc<S>,
    role: Role,
}

// === impl Kept ===

impl<S> Kept<S> {
    /// The backend over that store.
    pub(super) fn of(store: S) -> Self {
        Self(Arc::new(store))
    }
}

#[async_trait]
impl<S: Store + 'static> Backend for Kept<S> {
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole> {
        let (prefix, per_namespace) = self.0.names();
        store::role(annotations, prefix, per_namespace)
    }

    fn machine_role(&self, role: &LocalRole, namespace: &str) -> Result<Role, NoRole> {
        let (prefix, per_namespace) = self.0.names();
        Ok(store::machine_role(role, namespace, prefix, per_namespace))
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn skip_annotation(&self) -> Option<&'static str> {
        None
    }

    fn check(
        &self,
        role: &Role,
        name: &SecretName,
        selector: &Selector,
    ) -> Result<(), RequestError> {
        store::check(role, name, selector)
    }

    async fn exchange(
        &self,
        role: &Role,
        _: Offer,
        _: &Caller,
    ) -> Result<Arc<dyn Session>, BackendError> {
        Ok(Arc::new(KeptSession {
            store: self.0.clone(),
            role: role.clone(),
        }))
    }
}

// === impl KeptSession ===

#[async_trait]
impl<S: Store + 'static> Session for KeptSession<S> {
    fn lives_for(&self) -> Duration {
        SESSION
    }

    async fn read(
        &self,
        name: &SecretName,
        _: &Selector,
        _request_id: &str,
    ) -> Result<Secret, BackendError> {
        let Value { bytes, version } = self.store.read(&self.role, name).await?;
        let value = SecretValue::from(bytes);
        let is_text = value.expose_str().is_some();
        Ok(Secret::new(value, is_text, version))
    }

    async fn list(
        &self,
        limit: usize,
        cursor: Option<String>,
        _request_id: &str,
    ) -> Result<Page, BackendError> {
        let (folder, ending) = self.store.folder();
        let (folder, role) = (folder.to_owned(), self.role.clone());
        store::off_thread(self.store.timeout(), move || {
            let folder = Folder::open_again(&folder)?;
            store::page(&role, limit, cursor.as_deref(), |from| {
                folder.list(from, ending)
            })
        })
        .await
    }
}
