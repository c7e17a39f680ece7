//! `cargo demo`: the sandbox, left running. Two namespaces with a pod each, the agent between a fake cluster and a
//! backend; what each pod may read, what it is refused, and the audit trail of it all.

use clap::Parser;
use std::io::{self, Write};
use std::process::ExitCode;
use testkit::agent::AgentProcess;
use testkit::clouds;
use testkit::sandbox::{Sandbox, SandboxPod, password};
use testkit::workload::Workload;

/// EX_UNAVAILABLE of sysexits(3): something that the demo needs is missing.
const UNAVAILABLE: u8 = 69;

/// Shows latchkey at work on this machine: real processes in real cgroups, a fake cluster and a fake cloud.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
struct Arguments {
    /// Where the secrets are.
    #[arg(long, default_value = "aws", value_parser = clouds::BACKENDS)]
    backend: String,
    /// Ends after the show instead of staying up until Ctrl-C.
    #[arg(long)]
    once: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(why) = Workload::supported() {
        eprintln!("cargo demo: {why}");
        return UNAVAILABLE.into();
    }
    if let Err(error) = build_the_rest() {
        eprintln!("cargo demo: {error}");
        return ExitCode::FAILURE;
    }
    match show(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the programs that the demo starts: `cargo run` builds only the one that it runs.
#[expect(clippy::disallowed_methods, reason = "cargo tells so where it is")]
fn build_the_rest() -> io::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(());
    };
    let built = std::process::Command::new(cargo)
        .args(["build", "--quiet", "--package", "testkit", "--bins"])
        .status()?;
    if built.success() {
        Ok(())
    } else {
        Err(io::Error::other("the sandbox does not build"))
    }
}

async fn show(arguments: &Arguments) -> io::Result<()> {
    let mut out = io::stdout();
    let sandbox = Sandbox::start().await?;
    let cloud = clouds::start(&arguments.backend, &sandbox).await?;
    for namespace in ["test", "prod"] {
        cloud.namespace(&sandbox, namespace);
    }
    let mut agent = sandbox
        .agent_with(|settings| cloud.settings(settings))
        .await?;
    let test = sandbox.pod("test", "web").await?;
    let prod = sandbox.pod("prod", "web").await?;
    writeln!(
        out,
        "A node with an agent and two pods, test/web and prod/web.\n"
    )?;

    let questions = [
        (&test, "test", "test/database-password", 200),
        (&prod, "prod", "prod/database-password", 200),
        (&test, "test", "prod/database-password", 403),
    ];
    for (pod, namespace, name, expected) in questions {
        writeln!(out, "{namespace}/web asks for {name}:")?;
        let answer = pod.secret(name).await?;
        writeln!(out, "  {} {}", answer.status, answer.text())?;
        let own = answer.json()["value"] == password(namespace);
        if answer.status != expected || (expected == 200) != own {
            return Err(io::Error::other(format!("expected {expected}")));
        }
    }
    let refused = |line: &serde_json::Value| line["code"] == "denied";
    agent.until_audit(refused).await?;
    writeln!(out, "\nThe audit trail:")?;
    for line in agent
        .stderr()
        .iter()
        .filter(|line| line.contains(r#""target":"audit""#))
    {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "\nThe log of {} itself:", arguments.backend)?;
    for call in cloud.log() {
        writeln!(out, "  {}", call.line)?;
    }
    if !arguments.once {
        stay(&sandbox, &agent, &test, &prod)?;
        tokio::signal::ctrl_c().await?;
    }
    agent.stop().await?;
    writeln!(out, "\nDone.")
}

/// Says how to send requests by hand: to the kernel, a shell that enters a pod's cgroup is a process of that pod.
fn stay(
    sandbox: &Sandbox,
    agent: &AgentProcess,
    test: &SandboxPod,
    prod: &SandboxPod,
) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "\nAsk yourself, as root in another terminal, as one pod or the other:"
    )?;
    for (namespace, pod) in [("test", test), ("prod", prod)] {
        for name in ["test/database-password", "prod/database-password"] {
            let entrance = pod.workload.entrance().unwrap_or_default();
            writeln!(
                out,
                "  # as {namespace}/web\n  sh -c 'echo $$ > {} && exec curl -sS --unix-socket {} http://localhost/v1/secrets/{name}'",
                entrance.display(),
                sandbox.socket().display()
            )?;
        }
    }
    writeln!(
        out,
        "  # as a process of the node\n  curl -sS --unix-socket {} http://localhost/v1/identity",
        sandbox.socket().display()
    )?;
    writeln!(
        out,
        "\nThe agent is process {}. Ctrl-C ends everything.",
        agent.pid()
    )
}
