//! `latchkey doctor`: why there is no secret, and what to type next.

mod inside;
mod outside;
mod place;
mod report;
mod socket;

use super::failure::Failure;
use super::sink::to_stdout;
use super::{Reach, block_on};
use clap::builder::NonEmptyStringValueParser;
use report::Report;
use std::process::ExitCode;

/// Lists the agents: a pod does not know its node's name before the agent says it.
const AGENTS: &str = "kubectl -n latchkey get pods -l app.kubernetes.io/component=agent -o wide";

/// The log of the agent in question.
const AGENTS_LOG: &str =
    "kubectl -n latchkey logs -c agent POD, which is the one on this pod's node";

/// Find out why this pod gets no secret, and what to do about it
///
/// Inside a pod it follows the path of a request: the socket, the agent, who this is, its role, the exchange in the
/// cloud, and the secret. With --pod it examines a pod from a workstation, using kubectl.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Secret to read at the end; its value is not shown
    #[arg(conflicts_with = "pod", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Backend to check instead of the agent's default
    #[arg(long, conflicts_with = "pod", value_parser = NonEmptyStringValueParser::new())]
    backend: Option<String>,
    /// Examine this pod from here, using kubectl
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = outside::PodName::parse)]
    pod: Option<outside::PodName>,
    /// Context for kubectl
    #[arg(long, requires = "pod")]
    context: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let report = match &self.pod {
            Some(pod) => outside::examine(pod, self.context.as_deref())?,
            None => block_on(async {
                let (name, backend) = (self.name.as_deref(), self.backend.as_deref());
                Ok(inside::examine(&reach.client()?, name, backend).await)
            })?,
        };
        self.print(&report)?;
        Ok(ExitCode::from(report.exit()))
    }

    fn print(&self, report: &Report) -> Result<(), Failure> {
        if self.json {
            return to_stdout(report.json().as_bytes());
        }
        report.print().map_err(|error| Failure::stdout(&error))
    }
}
