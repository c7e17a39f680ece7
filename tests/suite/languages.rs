//! The pages for those who write applications, done as they say: what a page tells the reader to type, a pod types.
//!
//! Each section is followed by a pod that may read the secret in it, by one that may not, and by one whose agent dies
//! amid its answer.

use crate::can_run;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::agent::AgentProcess;
use testkit::binaries::sibling_binary;
use testkit::page::{Page, Section, root};
use testkit::password_store::PasswordStore;
use testkit::sandbox::{CANARY, Sandbox, SandboxPod, password};
use testkit::workload::{Command, Executed, Running, Signal, Workload, WorkloadSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

/// What a command begins with that gets libraries. Pods of the sandbox reach no network, so it is typed outside.
const INSTALLERS: [&str; 2] = ["npm ", "pip "];

/// A node with two pods, and a directory with the page's programs that both see.
struct Readers {
    _sandbox: Sandbox,
    _agent: AgentProcess,
    /// May read `prod/database-password`.
    prod: SandboxPod,
    /// May not.
    test: SandboxPod,
    directory: tempfile::TempDir,
}

impl Readers {
    async fn start() -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        sandbox.aws_namespace("prod");
        let agent = sandbox.agent().await.expect("an agent");
        let prod = sandbox.application("prod", "web").await.expect("a pod");
        let test = sandbox.application("test", "web").await.expect("a pod");
        let directory = tempfile::tempdir().expect("a directory");
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).expect("a directory");
        let latchkey = sibling_binary("sandbox-latchkey").expect("the command");
        symlink(latchkey, bin.join("latchkey")).expect("a link");
        Self {
            _sandbox: sandbox,
            _agent: agent,
            prod,
            test,
            directory,
        }
    }

    /// Follows a section. `Err` is what is missing on this machine.
    async fn follow(&self, section: &Section) -> Result<(), String> {
        let mut background = Vec::new();
        let mut typed = 0;
        for block in &section.blocks {
            if let Some(file) = &block.file {
                fs::write(self.directory.path().join(file), &block.text).expect("a file");
            }
        }
        for block in section.commands() {
            let line = &*block.text;
            if INSTALLERS.iter().any(|name| line.starts_with(name)) {
                self.install(line).await?;
                continue;
            }
            needs(first_word(line))?;
            if line.starts_with("latchkey proxy ") {
                background.extend(self.stay(line).await);
                continue;
            }
            self.reads_and_is_refused(line).await;
            // With a proxy in between, the program does not know the agent's socket.
            if background.is_empty() {
                self.takes_no_half(line).await;
            }
            typed += 1;
        }
        assert!(typed > 0, "{} tells to do nothing", section.heading);
        for proxy in background {
            proxy
                .signal(Signal::SIGTERM)
                .await
                .expect("it ran to the end");
        }
        Ok(())
    }

    /// Types a line in both pods: one reads, the other is told why it does not.
    async fn reads_and_is_refused(&self, line: &str) {
        let may = self.run(&self.prod.workload, line).await;
        assert_eq!(may.code, Some(0), "{line}{may:?}");
        assert!(may.stdout.contains(&password("prod")), "{line}{may:?}");
        let may_not = self.run(&self.test.workload, line).await;
        assert_ne!(may_not.code, Some(0), "{line}{may_not:?}");
        let said = format!("{}{}", may_not.stdout, may_not.stderr);
        assert!(said.contains("AWS refused"), "{line}{may_not:?}");
        assert!(!said.contains(CANARY), "{line}{may_not:?}");
    }

    /// Types a line where the agent dies amid its answer: half a secret is none.
    async fn takes_no_half(&self, line: &str) {
        let socket = self.directory.path().join("dying.sock");
        let dying = UnixListener::bind(&socket).expect("a socket");
        let asked = Arc::new(AtomicBool::new(false));
        let told = asked.clone();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = dying.accept().await {
                told.store(true, Ordering::Relaxed);
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or_default();
                let head = String::from_utf8_lossy(&request[..read]);
                let version = if head.contains(" HTTP/1.0\r\n") {
                    "1.0"
                } else {
                    "1.1"
                };
                let half =
                    format!("HTTP/{version} 200 OK\r\ncontent-length: 64\r\n\r\nhalf a value");
                // Whoever has left already misses nothing.
                let _ = stream.write_all(half.as_bytes()).await;
            }
        });
        let command = self
            .command(line)
            .env("LATCHKEY_SOCKET", socket.display().to_string());
        let half = self.prod.workload.run(command).await.expect("a shell");
        assert_ne!(half.code, Some(0), "{line}{half:?}");
        assert!(asked.load(Ordering::Relaxed), "{line}{half:?}");
        serving.abort();
        fs::remove_file(&socket).expect("the socket");
    }

    fn command(&self, line: &str) -> Command {
        let here = self.directory.path();
        let path = search_path();
        let first = [here.join(".venv/bin"), here.join("bin")];
        let first = first.map(|directory| directory.display().to_string());
        Command::new("sh")
            .args(&["-euc", line])
            .directory(here)
            .env("PATH", format!("{}:{path}", first.join(":")))
    }

    async fn run(&self, pod: &Workload, line: &str) -> Executed {
        pod.run(self.command(line)).await.expect("a shell")
    }

    /// Starts what stays, in both pods, and waits until it is there.
    async fn stay(&self, line: &str) -> Vec<Running<'_>> {
        let mut staying = Vec::new();
        for pod in [&self.prod, &self.test] {
            let started = self.command(&format!("exec {line}"));
            let running = pod.workload.spawn(started).await.expect("a shell");
            running.until("listening").await.expect("a proxy");
            staying.push(running);
        }
        staying
    }

    /// Gets libraries into the programs' directory.
    async fn install(&self, line: &str) -> Result<(), String> {
        let outside = Workload::start(WorkloadSpec {
            own_network: false,
            ..WorkloadSpec::host(Path::new("/"))
        });
        let outside = outside.await.expect("a process");
        let prepare = match first_word(line) {
            "pip" => {
                needs("python3")?;
                "python3 -m venv .venv\n"
            }
            other => {
                needs(other)?;
                ""
            }
        };
        let installed = self.run(&outside, &format!("{prepare}{line}")).await;
        if installed.code == Some(0) {
            Ok(())
        } else {
            Err(format!("{line}failed: {}", installed.stderr))
        }
    }
}

