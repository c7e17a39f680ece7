//! The tokens of the agent's own pod, which the kubelet writes into files and renews there.
//!
//! They are read again for each exchange. A token is only offered to the audience that it names itself, so that a wrong
//! path cannot hand a cloud the pod's token for the API server.

use crate::error::RequestError;
use crate::secret::SubjectToken;
use nix::fcntl::OFlag;
use serde::Deserialize;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The maximum size of a token file, in bytes. A service account's token has about one KiB.
const TOKEN_LIMIT: usize = 16 * 1024;

/// What a token says about itself; the cloud verifies it, not the agent.
#[derive(Debug, Deserialize)]
struct Claims {
    aud: Audiences,
    exp: i64,
    sub: String,
}

/// One audience or several (RFC 7519 section 4.1.3).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

/// Returns the first token in `files` that was issued for `audience`.
///
/// # Errors
///
/// `unavailable`, saying which file is missing or wrong, or which audience is missing.
pub(crate) fn find(
    files: &[PathBuf],
    audience: &str,
    subject: &str,
) -> Result<SubjectToken, RequestError> {
    let mut failed = None;
    for file in files {
        let (token, claims) = match read(file) {
            Ok(found) => found,
            Err(error) => {
                failed.get_or_insert_with(|| {
                    RequestError::unavailable(format!(
                        "the pod's token in {} cannot be read",
                        file.display()
                    ))
                    .because(&error)
                });
                continue;
            }
        };
        if !claims.aud.contains(audience) {
            continue;
        }
        if claims.sub != subject {
            return Err(RequestError::unavailable(format!(
                "the token in {} is of {:?}, and the agent was told that it serves {subject:?}",
                file.display(),
                claims.sub
            ))
            .until_mended());
        }
        if claims.exp <= crate::time::now().as_second() {
            return Err(RequestError::unavailable(format!(
                "the token in {} has expired: the kubelet has not renewed it, or this node's clock is ahead",
                file.display()
            )));
        }
        return Ok(token);
    }
    Err(failed.unwrap_or_else(|| {
        RequestError::unavailable(format!(
            "the pod has no projected token for the audience {audience:?}: mount one, and name it in sidecar.tokens"
        ))
        .until_mended()
    }))
}

fn read(file: &Path) -> io::Result<(SubjectToken, Claims)> {
    // Allocated in full, because a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_LIMIT + 1));
    // Whatever else may be there, the agent's one thread must not wait for it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    file.take(TOKEN_LIMIT as u64 + 1)
        .read_to_string(&mut text)?;
    if text.len() > TOKEN_LIMIT {
        // A truncated token could still look like one.
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let token = SubjectToken::from(text.trim().to_owned());
    let claims = token
        .payload()
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .ok_or_else(|| io::Error::other("it is no JWT"))?;
    Ok((token, claims))
}

// === impl Audiences ===

impl Audiences {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use latchkey_client::protocol::Code;

    const SUBJECT: &str = "system:serviceaccount:test:app";
    const YEAR_2100: i64 = 4_102_444_800;

    fn file(directory: &tempfile::TempDir, audience: &str, sub: &str, exp: i64) -> PathBuf {
        let claims = serde_json::json!({"aud": [audience], "sub": sub, "exp": exp}).to_string();
        let token = format!("e30.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims));
        let path = directory.path().join(audience.replace(['/', ':'], "_"));
        std::fs::write(&path, token).expect("a file");
        path
    }

    /// How long the caller is told to wait, in seconds.
    fn waits(error: &RequestError) -> u64 {
        error.retry_after.expect("a time to come back").as_secs()
    }

    #[test]
    fn a_token_goes_to_the_audience_that_it_names_and_to_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let api_server = "https://kubernetes.default.svc";
        let files = [
            file(&directory, api_server, SUBJECT, YEAR_2100),
            file(&directory, "sts.amazonaws.com", SUBJECT, YEAR_2100),
        ];
        let token = find(&files, "sts.amazonaws.com", SUBJECT).expect("a token");
        let text = std::fs::read_to_string(&files[1]).expect("there");
        assert_eq!(token.expose(), text.trim());
        let error = find(&files[..1], "sts.amazonaws.com", SUBJECT).expect_err("no such token");
        assert!(error.message.contains("no projected token"), "{error}");
        assert_eq!(waits(&error), 60);
    }

    #[test]
    fn a_token_is_read_anew_each_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = [file(&directory, "a", SUBJECT, YEAR_2100)];
        let before = find(&files, "a", SUBJECT).expect("a token");
        file(&directory, "a", SUBJECT, YEAR_2100 + 1);
        let after = find(&files, "a", SUBJECT).expect("a token");
        assert_ne!(before.expose(), after.expose());
    }

    #[test]
    fn another_accounts_token_and_an_expired_one_are_not_offered() {
        let directory = tempfile::tempdir().expect("a directory");
        let other = "system:serviceaccount:prod:app";
        // A person corrects the one, and the kubelet the other.
        for (sub, exp, wait) in [(other, YEAR_2100, 60), (SUBJECT, 1, 1)] {
            let files = [file(&directory, "a", sub, exp)];
            let error = find(&files, "a", SUBJECT).expect_err("a wrong token");
            assert_eq!(error.code, Code::Unavailable);
            assert_eq!(waits(&error), wait, "{error}");
        }
    }

    #[test]
    fn a_token_file_that_is_too_long_is_not_offered_in_part() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = [file(&directory, "a", SUBJECT, YEAR_2100)];
        let text = std::fs::read_to_string(&files[0]).expect("there");
        // A long signature: even if some of it is cut off, the claims can still be read.
        let longest = text.trim().to_owned() + &"x".repeat(TOKEN_LIMIT - text.trim().len());
        std::fs::write(&files[0], &longest).expect("a file");
        let found = find(&files, "a", SUBJECT).expect("a token");
        assert_eq!(found.expose().len(), TOKEN_LIMIT);
        std::fs::write(&files[0], longest + "x").expect("a file");
        let error = read(&files[0]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let error = find(&files, "a", SUBJECT).expect_err("too long");
        assert_eq!(error.code, Code::Unavailable);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let error = find(&[path], "a", SUBJECT).expect_err("no file");
        assert_eq!(error.code, Code::Unavailable);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = find(&["/nowhere/token".into()], "a", SUBJECT).expect_err("no file");
        assert!(error.message.contains("/nowhere/token"), "{error}");
    }
}
