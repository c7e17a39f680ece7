//! `latchkey whoami`: who the agent says this is.

use super::failure::Failure;
use super::sink::to_stdout;
use super::{Reach, block_on};
use std::fmt::Write as _;
use std::process::ExitCode;

/// Print who the agent says this pod is, and which roles it would assume
#[derive(Debug, clap::Args)]
pub(crate) struct Whoami {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

impl Whoami {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let client = reach.client()?;
        let who = block_on(async { Ok(client.identity().await?) })?;
        let mut text = String::new();
        if self.json {
            text = serde_json::to_string(&who).map_err(|e| Failure::other(e.to_string()))?;
            text.push('\n');
        } else {
            let network = match who.host_network {
                true => "the node's",
                // A sidecar knows no node, and cannot tell whose network it is in.
                false if who.node.is_empty() => "",
                false => "its own",
            };
            let rows = if who.pod.is_empty() {
                // One's own machine has no pods.
                vec![
                    ("namespace", who.namespace),
                    ("service account", who.service_account),
                ]
            } else {
                vec![
                    ("pod", format!("{}/{}", who.namespace, who.pod)),
                    ("pod uid", who.pod_uid),
                    ("service account", who.service_account),
                    ("container", who.container_id),
                    ("network", network.to_owned()),
                    ("node", who.node),
                ]
            };
            let roles = who.roles.into_iter().map(|(backend, role)| {
                let role = role.unwrap_or_else(|| "none".to_owned());
                (format!("role for {backend}"), role)
            });
            let rows = rows
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name.to_owned(), value));
            for (name, value) in rows.chain(roles) {
                let _ = writeln!(text, "{name:<16} {value}");
            }
        }
        to_stdout(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}
