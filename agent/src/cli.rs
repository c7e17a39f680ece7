//! The program: arguments, hardening, logging, configuration, runtime, exit codes.

use crate::agent::{Agent, Drained, Leave};
use crate::backend::LOOKUPS;
use crate::backend::machine::Source;
use crate::config::{self, Config};
use crate::preflight::{self, StartError};
use crate::stderr::Stderr;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, filter, fmt};

/// Exit codes as in sysexits(3).
pub(crate) mod exit {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const CONFIG: u8 = 78;
}

/// How many log lines wait for a slow stderr before more are dropped. Audit lines have a queue of their own, for which
/// requests wait.
const LOG_QUEUE: usize = 4096;

/// Where kube's client logs requests that failed: errors without a reason, several a second while the API server is
/// away, and a watch that broke off. Whoever sent the request logs that itself, with the reason.
const SAID_BY_CALLERS: [&str; 2] = ["kube_client::client", "kube_client::client::builder"];

/// How long writing the last audit lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long a thread of the pool for blocking work is kept without work.
const THREAD_KEPT: Duration = Duration::from_secs(10);

/// How often one of them is given work. More than half of [`THREAD_KEPT`], so that it keeps one thread and no second.
const THREAD_USED: Duration = Duration::from_secs(6);

/// Node agent that proves which pod is calling and reads its cloud secrets as that pod
///
/// Without a command it serves pods until it is told to leave: SIGTERM, SIGINT and SIGHUP drain it, and another SIGINT
/// ends the drain.
#[derive(Debug, Parser)]
#[command(name = "latchkey-agent", version)]
struct Arguments {
    /// Configuration file [default: /etc/latchkey/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one configuration key, such as listen.admin=127.0.0.1:9642, over file and environment
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration and the surroundings, and say what is wrong; creates the socket's directory if it is
    /// missing
    Check,
    /// Writes the credentials that a cloud's own tools would use on this machine: for the agent itself.
    #[command(hide = true)]
    Credentials {
        #[command(subcommand)]
        source: Source,
    },
}

/// Runs the program as its arguments say.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match parse::<Arguments>() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    keep_secrets_in();
    // One provider for all of TLS: rustls would panic if a dependency brought another one to choose from.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Some(Command::Credentials { source }) = arguments.command {
        return credentials(source);
    }
    let config = match Config::load(
        arguments.config.as_deref(),
        config::environment(),
        arguments.set,
    ) {
        Ok(config) => config,
        Err(faults) => return fail(exit::CONFIG, &faults),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(exit::UNAVAILABLE, &format!("cannot start: {error}")),
    };
    let code = match arguments.command {
        Some(Command::Check) => runtime.block_on(check(&config)),
        _ => match log_to_stderr(&config.log_level) {
            Ok(_logs) => runtime.block_on(serve(config)),
            Err(error) => fail(exit::UNAVAILABLE, &format!("cannot start: {error}")),
        },
    };
    // Dropping it ends what the drain cut, whose audit lines are then written. A stderr that nobody reads would block
    // that forever, hence a thread and a limit. If no thread can be started, it is dropped here.
    let (ended, end) = std::sync::mpsc::channel();
    let _ = std::thread::Builder::new().spawn(move || {
        drop(runtime);
        let _ = ended.send(());
    });
    let _ = end.recv_timeout(LAST_LINES);
    code
}

/// One thread, and not only for speed: the trail's lines are in the order of their numbers, and turns work, only
/// because nothing runs between two awaits (docs/decisions/0005).
///
/// Work that blocks has a pool of threads, and one of them is there from the start and stays: where the node's process
/// numbers are used up, such work waits for it. With an empty pool, tokio would panic.
fn runtime() -> io::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("blocking")
        .max_blocking_threads(64 + LOOKUPS)
        .thread_keep_alive(THREAD_KEPT)
        .build()?;
    with_a_thread(|| runtime.spawn_blocking(|| ()))?;
    runtime.spawn(async {
        loop {
            sleep(THREAD_USED).await;
            let _ = spawn_blocking(|| ()).await;
        }
    });
    Ok(runtime)
}