fn first_word(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

#[expect(
    clippy::disallowed_methods,
    reason = "programs are looked up where the test's own are"
)]
pub(crate) fn search_path() -> String {
    std::env::var("PATH").unwrap_or_default()
}

/// Fails if a program is not there.
fn needs(program: &str) -> Result<(), String> {
    let path = search_path();
    let mut places = path.split(':').map(|place| Path::new(place).join(program));
    if program == "latchkey" || places.any(|file| file.is_file()) {
        Ok(())
    } else {
        Err(format!("there is no {program}"))
    }
}

/// Follows the section of a page with that heading. What is missing is said past the test's capture.
async fn follow(page: &str, heading: &str) {
    needs_workloads!();
    let page = Page::read(page).expect("the page");
    let section = page.section(heading).expect("a section by that name");
    if let Err(missing) = Readers::start().await.follow(section).await {
        testkit::skip::say_skipped(format!("{heading}: {missing}"));
    }
}

/// The tests below, by the heading that each follows.
const FOLLOWED: [&str; 11] = [
    "Shell",
    "Python, standard library",
    "Python, httpx",
    "Node.js, standard library",
    "Node.js, undici",
    "Go",
    "Java, a socket channel",
    "Java, java.net.http through the proxy",
    "Rust",
    "Ruby",
    "PHP",
];

#[test]
fn every_section_of_the_page_of_the_languages_is_followed_or_says_that_it_is_not() {
    let page = Page::read("docs/languages.md").expect("the page");
    let sections = page
        .sections
        .iter()
        .filter(|section| !section.heading.is_empty());
    let (not_run, run): (Vec<_>, Vec<_>) = sections.partition(|section| section.is_not_run());
    let run: Vec<&str> = run.iter().map(|section| &*section.heading).collect();
    assert_eq!(run, FOLLOWED);
    assert_eq!(not_run.len(), 1);
}

#[tokio::test]
async fn a_shell_script_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[0]).await;
}

#[tokio::test]
async fn python_without_libraries_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[1]).await;
}

#[tokio::test]
async fn python_with_httpx_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[2]).await;
}

#[tokio::test]
async fn node_without_libraries_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[3]).await;
}

