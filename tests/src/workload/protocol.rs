//! The protocol between a test and the program `pod`: JSON lines over a socket that is the pod's standard input.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A task with the number that its outcome will carry.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Order {
    pub(super) id: u64,
    pub(super) task: Task,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Task {
    /// Waits for a program's end.
    AwaitEnd { pid: u32 },
    /// Waits until a program has written a text.
    AwaitText { pid: u32, text: String },
    /// Closes a named connection.
    Close { name: String },
    /// Opens a connection and keeps it under a name.
    Connect { name: String, socket: PathBuf },
    /// Makes many requests.
    Flood { socket: PathBuf, flood: Flood },
    /// Sends the descriptor of a named connection to the listener at `to`, and keeps its own.
    Pass { name: String, to: PathBuf },
    /// Writes bytes and reads the answer.
    Raw { socket: PathBuf, raw: Raw },
    /// Takes a descriptor that another pod passes to `at`, as a named connection.
    Receive { name: String, at: PathBuf },
    /// Makes one request, on a new connection or on a named one.
    Request {
        socket: PathBuf,
        connection: Option<String>,
        request: Request,
    },
    /// Sends a program a signal, by its number.
    Signal { pid: u32, signal: i32 },
    /// Starts a program.
    Spawn { command: Command },
    /// Reports what the process knows of itself.
    Status,
    /// Watches a named connection so many times.
    Watch { name: String, times: usize },
}

/// A message of the pod's.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Line {
    /// A task is done.
    Done {
        id: u64,
        result: Result<Outcome, Failure>,
    },
    /// The process in the new PID namespace has this PID in the old one.
    Launched { pid: u32 },
    /// It has a user namespace, and waits for its maps and then for one line that says they are there.
    MapUsers,
    /// It takes tasks; this is its PID in its own namespace.
    Ready { pid: u32 },
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Outcome {
    Executed(Executed),
    Flooded(Flooded),
    Nothing,
    Received(Received),
    Response(Response),
    /// The PID of a program.
    Spawned(u32),
    Status(Status),
}

/// An `io::Error` on the wire.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Failure {
    kind: String,
    text: String,
}

/// An HTTP request.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target, path and query.
    pub path: String,
    /// The headers; `Host` is added if it is not among them.
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(with = "base64_text")]
    pub body: Vec<u8>,
}

/// An HTTP response.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(with = "base64_text")]
    pub body: Vec<u8>,
}

/// Bytes to write as they are.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Raw {
    /// A named connection that has not been used for HTTP; `None`: a new one.
    pub connection: Option<String>,
    /// What to write.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
    /// Descriptors (of `/dev/null`) to send along with the bytes.
    pub descriptors: usize,
    /// How many seconds their last close takes: they are a TCP socket then, whose peer reads nothing. 0: no time.
    pub lingers: u64,
    /// Whether the last of the bytes is sent as an urgent one (`MSG_OOB`).
    pub urgent: bool,
    /// Whether to shut the writing side down afterwards.
    pub shut: bool,
    /// How long to read, in milliseconds, unless the other side closes first; 0: not at all.
    pub read_millis: u64,
    /// After how many answers to read only [`Self::watch_millis`] more; `None`: never.
    pub answers: Option<usize>,
    /// How long to read on after the last of the [`Self::answers`], in milliseconds.
    pub watch_millis: u64,
}

/// What came back for a [`Raw`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Received {
    /// The bytes.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
    /// Whether the other side closed.
    pub closed: bool,
}

/// Many `GET`s of one path.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Flood {
    /// The target.
    pub path: String,
    /// How many connections at once.
    pub connections: usize,
    /// How many requests on each.
    pub requests: usize,
    /// Whether each request has a connection of its own.
    pub reconnect: bool,
    /// The time from the start of one request to the next on the same connection, in microseconds; 0: no pause.
    pub interval_micros: u64,
    /// What every body of a 200 must contain.
    pub expect: Option<String>,
}

