//! Programs in a workload: to the kernel, and so to the agent, each is a process of the workload's container.

use std::io;
use std::time::Duration;

use super::protocol::{Command, Executed, Outcome, Task};
use super::{Signal, Workload, ask::unexpected};

/// How long a program may take to write an expected text, or to end: longer than a compiler on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program that was started in a workload. It is killed with the workload, not before.
#[derive(Debug)]
pub struct Running<'a> {
    workload: &'a Workload,
    pid: u32,
    program: String,
}

impl Workload {
    /// Runs a program in the workload to its end.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or does not end.
    pub async fn run(&self, command: Command) -> io::Result<Executed> {
        self.spawn(command).await?.end().await
    }

    /// Starts a program in the workload.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub async fn spawn(&self, command: Command) -> io::Result<Running<'_>> {
        let program = command.program.clone();
        match self.channel.ask(Task::Spawn { command }).await? {
            Outcome::Spawned(pid) => Ok(Running {
                workload: self,
                pid,
                program,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a program in the workload to its end; [`run`](Self::run) for one that needs no more than arguments.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn execute(&self, program: &str, arguments: &[&str]) -> io::Result<Executed> {
        self.run(Command::new(program).args(arguments)).await
    }
}

impl Running<'_> {
    /// Its PID in the workload's PID namespace, which is the test's unless the workload has one of its own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has written `text` to either stream, and returns what it has written so far.
    ///
    /// # Errors
    ///
    /// If it ends without doing so, or takes too long.
    pub async fn until(&self, text: &str) -> io::Result<Executed> {
        let task = Task::AwaitText {
            pid: self.pid,
            text: text.to_owned(),
        };
        self.executed(task).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub async fn signal(&self, signal: Signal) -> io::Result<()> {
        let task = Task::Signal {
            pid: self.pid,
            signal: signal as i32,
        };
        self.workload.channel.ask(task).await.map(drop)
    }

    /// Waits for its end, and until nobody holds its output any more.
    ///
    /// # Errors
    ///
    /// If it takes too long.
    pub async fn end(&self) -> io::Result<Executed> {
        self.executed(Task::AwaitEnd { pid: self.pid }).await
    }

    async fn executed(&self, task: Task) -> io::Result<Executed> {
        let answer = tokio::time::timeout(PATIENCE, self.workload.channel.ask(task))
            .await
            .map_err(|_| {
                let text = format!("{} is still waited for", self.program);
                io::Error::new(io::ErrorKind::TimedOut, text)
            })?;
        match answer? {
            Outcome::Executed(executed) => Ok(executed),
            other => Err(unexpected(&other)),
        }
    }
}
