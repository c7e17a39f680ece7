//! The command `latchkey`: how a person or a manifest uses the agent. One file per sub-command.
//!
//! A value goes to stdout or into a file, and nowhere else; everything else goes to stderr. The exit codes are in
//! [`failure`].

mod completions;
mod doctor;
mod env;
mod exec;
mod failure;
mod get;
mod healthcheck;
mod install;
mod list;
mod proxy;
mod render;
mod sink;
mod supervisor;
mod terminal;
mod variables;
mod watch;
mod whoami;

use crate::Client;
use crate::client::variable;
use crate::protocol::HEADER_VARIABLE;
use crate::retry::telling;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use failure::Failure;
use hyper::header::HeaderName;
use jiff::fmt::friendly::SpanParser;
use nix::sys::signal::SigSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The end of every sub-command's help.
const EXIT_CODES: &str = "\
Exit codes: 0 success; 1 other failure; 2 wrong usage; 3 no such secret, version or key; \
4 denied, or not known as a pod; 5 unavailable or timed out";

/// Read this pod's cloud secrets from the node's latchkey agent
///
/// The agent learns from the kernel which pod is calling, so there is nothing to log in with. Values go to stdout or
/// into a file, everything else to stderr.
#[derive(Debug, Parser)]
#[command(name = "latchkey", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: Command,
}

/// How the agent is reached.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Reach {
    /// The agent's socket [default: LATCHKEY_SOCKET, then /run/latchkey/agent.sock, then
    /// $XDG_RUNTIME_DIR/latchkey/agent.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Header to send with every request, for agents that require one [default: LATCHKEY_HEADER]
    #[arg(long, global = true, value_name = "NAME")]
    header: Option<HeaderName>,
    /// How long a request may take, with all its retries, such as 5s or 1m
    #[arg(long, global = true, value_name = "TIME", default_value = "15s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(get::Get),
    List(list::List),
    Exec(exec::Exec),
    Env(env::Env),
    Render(render::Render),
    Whoami(whoami::Whoami),
    Doctor(doctor::Doctor),
    Proxy(proxy::Proxy),
    Healthcheck(healthcheck::Healthcheck),
    Install(install::Install),
    Completions(completions::Completions),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    // What was blocked when this was started would stay so: no signal would end it, nor tell it that its program has
    // ended. Setting a mask does not fail.
    let _ = SigSet::empty().thread_set_mask();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Showing help is no failure, even if it is shown for lack of arguments.
        Err(error) if is_help(error.kind()) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::OTHER));
        }
        Err(error) => {
            let help = help_of(std::env::args_os().skip(1));
            let failure = Failure::usage(in_a_line(&error.render().to_string(), &help));
            failure.say();
            return ExitCode::from(failure.exit);
        }
    };
    arguments.run().unwrap_or_else(|failure| {
        failure.say();
        ExitCode::from(failure.exit)
    })
}

fn is_help(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
    )
}

/// What clap says is wrong, and its tip if there is one, without the usage text that follows.
fn in_a_line(text: &str, help: &str) -> String {
    let paragraphs = text.split("\n\n").map(str::trim);
    let told = paragraphs.take_while(|paragraph| !paragraph.starts_with("Usage:"));
    let told = told.filter(|paragraph| !paragraph.starts_with("For more information"));
    let told = told.map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let line = told.collect::<Vec<_>>().join("; ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line} ({help} shows how)")
}

/// What to type for the help of the sub-command in these arguments, which clap does not say for every mistake.
fn help_of(mut arguments: impl Iterator<Item = OsString>) -> String {
    let is_command = |argument: &OsString| Arguments::command().find_subcommand(argument).is_some();
    match arguments.find(is_command) {
        Some(command) => format!("latchkey {} --help", command.display()),
        None => "latchkey --help".to_owned(),
    }
}

