//! `latchkey completions`: what a shell needs to complete the command line.

use super::Arguments;
use super::failure::Failure;
use super::sink::to_stdout;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::process::ExitCode;

/// Print a completion script for a shell
///
/// For bash: latchkey completions bash > /etc/bash_completion.d/latchkey
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut Arguments::command(),
            "latchkey",
            &mut script,
        );
        to_stdout(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
