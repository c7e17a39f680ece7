//! How tests say that they cannot run here.

#[cfg(test)]
use crate::workload::Workload;
use std::fmt::Display;
use std::io::Write;

/// Says that something is skipped, and why, past the capture of tests' output: readers of the run see it, and CI fails
/// for it.
///
/// # Panics
/// If there is no standard error.
pub fn say_skipped(why: impl Display) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").expect("standard error");
}

/// Whether workloads cannot be started here; if so, says that the test is skipped.
#[cfg(test)]
pub(crate) fn without_workloads() -> bool {
    Workload::supported()
        .inspect_err(|why| say_skipped(why))
        .is_err()
}
