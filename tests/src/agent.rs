//! The agent as a real process: its configuration, its output, its end.

use crate::PATIENCE;
use crate::binaries::sibling_binary;
use crate::process::Process;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// How to run an agent; tests change it before the start.
#[derive(Clone, Debug, Default)]
pub struct AgentSettings {
    /// Dotted keys of the configuration and their values, as `--set` takes them.
    pub keys: BTreeMap<String, String>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// A program with arguments that starts it, such as one that takes something away from it.
    pub wrapper: Vec<String>,
    /// The program itself; by default `sandbox-agent` of this build.
    pub program: Option<PathBuf>,
    /// Whether nobody reads its stderr, so that the pipe fills up.
    pub deaf_stderr: bool,
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct AgentProcess {
    process: Process,
    socket: PathBuf,
    admin: SocketAddr,
    /// The read end of a stderr that nobody reads.
    unread: Option<OwnedFd>,
}

// === impl AgentSettings ===

impl AgentSettings {
    /// Sets one key.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.keys.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets all of these keys.
    #[must_use]
    pub fn set_all(self, keys: &[(&str, &str)]) -> Self {
        keys.iter()
            .fold(self, |all, (key, value)| all.set(key, value))
    }

    /// Removes the keys of a section.
    #[must_use]
    pub fn without(mut self, section: &str) -> Self {
        let within = format!("{section}.");
        self.keys.retain(|key, _| !key.starts_with(&within));
        self
    }

    /// Sets one variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Mounts a file over its `/etc/hosts`, in a mount namespace of its own.
    #[must_use]
    pub fn with_hosts(self, hosts: &Path) -> Self {
        const WITH_HOSTS: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let hosts = hosts.display().to_string();
        self.wrapped(&["unshare", "--mount", "sh", "-c", WITH_HOSTS, &hosts])
    }

    /// Starts it through another program, inside of wrappers that were set before.
    #[must_use]
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        let outer = wrapper.iter().map(|part| (*part).to_owned());
        self.wrapper = outer.chain(self.wrapper).collect();
        self
    }

    /// Runs it on a machine that seems to lack something that the program `without` knows.
    ///
    /// # Panics
    ///
    /// If that program is not built.
    #[must_use]
    pub fn on_a_machine_without(self, what: &str) -> Self {
        let program = sibling_binary("without").expect("it is built");
        self.wrapped(&[&program.display().to_string(), what])
    }

    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or does not become ready; the text has its output.
    pub async fn start_ready(&self) -> io::Result<AgentProcess> {
        let agent = self.start().await?;
        agent.until_ready().await?;
        Ok(agent)
    }

    /// Starts it; it may not be ready yet.
    ///
    /// # Errors
    ///
    /// If the program is missing or cannot be started.
    pub async fn start(&self) -> io::Result<AgentProcess> {
        let mut command = self.command()?;
        let mut unread = None;
        command.stderr(if self.deaf_stderr {
            let (reader, writer) = full_pipe()?;
            unread = Some(reader);
            Stdio::from(writer)
        } else {
            Stdio::piped()
        });
        let key = |name: &str| self.keys.get(name).cloned().unwrap_or_default();
        let admin = key("listen.admin").parse().map_err(io::Error::other)?;
        Ok(AgentProcess {
            process: Process::start("agent", &mut command)?,
            socket: key("listen.socket").into(),
            admin,
            unread,
        })
    }

    /// Runs it, or one of its sub-commands, to its end. Returns exit status, stdout and stderr.
    ///
    /// # Errors
    ///
    /// If it cannot be started or does not end.
    pub async fn run_to_end(&self, arguments: &[&str]) -> io::Result<(ExitStatus, String, String)> {
        let mut command = self.command()?;
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, command.output())
            .await
            .map_err(io::Error::other)??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status, text(&output.stdout), text(&output.stderr)))
    }

    fn command(&self) -> io::Result<Command> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => sibling_binary("sandbox-agent")?,
        };
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for (key, value) in &self.keys {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        Ok(command)
    }
}

// === impl AgentProcess ===

