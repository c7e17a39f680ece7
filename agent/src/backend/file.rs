//! A folder of secrets, one file each: for development, and where there is no cloud.
//!
//! Nothing is kept: each read opens the file again. A file that someone else could have written is refused, so that
//! permissions that are too open are noticed at once.

use super::BackendError;
use super::beneath::{ATTEMPTS, Folder, FolderError, VALUE_LIMIT};
use super::store::{Settings, Store, Stored, Value};
use crate::config::FileConfig;
use crate::role::Role;
use crate::secret::SecretName;
use async_trait::async_trait;
use std::path::Path;

/// A folder of secrets.
#[derive(Debug)]
pub(super) struct Files;

// === impl Files ===

impl Files {
    /// Opens the folder of the settings of `backends.<name>`.
    ///
    /// # Errors
    ///
    /// If it cannot be used, naming the key.
    pub(super) fn open(name: &str, config: &FileConfig) -> Result<Stored<Self>, String> {
        let settings = Settings {
            folder: config.path.clone(),
            ending: "",
            prefix: config.prefix.clone(),
            per_namespace: config.per_namespace,
            timeout: config.timeout,
        };
        let key = format!("backends.{name}.path");
        Stored::open(settings, Self, &key, "make the folder")
    }
}

#[async_trait]
impl Store for Files {
    fn describe(&self, folder: &Path) -> String {
        format!("files in {}", folder.display())
    }

    async fn read(
        &self,
        settings: &Settings,
        role: &Role,
        name: &SecretName,
    ) -> Result<Value, BackendError> {
        let path = settings.path_of(role, name);
        let work = move |folder: &Folder| {
            for _ in 0..ATTEMPTS {
                let found = folder.find(&path)?;
                folder.must_own(&found)?;
                match found.read(VALUE_LIMIT) {
                    Err(FolderError::Changing) => {}
                    outcome => {
                        return outcome.map(|bytes| Value {
                            bytes,
                            version: found.version(),
                        });
                    }
                }
            }
            Err(FolderError::Changing)
        };
        settings.visit(work).await
    }
}
