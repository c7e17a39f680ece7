//! `latchkey env`: secrets as lines, for programs that set variables from a file.

mod format;

use super::failure::Failure;
use super::sink::Sink;
use super::variables::{Secrets, Wanted};
use super::{Reach, block_on};
use clap::builder::NonEmptyStringValueParser;
use format::Format;
use std::process::ExitCode;
use zeroize::Zeroizing;

/// Print secrets as variables: dotenv, JSON, or shell code
///
/// In a script: env=$(latchkey env prod/db-password=DB_PASSWORD --format shell) || exit; eval "$env"; unset env
#[derive(Debug, clap::Args)]
pub(crate) struct Env {
    /// Secrets, each with its variable [default: the name in capitals, with _ for other characters]
    #[arg(value_name = "NAME[=VAR]", required = true)]
    names: Vec<Wanted>,
    /// Backend to read them from instead of the agent's default
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    backend: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Dotenv)]
    format: Format,
    #[command(flatten)]
    sink: Sink,
}

impl Env {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        // Checked first: what cannot be written is not read.
        self.format.check(&self.names)?;
        let client = reach.client()?;
        let secrets = block_on(Secrets::read(&client, self.backend.as_deref(), &self.names))?;
        let mut text = Zeroizing::new(Vec::new());
        self.format
            .write(&mut text, secrets.variables(&self.names))?;
        self.sink.write(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
