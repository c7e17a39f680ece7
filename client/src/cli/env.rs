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

/// Prints secrets as variables: dotenv, JSON, or what a shell evaluates
///
/// In a script: env=$(latchkey env prod/db-password=DB_PASSWORD --format shell) || exit; eval "$env"; unset env
#[derive(Debug, clap::Args)]
pub(crate) struct Env {
    /// Secrets, each with the variable it is for [default: the name in capitals, _ for the rest]
    #[arg(value_name = "NAME[=VAR]", required = true)]
    names: Vec<Wanted>,
    /// A backend other than the agent's default one, for all of them
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    backend: Option<String>,
    /// How they are written
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
