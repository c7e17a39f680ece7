//! The command `latchkey` in a pod, between the sandbox's agent and the fake AWS.

mod basics;
mod change;
mod delivery;
mod doctor;
mod exec;
mod leaving;
mod proxy;
mod templates;
mod workstation;

use std::path::Path;
use std::process::{Output, Stdio};
use testkit::PATIENCE;
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::binaries::sibling_binary;
use testkit::sandbox::{Sandbox, SandboxPod};
use tokio::process::Command;
use tokio::time::timeout;

/// A pod of the namespace `test` on a node with an agent.
struct Client {
    sandbox: Sandbox,
    agent: AgentProcess,
    pod: SandboxPod,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Client {
    async fn start() -> Self {
        Self::with(|settings| settings).await
    }

    async fn with(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        let agent = sandbox.agent_with(change).await.expect("an agent");
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        Self {
            sandbox,
            agent,
            pod,
        }
    }

    /// One whose agent has AWS by default, and the files in that folder as the backend `files`.
    async fn with_files(folder: &Path) -> Self {
        let both = |settings: AgentSettings| {
            settings
                .set("default_backend", "aws")
                .set("backends.files.type", "file")
                .set("backends.files.path", folder.display())
        };
        Self::with(both).await
    }

    /// The command in the pod, with no variable but PATH, the socket's and the kubelet's.
    fn command(&self, arguments: &[&str]) -> Command {
        command_in(&self.pod, &self.sandbox.socket(), arguments)
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments)).await
    }

    /// Has a shell of the pod read this line, in which `$0` is the command.
    async fn shell(&self, line: &str) -> Ended {
        let program = sibling_binary("sandbox-latchkey").expect("the command is built");
        let shell = self.pod.workload.command(Path::new("sh"));
        let mut command = shell.expect("a cgroup");
        command
            .args(["-c", line])
            .arg(program)
            .env("LATCHKEY_SOCKET", self.sandbox.socket());
        ended(command).await
    }
}

fn command_in(pod: &SandboxPod, socket: &Path, arguments: &[&str]) -> Command {
    let program = sibling_binary("sandbox-latchkey").expect("the command is built");
    let mut command = pod.workload.command(&program).expect("a cgroup");
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LATCHKEY_SOCKET", socket)
        .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn ended(mut command: Command) -> Ended {
    let output = timeout(PATIENCE, command.output()).await;
    let Output {
        status,
        stdout,
        stderr,
    } = output.expect("it ends").expect("it runs");
    Ended {
        code: status.code(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

impl Ended {
    /// Whether it ended so, with one line on stderr that holds the text, and nothing on stdout.
    #[track_caller]
    fn failed(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.starts_with("latchkey: "), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        assert!(self.stderr.contains(text), "{self:?}");
    }

    /// Whether the command line was refused in one line, with nothing on stdout.
    #[track_caller]
    fn is_usage(&self) {
        self.failed(2, " --help shows how)");
    }

    /// Whether it succeeded without a word, and what it printed.
    #[track_caller]
    fn printed(&self) -> &str {
        assert_eq!(
            (self.code, &*self.stderr),
            (Some(0), ""),
            "it prints {:?}",
            self.stdout
        );
        &self.stdout
    }
}
