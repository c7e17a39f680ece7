//! Checks the documentation against the tree: what a page names exists, and what exists is explained.

use latchkey_client::protocol::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file by its path below the project's root.
#[derive(Debug)]
struct File {
    path: String,
    text: String,
}

/// The project as checked out.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    files: Vec<File>,
}

/// A row of a table, by the names of its columns.
type Row = BTreeMap<String, String>;

// === impl Tree ===

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the project is above its package")
            .to_owned();
        let mut files = Vec::new();
        for entry in fs::read_dir(&root).expect("the root") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                files.push(File::read(&root, &path));
            }
        }
        for directory in ["agent/src", "client/src", "deploy", "docs", "tests"] {
            collect(&root, &root.join(directory), &mut files);
        }
        Self { root, files }
    }

    fn text(&self, path: &str) -> &str {
        let file = self.files.iter().find(|file| file.path == path);
        &file.unwrap_or_else(|| panic!("there is no {path}")).text
    }

    fn ending<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = &'a File> {
        self.files
            .iter()
            .filter(move |file| file.path.ends_with(ending))
    }

    /// All Rust of the agent as one text, without the line breaks in its strings, and with the words that it shares
    /// with the client in place of their names.
    fn agent(&self) -> String {
        let mut text = String::new();
        for file in self.ending(".rs") {
            if file.path.starts_with("agent/src/") {
                // A string that continues on the next line omits the break and the blanks after it.
                let whole: Vec<&str> = file.text.split("\\\n").map(str::trim_start).collect();
                text.push_str(&whole.concat());
            }
        }
        for line in self.text("client/src/protocol/words.rs").lines() {
            let constant = line.strip_prefix("pub const ");
            if let Some((name, word)) = constant.and_then(|rest| rest.split_once(": &str = \"")) {
                text = text.replace(&format!("{{{name}}}"), word.trim_end_matches("\";"));
            }
        }
        text
    }

    /// The names of all tests: functions with a test attribute, rows of the backends' list, and acts of the run on a
    /// cluster.
    fn tests(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for file in self.ending(".rs") {
            let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
            for (number, line) in lines.iter().enumerate() {
                let declared = line.strip_prefix("async ").unwrap_or(line);
                let Some(rest) = declared.strip_prefix("fn ") else {
                    continue;
                };
                let marked = lines[..number]
                    .iter()
                    .rev()
                    .take_while(|line| !line.is_empty() && !line.ends_with('}'))
                    .any(|line| line.starts_with("#[") && line.contains("test"));
                if marked {
                    names.insert(word(rest).to_owned());
                }
            }
        }
        let list = self.text("tests/suite/backends.rs");
        let rows = list.split("conformance! { @rows").nth(1).expect("the rows");
        for group in rows.split('}').next().unwrap_or_default().split(';') {
            let rows = group.split_once(':').map_or("", |(_, rows)| rows);
            names.extend(rows.split(',').map(|row| row.trim().to_owned()));
        }
        for file in self.ending(".bash") {
            let acts = file.text.lines().filter(|line| line.starts_with("act_"));
            names.extend(acts.map(|line| word(line).to_owned()));
        }
        names
    }
}

// === impl File ===

impl File {
    fn read(root: &Path, path: &Path) -> Self {
        let below = path.strip_prefix(root).expect("below the root");
        Self {
            path: below.to_string_lossy().into_owned(),
            // Not every file is text.
            text: String::from_utf8_lossy(&fs::read(path).expect("a file")).into_owned(),
        }
    }