/// What became of a [`Flood`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Flooded {
    /// Responses by status code.
    pub statuses: BTreeMap<u16, usize>,
    /// Requests that got no response.
    pub failures: usize,
    /// The errors of those, as text.
    pub errors: BTreeMap<String, usize>,
    /// Requests that a kept connection did not take but a new one did.
    pub retried: usize,
    /// Responses of 200 without the expected text.
    pub wrong: usize,
    /// How long each response took, in microseconds, sorted.
    pub micros: Vec<u64>,
}

/// A program to run; `Command::new("latchkey").args(&["get", "x"]).env("LATCHKEY_SOCKET", path)`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Command {
    /// The program, by its path or by a name in `PATH`.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables in addition to the test's own.
    pub environment: Vec<(String, String)>,
    /// Whether it has none of the test's own variables.
    pub bare: bool,
    /// The directory it starts in; `None`: the test's.
    pub directory: Option<PathBuf>,
    /// What it can read on its standard input.
    #[serde(with = "base64_text")]
    pub input: Vec<u8>,
}

/// The result of a program that has ended, or what a running one has written so far.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Executed {
    /// The exit code; `None` if a signal ended it, or it has not ended.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// What a process sees of itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    /// Its PID in its own namespace.
    pub pid: u32,
    /// Its effective user id in its own namespace.
    pub uid: u32,
    /// `/proc/self/cgroup` as it reads it.
    pub cgroup: String,
    /// The network interfaces it sees.
    pub interfaces: Vec<String>,
}

impl Command {
    /// A program without arguments and input, in the test's environment.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            bare: false,
            directory: None,
            input: Vec::new(),
        }
    }

    /// The same with more arguments.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Self {
        let more = arguments.iter().map(|&argument| argument.to_owned());
        self.arguments.extend(more);
        self
    }

    /// The same with one more variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The same with no variables but those that are set here; not even `PATH`.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// The same, started in a directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// The same with something to read.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }
}

impl Request {
    /// A `GET` without headers.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A request without headers and body.
    #[must_use]
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl Response {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Fails the test unless this is a success.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn must_be_ok(&self) {
        assert_eq!(self.status, 200, "{}", self.text());
    }

    /// Fails the test unless this is a refusal with this status and code.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn must_be_refused(&self, status: u16, code: &str) {
        let body = self.json();
        let told = (self.status, body["code"].as_str().unwrap_or_default());
        assert_eq!(told, (status, code), "{}", self.text());
    }
}

impl Received {
    /// The statuses of the answers, in order.
    #[must_use]
    pub fn statuses(&self) -> Vec<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        let heads = text.split("HTTP/1.").skip(1);
        heads
            .filter_map(|head| head.get(2..5)?.parse().ok())
            .collect()
    }
}

impl Raw {
    /// These bytes on a new connection, read until the other side closes, for 20 s at most.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            read_millis: 20_000,
            ..Self::default()
        }
    }
}

impl Flooded {
    /// The latency that this share of the responses stayed below, in microseconds.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> u64 {
        let index = (self.micros.len() * percent / 100).min(self.micros.len().saturating_sub(1));
        self.micros.get(index).copied().unwrap_or_default()
    }

    /// How many responses had this status.
    #[must_use]
    pub fn count(&self, status: u16) -> usize {
        self.statuses.get(&status).copied().unwrap_or_default()
    }
}

/// The kinds of failure that tests tell apart.
const KINDS: &[io::ErrorKind] = &[
    io::ErrorKind::AddrInUse,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::NotFound,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::TimedOut,
    io::ErrorKind::UnexpectedEof,
    io::ErrorKind::WouldBlock,
];

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            kind: format!("{:?}", error.kind()),
            text: error.to_string(),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let kind = KINDS
            .iter()
            .find(|kind| format!("{kind:?}") == failure.kind);
        Self::new(kind.copied().unwrap_or(io::ErrorKind::Other), failure.text)
    }
}

/// Bytes as base64, which keeps a line short and a single one.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}
