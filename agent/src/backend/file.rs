//! A folder of secrets, one file each: for development, and where there is no cloud.
//!
//! Nothing is kept: each read opens the file anew. A file that somebody else could have written is refused, so that a
//! folder that is too open shows at once.

use super::BackendError;
use super::folder::{Folder, FolderError, VALUE_LIMIT};
use super::store::{self, Store, Value};
use crate::config::FileConfig;
use crate::role::Role;
use crate::secret::SecretName;
use async_trait::async_trait;
use std::path::Path;
use std::time::Duration;

/// A folder of secrets.
#[derive(Debug)]
pub(super) struct Files {
    settings: FileConfig,
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
impl Store for Files {
    fn describe(&self) -> String {
        format!("files in {}", self.settings.path.display())
    }

    fn folder(&self) -> (&Path, &'static str) {
        (&self.settings.path, "")
    }

    fn names(&self) -> (&str, bool) {
        (&self.settings.prefix, self.settings.per_namespace)
    }

    fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    async fn read(&self, role: &Role, name: &SecretName) -> Result<Value, BackendError> {
        let path = store::path_of(role, name, "");
        Folder::visit(&self.settings.path, self.settings.timeout, move |folder| {
            let found = folder.find(&path)?;
            folder.must_own(&found)?;
            let value = found.read(VALUE_LIMIT)?;
            Ok(Value {
                bytes: value,
                version: found.version(),
            })
        })
        .await
    }
}
