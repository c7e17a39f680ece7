//! A folder of secrets, one file each: for development, and where there is no cloud.
//!
//! Nothing is kept: each read opens the file anew. A file that somebody else could have written is refused, so that a
//! folder that is too open shows at once.

use super::folder::{Folder, FolderError};
use super::store;
use super::{Backend, BackendError, Caller, Details, Offer, Page, Secret, Selector, Session};
use crate::account::Annotations;
use crate::config::{FileConfig, LocalRole};
use crate::error::RequestError;
use crate::role::{NoRole, Role};
use crate::secret::{SecretName, SecretValue};
use async_trait::async_trait;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A folder of secrets.
#[derive(Debug)]
pub(super) struct Files {
    settings: FileConfig,
}

/// The folder, as one principal sees it.
#[derive(Debug)]
struct FileSession {
    path: PathBuf,
    timeout: Duration,
    role: Role,
}

// === impl Files ===

impl Files {
    /// The folder of the settings of `backends.<name>`.
    ///
    /// # Errors
    ///
    /// If it cannot be used, naming the key.
    pub(super) fn open(name: &str, settings: &FileConfig) -> Result<Self, String> {
        let checked = Folder::open(&settings.path).and_then(|folder| folder.must_be_ours());
        checked.map_err(|error| {
            let path = settings.path.display();
            let remedy = match error {
                FolderError::Absent => "make the folder, or name another",
                FolderError::Unsafe => "chown it to the agent's user or root, and chmod it go-w",
                _ => "let the agent's user read it",
            };
            format!("backends.{name}.path {path} cannot be used, {error}: {remedy}")
        })?;
        Ok(Self {
            settings: settings.clone(),
        })
    }
}

#[async_trait]
impl Backend for Files {
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole> {
        let FileConfig {
            prefix,
            per_namespace,
            ..
        } = &self.settings;
        store::role(annotations, prefix, *per_namespace)
    }

    fn machine_role(&self, role: &LocalRole, namespace: &str) -> Result<Role, NoRole> {
        let FileConfig {
            prefix,
            per_namespace,
            ..
        } = &self.settings;
        Ok(store::machine_role(role, namespace, prefix, *per_namespace))
    }

    fn describe(&self) -> String {
        format!("files in {}", self.settings.path.display())
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
        Ok(Arc::new(FileSession {
            path: self.settings.path.clone(),
            timeout: self.settings.timeout,
            role: role.clone(),
        }))
    }
}

#[async_trait]
impl Session for FileSession {
    fn lives_for(&self) -> Duration {
        store::SESSION
    }

    async fn read(
        &self,
        name: &SecretName,
        _: &Selector,
        _request_id: &str,
    ) -> Result<Secret, BackendError> {
        let (folder, path) = (self.path.clone(), store::path_of(&self.role, name, ""));
        store::off_thread(self.timeout, move || {
            let folder = Folder::open_again(&folder)?;
            let found = folder.find(&path)?;
            folder.must_own(&found)?;
            let value = found.read(store::VALUE_LIMIT)?;
            Ok(Secret {
                is_text: std::str::from_utf8(&value).is_ok(),
                value: SecretValue::from(value),
                version: found.version(),
                details: Details::default(),
                cloud_request_id: None,
                json: OnceLock::new(),
            })
        })
        .await
    }

    async fn list(
        &self,
        limit: usize,
        cursor: Option<String>,
        _request_id: &str,
    ) -> Result<Page, BackendError> {
        let (folder, role) = (self.path.clone(), self.role.clone());
        store::off_thread(self.timeout, move || {
            let folder = Folder::open_again(&folder)?;
            store::page(&role, limit, cursor.as_deref(), |from| {
                folder.list(from, "")
            })
        })
        .await
    }
}
