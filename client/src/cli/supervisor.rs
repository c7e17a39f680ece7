//! `latchkey exec --on-change`: stays with the program, and restarts or signals it when a secret has changed.
//!
//! It is like a small init to the program: it passes signals on, reaps what is left to it as process 1 of a container,
//! and ends as the program ends.

use super::exec::Exec;
use super::failure::{Failure, OTHER};
use super::terminal;
use super::variables::Secrets;
use super::watch::{REST, SETTLE, Used, Watch};
use crate::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use std::fs;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// The signals that are passed on to the program, unless ignored: what was ignored when this process was started, as by
/// nohup(1), stays so, and execve(2) keeps it.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// What a terminal sends to every process in its foreground, including the program.
const OF_THE_TERMINAL: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH];

/// What asks a program to end; at SIGQUIT some, such as a JVM, show what they are doing and go on.
const LEAVE: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// The program, and what happens around it.
struct Supervisor<'a> {
    exec: &'a Exec,
    client: &'a Client,
    signals: mpsc::Receiver<Signal>,
    ends: tokio::signal::unix::Signal,
    child: Pid,
    /// Whether it has been asked to end.
    leaving: bool,
}

/// The state after a change.
enum After {
    Ended(ExitCode),
    GoesOn(Watch),
}

/// Runs the program until it ends.
pub(crate) async fn run(exec: &Exec, client: &Client) -> Result<ExitCode, Failure> {
    // Before there is a program whose end could be missed.
    let ends = signal(SignalKind::child()).map_err(|error| not_possible(&error))?;
    let mut signals = listen()?;
    let secrets = tokio::select! {
        biased;
        signal = ending(&mut signals) => {
            return Err(Failure::by_signal(SignalKind::from_raw(signal as i32)));
        }
        outcome = Secrets::read(client, exec.backend.as_deref(), &exec.names) => outcome?,
    };
    let mut watch = watch_of(exec, &secrets);
    let child = exec.start(exec.command(&secrets)?)?;
    drop(secrets);
    let mut supervisor = Supervisor {
        exec,
        client,
        signals,
        ends,
        child,
        leaving: false,
    };
    loop {
        tokio::select! {
            code = supervisor.program() => return Ok(code),
            name = watch.changed(client) => {
                terminal::note(&format!("{name} has changed"));
            }
        }
        // Signals and the program's end are handled in the meantime.
        tokio::select! {
            code = supervisor.program() => return Ok(code),
            () = sleep(SETTLE) => {}
        }
        match supervisor.react().await? {
            After::Ended(code) => return Ok(code),
            After::GoesOn(newer) => watch = newer,
        }
    }
}

impl Supervisor<'_> {
    /// Returns the exit code of the program when it has ended. Signals are passed on in the meantime.
    async fn program(&mut self) -> ExitCode {
        loop {
            if let Some(code) = self.reap() {
                return ExitCode::from(code);
            }
            tokio::select! {
                _ = self.ends.recv() => {}
                Some(signal) = self.signals.recv() => {
                    self.leaving |= LEAVE.contains(&signal);
                    self.pass_on(signal);
                }
            }
        }
    }

    /// Reacts to a change.
    async fn react(&mut self) -> Result<After, Failure> {
        // New values first: the program goes on with the old ones as long as there are no others.
        let secrets = loop {
            let read = Secrets::read(self.client, self.exec.backend.as_deref(), &self.exec.names);
            tokio::select! {
                code = self.program() => return Ok(After::Ended(code)),
                outcome = read => match outcome {
                    Ok(secrets) => break secrets,
                    Err(failure) => failure.say(),
                },
            }
            tokio::select! {
                code = self.program() => return Ok(After::Ended(code)),
                () = sleep(REST) => {}
            }
        };
        // It may take as long to end as whoever asked it to end allows, and is not restarted.
        if self.leaving {
            return Ok(After::Ended(self.program().await));
        }
        let watch = watch_of(self.exec, &secrets);
        if let Some(signal) = self.exec.signal {
            self.send(signal);
            return Ok(After::GoesOn(watch));
        }
        let command = match self.exec.command(&secrets) {
            Ok(command) => command,
            Err(failure) => {
                failure.say();
                return Ok(After::GoesOn(watch));
            }
        };
        self.send(Signal::SIGTERM);
        let grace = self.exec.grace;
        let code = match timeout(grace, self.program()).await {
            Ok(code) => code,
            Err(_) => {
                terminal::note(&format!("it does not end within {grace:?} and is killed"));
                self.send(Signal::SIGKILL);
                self.program().await
            }
        };
        if self.leaving {
            return Ok(After::Ended(code));
        }
        self.child = self.exec.start(command)?;
        Ok(After::GoesOn(watch))
    }

    /// Reaps what has ended; returns the code if it was the program: for a signal 128 plus its number, as in shells.
    ///
    /// With rustix, since nix reaps a process and then fails if a real-time signal has ended it.
    fn reap(&self) -> Option<u8> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid.as_raw_pid() == self.child.as_raw() => {
                    let by_signal = status.terminating_signal().map(|number| 128 + number);
                    let code = status.exit_status().or(by_signal);
                    return Some(code.map_or(OTHER, |code| u8::try_from(code).unwrap_or(u8::MAX)));
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return None,
                // No child is left: the program has ended, and how cannot be found out any more.
                Err(_) => return Some(OTHER),
            }
        }
    }

    /// Passes a signal on, unless a terminal has sent it to the program as well.
    fn pass_on(&self, signal: Signal) {
        if !(OF_THE_TERMINAL.contains(&signal) && is_in_front()) {
            self.send(signal);
        }
    }

    fn send(&self, signal: Signal) {
        // If it has just ended, that is seen next. Its number is its own until it is reaped.
        let _ = kill(self.child, signal);
    }
}

fn watch_of(exec: &Exec, secrets: &Secrets) -> Watch {
    let mut watch = Watch::default();
    for secret in secrets.iter() {
        let used = Used {
            backend: exec.backend.clone(),
            ..Used::latest(&secret.name)
        };
        watch.add(used, secret);
    }
    watch
}

/// All signals that are passed on, in one queue.
fn listen() -> Result<mpsc::Receiver<Signal>, Failure> {
    let (send, signals) = mpsc::channel(16);
    let ignored = ignored();
    for number in PASSED_ON {
        if ignored & 1 << (number as u32 - 1) != 0 {
            continue;
        }
        let mut stream =
            signal(SignalKind::from_raw(number as i32)).map_err(|error| not_possible(&error))?;
        let send = send.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && send.send(number).await.is_ok() {}
        });
    }
    Ok(signals)
}

/// The signals that this process ignores, the first in the lowest bit (proc_pid_status(5), `SigIgn`).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

/// The next signal that ends a process by default: there is no program yet to pass it on to.
async fn ending(signals: &mut mpsc::Receiver<Signal>) -> Signal {
    loop {
        match signals.recv().await {
            Some(Signal::SIGWINCH) => {}
            Some(signal) => return signal,
            None => std::future::pending().await,
        }
    }
}

/// Whether this process is in a terminal's foreground, and the program with it. Process 1 of a container with a
/// terminal is too, but also gets the same signals from the container's runtime, which sends them to nobody else.
/// Signals do not say who sent them, so the program gets those of such a terminal twice.
fn is_in_front() -> bool {
    let stdin = io::stdin();
    std::process::id() != 1
        && stdin.is_terminal()
        && tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp())
}

fn not_possible(error: &io::Error) -> Failure {
    Failure::other(format!("cannot watch over a program: {error}"))
}
