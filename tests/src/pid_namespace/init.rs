//! The first process of the namespace: it starts programs, gives them their PIDs and reaps them.
//!
//! This runs in the program `pidns-init`, which has one thread, so that no thread takes a PID that a test wants.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser as _;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Answer, Order, Program};
use crate::workload::mount_proc;

/// How often to try for a PID: threads of other programs inside take PIDs too.
const ATTEMPTS: usize = 20;

#[derive(Debug, clap::Parser)]
enum Stage {
    Enter,
    Init,
}

/// Runs the program `pidns-init`.
///
/// # Errors
///
/// If the namespace cannot be made.
pub fn run_init() -> io::Result<ExitCode> {
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    match Stage::parse() {
        Stage::Enter => {
            unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
            let mut init = Command::new("/proc/self/exe").arg("init").spawn()?;
            say(&mut line, &Answer::Launched { pid: init.id() })?;
            drop(line);
            init.wait()?;
        }
        Stage::Init => {
            let ready = mount_proc();
            say(
                &mut line,
                &ready.map_or_else(|error| Answer::Failed(error.to_string()), |()| Answer::Done),
            )?;
            serve(line)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(mut line: UnixStream) -> io::Result<()> {
    let mut children = HashMap::new();
    for order in BufReader::new(line.try_clone()?).lines() {
        let answer = serde_json::from_str(&order?).map_err(Into::into);
        let answer = answer.and_then(|order| obey(order, &mut children));
        say(
            &mut line,
            &answer.unwrap_or_else(|error| Answer::Failed(error.to_string())),
        )?;
    }
    Ok(())
}

fn obey(order: Order, children: &mut HashMap<u32, Child>) -> io::Result<Answer> {
    match order {
        Order::Signal { pid, signal } => {
            if !children.contains_key(&pid) {
                return Err(io::Error::other(format!(
                    "{pid} was not started here, or has been reaped"
                )));
            }
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            kill(Pid::from_raw(pid), Signal::try_from(signal)?)?;
            Ok(Answer::Done)
        }
        Order::Spawn { program, line } => {
            let line = line.map(UnixStream::connect).transpose()?;
            let child = spawn(&program, line)?;
            let pid = child.id();
            children.insert(pid, child);
            Ok(Answer::Spawned { pid })
        }
        Order::Wait { pid } => {
            let child = children.get_mut(&pid);
            let child =
                child.ok_or_else(|| io::Error::other(format!("{pid} was not started here")))?;
            match child.try_wait()? {
                None => Ok(Answer::Running),
                Some(status) => {
                    children.remove(&pid);
                    Ok(Answer::Ended {
                        code: status.code(),
                    })
                }
            }
        }
    }
}

fn spawn(program: &Program, line: Option<UnixStream>) -> io::Result<Child> {
    let mut command = Command::new(&program.file);
    if program.clear {
        command.env_clear();
    }
    command
        .args(&program.arguments)
        .envs(program.environment.iter().cloned());
    if let Some(path) = &program.output {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        command.stdout(file.try_clone()?).stderr(file);
    }
    let Some(wanted) = program.pid else {
        return command.stdin(input(line.as_ref())?).spawn();
    };
    if fs::exists(format!("/proc/{wanted}"))? {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("PID {wanted} is taken"),
        ));
    }
    for _ in 0..ATTEMPTS {
        // The next PID is the first free one after this (proc_sys_kernel(5)).
        fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string())?;
        let mut child = command.stdin(input(line.as_ref())?).spawn()?;
        if child.id() == wanted {
            return Ok(child);
        }
        child.kill()?;
        child.wait()?;
    }
    Err(io::Error::other(format!(
        "others took PID {wanted} {ATTEMPTS} times"
    )))
}

fn input(line: Option<&UnixStream>) -> io::Result<Stdio> {
    match line {
        Some(line) => Ok(Stdio::from(OwnedFd::from(line.try_clone()?))),
        None => Ok(Stdio::null()),
    }
}

fn say(line: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    line.write_all(&text)
}
