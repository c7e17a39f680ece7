//! A page of the documentation as instructions: files to have, and commands to type.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The directory of the pages' programs, as in the pages' links.
const PROGRAMS: &str = "../deploy/examples/languages/";

/// The end of a section's heading if nobody runs the section.
const NOT_RUN: &str = "(not run)";

/// A page, by its second-level headings.
#[derive(Debug)]
pub struct Page {
    /// The sections, in order; what precedes the first heading is a section without a name.
    pub sections: Vec<Section>,
}

/// A heading and what follows it.
#[derive(Debug)]
pub struct Section {
    /// The heading.
    pub heading: String,
    /// The blocks of code, in order.
    pub blocks: Vec<Block>,
}

/// A block of code.
#[derive(Debug)]
pub struct Block {
    /// The language that it is marked with.
    pub language: String,
    /// Its text, every line with its line break.
    pub text: String,
    /// The file that it shows, if the paragraph before it links to one among the programs.
    pub file: Option<String>,
    /// Its name in the run on a cluster, from a comment `run: NAME` before it.
    pub name: Option<String>,
}

// === impl Page ===

impl Page {
    /// Reads a page by its path below the project's root.
    ///
    /// # Errors
    ///
    /// If there is no such page.
    pub fn read(path: &str) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(root().join(path))?))
    }

    /// The section with that heading.
    #[must_use]
    pub fn section(&self, heading: &str) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|section| section.heading == heading)
    }

    fn parse(text: &str) -> Self {
        let mut sections = vec![Section::new("")];
        let mut paragraph = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(heading) = line.strip_prefix("## ") {
                sections.push(Section::new(heading));
                paragraph.clear();
            } else if let Some(language) = line.strip_prefix("```") {
                let inside = lines.by_ref().take_while(|line| *line != "```");
                let block = Block {
                    language: language.to_owned(),
                    text: inside.map(|line| format!("{line}\n")).collect(),
                    file: between(&paragraph, PROGRAMS, ")"),
                    name: between(&paragraph, "<!-- run: ", " -->"),
                };
                if let Some(section) = sections.last_mut() {
                    section.blocks.push(block);
                }
                // The paragraph does not belong to the next block, even with none between them.
                paragraph.clear();
            } else if !line.is_empty() {
                paragraph.push_str(line);
                paragraph.push('\n');
            } else if paragraph.ends_with('\n') && !paragraph.ends_with("\n\n") {
                paragraph.push('\n');
            }
        }
        Self { sections }
    }
}

// === impl Section ===

impl Section {
    fn new(heading: &str) -> Self {
        Self {
            heading: heading.to_owned(),
            blocks: Vec::new(),
        }
    }

    /// Whether the page says that nobody runs it.
    #[must_use]
    pub fn is_not_run(&self) -> bool {
        self.heading.ends_with(NOT_RUN)
    }

    /// The blocks that are commands to type.
    pub fn commands(&self) -> impl Iterator<Item = &Block> {
        let commands = self.blocks.iter();
        commands.filter(|block| block.language == "sh" && block.file.is_none())
    }
}

/// The last text between these two in the last paragraph.
fn between(text: &str, begin: &str, end: &str) -> Option<String> {
    let last = text.trim_end().rsplit("\n\n").next()?;
    let (_, rest) = last.rsplit_once(begin)?;
    let (name, _) = rest.split_once(end)?;
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

/// The project's root.
#[must_use]
pub fn root() -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    above.unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_page_is_read_as_files_and_commands() {
        let text = "# Title\n\n```sh\none\n```\n\n## First\n\n[a](../deploy/examples/languages/a.sh) and\nmore:\n\n\
                    ```sh\nfile\n```\n<!-- run: act -->\n```sh\ncommand\n```\n\n## Second (not run)\n\ntext\n\n```c\n## no heading\n```\n";
        let page = Page::parse(text);
        let headings: Vec<&str> = page.sections.iter().map(|s| &*s.heading).collect();
        assert_eq!(headings, ["", "First", "Second (not run)"]);
        let first = page.section("First").expect("it is there");
        assert_eq!(first.blocks[0].file.as_deref(), Some("a.sh"));
        assert_eq!(first.blocks[0].text, "file\n");
        let commands: Vec<&str> = first.commands().map(|block| &*block.text).collect();
        assert_eq!(commands, ["command\n"]);
        assert_eq!(first.blocks[1].name.as_deref(), Some("act"));
        assert!(page.sections[2].is_not_run() && !first.is_not_run());
        assert_eq!(page.sections[2].blocks[0].text, "## no heading\n");
    }

    /// What needs a registry is not run; no other command is left out.
    #[test]
    fn every_command_of_the_readme_is_run_by_somebody() {
        let page = Page::read("README.md").expect("the page");
        let check = fs::read_to_string(root().join(".ci/run")).expect("the check");
        for section in &page.sections {
            for block in section.commands() {
                // The suite runs those before the first heading and the laptop's, the run on a cluster those with a
                // name.
                let by_the_suite =
                    section.heading.is_empty() || block.text.contains("deploy/local.toml");
                if by_the_suite || block.name.is_some() {
                    continue;
                }
                let lines = block.text.lines().filter(|line| !line.starts_with('#'));
                for line in lines {
                    assert!(
                        line.starts_with("docker ") || check.contains(&format!("' {line}")),
                        "nobody runs {line}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_page_of_the_languages_shows_its_programs_as_they_are_and_all_of_them() {
        let page = Page::read("docs/languages.md").expect("the page");
        let directory = root().join("deploy/examples/languages");
        let mut shown = BTreeSet::new();
        for block in page.sections.iter().flat_map(|section| &section.blocks) {
            if let Some(name) = &block.file {
                let file = fs::read_to_string(directory.join(name)).expect(name);
                assert_eq!(block.text, file, "the page shows another {name}");
                shown.insert(name.clone());
            }
        }
        let there: BTreeSet<String> = fs::read_dir(&directory)
            .expect("the programs")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        assert_eq!(shown, there);
    }
}
