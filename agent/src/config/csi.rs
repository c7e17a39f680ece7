//! Delivery by CSI: whether, and where.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::Reader;
use super::settings::Value;
use super::value::{self, Wrong};

/// The longest directory, in bytes: a pod's socket is 34 bytes longer, and a socket's path has fewer than 100.
const MAX_DIRECTORY: usize = 65;

/// Delivery of the socket and of tokens by CSI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Csi {
    /// Whether pods get it.
    pub enabled: bool,
    /// The directory of the CSI plugin, as the mounter has it.
    pub directory: PathBuf,
    /// How often the files of volumes are refreshed.
    pub refresh: Duration,
}

impl Csi {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let default = Self::default();
        Self {
            enabled: reader.read("csi.enabled", value::boolean, default.enabled),
            directory: reader.read("csi.directory", directory, default.directory),
            refresh: reader.read(
                "csi.refresh",
                value::duration(Duration::from_secs(1)..=Duration::from_secs(3600)),
                default.refresh,
            ),
        }
    }
}

impl Default for Csi {
    fn default() -> Self {
        Self {
            enabled: false,
            directory: PathBuf::from("/var/lib/kubelet/plugins/csi.latchkey.dev"),
            refresh: Duration::from_secs(60),
        }
    }
}

fn directory(value: &Value) -> Result<PathBuf, Wrong> {
    let remedy = "write the directory that the mounter has too, such as \
                  \"/var/lib/kubelet/plugins/csi.latchkey.dev\"";
    let path = value::text(value, remedy)?;
    let too_long = format!("longer than {MAX_DIRECTORY} bytes");
    let wrong = if !path.starts_with('/') {
        "no absolute path"
    } else if path.len() > MAX_DIRECTORY {
        &too_long
    } else if path.chars().any(char::is_control) || !value::has_plain_parts(path) {
        "a path with empty parts, \".\", \"..\" or control characters"
    } else {
        return Ok(PathBuf::from(path));
    };
    Err(Wrong::text(path, wrong, remedy))
}

/// The names of RuntimeClasses: DNS subdomains.
pub(super) fn runtime_classes(value: &Value) -> Result<Vec<String>, Wrong> {
    let remedy = "write a list of names of RuntimeClasses, such as [\"gvisor\"]";
    value::list(value, remedy, |name| {
        let right = value::is_subdomain(name);
        Wrong::unless(right, name, "no name of a RuntimeClass", remedy)
    })
}
