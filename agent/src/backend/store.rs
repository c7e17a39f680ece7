//! A backend whose secrets are files in a folder of this machine, where no cloud decides who may read what. `file` and
//! `pass` differ in how a value is read; who may read it, what it is called and how it is listed are the same.
//!
//! So the folder itself has to keep principals apart: unless the configuration says otherwise, each namespace reads
//! only the folder of its own name. A principal of a machine with the role `machine` reads everything.

use super::beneath::{Folder, FolderError};
use super::{Backend, BackendError, Caller, Page, Secret, Selector, Session};
use crate::account::Annotations;
use crate::config::LocalRole;
use crate::error::RequestError;
use crate::role::{NoRole, PREFIX_KEY, Proof, Role};
use crate::secret::{SecretName, SecretValue, SubjectToken};
use async_trait::async_trait;
use latchkey_client::protocol::Code;
use latchkey_client::protocol::words::{FOLDER, WHOLE_STORE};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a session of a store lives. It holds nothing that could expire.
const SESSION: Duration = Duration::from_secs(24 * 3600);

/// The maximum length of a part of a path, in bytes (NAME_MAX), minus the longest ending that a store appends.
const PART_LIMIT: usize = 255 - ".gpg".len();

/// Secrets as files in a folder of this machine.
#[async_trait]
pub(super) trait Store: fmt::Debug + Send + Sync {
    /// What the folder is, for the operator.
    fn describe(&self, folder: &Path) -> String;

    /// Reads the value of a name that has been checked.
    ///
    /// # Errors
    ///
    /// If there is none that may be given out.
    async fn read(
        &self,
        settings: &Settings,
        role: &Role,
        name: &SecretName,
    ) -> Result<Value, BackendError>;
}

/// The configuration that every store has.
#[derive(Debug)]
pub(super) struct Settings {
    /// Where the secrets are.
    pub(super) folder: PathBuf,
    /// The ending of a secret's file.
    pub(super) ending: &'static str,
    /// The prefix of every name.
    pub(super) prefix: String,
    /// Whether each namespace reads only the folder of its own name.
    pub(super) per_namespace: bool,
    /// How long one call may take.
    pub(super) timeout: Duration,
}

/// A value as a store returns it.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// Made of inode, size and time, never of the value.
    pub(super) version: Arc<str>,
}

/// The backend over a store.
#[derive(Debug)]
pub(super) struct Stored<S> {
    settings: Arc<Settings>,
    store: Arc<S>,
}

/// The store, as one principal sees it.
#[derive(Debug)]
struct StoredSession<S> {
    settings: Arc<Settings>,
    store: Arc<S>,
    role: Role,
}

// === impl Settings ===

impl Settings {
    /// Returns the path of a secret's file in the folder.
    pub(super) fn path_of(&self, role: &Role, name: &SecretName) -> PathBuf {
        format!("{}{name}{}", role.prefix, self.ending).into()
    }

    /// Does the work in the folder ([`Folder::visit`]).
    ///
    /// # Errors
    ///
    /// The errors of `work`, or if the file system hangs.
    pub(super) async fn visit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, BackendError> {
        Folder::visit(&self.folder, self.timeout, work).await
    }
}

// === impl Stored ===

impl<S> Stored<S> {
    /// Returns the backend over this store. `key` is the folder's in the configuration, and `make` says how to make
    /// one.
    ///
    /// # Errors
    ///
    /// If the folder cannot be used, naming the key.
    pub(super) fn open(
        settings: Settings,
        store: S,
        key: &str,
        make: &str,
    ) -> Result<Self, String> {
        let checked = Folder::open(&settings.folder).and_then(|folder| folder.must_be_ours());
        checked.map_err(|error| {
            let folder = settings.folder.display();
            let remedy = match error {
                FolderError::Absent => &format!("{make}, or name another"),
                FolderError::NoFolder => "name the folder that holds the secrets",
                FolderError::Unsafe => "chown it to the agent's user or root, and chmod it go-w",
                _ => "let the agent's user read it",
            };
            format!("{key} {folder} cannot be used, {error}: {remedy}")
        })?;
        Ok(Self {
            settings: Arc::new(settings),
            store: Arc::new(store),
        })
    }
}

#[async_trait]
impl<S: Store + 'static> Backend for Stored<S> {
    fn role(&self, annotations: &Annotations) -> Result<Role, NoRole> {
        let own = annotations.first(&[PREFIX_KEY])?;
        let prefix = own.unwrap_or(&self.settings.prefix);
        let folder = self.settings.per_namespace.then(|| annotations.owner().0);
        Ok(role_in(folder, prefix))
    }

    fn machine_role(&self, role: &LocalRole, namespace: &str) -> Result<Role, NoRole> {
        let all = *role == LocalRole::Machine || !self.settings.per_namespace;
        Ok(role_in((!all).then_some(namespace), &self.settings.prefix))
    }

    fn describe(&self) -> String {
        self.store.describe(&self.settings.folder)
    }

    fn check(
        &self,
        role: &Role,
        name: &SecretName,
        selector: &Selector,
    ) -> Result<(), RequestError> {
        check(role, name, selector)
    }

    async fn exchange(
        &self,
        role: &Role,
        _: Option<SubjectToken>,
        _: &Caller,
    ) -> Result<Arc<dyn Session>, BackendError> {
        Ok(Arc::new(StoredSession {
            settings: self.settings.clone(),
            store: self.store.clone(),
            role: role.clone(),
        }))
    }
}

