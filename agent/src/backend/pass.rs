//! The standard Unix password store, read by the `pass` program: for development on a laptop.
//!
//! What a name leads to is checked first, so that `pass` is run for a file in the store and for nothing else. It gets
//! the name as the only argument that a caller chooses, three variables of the agent's environment, and a time limit,
//! after which it is killed with everything it has started. It never asks anyone for a passphrase: a request must not
//! make a prompt appear.

use super::beneath::{ATTEMPTS, Folder, VALUE_LIMIT};
use super::program::{self, Ended, RunError};
use super::store::{Settings, Store, Stored, Value};
use super::{BackendError, Fault};
use crate::config::PassConfig;
use crate::error::RequestError;
use crate::role::Role;
use crate::secret::SecretName;
use async_trait::async_trait;
use latchkey_client::protocol::Code;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How many programs run at once; more would only wait for gpg-agent, which does one thing at a time.
const AT_ONCE: usize = 4;

/// Options for gpg, passed on by `pass`: to ask nobody, and to report on stderr in words that are the same in every
/// language (gpg(1), doc/DETAILS of GnuPG).
const GPG_OPTIONS: &str = "--batch --no-tty --pinentry-mode error --status-fd 2";

/// The password store.
#[derive(Debug)]
pub(super) struct Pass {
    first_line: bool,
    environment: Vec<(String, String)>,
    program: PathBuf,
    places: Semaphore,
}

// === impl Pass ===

impl Pass {
    /// Opens the store of the settings of `backends.<name>`.
    ///
    /// # Errors
    ///
    /// If `pass` or the store is missing, naming the key.
    pub(super) fn open(name: &str, config: &PassConfig) -> Result<Stored<Self>, String> {
        let program = find_program(config).ok_or_else(|| {
            format!(
                "backends.{name}: the program pass is not in PATH: install it (apt-get install pass)"
            )
        })?;
        let pass = Self {
            first_line: config.first_line,
            environment: config.environment.clone(),
            program,
            places: Semaphore::new(AT_ONCE),
        };
        let settings = Settings {
            folder: config.store.clone(),
            ending: ".gpg",
            prefix: config.prefix.clone(),
            per_namespace: config.per_namespace,
            timeout: config.timeout,
        };
        let key = format!("backends.{name}.store");
        Stored::open(settings, pass, &key, "make one with pass init")
    }

    /// Returns what `pass` shows under the name.
    async fn show(
        &self,
        settings: &Settings,
        name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, BackendError> {
        let limit = settings.timeout;
        let Ok(Ok(_place)) = timeout(limit, self.places.acquire()).await else {
            return Err(failure(RequestError::unavailable(
                "too many secrets are read from the password store at once; try again",
            )));
        };
        let mut command = Command::new(&self.program);
        command
            .args(["show", "--", name])
            .env_clear()
            .envs(self.environment.iter().cloned())
            .env("LC_ALL", "C.UTF-8")
            .env("PASSWORD_STORE_DIR", &settings.folder)
            .env("PASSWORD_STORE_GPG_OPTS", GPG_OPTIONS)
            .current_dir("/");
        let ended = program::run(command, limit, VALUE_LIMIT).await;
        match ended {
            Ok(ended) if ended.status.success() && !is_cut_off(&ended) => Ok(ended.stdout),
            Ok(ended) => Err(why_not(&ended)),
            Err(RunError::TooLate) => Err(failure(RequestError::unavailable(
                "pass does not answer in time; try again",
            ))),
            Err(RunError::TooLong) => Err(BackendError::from(RequestError::new(
                Code::TooLarge,
                format!("the secret has more than {} bytes", VALUE_LIMIT),
            ))),
            Err(RunError::Io(error)) => {
                let told =
                    RequestError::unavailable("pass cannot be run; the agent's log says why");
                let told = match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                        told.until_mended()
                    }
                    _ => told,
                };
                Err(failure(told.because(&error)))
            }
        }
    }
}

