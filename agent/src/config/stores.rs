//! The sections of backends that are not clouds: `pass` and `file`.

use super::{
    reader::Reader,
    settings::Value,
    value::{self, MAX_PREFIX, Wrong},
};
use std::{path::PathBuf, time::Duration};

/// The only variables that `pass` and gpg inherit from the agent.
const VARIABLES: [&str; 3] = ["GNUPGHOME", "HOME", "PATH"];

/// The password store of the `pass` program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PassConfig {
    /// Where the store is.
    pub store: PathBuf,
    /// Whether a secret is only the first line of its entry.
    pub first_line: bool,
    /// Whether each namespace reads only its own folder.
    pub per_namespace: bool,
    /// Precedes every name in the store.
    pub prefix: String,
    /// The timeout of one read.
    pub timeout: Duration,
    /// The environment in which the programs run.
    pub environment: Vec<(String, String)>,
}

/// A folder of secrets, one file each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileConfig {
    /// The folder.
    pub path: PathBuf,
    /// Whether each namespace reads only its own folder.
    pub per_namespace: bool,
    /// Precedes every name in the folder.
    pub prefix: String,
    /// The timeout of one read.
    pub timeout: Duration,
}

// === impl PassConfig ===

impl PassConfig {
    pub(super) fn read(reader: &mut Reader, section: &str) -> Self {
        let key = |name: &str| format!("{section}.{name}");
        let mut store = reader.optional(&key("store"), &["PASSWORD_STORE_DIR"], path);
        if store.is_none() && !reader.has_fault(&key("store")) {
            store = reader
                .variable("HOME")
                .map(|home| PathBuf::from(home).join(".password-store"));
            if store.is_none() {
                reader.missing(
                    &key("store"),
                    "is empty, and neither PASSWORD_STORE_DIR nor HOME is set",
                    "write the path of the password store",
                );
            }
        }
        let variable = |name: &&str| Some(((*name).to_owned(), reader.variable(name)?.to_owned()));
        let environment = VARIABLES.iter().filter_map(variable).collect();
        Self {
            store: store.unwrap_or_default(),
            first_line: reader.read(&key("first_line"), value::boolean, true),
            per_namespace: reader.read(&key("per_namespace"), value::boolean, true),
            prefix: reader.read(&key("prefix"), prefix, String::new()),
            timeout: reader.read(&key("timeout"), value::call_timeout, Duration::from_secs(5)),
            environment,
        }
    }
}

// === impl FileConfig ===

impl FileConfig {
    pub(super) fn read(reader: &mut Reader, section: &str) -> Self {
        let key = |name: &str| format!("{section}.{name}");
        let folder = reader.optional(&key("path"), &[], path);
        if folder.is_none() {
            reader.missing(
                &key("path"),
                "is empty",
                "write the path of the folder of secrets",
            );
        }
        Self {
            path: folder.unwrap_or_default(),
            per_namespace: reader.read(&key("per_namespace"), value::boolean, true),
            prefix: reader.read(&key("prefix"), prefix, String::new()),
            timeout: reader.read(&key("timeout"), value::call_timeout, Duration::from_secs(3)),
        }
    }
}

/// An absolute path.
pub(super) fn path(value: &Value) -> Result<PathBuf, Wrong> {
    let remedy = "write an absolute path, such as \"/srv/secrets\"";
    let path = value::text(value, remedy)?;
    check_path(path).map(|()| PathBuf::from(path))
}

/// A list of absolute paths.
pub(super) fn paths(value: &Value) -> Result<Vec<PathBuf>, Wrong> {
    let remedy = "write a list of absolute paths, such as [\"/var/run/secrets/tokens/gcp\"]";
    let paths = value::list(value, remedy, check_path)?;
    Ok(paths.into_iter().map(PathBuf::from).collect())
}

fn check_path(path: &str) -> Result<(), Wrong> {
    let right = path.starts_with('/') && !path.chars().any(char::is_control);
    let remedy = "write an absolute path, such as \"/srv/secrets\"";
    Wrong::unless(right, path, "no absolute path", remedy)
}

/// What precedes every name in a folder of files.
fn prefix(value: &Value) -> Result<String, Wrong> {
    let remedy = "write up to 256 characters without //, and without a part that begins with a dot";
    let prefix = value::text(value, remedy)?;
    let is_part = |part: &str| !part.starts_with('.') && !part.is_empty();
    let trimmed = prefix.strip_suffix('/').unwrap_or(prefix);
    let right = prefix.is_empty()
        || (prefix.len() <= MAX_PREFIX
            && trimmed.split('/').all(is_part)
            && !prefix.starts_with('-')
            && !prefix.chars().any(|c| c == '\\' || c.is_control()));
    Wrong::unless(right, prefix, "no prefix", remedy)?;
    Ok(prefix.to_owned())
}