/// What `start` returns, or an error if it panics, as tokio and tracing-appender do if they cannot start a thread.
fn with_a_thread<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(start)).map_err(|_| {
        // The panic does not say why, but another try does.
        let tried = std::thread::Builder::new().spawn(|| ());
        // The C library does without clone3(2) only where that is ENOSYS.
        let is_forbidden = tried.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        io::Error::other(if is_forbidden {
            "no thread can be started: an old seccomp profile forbids clone3(2), so update the container runtime"
        } else {
            "no thread can be started: raise the limit on processes (pids of the container or the node, ulimit -u)"
        })
    })
}

async fn serve(config: Config) -> ExitCode {
    // First, so that an agent told to leave while it starts does leave.
    let leave = match leave_by_signals() {
        Ok(leave) => leave,
        Err(error) => {
            return fail(
                exit::UNAVAILABLE,
                &format!("cannot wait for signals: {error}"),
            );
        }
    };
    let agent = match Agent::bind(config).await {
        Ok(agent) => agent,
        Err(error @ StartError::LocalRole(..)) => return fail(exit::CONFIG, &error),
        Err(error) => return fail(exit::UNAVAILABLE, &error),
    };
    match agent.run(leave).await {
        Ok(Drained::Whole) => ExitCode::SUCCESS,
        Ok(Drained::InPart) => exit::SOFTWARE.into(),
        Err(error) => fail(exit::SOFTWARE, &error),
    }
}

/// Handles the signals: SIGTERM, SIGINT and SIGHUP mean leave; a SIGINT after any of them means wait for nobody.
fn leave_by_signals() -> io::Result<Leave> {
    let leave = Leave::default();
    let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
    // Under nohup(1), the agent outlives its terminal.
    if !ignores_hangups() {
        kinds.push(SignalKind::hangup());
    }
    for kind in kinds {
        let mut signals = signal(kind)?;
        let leave = leave.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                // Ctrl-C again. The others may come twice without urgency: a kubelet restarted in a pod's grace period
                // sends SIGTERM again, and a closing terminal or systemd sends SIGHUP after another signal.
                if leave.soon.is_cancelled() && kind == SignalKind::interrupt() {
                    leave.now.cancel();
                }
                leave.soon.cancel();
            }
        });
    }
    Ok(leave)
}

/// Whether the agent was started to ignore SIGHUP, by the mask in proc_pid_status(5).
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1.
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 == 1))
}

async fn check(config: &Config) -> ExitCode {
    let findings = preflight::check(config).await;
    let mut out = io::stdout().lock();
    for finding in &findings {
        let _ = match &finding.outcome {
            Ok(found) => writeln!(out, "ok       {}: {found}", finding.subject),
            Err(missing) => writeln!(out, "missing  {}: {missing}", finding.subject),
        };
    }
    if findings.iter().all(|finding| finding.outcome.is_ok()) {
        ExitCode::SUCCESS
    } else {
        exit::UNAVAILABLE.into()
    }
}

/// Finds credentials and writes them to stdout, but never to a terminal.
fn credentials(source: Source) -> ExitCode {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        return fail(
            exit::USAGE,
            &"what this writes are credentials, which belong on no terminal",
        );
    }
    let found = match runtime() {
        Ok(runtime) => {
            let found = runtime.block_on(source.find());
            // Does not wait for a lookup that is still running.
            runtime.shutdown_background();
            found
        }
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(found) if out.write_all(found.as_bytes()).is_ok() => ExitCode::SUCCESS,
        Ok(_) => exit::UNAVAILABLE.into(),
        Err(why) => fail(exit::UNAVAILABLE, &why),
    }
}

