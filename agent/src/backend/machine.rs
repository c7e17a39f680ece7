//! The credentials of the machine itself, outside a cluster: what a cloud's own tools would use here.
//!
//! They are looked for in a separate process, this very program as `latchkey-agent credentials`. What an SDK starts on
//! the way (a task that renews forever, a call without a deadline, a program of the user's that hangs) ends with that
//! process, which has a time limit. Nothing is kept beyond the session that is made with them.

use super::program::{self, Ended, RunError};
use super::{BackendError, aws, azure, gcp};
use crate::config;
use crate::error::RequestError;
use clap::Subcommand;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::process::Command;
use zeroize::Zeroizing;

/// How long credentials are used that do not say when they expire.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5 * 60);

/// The message to a caller if the machine's credentials are over.
const EXPIRED: &str =
    "this machine's credentials have expired: sign in again, unless its clock is ahead";

/// The maximum size of credentials, in bytes.
const SIZE: usize = 64 << 10;

/// Hosts that no proxy may be used for: this machine, and the services that give machines their credentials in clear
/// text.
const METADATA: &str = "localhost,127.0.0.1,::1,169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,fd00:ec2::23,metadata.google.internal";

/// Whose credentials are looked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Source {
    /// By the SDK's default chain: environment, profile (also with `credential_process`), web identity, container,
    /// instance.
    Aws {
        /// The region of calls on the way.
        #[arg(long)]
        region: String,
    },
    /// A client secret in the environment, else the developer's own tools, else the machine's managed identity.
    Azure {
        /// The URL of Entra ID.
        #[arg(long)]
        authority: String,
        /// The client id of one of the machine's managed identities: no other credentials will do.
        #[arg(long)]
        client: Option<String>,
        /// What the token is for.
        #[arg(long)]
        scope: String,
    },
    /// By Application Default Credentials: `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's own, the metadata server.
    Gcp,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoCredentials {
    /// Those that were found have expired.
    #[error("what was found has expired")]
    Expired,
    /// What the process wrote cannot be used. It is not repeated.
    #[error("what was found cannot be used")]
    Garbage,
    /// The process could not be run.
    #[error("they cannot be looked for: {0}")]
    Io(#[from] io::Error),
    /// The process did not end in time, and was killed.
    #[error("what makes them does not answer in time")]
    Late,
    /// There are none; the process says why.
    #[error("{0}")]
    None(Ended),
}

/// Whether credentials that end at `ends`, in seconds of Unix time, are still good.
pub(super) fn must_last(ends: i64) -> Result<(), NoCredentials> {
    if ends > crate::time::now().as_second() {
        Ok(())
    } else {
        Err(NoCredentials::Expired)
    }
}

// === impl NoCredentials ===

impl NoCredentials {
    /// Returns the error for the caller: `hint` says what to do.
    pub(super) fn told(&self, hint: &'static str) -> BackendError {
        let told = RequestError::unavailable(hint);
        let told = match self {
            Self::Expired => RequestError::unavailable(EXPIRED),
            Self::Garbage => told.until_mended(),
            // Somebody has to sign in, or the machine is only starting: its metadata service may not be there yet.
            Self::None(_) | Self::Io(_) | Self::Late => told,
        };
        BackendError::from(told).because(self)
    }
}

// === impl Source ===

impl Source {
    /// Looks for the credentials, in this process, and returns them as JSON.
    pub(crate) async fn find(self) -> Result<Zeroizing<String>, String> {
        let found = match self {
            Self::Aws { region } => serde_json::to_string(&aws::machine::find(region).await?),
            Self::Azure {
                authority,
                client,
                scope,
            } => {
                let found = azure::machine::find(&authority, client, &scope).await?;
                serde_json::to_string(&found)
            }
            Self::Gcp => serde_json::to_string(&gcp::machine::find().await?),
        };
        found.map(Zeroizing::new).map_err(|error| error.to_string())
    }
}

/// Runs the process that looks for the credentials of `source`, for at most `limit`, and reads what it found.
///
/// # Errors
///
/// If there are none.
pub(super) async fn ask<T: DeserializeOwned>(
    source: &[&str],
    limit: Duration,
) -> Result<T, NoCredentials> {
    // The program that is running, even if its file has been replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg("credentials").args(source);
    let direct = direct();
    command.env("NO_PROXY", &direct).env("no_proxy", &direct);
    match program::run(command, limit, SIZE).await {
        Ok(ended) if ended.status.success() => {
            serde_json::from_slice(&ended.stdout).map_err(|_| NoCredentials::Garbage)
        }
        Ok(ended) => Err(NoCredentials::None(ended)),
        Err(RunError::Io(error)) => Err(NoCredentials::Io(error)),
        Err(RunError::TooLate) => Err(NoCredentials::Late),
        Err(RunError::TooLong) => Err(NoCredentials::Garbage),
    }
}

/// Hosts to call without a proxy: those that the environment names, and those that give machines their credentials.
fn direct() -> String {
    let mut hosts = METADATA.to_owned();
    for (name, value) in config::environment() {
        let value = match &*name {
            "NO_PROXY" | "no_proxy" => &*value,
            // A metadata server elsewhere, with or without a port; AWS's as a URL.
            "GCE_METADATA_HOST" | "AWS_EC2_METADATA_SERVICE_ENDPOINT" => {
                let host = value.split_once("://").map_or(&*value, |(_, host)| host);
                host.split([':', '/']).next().unwrap_or_default()
            }
            _ => continue,
        };
        hosts = format!("{hosts},{value}");
    }
    hosts
}
