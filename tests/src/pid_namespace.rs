//! A PID namespace in which a test chooses the PIDs: agent and workloads run inside, and a PID can be reused.

mod init;

use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

pub use init::run_init;

use crate::PATIENCE;
use crate::binaries::sibling_binary;
use crate::workload::Signal;

/// How often to check whether a child has ended.
const LOOK: Duration = Duration::from_millis(2);

/// A handle on the namespace; dropping the last one ends every process inside.
#[derive(Clone, Debug)]
pub struct PidNamespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    line: tokio::sync::Mutex<(tokio::io::Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf)>,
    /// PID of the namespace's init, in the test's namespace.
    init: u32,
    /// The process that waits for init's end.
    _launcher: tokio::process::Child,
    directory: tempfile::TempDir,
}

/// A program to run inside; `Program { pid: Some(300), ..Program::new(path) }`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Program {
    /// The file.
    pub file: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, in addition to the test's or (`clear`) alone.
    pub environment: Vec<(String, String)>,
    /// Whether it gets nothing of the test's environment.
    pub clear: bool,
    /// The file that its standard output and standard error are appended to; `None`: the test's own.
    pub output: Option<PathBuf>,
    /// The PID that it must get.
    pub pid: Option<u32>,
}

/// A request from the test to init.
#[derive(Debug, Deserialize, Serialize)]
enum Order {
    Signal {
        pid: u32,
        signal: i32,
    },
    /// Connects standard input to the socket `line`, if there is one.
    Spawn {
        program: Program,
        line: Option<PathBuf>,
    },
    /// Asks whether it has ended; if so, it is reaped.
    Wait {
        pid: u32,
    },
}

/// A message of init's.
#[derive(Debug, Deserialize, Serialize)]
enum Answer {
    Done,
    /// With the exit code; `None` if a signal ended it.
    Ended {
        code: Option<i32>,
    },
    Failed(String),
    /// The first message of init, with its PID outside.
    Launched {
        pid: u32,
    },
    Running,
    Spawned {
        pid: u32,
    },
}

impl Program {
    /// A program without arguments.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            clear: false,
            output: None,
            pid: None,
        }
    }
}

impl PidNamespace {
    /// Starts an empty namespace with its own `/proc`.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn start() -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = tokio::process::Command::new(sibling_binary("pidns-init")?);
        command
            .arg("enter")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .kill_on_drop(true);
        let launcher = command.spawn()?;
        drop(command);
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let mut lines = BufReader::new(reader).lines();
        // The launcher and init write to one line, in either order.
        let (mut launched, mut ready) = (None, false);
        let init = loop {
            match answer(&mut lines).await? {
                Answer::Launched { pid } => launched = Some(pid),
                Answer::Done => ready = true,
                Answer::Failed(text) => return Err(io::Error::other(text)),
                other => return Err(unexpected(&other)),
            }
            if let (Some(init), true) = (launched, ready) {
                break init;
            }
        };
        let inner = Inner {
            line: tokio::sync::Mutex::new((lines, writer)),
            init,
            _launcher: launcher,
            directory: tempfile::tempdir()?,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Starts a program inside, and returns its PID there.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or the PID that it must get is taken.
    pub async fn spawn(&self, program: Program) -> io::Result<u32> {
        self.order_spawn(program, None).await
    }

    /// Starts a program whose standard input is one end of a socket, and returns the other end.
    pub(crate) async fn spawn_with_line(&self, program: Program) -> io::Result<(u32, UnixStream)> {
        let path = self
            .inner
            .directory
            .path()
            .join(uuid::Uuid::new_v4().simple().to_string());
        let listener = UnixListener::bind(&path)?;
        let pid = self.order_spawn(program, Some(path.clone())).await?;
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await??;
        fs::remove_file(path)?;
        Ok((pid, stream))
    }

    /// Sends a signal to a program that was started here.
    ///
    /// # Errors
    ///
    /// If there is none of that PID.
    pub async fn signal(&self, pid: u32, signal: Signal) -> io::Result<()> {
        match self
            .order(&Order::Signal {
                pid,
                signal: signal as i32,
            })
            .await?
        {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for a program's end and reaps it: when this returns, its PID is free. Returns its exit code, or `None` if
    /// a signal ended it.
    ///
    /// # Errors
    ///
    /// If no such program was started here, or it has been reaped.
    pub async fn wait(&self, pid: u32) -> io::Result<Option<i32>> {
        loop {
            match self.order(&Order::Wait { pid }).await? {
                Answer::Ended { code } => return Ok(code),
                Answer::Running => tokio::time::sleep(LOOK).await,
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Reads a file as init sees it, such as one in the `/proc` inside.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn read(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/root{path}", self.inner.init))
    }

    async fn order_spawn(&self, program: Program, line: Option<PathBuf>) -> io::Result<u32> {
        match self.order(&Order::Spawn { program, line }).await? {
            Answer::Spawned { pid } => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    async fn order(&self, order: &Order) -> io::Result<Answer> {
        let mut text = serde_json::to_vec(order)?;
        text.push(b'\n');
        let mut line = self.inner.line.lock().await;
        line.1.write_all(&text).await?;
        match answer(&mut line.0).await? {
            Answer::Failed(text) => Err(io::Error::other(text)),
            answer => Ok(answer),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (reader, _) = self.line.get_mut();
        // Init ends with its line, and everything inside with init; shutting the line down makes that happen now.
        let stream: &UnixStream = reader.get_ref().get_ref().as_ref();
        let _closed = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
    }
}

async fn answer(lines: &mut tokio::io::Lines<BufReader<OwnedReadHalf>>) -> io::Result<Answer> {
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
    let line = line
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the PID namespace is gone"))?;
    Ok(serde_json::from_str(&line)?)
}

fn unexpected(answer: &Answer) -> io::Error {
    io::Error::other(format!("init answered {answer:?}"))
}

#[cfg(test)]
mod tests;
