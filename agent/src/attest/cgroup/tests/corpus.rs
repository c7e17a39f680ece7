//! Every row of the corpus, each with its own anchor (`tests/data/README.md`).

use std::path::Path;

use serde::Deserialize;

use super::super::{Anchor, AnchorError, CgroupDenial, PodCgroup};

/// Names another corpus of the same form to use instead.
const OTHER_CORPUS: &str = "CGROUP_CORPUS";

/// What corpus paths are relative to: the workspace, not the package that tests run in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const CORPUS: &str = "tests/data/cgroup.jsonl";

#[derive(Deserialize)]
struct Row {
    cgroup: String,
    pod_uid: Option<String>,
    container_id: Option<String>,
    note: String,
    root: String,
    depth: Option<usize>,
    expect: Expectation,
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expectation {
    Deny,
    Pod,
}

/// What is wrong with a row's result.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// The one mistake that gives a pod's secrets to somebody else.
    Pod,
    Reason,
    Verdict,
}

impl Row {
    fn answer(&self) -> Result<PodCgroup, CgroupDenial> {
        match Anchor::new(&self.root, self.depth) {
            Ok(anchor) => anchor.parse(self.cgroup.as_bytes()),
            // No pod under the root can have a reader at this depth.
            Err(AnchorError::DepthMismatch { .. }) => Err(CgroupDenial::OutsideRoot),
            Err(error) => panic!("{}: {error}", self.root),
        }
    }

    fn judge(&self, answer: Result<PodCgroup, CgroupDenial>) -> Result<(), Wrong> {
        match (answer, self.expect) {
            (Ok(place), _) => {
                let right = self.pod_uid.as_deref() == Some(place.pod.to_string().as_str())
                    && self.container_id.as_deref() == Some(place.container.to_string().as_str());
                match (right, self.expect) {
                    (false, _) => Err(Wrong::Pod),
                    (true, Expectation::Deny) => Err(Wrong::Verdict),
                    (true, Expectation::Pod) => Ok(()),
                }
            }
            (Err(_), Expectation::Pod) => Err(Wrong::Verdict),
            (Err(denial), Expectation::Deny) => match &self.reason {
                Some(reason) if reason != denial.reason() => Err(Wrong::Reason),
                _ => Ok(()),
            },
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test of files, which are not configuration"
)]
fn corpus() -> (String, bool) {
    let other = std::env::var_os(OTHER_CORPUS).filter(|path| !path.is_empty());
    let is_ours = other.is_none();
    let path = Path::new(WORKSPACE).join(other.unwrap_or_else(|| CORPUS.into()));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (text, is_ours)
}

#[test]
fn every_row_gets_its_verdict_and_the_true_pod() {
    let (text, is_ours) = corpus();
    let mut rows = 0;
    let mut pods = 0;
    let mut mistakes = Vec::new();
    for (line, text) in text
        .lines()
        .enumerate()
        .filter(|(_, text)| !text.trim().is_empty())
    {
        let row: Row =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("line {}: {error}", line + 1));
        rows += 1;
        pods += usize::from(row.expect == Expectation::Pod);
        let answer = row.answer();
        match row.judge(answer) {
            Ok(()) => {}
            // In corpora by others the verdict must match; the reasons are our words.
            Err(Wrong::Reason) if !is_ours => {
                let (reason, note) = (row.reason.as_deref().unwrap_or_default(), &row.note);
                eprintln!("line {}: {answer:?} instead of {reason}: {note}", line + 1);
            }
            Err(mistake) => mistakes.push(format!(
                "line {}: wrong {mistake:?}: {answer:?} instead of {:?} {:?}: {}",
                line + 1,
                row.expect,
                row.reason,
                row.note
            )),
        }
    }
    assert!(
        mistakes.is_empty(),
        "of {rows} rows:\n{}",
        mistakes.join("\n")
    );
    assert!(rows > 0, "an empty corpus proves nothing");
    eprintln!("{rows} rows, {pods} of them pods");
}