#[async_trait]
impl Store for Pass {
    fn describe(&self, folder: &Path) -> String {
        let store = folder.display();
        // Reading does not need one: its folders may have their own, and pass only asks for it when something is
        // inserted.
        if folder.join(".gpg-id").exists() {
            format!("the password store {store}")
        } else {
            format!("the password store {store}, which has no .gpg-id: pass init KEY makes it")
        }
    }

    async fn read(
        &self,
        settings: &Settings,
        role: &Role,
        name: &SecretName,
    ) -> Result<Value, BackendError> {
        let path = settings.path_of(role, name);
        let name = format!("{}{name}", role.prefix);
        let mut version = version_at(settings, &path).await?;
        for _ in 0..ATTEMPTS {
            let shown = self.show(settings, &name).await;
            let after = version_at(settings, &path).await?;
            // Otherwise the value may be of another version than this one, and an error may be of no version at all.
            if after == version {
                let mut value = shown?;
                if self.first_line {
                    let line = value.split(|byte| *byte == b'\n').next();
                    let length = line.map_or(0, <[u8]>::len);
                    value.truncate(length);
                }
                return Ok(Value {
                    bytes: value,
                    version,
                });
            }
            version = after;
        }
        Err(failure(RequestError::unavailable(
            "the entry changes all the time; try again",
        )))
    }
}

/// Returns the version of the file at `path`, if it is a secret's and nobody else can have written it.
async fn version_at(settings: &Settings, path: &Path) -> Result<Arc<str>, BackendError> {
    let path = path.to_owned();
    let work = move |folder: &Folder| {
        let found = folder.find(&path)?;
        folder.must_own(&found)?;
        Ok(found.version())
    };
    settings.visit(work).await
}

/// Whether gpg has decrypted nothing at all, of which its exit status says nothing: a file that is cut off within its
/// session key is no error to gpg. An entry that is empty is a plaintext of no bytes. Programs in `pass`' place that
/// report nothing are believed.
fn is_cut_off(ended: &Ended) -> bool {
    let nothing = ended.status.success() && ended.stdout.is_empty();
    nothing && says(ended, "") && !says(ended, "PLAINTEXT ")
}

/// Whether gpg has reported this (doc/DETAILS of GnuPG, format of the status fd output).
fn says(ended: &Ended, report: &str) -> bool {
    let mut reports = ended
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("[GNUPG:] "));
    reports.any(|other| other.starts_with(report))
}

/// Returns the error for what `pass` and gpg said. Their own words go to the agent's log alone.
fn why_not(ended: &Ended) -> BackendError {
    let said = |report: &str| says(ended, report);
    let failed = said("DECRYPTION_FAILED");
    let (fault, told) = if ended.stderr.contains("is not in the password store") {
        (
            Fault::Call,
            RequestError::new(Code::NotFound, "there is no such secret"),
        )
    } else if said("NODATA")
        || is_cut_off(ended)
        // The key was used, so what follows its use is at fault.
        || failed && (said("DECRYPTION_KEY") || said("DECRYPTION_INFO"))
    {
        (
            Fault::Call,
            RequestError::unavailable(
                "the secret's file in the password store is damaged, or no gpg message: write it again",
            )
            .until_mended(),
        )
    } else if failed && said("KEY_CONSIDERED") {
        // gpg has the key and may not use it.
        (
            Fault::Unreachable,
            RequestError::unavailable(
                "the secret's gpg key is locked: unlock it in gpg-agent, for example with \
                 pass show in a terminal, and try again",
            )
            .until_mended(),
        )
    } else if failed && said("NEED_PASSPHRASE_SYM") {
        (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the secret is encrypted with a passphrase of its own (gpg --symmetric): encrypt it to the key of the \
                 agent's user, as pass insert does",
            ),
        )
    } else if failed {
        (
            Fault::Refused,
            RequestError::new(
                Code::Denied,
                "the agent's user has no gpg key that the secret is encrypted to",
            ),
        )
    } else {
        (
            Fault::Call,
            RequestError::unavailable("pass cannot show the secret; the agent's log has its words"),
        )
    };
    BackendError::new(fault, told.because(ended))
}