/// An agent does what any process does.
impl Deref for AgentProcess {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for AgentProcess {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl AgentProcess {
    /// The socket that workloads use.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its resident memory, in bytes (proc_pid_status(5)).
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn resident(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes = kilobytes.and_then(|number| number.parse::<u64>().ok());
        let kilobytes = kilobytes.ok_or(io::ErrorKind::InvalidData)?;
        Ok(kilobytes * 1024)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// If it ends or takes too long; the text has its output.
    pub async fn until_ready(&self) -> io::Result<()> {
        self.until_line("\"message\":\"ready\"").await.map(drop)
    }

    /// Begins to read the stderr that nobody has read so far ([`AgentSettings::deaf_stderr`]).
    ///
    /// # Errors
    ///
    /// If it is being read already.
    pub fn hear(&mut self) -> io::Result<()> {
        let unread = self.unread.take().ok_or(io::ErrorKind::NotFound)?;
        let unread = tokio::net::unix::pipe::Receiver::from_owned_fd(unread)?;
        self.process.hear(unread);
        Ok(())
    }

    /// Closes the stderr that nobody has read so far, as a log collector does when it ends.
    ///
    /// # Errors
    ///
    /// If it is being read already.
    pub fn hang_up(&mut self) -> io::Result<()> {
        self.unread
            .take()
            .map(drop)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    /// Waits until its admin port says that it is ready.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub async fn until_readyz(&self) -> io::Result<()> {
        let ready = async {
            while !matches!(self.admin("/readyz").await, Ok((200, _))) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ready).await.map_err(io::Error::other)
    }

    /// The audit lines so far.
    ///
    /// # Panics
    ///
    /// If one is not JSON: otherwise it would only be missing, and tests that expect no line would pass.
    #[must_use]
    pub fn audit(&self) -> Vec<Value> {
        audit_among(&self.stderr())
    }

    /// Waits for the audit line that `wanted` accepts.
    ///
    /// # Errors
    ///
    /// If it does not come; the text has the audit lines so far.
    pub async fn until_audit(&self, wanted: impl Fn(&Value) -> bool) -> io::Result<Value> {
        let found = self.until(|lines| audit_among(lines).into_iter().find(&wanted));
        found
            .await
            .ok_or_else(|| io::Error::other(format!("no such audit line in {:#?}", self.audit())))
    }

    /// The address of the admin port.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Makes a request to the admin port. Returns status and body.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn admin(&self, path: &str) -> io::Result<(u16, String)> {
        let answer = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok());
            Ok((status.unwrap_or_default(), body.to_owned()))
        };
        timeout(PATIENCE, answer).await.map_err(io::Error::other)?
    }

    /// The value of the metric with this whole name, including labels; 0 for one with labels that has not occurred yet.
    ///
    /// # Errors
    ///
    /// If the admin port does not answer, or there is no such metric.
    pub async fn metric(&self, name: &str) -> io::Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        value_of(name, &text)
    }

    /// Waits until the socket accepts connections.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub async fn until_served(&self) -> io::Result<()> {
        let served = async {
            while tokio::net::UnixStream::connect(&self.socket).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, served).await.map_err(io::Error::other)
    }
}

/// The audit lines among all lines.
fn audit_among(lines: &[String]) -> Vec<Value> {
    let audit = lines
        .iter()
        .filter(|line| line.contains(r#""target":"audit""#));
    audit
        .map(|line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{error} in the audit line {line}"))
        })
        .collect()
}

/// The value of a metric in the admin port's text. A metric with labels is not shown before it occurs, so only the
/// agent's code tells that there is one.
fn value_of(name: &str, shown: &str) -> io::Result<f64> {
    const DEFINED: &str = include_str!("../../agent/src/metrics.rs");
    let mut series = shown.lines().filter_map(|line| line.rsplit_once(' '));
    if let Some((_, value)) = series.find(|(series, _)| *series == name) {
        return value.parse().map_err(io::Error::other);
    }
    match name.split_once('{') {
        Some((family, _)) if DEFINED.contains(&format!("\"{family}\"")) => Ok(0.0),
        _ => Err(io::Error::other(format!("there is no metric {name}"))),
    }
}

/// A loopback address that nobody uses, and that nobody else gets before it is used: its port is below those that the
/// kernel gives to connections and to port 0 (`net.ipv4.ip_local_port_range`), and no two callers get the same.
///
/// # Errors
///
/// If there is none.
pub fn free_address() -> io::Result<SocketAddr> {
    const LOWEST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time start at different ports.
    let first = std::process::id() * 64;
    for _ in 0..COUNT {
        let turn = first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(LOWEST + turn % COUNT).map_err(io::Error::other)?;
        match TcpListener::bind(("127.0.0.1", port)) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound?.local_addr(),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// A pipe that is already full. It is non-blocking, as a terminal or a pipe that others share may be: its writers have
/// to wait themselves.
fn full_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // Empty lines, so that a later reader reads nothing.
    for step in [[b'\n'; 4096].as_slice(), b"\n"] {
        while nix::unistd::write(&writer, step).is_ok() {}
    }
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_with_labels_is_zero_before_it_has_come_about_and_a_misspelt_one_never() {
        let shown = "latchkey_pods 3\nlatchkey_exchanges_total{backend=\"aws\",outcome=\"ok\"} 2\n";
        let value = |name: &str| value_of(name, shown).ok();
        assert_eq!(value("latchkey_pods"), Some(3.0));
        assert_eq!(
            value(r#"latchkey_exchanges_total{backend="aws",outcome="ok"}"#),
            Some(2.0)
        );
        assert_eq!(
            value(r#"latchkey_exchanges_total{backend="gcp",outcome="ok"}"#),
            Some(0.0)
        );
        assert_eq!(
            value(r#"latchkey_exchange_total{backend="gcp",outcome="ok"}"#),
            None
        );
        assert_eq!(value("latchkey_connections"), None);
    }

    #[test]
    #[should_panic(expected = "in the audit line")]
    fn an_audit_line_that_is_broken_is_not_passed_over() {
        let lines = [
            r#"{"target":"latchkey_agent","message":"ready"}"#,
            "no JSON, and no business of the trail's",
            r#"{"time":"now","target":"audit","secret":"test/"a"}"#,
        ];
        let _ = audit_among(&lines.map(str::to_owned));
    }
}
