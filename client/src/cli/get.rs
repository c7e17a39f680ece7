//! `latchkey get`: one secret.

use super::failure::Failure;
use super::sink::Sink;
use super::{Reach, block_on};
use crate::protocol::{Encoding, SecretRef};
use crate::{Ask, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::builder::NonEmptyStringValueParser;
use std::process::ExitCode;
use zeroize::Zeroizing;

/// Print one secret
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// The secret's name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Print only this member of a JSON secret; with a leading /, it is a JSON pointer
    #[arg(long, value_name = "K", value_parser = NonEmptyStringValueParser::new())]
    key: Option<String>,
    /// Version to read instead of the latest
    #[arg(long, value_name = "V", conflicts_with = "stage", value_parser = NonEmptyStringValueParser::new())]
    version: Option<String>,
    /// Stage to read instead of the latest, such as AWSPREVIOUS
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    stage: Option<String>,
    /// Backend to read from instead of the agent's default
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    backend: Option<String>,
    /// Bypass the agent's cache
    #[arg(long)]
    fresh: bool,
    /// Print name, value, version and backend as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sink: Sink,
}

impl Get {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let client = reach.client()?;
        let ask = Ask {
            name: &self.name,
            backend: self.backend.as_deref(),
            version: self.version.as_deref(),
            stage: self.stage.as_deref(),
            key: self.key.as_deref(),
            fresh: self.fresh,
        };
        let secret = block_on(async { Ok(client.read(&ask).await?) })
            .map_err(|failure| failure.of(&self.name))?;
        if self.json {
            self.sink.write(&json(&secret)?)?;
        } else {
            self.sink.write_value(secret.value.expose())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The secret in the shape of the agent's own answer.
fn json(secret: &Secret) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let encoded;
    let (value, encoding) = match secret.value.expose_text() {
        Some(text) => (text, None),
        None => {
            encoded = Zeroizing::new(BASE64.encode(secret.value.expose()));
            (encoded.as_str(), Some(Encoding::Base64))
        }
    };
    let printed = SecretRef {
        name: &secret.name,
        value,
        encoding,
        version: &secret.version,
        backend: &secret.backend,
    };
    let mut text = Zeroizing::new(Vec::new());
    serde_json::to_writer(&mut *text, &printed)
        .map_err(|error| Failure::other(error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
