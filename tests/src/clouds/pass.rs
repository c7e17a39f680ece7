//! The password store, with the real programs; a program in front of `pass` makes things go wrong.

use async_trait::async_trait;
use std::any::Any;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::file::impostor;
use super::{Cloud, Logged, Trouble};
use crate::agent::AgentSettings;
use crate::password_store::PasswordStore;
use crate::sandbox::{Sandbox, password};

/// Records its arguments, and does what the file `trouble` says, if there is one.
const PROGRAM: &str = r#"#!/bin/sh
here=${0%/*}
echo "pass $*" >>"$here/log"
case $(cat "$here/trouble" 2>/dev/null) in
  cut) pass=$(/usr/bin/pass "$@") && printf %.4s "$pass"; kill -9 $$ ;;
  garbage) echo '<html>502 Bad Gateway</html>' >&2; exit 1 ;;
  hang) exec sleep 1000 ;;
  truncated) /usr/bin/pass "$@" | head -c 4; exit 2 ;;
  *) exec /usr/bin/pass "$@" ;;
esac
"#;

#[derive(Debug)]
pub(super) struct Pass {
    store: PasswordStore,
}

/// Ends the trouble when it is dropped.
struct Told(PathBuf);

impl Pass {
    pub(super) fn create() -> io::Result<Self> {
        let store = PasswordStore::create()?;
        let programs = store.beside().join("bin");
        fs::create_dir(&programs)?;
        fs::write(programs.join("pass"), PROGRAM)?;
        fs::set_permissions(programs.join("pass"), PermissionsExt::from_mode(0o755))?;
        Ok(Self { store })
    }

    fn beside_the_program(&self, name: &str) -> PathBuf {
        self.store.beside().join("bin").join(name)
    }

    fn away(&self) -> PathBuf {
        self.store.home().join("away")
    }
}

#[async_trait]
impl Cloud for Pass {
    fn settings(&self, settings: AgentSettings) -> AgentSettings {
        let programs = self.store.beside().join("bin");
        settings
            .without("backends.aws")
            .set("default_backend", "pass")
            .set("backends.pass.timeout", "10s")
            .set("backends.pass.first_line", "false")
            .env("HOME", self.store.home().display())
            .env("GNUPGHOME", self.store.gnupg_home().display())
            .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
    }

    fn namespace(&self, sandbox: &Sandbox, name: &str) {
        sandbox.namespace(name, &[]);
        let secret = format!("{name}/database-password");
        self.put(&secret, password(name).as_bytes());
    }

    fn impostor(&self, sandbox: &Sandbox, name: &str, of: &str) {
        impostor(sandbox, name, of);
    }

    fn put(&self, name: &str, value: &[u8]) -> Option<String> {
        self.store
            .insert(name, value)
            .expect("pass takes the entry");
        None
    }

    fn trouble(&self, trouble: Trouble) -> Option<Box<dyn Any + Send>> {
        let word = match trouble {
            Trouble::Cut => "cut",
            Trouble::Garbage => "garbage",
            Trouble::Hang => "hang",
            Trouble::Echo
            | Trouble::Endless
            | Trouble::Misdirect
            | Trouble::SilentIssuer
            | Trouble::Slow
            | Trouble::Throttle(_) => return None,
            Trouble::Truncated => "truncated",
        };
        let file = self.beside_the_program("trouble");
        fs::write(&file, word).expect("the directory is ours");
        Some(Box::new(Told(file)))
    }

    async fn reachable(&self, reachable: bool) -> io::Result<()> {
        match reachable {
            true => fs::rename(self.away(), self.store.store()),
            false => fs::rename(self.store.store(), self.away()),
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
        let log = fs::read_to_string(self.beside_the_program("log")).unwrap_or_default();
        let call = |line: &str| Logged {
            line: line.to_owned(),
            // It has no other answer than a failed search.
            was_refused: false,
        };
        log.lines().map(call).collect()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
