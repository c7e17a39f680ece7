//! A real password store: this machine's `pass` and gpg, with a throw-away key.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A password store, its keys and its gpg-agent, which all end with it.
#[derive(Debug)]
pub struct PasswordStore {
    directory: TempDir,
    uid: u32,
}

// === impl PasswordStore ===

impl PasswordStore {
    /// A store with one key, which is not locked.
    ///
    /// # Errors
    ///
    /// If `pass` or gpg is missing, or fails.
    pub fn create() -> io::Result<Self> {
        Self::create_for(nix::unistd::geteuid().as_raw())
    }

    /// A store that belongs to `uid`.
    ///
    /// # Errors
    ///
    /// If `pass` or gpg is missing, or fails.
    pub fn create_for(uid: u32) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("pass-").tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let store = Self { directory, uid };
        for path in [store.home(), store.gnupg_home()] {
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            chown(&path, Some(uid), Some(uid))?;
        }
        store.add_key("open@example.org", "")?;
        store.run("pass", &["init", "open@example.org"], b"")?;
        Ok(store)
    }

    /// Makes a key that is locked by `passphrase`, unless that is empty.
    ///
    /// # Errors
    ///
    /// If gpg fails.
    pub fn add_key(&self, name: &str, passphrase: &str) -> io::Result<()> {
        let arguments = [
            "--batch",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            passphrase,
            "--quick-generate-key",
            name,
            "future-default",
            "default",
            "never",
        ];
        self.run("gpg", &arguments, b"")
    }

    /// Puts an entry into the store, or replaces it.
    ///
    /// # Errors
    ///
    /// If `pass` fails.
    pub fn insert(&self, name: &str, entry: &[u8]) -> io::Result<()> {
        self.run("pass", &["insert", "--multiline", "--force", name], entry)
    }

    /// Runs `pass` with the arguments.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn pass(&self, arguments: &[&str]) -> io::Result<()> {
        self.run("pass", arguments, b"")
    }

    /// Makes gpg-agent forget what it has unlocked.
    ///
    /// # Errors
    ///
    /// If gpg-agent cannot be stopped.
    pub fn lock(&self) -> io::Result<()> {
        self.run("gpgconf", &["--kill", "gpg-agent"], b"")
    }

    /// Deletes all secret keys.
    ///
    /// # Errors
    ///
    /// If gpg-agent cannot be stopped, or they are gone already.
    pub fn lose_keys(&self) -> io::Result<()> {
        self.lock()?;
        fs::remove_dir_all(self.gnupg_home().join("private-keys-v1.d"))
    }

    /// The home of the store's user, in which `pass` finds the store.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Where the store is.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.home().join(".password-store")
    }

    /// Where gpg has its keys.
    #[must_use]
    pub fn gnupg_home(&self) -> PathBuf {
        self.directory.path().join("gnupg")
    }

    /// The directory that holds the store and everything else here.
    #[must_use]
    pub fn beside(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> io::Result<()> {
        use std::io::Write as _;
        let mut command = if self.uid == nix::unistd::geteuid().as_raw() {
            Command::new(program)
        } else {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={}", self.uid))
                .arg(format!("--regid={}", self.uid))
                .arg("--clear-groups")
                .arg(program);
            command
        };
        let mut child = command
            .args(arguments)
            .env("HOME", self.home())
            .env("GNUPGHOME", self.gnupg_home())
            .env_remove("PASSWORD_STORE_DIR")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot run {program}: {error}"))
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            Ok(())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(format!(
                "{program} {arguments:?}: {}: {said}",
                output.status
            )))
        }
    }
}

impl Drop for PasswordStore {
    fn drop(&mut self) {
        // Otherwise gpg-agent would live on.
        let _ = self.lock();
    }
}
