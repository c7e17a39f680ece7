//! The strict fake AWS as a process of its own, for clusters that the test suite does not run in.
//!
//! It prints one line when it serves, with `--log-calls` one JSON line per call, and ends on SIGTERM or SIGINT.

use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Parser;
use serde::Deserialize;
use serde_json::Value;
use testkit::aws::{
    Behaviour, FakeAws, FakeAwsConfig, Fault, FaultGuard, RoleSpec, SecretInput, provider_arn,
};
use tokio::signal::unix::{SignalKind, signal};

/// Serves STS AssumeRoleWithWebIdentity and Secrets Manager reads as strictly as AWS does.
#[derive(Debug, Parser)]
#[command(name = "fake-aws")]
struct Arguments {
    /// Where to listen, over plain HTTP.
    #[arg(long, default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// The issuers, roles and secrets, as JSON.
    #[arg(long)]
    config: PathBuf,
    /// Writes every call to stdout, one JSON line each.
    #[arg(long)]
    log_calls: bool,
}

/// What the cloud contains; it does not change while it runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct World {
    /// The account of providers and secrets that name none.
    #[serde(default = "default_account")]
    account: String,
    /// Regions in addition to the usual ones.
    #[serde(default)]
    regions: Vec<String>,
    oidc_providers: Vec<Provider>,
    roles: Vec<RoleSpec>,
    #[serde(default)]
    secrets: Vec<Secret>,
    /// Secrets whose every read is throttled.
    #[serde(default)]
    throttled: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    /// The cluster's issuer URL, as its tokens' `iss` says it.
    issuer: String,
    client_ids: Vec<String>,
    /// A file with the issuer's JWK set, as from `kubectl get --raw /openid/v1/jwks`; relative to the config.
    jwks_file: PathBuf,
    account: Option<String>,
    #[serde(default = "default_partition")]
    partition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    region: String,
    name: String,
    account: Option<String>,
    /// A text value…
    value: Option<String>,
    /// … or a binary one, in base64.
    binary: Option<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let world = World::read(&arguments.config)?;
    // Before it says that it is ready, so that no later signal is lost.
    let (mut terminated, mut interrupted) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut config = FakeAwsConfig {
        listen: arguments.listen,
        account: world.account.clone(),
        echo_calls: arguments.log_calls,
        ..FakeAwsConfig::default()
    };
    config.regions.extend(world.regions.iter().cloned());
    let aws = FakeAws::start(config).await?;
    let folder = arguments
        .config
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned();
    let _faults = world.fill(&aws, &folder)?;
    writeln!(std::io::stdout(), "fake-aws serves on {}", aws.endpoint())?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

fn default_account() -> String {
    FakeAwsConfig::default().account
}

fn default_partition() -> String {
    "aws".to_owned()
}

impl World {
    fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(
            serde_json::from_slice(&text)
                .map_err(|error| format!("{}: {error}", path.display()))?,
        )
    }

    /// Fills the cloud. The returned guards keep reads throttled.
    fn fill(self, aws: &FakeAws, folder: &Path) -> Result<Vec<FaultGuard>, Box<dyn Error>> {
        for provider in self.oidc_providers {
            let path = folder.join(&provider.jwks_file);
            let text =
                std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let jwks: Value = serde_json::from_slice(&text)?;
            if testkit::jwt::KeySet::from_jwks(&jwks).is_empty() {
                return Err(format!("{}: no RSA signing key in it", path.display()).into());
            }
            let account = provider.account.as_deref().unwrap_or(&self.account);
            let arn = provider_arn(&provider.partition, account, &provider.issuer);
            let client_ids: Vec<&str> = provider.client_ids.iter().map(String::as_str).collect();
            aws.add_oidc_provider_at(&arn, &client_ids, &jwks);
        }
        for role in self.roles {
            let arn = role.arn.clone();
            aws.create_role(role)
                .map_err(|error| format!("role {arn}: {error}"))?;
        }
        for secret in self.secrets {
            let account = secret.account.as_deref().unwrap_or(&self.account);
            let value = match (secret.value, secret.binary) {
                (Some(text), None) => SecretInput::Text(text),
                (None, Some(binary)) => SecretInput::Binary(BASE64.decode(binary)?),
                _ => return Err(format!("secret {}: value or binary", secret.name).into()),
            };
            aws.put_secret_in_account(account, &secret.region, &secret.name, value);
        }
        let throttle = Fault::everywhere(Behaviour::Throttle(None));
        let guards = self.throttled.into_iter();
        Ok(guards
            .map(|name| aws.fault(throttle.clone().for_secret(name)))
            .collect())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