    /// The rows of the tables that have a column of this name.
    fn rows_with(&self, column: &str) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut header: Vec<String> = Vec::new();
        for line in self.text.lines() {
            let cells = cells(line);
            if cells.is_empty() {
                header.clear();
            } else if header.is_empty() {
                header = cells;
            } else if !cells[0].starts_with("---") && header.iter().any(|name| name == column) {
                assert_eq!(cells.len(), header.len(), "{}: {line}", self.path);
                rows.push(header.iter().cloned().zip(cells).collect());
            }
        }
        rows
    }

    /// The texts between single backticks outside of code blocks.
    fn spans(&self) -> Vec<&str> {
        let mut spans = Vec::new();
        let mut in_block = false;
        for line in self.text.lines() {
            if line.starts_with("```") {
                in_block = !in_block;
            } else if !in_block {
                spans.extend(line.split('`').skip(1).step_by(2));
            }
        }
        spans
    }

    /// The anchors of the headings, as forges generate them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let heading = line.trim_start_matches('#').trim().to_lowercase();
                heading
                    .chars()
                    .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
                    .map(|c| if c == ' ' { '-' } else { c })
                    .collect()
            })
            .collect()
    }

    /// The targets of the links.
    fn links(&self) -> Vec<&str> {
        let ends = self.text.split("](").skip(1);
        ends.filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
            .collect()
    }
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory:?}: {e}")) {
        let path = entry.expect("an entry").path();
        let known = ["bash", "md", "rs", "toml", "yaml"];
        if path.is_dir() {
            collect(root, &path, files);
        } else if path
            .extension()
            .is_some_and(|is| known.iter().any(|name| is == *name))
        {
            files.push(File::read(root, &path));
        }
    }
}

/// The cells of a table's line; a bar between backticks separates none.
fn cells(line: &str) -> Vec<String> {
    let Some(inner) = line
        .trim()
        .strip_prefix('|')
        .and_then(|rest| rest.strip_suffix('|'))
    else {
        return Vec::new();
    };
    let mut cells = vec![String::new()];
    let mut in_code = false;
    for c in inner.chars() {
        in_code ^= c == '`';
        if c == '|' && !in_code {
            cells.push(String::new());
        } else if let Some(cell) = cells.last_mut() {
            cell.push(c);
        }
    }
    cells.iter().map(|cell| cell.trim().to_owned()).collect()
}

/// The first word of letters, digits and underscores.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The words that follow `mark` in `text`.
fn words_after<'a>(text: &'a str, mark: &str) -> BTreeSet<&'a str> {
    text.split(mark).skip(1).map(word).collect()
}

fn spans_of(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let tree = Tree::read();
    let tests = tree.tests();
    for path in ["docs/threat-model.md", "docs/past-vulnerabilities.md"] {
        let page = tree.files.iter().find(|file| file.path == path);
        let rows = page.expect("the page").rows_with("test");
        assert!(rows.len() > 20, "{path} has lost its rows");
        for row in rows {
            let named = spans_of(&row["test"]);
            assert!(
                !named.is_empty() || row["test"].starts_with('–'),
                "{path}: no test and no dash in {row:?}"
            );
            for name in named {
                assert!(
                    tests.contains(name),
                    "{path} names {name}, which is no test"
                );
            }
        }
    }
}

#[test]
fn every_function_that_a_page_names_is_there() {
    let tree = Tree::read();
    let mut seen = 0;
    for page in tree.ending(".md") {
        for span in page.spans() {
            let Some((file, name)) = span.split_once(": ") else {
                continue;
            };
            if !file.ends_with(".rs") {
                continue;
            }
            let text = tree.text(&format!("agent/src/{file}"));
            let last = name.rsplit("::").next().unwrap_or(name);
            let declared = ["fn", "struct", "enum", "const", "trait"]
                .iter()
                .any(|kind| words_after(text, &format!("{kind} ")).contains(last));
            assert!(declared, "{} names {span}, which is not there", page.path);
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} functions were found in the pages");
}

#[test]
fn every_link_leads_somewhere() {
    let tree = Tree::read();
    let (mut seen, mut anchored) = (0, 0);
    for page in tree.ending(".md") {
        let directory = tree.root.join(&page.path);
        let directory = directory.parent().expect("a directory");
        for link in page.links() {
            if link.contains("://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let anchors = if target.is_empty() {
                page.anchors()
            } else {
                let path = directory.join(target);
                assert!(path.exists(), "{} links to {link}", page.path);
                if path.is_dir() {
                    continue;
                }
                File::read(&tree.root, &path.canonicalize().expect("a path")).anchors()
            };
            assert!(
                anchor.is_empty() || anchors.contains(anchor),
                "{} links to {link}, and there is no such heading",
                page.path
            );
            seen += 1;
            anchored += usize::from(!anchor.is_empty());
        }
    }
    let enough = seen > 200 && anchored > 100;
    assert!(
        enough,
        "only {seen} links were found, and {anchored} anchors"
    );
}

#[test]
fn every_metric_is_explained_and_none_is_made_up() {
    let tree = Tree::read();
    let marked = |text| -> BTreeSet<String> {
        let words = words_after(text, "latchkey_").into_iter();
        words.map(|word| format!("latchkey_{word}")).collect()
    };
    let source = tree.text("agent/src/metrics.rs");
    let source = source.split("#[cfg(test)]").next().unwrap_or(source);
    let shown: BTreeSet<String> = source
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("latchkey_"))
        .map(str::to_owned)
        .collect();
    let explained = marked(tree.text("docs/operations.md"));
    assert!(shown.is_subset(&explained), "{shown:?} and {explained:?}");
    let crates = ["latchkey_agent", "latchkey_client"];
    for page in tree.ending(".md") {
        for name in marked(&page.text) {
            assert!(
                shown.contains(&name) || crates.contains(&&*name),
                "{} names {name}, which is no metric",
                page.path
            );
        }
    }
}