fn failure(error: RequestError) -> BackendError {
    BackendError::new(Fault::Unreachable, error)
}

/// Finds the program by its name, once: a PATH that changes later has no effect.
fn find_program(config: &PassConfig) -> Option<PathBuf> {
    let (_, path) = config.environment.iter().find(|(name, _)| name == "PATH")?;
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("pass"))
        .find(|file| {
            file.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What `pass` leaves when gpg has reported this.
    fn ended(program: &str, stdout: &str, stderr: &str) -> Ended {
        Ended {
            status: Command::new(program).status().expect("it runs"),
            stdout: Zeroizing::new(stdout.into()),
            stderr: stderr.to_owned(),
        }
    }

    #[test]
    fn what_a_store_lacks_is_said_beside_it() {
        let folder = tempfile::tempdir().expect("a directory");
        let pass = Pass {
            first_line: true,
            environment: Vec::new(),
            program: PathBuf::new(),
            places: Semaphore::new(AT_ONCE),
        };
        let described = || pass.describe(folder.path());
        assert!(described().contains("no .gpg-id: pass init KEY"));
        std::fs::write(folder.path().join(".gpg-id"), "key").expect("a file");
        assert!(!described().contains(".gpg-id"));
    }

    #[test]
    fn a_cut_off_entry_is_told_from_an_empty_one_and_silence_is_believed() {
        let used = "[GNUPG:] ENC_TO 1 1 0\n[GNUPG:] DECRYPTION_KEY 1 1 u\n";
        let empty = format!("{used}[GNUPG:] PLAINTEXT 62 1 \n[GNUPG:] PLAINTEXT_LENGTH 0\n");
        for (stdout, stderr, cut_off) in [
            ("", "[GNUPG:] NODATA 3\n", true),
            ("", "[GNUPG:] ENC_TO FFFFFFFFFFFFFFFF 255 0\n", true),
            ("", used, true),
            ("", &empty, false),
            ("hunter2\n", used, false),
            ("", "", false),
            ("", "gopass: done\n", false),
        ] {
            let ended = ended("true", stdout, stderr);
            assert_eq!(is_cut_off(&ended), cut_off, "{stderr}");
            if cut_off {
                let error = why_not(&ended).error;
                assert!(error.message.contains("is damaged"), "{stderr}: {error}");
            }
        }
    }

    #[test]
    fn each_failure_of_gpg_says_what_to_do_and_whether_it_passes_by_itself() {
        let failed = "[GNUPG:] BEGIN_DECRYPTION\n[GNUPG:] DECRYPTION_FAILED\n";
        let considered = format!("[GNUPG:] KEY_CONSIDERED 1 0\n{failed}");
        for (stderr, code, told, wait) in [
            (considered.clone(), Code::Unavailable, "is locked", Some(60)),
            (
                "[GNUPG:] NODATA 3\n".to_owned(),
                Code::Unavailable,
                "is damaged",
                Some(60),
            ),
            (
                format!("[GNUPG:] DECRYPTION_KEY 1 1 u\n{considered}"),
                Code::Unavailable,
                "is damaged",
                Some(60),
            ),
            (
                format!("[GNUPG:] NEED_PASSPHRASE_SYM 9 3 2\n{failed}"),
                Code::Denied,
                "a passphrase of its own",
                None,
            ),
            (failed.to_owned(), Code::Denied, "no gpg key", None),
            (
                "gpg: out of memory\n".to_owned(),
                Code::Unavailable,
                "the agent's log",
                Some(1),
            ),
        ] {
            let error = why_not(&ended("false", "", &stderr)).error;
            assert_eq!(error.code, code, "{stderr}");
            assert!(error.message.contains(told), "{stderr}: {error}");
            let after = error.retry_after.map(|wait| wait.as_secs());
            assert_eq!(after, wait, "{stderr}");
        }
    }
}