#[tokio::test]
async fn node_with_undici_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[4]).await;
}

#[tokio::test]
async fn go_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[5]).await;
}

#[tokio::test]
async fn java_by_a_channel_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[6]).await;
}

#[tokio::test]
async fn java_through_the_proxy_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[7]).await;
}

/// The only program that is compiled with the tests instead of where the page says, against the client as it is.
#[tokio::test]
async fn rust_reads_and_is_refused() {
    if can_run() {
        let program = sibling_binary("get-secret").expect("the program");
        let line = format!("{} prod/database-password", program.display());
        let readers = Readers::start().await;
        readers.reads_and_is_refused(&line).await;
        readers.takes_no_half(&line).await;
    }
}

#[tokio::test]
async fn ruby_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[9]).await;
}

#[tokio::test]
async fn php_reads_and_is_refused() {
    follow("docs/languages.md", FOLLOWED[10]).await;
}

#[tokio::test]
async fn what_the_readme_shows_first_is_what_happens() {
    needs_workloads!();
    let page = Page::read("README.md").expect("the page");
    let first = page.section("").expect("its beginning");
    let [command, answer] = &first.blocks[..2] else {
        panic!("a command and its answer: {first:?}");
    };
    let readers = Readers::start().await;
    let may = readers.run(&readers.prod.workload, &command.text).await;
    assert_eq!(may.code, Some(0), "{may:?}");
    let mut rest = &*may.stdout;
    for piece in answer.text.trim_end().split('…') {
        let found = rest
            .find(piece)
            .unwrap_or_else(|| panic!("no {piece} in {may:?}"));
        rest = &rest[found + piece.len()..];
    }
    let may_not = readers.run(&readers.test.workload, &command.text).await;
    assert!(
        may_not.stdout.contains("\"code\":\"denied\""),
        "{may_not:?}"
    );
}

/// The agent is this build's instead of a release's, and the secret is one that is there.
#[tokio::test]
async fn what_the_readme_says_for_a_laptop_is_what_happens() {
    needs_workloads!();
    let page = Page::read("README.md").expect("the page");
    let section = page.section("Try it").expect("a section by that name");
    let mut blocks = section.commands();
    let block = blocks.find(|block| block.text.contains("local.toml"));
    let lines: Vec<&str> = block.expect("the commands").text.lines().collect();
    let [build, start, read] = lines[..] else {
        panic!("what is built, started and asked: {lines:?}");
    };
    assert_eq!(build, "cargo build --release --package latchkey-agent");

    let machine = tempfile::tempdir().expect("a directory");
    let path = |name: &str| machine.path().join(name);
    for directory in ["target/release", "deploy", "runtime"] {
        fs::create_dir_all(path(directory)).expect("a directory");
    }
    let agent = sibling_binary("sandbox-agent").expect("the agent");
    symlink(agent, path("target/release/latchkey-agent")).expect("a link");
    symlink(root().join("deploy/local.toml"), path("deploy/local.toml")).expect("a link");
    let store = PasswordStore::create().expect("pass and gpg are installed");
    store.insert("dev/db", b"hunter2\n").expect("an entry");
    let laptop = Workload::start(WorkloadSpec {
        own_network: false,
        ..WorkloadSpec::host(Path::new("/"))
    });
    let laptop = laptop.await.expect("a process");
    let admin = testkit::agent::free_address().expect("a port");
    let typed = |line: &str| {
        Command::new("sh")
            .args(&["-euc", line])
            .bare()
            .directory(machine.path())
            .env("PATH", search_path())
            .env("XDG_RUNTIME_DIR", path("runtime").display().to_string())
            .env("HOME", store.home().display().to_string())
            .env("GNUPGHOME", store.gnupg_home().display().to_string())
            .env("LATCHKEY_AGENT__LISTEN__ADMIN", admin.to_string())
    };
    let start = start.strip_suffix(" &").expect("it stays");
    let agent = laptop.spawn(typed(&format!("exec {start}"))).await;
    let agent = agent.expect("a shell");
    agent.until("\"ready\"").await.expect("an agent");
    let answer = laptop.run(typed(&read.replace("NAME", "dev/db"))).await;
    let answer = answer.expect("a shell");
    assert!(
        answer.stdout.contains("\"value\":\"hunter2\""),
        "{answer:?}"
    );
}
