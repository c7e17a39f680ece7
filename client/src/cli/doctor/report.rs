//! What was examined, and what was found: for a person, or as JSON.

use crate::cli::failure::{OTHER, UNAVAILABLE, USAGE, exit_of};
use crate::cli::terminal::{BAD, DIM, GOOD, in_one_line};
use crate::error::Refusal;
use serde::Serialize;
use std::io::{self, Write as _};

/// What was found, in the order of examination.
#[derive(Debug, Default)]
pub(super) struct Report {
    findings: Vec<Finding>,
    exit: u8,
}

/// One thing that was examined.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What was examined, in one word.
    step: &'static str,
    verdict: Verdict,
    /// What was found, in a word that stays the same; `None` if nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    /// What was found, for a person.
    text: String,
    /// What to do or to type next.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    next: Vec<String>,
    /// The id under which the agent's log says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

/// Whether it works.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but something is worth knowing.
    Note,
    /// It does not work.
    Fail,
}

// === impl Report ===

impl Report {
    /// Reports something that is as it should be.
    pub(super) fn ok(&mut self, step: &'static str, text: impl Into<String>) {
        self.add(step, Verdict::Ok, None, text.into());
    }

    /// Reports something that works, but is worth knowing.
    pub(super) fn note(
        &mut self,
        step: &'static str,
        cause: &'static str,
        text: impl Into<String>,
    ) -> &mut Finding {
        self.add(step, Verdict::Note, Some(cause), text.into())
    }

    /// Reports something that does not work.
    pub(super) fn fail(
        &mut self,
        step: &'static str,
        cause: &'static str,
        text: impl Into<String>,
    ) -> &mut Finding {
        if self.exit == 0 {
            self.exit = OTHER;
        }
        self.add(step, Verdict::Fail, Some(cause), text.into())
    }

    /// Reports that the agent is not there, or not for this process.
    pub(super) fn absent(
        &mut self,
        step: &'static str,
        cause: &'static str,
        text: impl Into<String>,
    ) -> &mut Finding {
        self.exit = UNAVAILABLE;
        self.fail(step, cause, text)
    }

    /// Reports that the command line asks for something impossible.
    pub(super) fn misused(&mut self, step: &'static str, cause: &'static str, text: String) {
        self.exit = USAGE;
        self.fail(step, cause, text);
    }

    /// Reports what the agent refused, in its own words; the exit code is the refusal's.
    pub(super) fn refused(
        &mut self,
        step: &'static str,
        cause: &'static str,
        refusal: &Refusal,
    ) -> &mut Finding {
        self.exit = exit_of(refusal.code);
        let finding = self.fail(step, cause, &refusal.message);
        if !refusal.request_id.is_empty() {
            finding.request_id = Some(refusal.request_id.clone());
        }
        finding
    }

    /// Whether something does not work.
    pub(super) fn has_failed(&self) -> bool {
        self.exit != 0
    }

    /// The command's exit code.
    pub(super) fn exit(&self) -> u8 {
        self.exit
    }

    pub(super) fn json(&self) -> String {
        let findings = &self.findings;
        let report = serde_json::json!({"healthy": !self.has_failed(), "findings": findings});
        format!("{report:#}\n")
    }

    pub(super) fn print(&self) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        for finding in &self.findings {
            let (colour, word) = match finding.verdict {
                Verdict::Ok => (GOOD, "ok"),
                Verdict::Note => (DIM, "note"),
                Verdict::Fail => (BAD, "FAIL"),
            };
            let Finding { step, text, .. } = finding;
            writeln!(out, "{colour}{word:<5}{colour:#}{step:<16}{text}")?;
            for next in &finding.next {
                writeln!(out, "{:<21}{DIM}>{DIM:#} {next}", "")?;
            }
            if let Some(id) = &finding.request_id {
                writeln!(
                    out,
                    "{:<21}{DIM}the agent's log and audit trail know more about request {id}{DIM:#}",
                    ""
                )?;
            }
        }
        out.flush()
    }

    fn add(
        &mut self,
        step: &'static str,
        verdict: Verdict,
        cause: Option<&'static str>,
        text: String,
    ) -> &mut Finding {
        let place = self.findings.len();
        self.findings.push(Finding {
            step,
            verdict,
            cause,
            text: in_one_line(&text),
            next: Vec::new(),
            request_id: None,
        });
        &mut self.findings[place]
    }
}

// === impl Finding ===

impl Finding {
    /// Adds what to do or type next.
    pub(super) fn next(&mut self, what: impl Into<String>) -> &mut Self {
        self.next.push(in_one_line(&what.into()));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_written_moves_no_cursor_and_makes_no_line() {
        let mut report = Report::default();
        report
            .note("role", "skipped", "\u{1b}[2Kapp\nok   role")
            .next("kubectl \u{9b}1A\u{7f}get");
        let finding = &report.findings[0];
        assert_eq!(finding.text, "\\u{1b}[2Kapp\\nok   role");
        assert_eq!(finding.next, ["kubectl \\u{9b}1A\\u{7f}get"]);
    }
}
