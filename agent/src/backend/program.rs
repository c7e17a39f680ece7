//! A program that is run for its output, within limits of time and size.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How much of the program's stderr is kept, in bytes.
const STDERR_LIMIT: usize = 8 * 1024;

/// A program that has ended, and its output.
pub(super) struct Ended {
    /// How it ended.
    pub(super) status: ExitStatus,
    /// All of its stdout.
    pub(super) stdout: Zeroizing<Vec<u8>>,
    /// The beginning of its stderr.
    pub(super) stderr: String,
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// It could not be started or followed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It took too long, and was killed.
    #[error("it did not end in time")]
    TooLate,
    /// It wrote too much, and was killed.
    #[error("it wrote too much")]
    TooLong,
}

/// The process group of a program, which is killed unless the program is known to have ended.
struct Group(Option<Pid>);

/// Runs `command`, without input and in its own process group, and returns what it wrote: at most `size` bytes within
/// `limit`. Otherwise, or if nobody waits for it any more, the whole group is killed.
///
/// # Errors
///
/// If it cannot be run within these limits.
pub(super) async fn run(
    mut command: Command,
    limit: Duration,
    size: usize,
) -> Result<Ended, RunError> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(id.map(Pid::from_raw));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async {
        // The wait comes last: until then its pid, which is also the group's id, cannot be reused.
        let (stdout, stderr) = tokio::try_join!(whole(stdout, size), beginning(stderr))?;
        let status = child.wait().await?;
        group.0 = None;
        Ok(Ended {
            status,
            stdout,
            stderr,
        })
    };
    timeout(limit, all).await.unwrap_or(Err(RunError::TooLate))
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn whole(
    stream: Option<impl AsyncRead + Unpin>,
    size: usize,
) -> Result<Zeroizing<Vec<u8>>, RunError> {
    // Allocated in full, because a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 64));
    if let Some(stream) = stream {
        stream.take(size as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > size {
        return Err(RunError::TooLong);
    }
    // Gives back the memory that was not needed; the larger buffer is overwritten when it is dropped.
    Ok(Zeroizing::new(bytes.to_vec()))
}

async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> Result<String, RunError> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    if let Some(mut stream) = stream {
        loop {
            // The rest is read too, or the program would wait for a reader forever.
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            let room = STDERR_LIMIT - kept.len();
            kept.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

// === impl Ended ===

/// How it ended and its stderr, on one line: never its stdout.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.stderr.trim().escape_debug())
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Ended {}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// More than any of these programs takes, even on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_the_program_writes_is_given_whole_and_its_input_is_empty() {
        let ended = run(
            shell("cat; printf 'x\\0z'; echo no >&2; exit 3"),
            PATIENCE,
            3,
        )
        .await
        .expect("it ends");
        assert_eq!(&**ended.stdout, b"x\0z");
        assert_eq!((ended.status.code(), &*ended.stderr), (Some(3), "no\n"));
        assert!(!format!("{ended:?}").contains('z'), "{ended:?}");
    }

    #[tokio::test]
    async fn a_program_that_writes_too_much_is_cut_off() {
        let outcome = run(shell("yes"), PATIENCE, 1000).await;
        assert!(matches!(outcome, Err(RunError::TooLong)));
        let noisy = run(shell("seq 100000 >&2; printf x"), PATIENCE, 1).await;
        assert_eq!(&**noisy.expect("it ends").stdout, b"x");
    }

    #[tokio::test]
    async fn at_the_end_of_the_time_all_that_it_has_started_is_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let pids = directory.path().join("pids");
        let script = format!(
            "sleep 1000 & echo $! $$ >{0}.new; mv {0}.new {0}; wait",
            pids.display()
        );
        let outcome = run(shell(&script), Duration::from_secs(3), 10).await;
        assert!(matches!(outcome, Err(RunError::TooLate)));
        let pids = std::fs::read_to_string(pids).expect("it was started");
        for pid in pids.split_whitespace() {
            let pid = Pid::from_raw(pid.parse().expect("a number"));
            let deadline = std::time::Instant::now() + PATIENCE;
            while is_running(pid) {
                assert!(std::time::Instant::now() < deadline, "{pid} lives on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// A zombie that nobody has waited for yet no longer runs.
    fn is_running(pid: Pid) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    }
}