impl Arguments {
    fn run(self) -> Result<ExitCode, Failure> {
        let reach = self.reach;
        match self.command {
            Command::Completions(command) => command.run(),
            Command::Doctor(command) => command.run(&reach),
            Command::Env(command) => command.run(&reach),
            Command::Exec(command) => command.run(&reach),
            Command::Get(command) => command.run(&reach),
            Command::Healthcheck(command) => command.run(&reach),
            Command::Install(command) => command.run(),
            Command::List(command) => command.run(&reach),
            Command::Proxy(command) => command.run(&reach),
            Command::Render(command) => command.run(&reach),
            Command::Whoami(command) => command.run(&reach),
        }
    }
}

impl Reach {
    fn client(&self) -> Result<Client, Failure> {
        let mut client = Client::from_env();
        if let Some(socket) = &self.socket {
            client = client.at(socket);
        }
        if let Some(name) = &self.header {
            client = client.header(name.as_str(), "1");
        } else if let Some(name) = variable(HEADER_VARIABLE)
            && HeaderName::from_bytes(name.as_bytes()).is_err()
        {
            return Err(Failure::usage(format!(
                "{HEADER_VARIABLE} names no header: {name:?}"
            )));
        }
        Ok(client.patience(self.timeout))
    }
}

/// Parses a time with its unit, or whole seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    SpanParser::new()
        .parse_unsigned_duration(text)
        .map_err(|_| "write a time such as 500ms, 5s or 1m".to_owned())
}

/// Does work that takes as long as the agent does. As process 1 of a container, which no signal ends by default
/// (pid_namespaces(7)), it ends at the signals that ask for it.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    serve(async {
        if std::process::id() != 1 {
            return work.await;
        }
        let mut leave = Leave::listen()?;
        tokio::select! {
            outcome = work => outcome,
            signal = leave.asked() => Err(Failure::by_signal(signal)),
        }
    })
}

/// The signals that ask a command to end.
struct Leave {
    interrupt: Signal,
    terminate: Signal,
}

impl Leave {
    /// From now on these signals have no other effect.
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::other(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one.
    async fn asked(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}

/// Does work that handles signals itself. One thread is enough: it mostly waits.
fn serve<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start: {error}")))?
        .block_on(telling(terminal::waiting, work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn whoever_mistypes_a_command_is_shown_its_own_help() {
        let help = |arguments: &[&str]| help_of(arguments.iter().map(OsString::from));
        assert_eq!(help(&["--timeout", "5s", "get"]), "latchkey get --help");
        assert_eq!(help(&["exec", "list"]), "latchkey exec --help");
        assert_eq!(help(&["frobnicate"]), "latchkey --help");
        assert_eq!(help(&[]), "latchkey --help");
    }

    #[test]
    fn an_empty_option_is_no_option_that_was_left_out() {
        for line in [
            &["get", "a", "--key", ""][..],
            &["get", "a", "--version", ""],
            &["get", "a", "--stage", ""],
            &["get", "a", "--backend", ""],
            &["get", ""],
            &["list", "--backend", ""],
            &["doctor", "--backend", ""],
            &["doctor", ""],
        ] {
            assert_eq!(refused(line), ErrorKind::InvalidValue, "{line:?}");
        }
    }

    #[test]
    fn a_dash_is_neither_stdin_nor_stdout_nor_a_file() {
        for line in [
            &["get", "a", "--out", "-"][..],
            &["env", "a", "--out", "-"],
            &["render", "-"],
        ] {
            assert_eq!(refused(line), ErrorKind::ValueValidation, "{line:?}");
        }
    }

    /// Returns why this command line is refused.
    fn refused(line: &[&str]) -> ErrorKind {
        let parsed = Arguments::try_parse_from([&["latchkey"], line].concat());
        parsed.expect_err("it is refused").kind()
    }

    #[test]
    fn times_have_units_or_are_seconds() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("soon").is_err());
        assert!(duration("-1s").is_err());
    }
}