// === impl StoredSession ===

#[async_trait]
impl<S: Store + 'static> Session for StoredSession<S> {
    fn lives_for(&self) -> Duration {
        SESSION
    }

    async fn read(
        &self,
        name: &SecretName,
        _: &Selector,
        _request_id: &str,
    ) -> Result<Secret, BackendError> {
        let Value { bytes, version } = self.store.read(&self.settings, &self.role, name).await?;
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
        let (role, ending) = (self.role.clone(), self.settings.ending);
        let work = move |folder: &Folder| {
            page(&role, limit, cursor.as_deref(), |from| {
                folder.list(from, ending)
            })
        };
        self.settings.visit(work).await
    }
}

fn role_in(folder: Option<&str>, prefix: &str) -> Role {
    let place = folder.map_or_else(String::new, |folder| format!("{folder}/"));
    Role {
        name: folder
            .map_or_else(|| WHOLE_STORE.to_owned(), |_| format!("{FOLDER}{place}"))
            .into(),
        proof: Proof::None,
        prefix: prefix.into(),
        place: place.into(),
        via: None,
    }
}

/// Checks that a store can have a secret of this name, and that it is in the role's folder.
pub(super) fn check(
    role: &Role,
    name: &SecretName,
    selector: &Selector,
) -> Result<(), RequestError> {
    if selector.version.is_some() || selector.stage.is_some() {
        return Err(RequestError::invalid(
            "this backend keeps one version of a secret, without stages",
        ));
    }
    if name.is_arn() {
        return Err(RequestError::invalid(
            "an ARN names a secret of AWS, and this backend is none of AWS's",
        ));
    }
    let path = format!("{}{name}", role.prefix);
    if path.starts_with('-') {
        return Err(RequestError::invalid(
            "a name here does not begin with a hyphen",
        ));
    }
    for part in path.split('/') {
        // The store's own files, such as .git and .gpg-id, are not secrets. The prefix may come from an annotation.
        if part.is_empty() || part.starts_with('.') {
            return Err(RequestError::invalid(
                "a name here has no part that is empty or begins with a dot, its prefix included",
            ));
        }
        if part.len() > PART_LIMIT {
            return Err(RequestError::invalid(format!(
                "a name here has at most {PART_LIMIT} bytes between two slashes"
            )));
        }
    }
    if path.chars().any(|c| c == '\\' || c.is_control()) {
        return Err(RequestError::invalid(
            "a prefix holds no backslash and no control characters",
        ));
    }
    if !path.starts_with(&*role.place) {
        return Err(RequestError::new(
            Code::Denied,
            format!(
                "this namespace reads only what is in the store's folder {}",
                role.place
            ),
        ));
    }
    Ok(())
}

/// Returns one page of the names that the role may read, from what `list` finds below a folder.
pub(super) fn page(
    role: &Role,
    limit: usize,
    cursor: Option<&str>,
    list: impl FnOnce(&Path) -> Result<Vec<String>, FolderError>,
) -> Result<Page, FolderError> {
    // If neither folder nor prefix begins with the other, there is nothing to read.
    let (folder, prefix) = (&*role.place, &*role.prefix);
    let from = match (prefix.starts_with(folder), folder.starts_with(prefix)) {
        (true, _) => prefix.rsplit_once('/').map_or("", |(folder, _)| folder),
        (false, true) => folder.trim_end_matches('/'),
        (false, false) => return Err(FolderError::Foreign),
    };
    // The prefix may come from an annotation, and no name leads into a folder that begins with a dot.
    if from.split('/').any(|part| part.starts_with('.')) {
        return Ok(Page::default());
    }
    let mut names: Vec<String> = list(Path::new(from))?
        .into_iter()
        .filter(|path| path.starts_with(folder))
        .filter_map(|path| Some(path.strip_prefix(prefix)?.to_owned()))
        // A name that cannot be asked for is not shown.
        .filter_map(|name| SecretName::parse(&name).ok())
        .filter(|name| check(role, name, &Selector::default()).is_ok())
        .map(|name| name.to_string())
        .filter(|name| cursor.is_none_or(|cursor| name.as_str() > cursor))
        .collect();
    let more = names.len() > limit;
    names.truncate(limit);
    Ok(Page {
        next: more.then(|| names.last().cloned()).flatten(),
        names,
        more_calls: 0,
    })
}

#[cfg(test)]
mod tests;