#[test]
fn every_code_is_explained_with_its_status() {
    let tree = Tree::read();
    let page = tree.text("docs/protocol.md");
    for code in Code::ALL {
        let row = format!("| {} | `{code}` |", code.status());
        assert!(page.contains(&row), "no line of the table has {row}");
    }
}

#[test]
fn every_reason_of_a_refusal_is_explained() {
    let tree = Tree::read();
    let operations = tree.ending("docs/operations.md").next().expect("the page");
    let explained: BTreeSet<&str> = operations.spans().into_iter().collect();
    let agent = tree.agent();
    let mut reasons = BTreeSet::new();
    for mark in ["NotYet(\"", ".reason(\"", "Self::Gone => \""] {
        reasons.extend(words_after(&agent, mark));
    }
    for file in ["agent/src/attest/cgroup.rs", "agent/src/attest/denial.rs"] {
        reasons.extend(words_after(tree.text(file), "=> \""));
    }
    assert!(reasons.len() > 30, "{reasons:?}");
    for reason in reasons {
        assert!(explained.contains(reason), "{reason} is not explained");
    }
}

#[test]
fn every_field_of_an_audit_line_is_explained() {
    let tree = Tree::read();
    let operations = tree.ending("docs/operations.md").next().expect("the page");
    let explained: BTreeSet<&str> = operations.spans().into_iter().collect();
    let source = tree.text("agent/src/audit/line.rs");
    let line = source.split("struct Line").nth(1).expect("the line");
    let line = line.split('}').next().unwrap_or(line);
    let fields = words_after(line, "pub(crate) ");
    assert!(fields.len() > 20, "{fields:?}");
    for field in fields {
        assert!(explained.contains(field), "{field} is not explained");
    }
}

#[test]
fn every_error_that_a_page_quotes_is_one_of_the_agents() {
    let tree = Tree::read();
    let agent = tree.agent();
    let pages = tree
        .files
        .iter()
        .filter(|page| page.path.starts_with("docs/clouds/"));
    let rows: Vec<Row> = pages.flat_map(|page| page.rows_with("text")).collect();
    assert!(rows.len() > 50, "the pages have lost their rows");
    for row in rows {
        let quoted = spans_of(&row["text"]).concat();
        // If the cloud cannot be reached, the agent says before the text whose answer it is, and after it what to do.
        let whose = [
            "the AWS token service ",
            "AWS Secrets Manager ",
            "AWS ",
            "the Google token service ",
            "Google's IAM credentials service ",
            "Google Cloud Secret Manager ",
            "Azure ",
            "Entra ID ",
            "Key Vault ",
        ];
        let text = whose.iter().find_map(|whose| quoted.strip_prefix(whose));
        let text = text.unwrap_or(&quoted).trim_end_matches("; try again");
        // Text in angle brackets is a placeholder; in the agent's code it is in braces.
        for piece in text.split(['<', '>']).step_by(2) {
            let piece = piece.trim_matches(['"', ' ', ',', '(', ')', ':']);
            assert!(agent.contains(piece), "no error has the text {piece:?}");
        }
    }
}