/// Parses the program's arguments.
///
/// # Errors
///
/// The exit code if there is nothing more to do, since usage, version or the error has been printed.
pub(crate) fn parse<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        let _ = error.print();
        if error.use_stderr() {
            exit::USAGE.into()
        } else {
            ExitCode::SUCCESS
        }
    })
}

/// Keeps memory out of core dumps, other processes and swap, as far as the kernel allows.
pub(crate) fn keep_secrets_in() {
    let _ = nix::sys::prctl::set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // Each connection takes two descriptors, and the soft limit is often a thousand.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // Under a limit, locking future pages would make later allocations fail.
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK)
        .is_ok_and(|(soft, _)| soft == nix::sys::resource::RLIM_INFINITY);
    if unlimited {
        use rustix::mm::{MlockAllFlags, mlockall};
        let pages = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        let _ = mlockall(pages);
    }
    // A panic's message may hold what was being formatted, so only its place is logged.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(place, "panicked");
    }));
}

/// Logs to stderr through a thread, so that a slow reader of stderr slows nothing down.
///
/// # Errors
///
/// If that thread cannot be started.
pub(crate) fn log_to_stderr(
    level: &str,
) -> io::Result<tracing_appender::non_blocking::WorkerGuard> {
    let (out, guard) = with_a_thread(|| {
        tracing_appender::non_blocking::NonBlockingBuilder::default()
            .buffered_lines_limit(LOG_QUEUE)
            .lossy(true)
            .thread_name("log")
            .finish(Stderr)
    })?;
    let filter = EnvFilter::builder().parse_lossy(level);
    // Traces of libraries may hold requests and answers, so no level makes them more verbose than this. Azure's SDK
    // has a line of its own for each failed try, with the secret's name: only for those who look for more than usual.
    let most = match filter.max_level_hint() {
        Some(level) if level <= LevelFilter::INFO => LevelFilter::WARN,
        _ => LevelFilter::INFO,
    };
    let ours = filter::filter_fn(move |event| {
        event.target().starts_with("latchkey") || *event.level() <= most
    });
    let once = filter::filter_fn(|event| !SAID_BY_CALLERS.contains(&event.target()));
    let lines = fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(out)
        .with_filter(ours.and(once));
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init();
    Ok(guard)
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{}", signed(why));
    code.into()
}

/// The text with the program's name before each line.
fn signed(why: &dyn std::fmt::Display) -> String {
    let lines = why.to_string();
    let lines: Vec<String> = lines
        .lines()
        .map(|line| format!("latchkey-agent: {line}"))
        .collect();
    lines.join("\n")
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is missing its =")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Tells the child process that it is the child.
    const CHILD: &str = "LATCHKEY_TEST_PANICS";

    const CANARY: &str = "canary-of-a-panic";

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is how the parent tells the child"
    )]
    fn panics_where_it_is_the_child() {
        if std::env::var_os(CHILD).is_some() {
            keep_secrets_in();
            let _logs = log_to_stderr("info").expect("a thread");
            tracing::info!(target: "a_library", CANARY);
            tracing::warn!(target: "a_library", "a warning");
            panic!("{CANARY}");
        }
    }

    #[test]
    fn each_of_several_faults_is_said_under_the_programs_name() {
        assert_eq!(
            signed(&"a is wrong\nb is wrong"),
            "latchkey-agent: a is wrong\nlatchkey-agent: b is wrong"
        );
    }

    #[test]
    fn of_a_panic_only_its_place_is_told_and_of_a_library_what_is_wrong() {
        let mut child = Command::new(std::env::current_exe().expect("it runs"));
        child.args([
            "--exact",
            "--nocapture",
            "cli::tests::panics_where_it_is_the_child",
        ]);
        let told = child.env(CHILD, "").output().expect("it runs");
        assert!(!told.status.success());
        let text = [told.stdout, told.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("\"message\":\"panicked\""), "{text}");
        assert!(text.contains("cli.rs:"), "{text}");
        assert!(text.contains("a warning"), "{text}");
        assert!(!text.contains(CANARY), "{text}");
    }
}
