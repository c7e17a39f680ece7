//! `latchkey exec --on-change`: stays with the program, and restarts or signals it when a secret has changed.
//!
//! It is like a small init to the program: it passes signals on, reaps what is left to it as process 1 of a container,
//! and ends as the program ends.

use super::exec::Exec;
use super::failure::{Failure, OTHER, Told};
use super::terminal;
use super::variables::Secrets;
use super::watch::{REST, SETTLE, Used, Watch};
use crate::Client;
use nix::libc::SI_KERNEL;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use std::fs;
use std::future::pending;
use std::io;
use std::process::ExitCode;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
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

/// What a terminal, and so the kernel, sends to every process in its foreground: this one and the program.
const OF_THE_TERMINAL: [Signal; 3] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH];

/// What asks a program to end; at SIGQUIT some, such as a JVM, show what they are doing and go on.
const LEAVE: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// The program, and what happens around it.
struct Supervisor<'a> {
    exec: &'a Exec,
    client: &'a Client,
    signals: Signals,
    ends: tokio::signal::unix::Signal,
    child: Pid,
    /// Whether it has been asked to end.
    leaving: bool,
}

/// The signals that are passed on. They are blocked and read (signalfd(2)), since what tokio catches does not say where
/// it comes from.
struct Signals(AsyncFd<SignalFd>);

/// A signal that has arrived.
struct Sent {
    signal: Signal,
    /// Whether the kernel has sent it, and no process has (`SI_KERNEL` in sigaction(2)).
    by_kernel: bool,
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
    let signals = Signals::listen().map_err(|error| not_possible(&error))?;
    let secrets = tokio::select! {
        biased;
        signal = signals.ending() => {
            return Err(Failure::by_signal(SignalKind::from_raw(signal as i32)));
        }
        outcome = Secrets::read(client, exec.backend.as_deref(), &exec.names) => outcome?,
    };
    let mut watch = watch_of(exec, &secrets);
    let child = exec.start(&exec.command(&secrets)?)?;
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
                sent = self.signals.next() => {
                    self.leaving |= LEAVE.contains(&sent.signal);
                    // From a terminal, it has reached the program as well.
                    if !(sent.by_kernel && OF_THE_TERMINAL.contains(&sent.signal)) {
                        self.send(sent.signal);
                    }
                }
            }
        }
    }

    /// Reacts to a change.
    async fn react(&mut self) -> Result<After, Failure> {
        // New values first: the program goes on with the old ones as long as there are no others.
        let mut told = Told::default();
        let secrets = loop {
            let read = Secrets::read(self.client, self.exec.backend.as_deref(), &self.exec.names);
            tokio::select! {
                code = self.program() => return Ok(After::Ended(code)),
                outcome = read => match outcome {
                    Ok(secrets) => break secrets,
                    Err(failure) => told.say(&failure),
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
        self.child = self.exec.start(&command)?;
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

    fn send(&self, signal: Signal) {
        // If it has just ended, that is seen next. Its number is its own until it is reaped.
        let _ = kill(self.child, signal);
    }
}

impl Signals {
    /// From now on these signals have no other effect.
    #[expect(
        deprecated,
        reason = "its successor is an unsafe fn; what that one demands holds for an owned descriptor"
    )]
    fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let is_ignored = |signal: &Signal| ignored & 1 << (*signal as u32 - 1) != 0;
        let signals = PASSED_ON.into_iter();
        let signals: SigSet = signals.filter(|signal| !is_ignored(signal)).collect();
        // No other thread runs yet, and those to come inherit it: in one without it, these signals would end the process.
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&signals, flags)?;
        Ok(Self(AsyncFd::with_interest(fd, Interest::READABLE)?))
    }

    /// Waits for the next one.
    async fn next(&self) -> Sent {
        let read = |fd: &SignalFd| {
            let info = fd.read_signal()?.ok_or(io::ErrorKind::WouldBlock)?;
            Ok(Sent {
                signal: Signal::try_from(info.ssi_signo.cast_signed())?,
                by_kernel: info.ssi_code == SI_KERNEL,
            })
        };
        match self.0.async_io(Interest::READABLE, read).await {
            Ok(sent) => sent,
            // There is no reason for it, and without signals a program is supervised all the same.
            Err(_) => pending().await,
        }
    }

    /// Waits for the next one that ends a process by default: there is no program yet to pass it on to.
    async fn ending(&self) -> Signal {
        loop {
            match self.next().await.signal {
                Signal::SIGWINCH => {}
                signal => return signal,
            }
        }
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

/// The signals that this process ignores, the first in the lowest bit (proc_pid_status(5), `SigIgn`).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

fn not_possible(error: &io::Error) -> Failure {
    Failure::other(format!("cannot watch over a program: {error}"))
}
