//! The programs that a pod runs: what each has written so far, and how it ended.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::sync::watch;

use super::protocol::{Command, Executed};

/// By PID; a program stays here after its end, so that tests can ask how it ended at any time.
#[derive(Clone, Debug, Default)]
pub(super) struct Children(Arc<Mutex<HashMap<u32, watch::Receiver<State>>>>);

/// What is known of a program.
#[derive(Debug, Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Set once it is reaped: from then on the PID may be another's.
    exit: Option<ExitStatus>,
    /// Whether it is reaped, and nobody holds its output any more.
    over: bool,
}

impl Children {
    /// Starts a program and returns its PID.
    pub(super) fn spawn(&self, command: &Command) -> io::Result<u32> {
        let mut starting = tokio::process::Command::new(&command.program);
        starting.args(&command.arguments);
        if command.bare {
            starting.env_clear();
        }
        starting.envs(
            command
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        if let Some(directory) = &command.directory {
            starting.current_dir(directory);
        }
        starting
            .stdin(if command.input.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = starting.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", command.program))
        })?;
        let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
        let (sender, receiver) = watch::channel(State::default());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, receiver);
        tokio::spawn(follow(child, command.input.clone(), sender));
        Ok(pid)
    }

    /// Waits until a program has written `text` to either stream, and returns what it has written so far.
    pub(super) async fn said(&self, pid: u32, text: &str) -> io::Result<Executed> {
        let mut receiver = self.receiver(pid)?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let state = receiver
            .wait_for(|state| said(&state.stdout) || said(&state.stderr) || state.over)
            .await
            .map_err(io::Error::other)?;
        if said(&state.stdout) || said(&state.stderr) {
            return Ok(state.executed());
        }
        let executed = state.executed();
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("it ended without saying {text:?}: {executed:?}"),
        ))
    }

    /// Waits for a program's end.
    pub(super) async fn ended(&self, pid: u32) -> io::Result<Executed> {
        let mut receiver = self.receiver(pid)?;
        let state = receiver.wait_for(|state| state.over).await;
        Ok(state.map_err(io::Error::other)?.executed())
    }

    /// Sends a program a signal, if it has not ended.
    pub(super) fn signal(&self, pid: u32, signal: i32) -> io::Result<()> {
        if self.receiver(pid)?.borrow().exit.is_some() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let target = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
        Ok(kill(target, Signal::try_from(signal)?)?)
    }

    fn receiver(&self, pid: u32) -> io::Result<watch::Receiver<State>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&pid).cloned();
        found.ok_or_else(|| io::Error::other(format!("{pid} was not started here")))
    }
}

impl State {
    fn executed(&self) -> Executed {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Executed {
            code: self.exit.and_then(|exit| exit.code()),
            signal: self.exit.and_then(|exit| exit.signal()),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        }
    }
}

/// Feeds a program, keeps its output, and reaps it.
async fn follow(mut child: Child, input: Vec<u8>, sender: watch::Sender<State>) {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program may end, or close its input, without reading all of it.
            let _unread = stdin.write_all(&input).await;
        }
    };
    let reap = async {
        let exit = child.wait().await.ok();
        sender.send_modify(|state| state.exit = exit);
    };
    tokio::join!(
        feed,
        reap,
        drain(stdout, |part| sender
            .send_modify(|state| state.stdout.extend_from_slice(part))),
        drain(stderr, |part| sender
            .send_modify(|state| state.stderr.extend_from_slice(part))),
    );
    sender.send_modify(|state| state.over = true);
}

async fn drain(stream: Option<impl AsyncRead + Unpin>, mut keep: impl FnMut(&[u8])) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        keep(&buffer[..read]);
    }
}