#[test]
fn every_key_that_a_page_names_is_one_of_the_configuration() {
    let tree = Tree::read();
    let mut keys = BTreeSet::new();
    let mut section = String::new();
    for line in tree.text("deploy/config.toml").lines() {
        // A key that is commented out follows the mark directly, unlike a comment.
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            keys.insert(section.clone());
        } else if let Some((key, _)) = line.split_once(" = ")
            && !line.starts_with(' ')
        {
            let dot = if section.is_empty() { "" } else { "." };
            keys.insert(format!("{section}{dot}{key}"));
        }
    }
    let sections: Vec<String> = keys
        .iter()
        .filter_map(|key| key.split_once('.'))
        .map(|(section, _)| format!("{section}."))
        .collect();
    let mut seen = 0;
    for page in tree.ending(".md") {
        for span in page.spans() {
            let names_a_key = sections.iter().any(|section| span.starts_with(section))
                && span
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.')
                && ![".rs", ".md", ".toml"]
                    .iter()
                    .any(|end| span.ends_with(end));
            assert!(
                !names_a_key || keys.contains(span),
                "{} names {span}, which is no key",
                page.path
            );
            seen += usize::from(names_a_key);
        }
    }
    assert!(seen > 200, "only {seen} keys were found in the pages");
}

/// Whose annotations the agent reads.
const OWNERS: [&str; 4] = [
    "azure.workload.identity/",
    "eks.amazonaws.com/",
    "iam.gke.io/",
    "latchkey.dev/",
];

#[test]
fn every_annotation_that_a_page_names_is_read() {
    let tree = Tree::read();
    let agent = tree.agent();
    let mut seen = 0;
    for page in tree.ending(".md") {
        for span in page.spans() {
            let key = span.split(':').next().unwrap_or(span);
            if OWNERS.iter().any(|owner| key.starts_with(owner)) {
                let key = key.split(' ').next().unwrap_or(key);
                assert!(
                    agent.contains(&format!("\"{key}\"")),
                    "{} names {key}",
                    page.path
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "only {seen} annotations were found in the pages");
}

#[test]
fn every_annotation_that_is_read_is_on_a_page() {
    let tree = Tree::read();
    let pages = tree.ending(".md").flat_map(|page| page.spans());
    let named: Vec<&str> = pages.collect();
    let mut seen = 0;
    for file in tree.ending(".rs") {
        if !file.path.starts_with("agent/src/") || file.path.contains("tests") {
            continue;
        }
        let source = file.text.split("#[cfg(test)]").next().unwrap_or_default();
        for owner in OWNERS {
            for (at, _) in source.match_indices(&format!("\"{owner}")) {
                // One that is quoted within a text is an example.
                if source[..at].ends_with('\\') {
                    continue;
                }
                let key = source[at + 1..].split(['"', ' ']).next();
                let key = key.unwrap_or_default();
                let is_on_a_page = named.iter().any(|span| span.starts_with(key));
                assert!(is_on_a_page, "no page names {key}, which {} has", file.path);
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "only {seen} annotations were found in the code");
}

#[test]
fn every_type_of_backend_has_a_page() {
    let tree = Tree::read();
    let source = tree.text("agent/src/config/backends.rs");
    let types = source.split("const TYPES").nth(1).expect("the types");
    let types = types.split("];").next().unwrap_or_default();
    let types = words_after(types, "(\"");
    assert!(types.len() > 4, "{types:?}");
    let local = tree.ending("docs/clouds/local.md").next().expect("a page");
    for name in types {
        let page = format!("docs/clouds/{name}.md");
        let has_one = tree.files.iter().any(|file| file.path == page);
        assert!(
            has_one || local.spans().contains(&name),
            "{name} has no page"
        );
    }
}
