//! A program under test as a process: its stderr, its signals, its end.

use crate::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// Its name in failures.
    name: &'static str,
    child: Child,
    pid: u32,
    lines: Arc<Mutex<Vec<String>>>,
    grown: watch::Receiver<usize>,
}

impl Process {
    /// Starts it, and reads its stderr if that is a pipe.
    ///
    /// # Errors
    ///
    /// If the program is missing or cannot be started.
    pub(crate) fn start(name: &'static str, command: &mut Command) -> io::Result<Self> {
        let mut child = command.kill_on_drop(true).spawn()?;
        let pid = child
            .id()
            .ok_or_else(|| io::Error::other("it has ended already"))?;
        let stderr = child.stderr.take();
        let mut process = Self {
            name,
            child,
            pid,
            lines: Arc::default(),
            grown: watch::channel(0).1,
        };
        if let Some(stderr) = stderr {
            process.hear(stderr);
        }
        Ok(process)
    }

    /// Keeps what is written to `stderr`, line by line, until it is closed.
    pub(crate) fn hear(&mut self, stderr: impl AsyncRead + Send + Unpin + 'static) {
        let (grow, grown) = watch::channel(0);
        self.grown = grown;
        let kept = self.lines.clone();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                let mut kept = lock(&kept);
                kept.push(line);
                grow.send_replace(kept.len());
            }
        });
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything that it has written to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// Waits for a line on its stderr that contains `text`.
    ///
    /// # Errors
    ///
    /// If it ends or takes too long; the text has all its output.
    pub async fn until_line(&self, text: &str) -> io::Result<String> {
        let found = self.until(|lines| lines.iter().find(|line| line.contains(text)).cloned());
        found.await.ok_or_else(|| {
            let (name, said) = (self.name, self.stderr().join("\n"));
            io::Error::other(format!("the {name} did not say {text:?}; it said:\n{said}"))
        })
    }

    /// Waits until `look` finds something among the lines of its stderr; `None` if it ends or takes too long.
    pub(crate) async fn until<T>(&self, look: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let mut grown = self.grown.clone();
        let found = async {
            loop {
                grown.borrow_and_update();
                // A copy: `look` may ask for the lines itself.
                let lines = self.stderr();
                let found = look(&lines);
                if found.is_some() || grown.changed().await.is_err() {
                    return found;
                }
            }
        };
        timeout(PATIENCE, found).await.ok().flatten()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// If it has ended before.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub async fn until_ended(&mut self) -> io::Result<ExitStatus> {
        timeout(PATIENCE, self.child.wait())
            .await
            .map_err(io::Error::other)?
    }

    /// Asks it to stop, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub async fn stop(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.until_ended().await
    }
}

fn lock(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
