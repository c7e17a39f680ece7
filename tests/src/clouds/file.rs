//! A folder of files, in which each namespace has the folder of its name.

use async_trait::async_trait;
use std::any::Any;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Cloud, Logged, Trouble};
use crate::agent::AgentSettings;
use crate::sandbox::{Sandbox, password};

#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn create(sandbox: &Sandbox) -> io::Result<Self> {
        let folder = sandbox.directory().join("files");
        make(&folder)?;
        Ok(Self { folder })
    }

    fn away(&self) -> PathBuf {
        self.folder.with_extension("away")
    }
}

#[async_trait]
impl Cloud for Files {
    fn settings(&self, settings: AgentSettings) -> AgentSettings {
        settings
            .without("backends.aws")
            .set("default_backend", "file")
            .set("backends.file.path", self.folder.display())
    }

    fn namespace(&self, sandbox: &Sandbox, name: &str) {
        // Its account names no role: a folder needs none.
        sandbox.namespace(name, &[]);
        let secret = format!("{name}/database-password");
        self.put(&secret, password(name).as_bytes());
    }

    fn impostor(&self, sandbox: &Sandbox, name: &str, of: &str) {
        impostor(sandbox, name, of);
    }

    fn put(&self, name: &str, value: &[u8]) -> Option<String> {
        let path = self.folder.join(name);
        let parent = path.parent().expect("it is in the folder");
        let between = parent.strip_prefix(&self.folder).expect("it is in it");
        let mut made = self.folder.clone();
        for part in between {
            made.push(part);
            make(&made).expect("the folder is ours");
        }
        let new = path.with_extension("new");
        fs::write(&new, value).expect("the folder is ours");
        fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).expect("it is ours");
        fs::rename(new, path).expect("the folder is ours");
        None
    }

    fn trouble(&self, _: Trouble) -> Option<Box<dyn Any + Send>> {
        None
    }

    async fn reachable(&self, reachable: bool) -> io::Result<()> {
        match reachable {
            true => fs::rename(self.away(), &self.folder),
            false => fs::rename(&self.folder, self.away()),
        }
    }

    fn expire_sessions(&self) -> bool {
        false
    }

    fn revoke(&self, _: &str) -> bool {
        false
    }

    fn previous_stage(&self) -> Option<&'static str> {
        None
    }

    fn log(&self) -> Vec<Logged> {
        Vec::new()
    }
}

/// A namespace that asks for another's folder.
pub(super) fn impostor(sandbox: &Sandbox, name: &str, of: &str) {
    let prefix = format!("{of}/");
    sandbox.namespace(name, &[("latchkey.dev/prefix", &prefix)]);
}

fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, PermissionsExt::from_mode(0o700))
}
