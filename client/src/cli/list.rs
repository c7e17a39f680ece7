//! `latchkey list`: names only.

use super::failure::Failure;
use super::sink::to_stdout;
use super::{Reach, block_on};
use crate::ListAsk;
use crate::protocol::LIST_LIMIT;
use clap::builder::NonEmptyStringValueParser;
use std::process::ExitCode;

/// Print the names of the secrets that this pod's role may list
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// List only names that begin with this
    #[arg(value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// Backend to list instead of the agent's default
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    backend: Option<String>,
    /// Print them as a JSON array
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let client = reach.client()?;
        block_on(async {
            let mut all = Vec::new();
            let mut cursor: Option<String> = None;
            loop {
                let ask = ListAsk {
                    backend: self.backend.as_deref(),
                    limit: Some(LIST_LIMIT),
                    cursor: cursor.as_deref(),
                };
                let page = client.list(&ask).await?;
                let mut names = page.secrets;
                names.retain(|name| name.starts_with(&self.prefix));
                if self.json {
                    all.append(&mut names);
                } else {
                    // Page by page: the first names appear before the last are known.
                    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
                    to_stdout(lines.as_bytes())?;
                }
                if page.next.is_some() && page.next == cursor {
                    return Err(Failure::other(
                        "the list does not end: the vault's page names itself as the next one",
                    ));
                }
                match page.next {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
            if self.json {
                let mut text = serde_json::to_string(&all)
                    .map_err(|error| Failure::other(error.to_string()))?;
                text.push('\n');
                to_stdout(text.as_bytes())?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
