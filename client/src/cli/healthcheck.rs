//! `latchkey healthcheck`: for probes that run a command.

use super::failure::{Failure, UNAVAILABLE};
use super::{Reach, block_on};
use std::process::ExitCode;

/// Ends with 0 if the agent of this node is ready; for exec probes
///
/// It asks the agent about itself: no identity is looked at, and no vault is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Healthcheck {}

impl Healthcheck {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let client = reach.client();
        let health = block_on(async { Ok(client.readiness().await?) })?;
        if health.missing.is_empty() && health.status == "healthy" {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::new(
            UNAVAILABLE,
            format!(
                "the agent is not ready: it waits for {}",
                health.missing.join(", ")
            ),
        ))
    }
}
