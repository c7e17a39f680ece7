//! The load: a closed loop of raw HTTP/1.1 on a socket, one thread, as cheap as can be.
//!
//! It is a process of its own, because the agent answers only processes in a pod's cgroup.

use crate::Outcome;
use crate::process::Cpu;
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// The argument that makes this program the load.
pub(crate) const PART: &str = "--part-load";

/// The largest answer that is understood, in bytes.
const LARGEST: usize = 256 * 1024;

/// How connections are used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Use {
    /// Kept, one request after the other on each.
    Keep,
    /// A new one for each request.
    New,
    /// Every third is new for each request, the others are kept.
    Mixed,
    /// One request on each, all at the same time.
    Once,
}

/// Where a server is asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Address {
    Socket(PathBuf),
    /// A port of the loopback interface, with a header that every request must bring.
    Peer {
        port: u16,
        header: String,
    },
}

/// A connection of either kind.
trait Stream: Read + Write + Source {}

impl<T: Read + Write + Source> Stream for T {}

/// What load to make.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) address: Address,
    /// What is asked for; `{}` stands for the connection's number.
    pub(crate) path: String,
    pub(crate) mode: Use,
    pub(crate) connections: usize,
    pub(crate) warm_up: Duration,
    pub(crate) run: Duration,
    /// Whose processor time is taken.
    pub(crate) server: u32,
}

/// What came of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Load {
    /// Answers 200.
    pub(crate) answered: usize,
    /// Other answers, and requests without one.
    pub(crate) failed: usize,
    pub(crate) per_second: f64,
    pub(crate) latency: Latency,
    /// The server's processor time for each answer, in microseconds.
    pub(crate) cpu: Cpu,
    /// The server's share of one processor.
    pub(crate) server_share: f64,
    /// What others used of a processor meanwhile.
    pub(crate) foreign_share: f64,
}

/// Times from request to answer, in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

struct Line {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    filled: usize,
    since: Instant,
}

/// Makes the load from inside the cgroup whose entrance is given.
pub(crate) async fn make(plan: &Plan, entrance: Option<&Path>) -> Outcome<Load> {
    let child = spawn(PART, plan, entrance)?;
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        return Err(format!(
            "the load failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Starts a part of the benchmark in a cgroup. It waits for a byte on its standard input, so that nothing of it
/// happens outside.
pub(crate) fn spawn(
    part: &str,
    plan: &impl Serialize,
    entrance: Option<&Path>,
) -> Outcome<tokio::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(part).arg(serde_json::to_string(plan)?);
    let (reader, mut writer) = io::pipe()?;
    command
        .stdin(reader)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn()?;
    if let (Some(entrance), Some(pid)) = (entrance, child.id()) {
        std::fs::write(entrance, pid.to_string())?;
    }
    writer.write_all(b"!")?;
    Ok(child)
}

/// Waits until the process has been put in its place.
pub(crate) fn until_placed() -> Outcome<()> {
    io::stdin().read_exact(&mut [0])?;
    Ok(())
}

pub(crate) fn main(plan: &str) -> Outcome<()> {
    let plan: Plan = serde_json::from_str(plan)?;
    until_placed()?;
    let load = run(&plan)?;
    serde_json::to_writer(io::stdout(), &load)?;
    Ok(())
}

fn run(plan: &Plan) -> Outcome<Load> {
    let requests: Vec<Vec<u8>> = (0..plan.connections)
        .map(|number| plan.path.replace("{}", &number.to_string()))
        .map(|path| {
            let header = plan.address.header();
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n").into_bytes()
        })
        .collect();
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut lines = Vec::with_capacity(plan.connections);
    for number in 0..plan.connections {
        lines.push(Line::open(plan, &poll, number)?);
    }
    let mut times: Vec<u32> = Vec::with_capacity(1 << 20);
    let (mut failed, mut waiting) = (0, plan.connections);
    let own = std::process::id();
    let parent = std::os::unix::process::parent_id();
    let usage = || {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
            Cpu::of(plan.server)?,
            Cpu::of(own)?.total() + Cpu::of(parent)?.total(),
            Cpu::of_machine()?,
        ))
    };
    let mut before = usage()?;
    let mut began = Instant::now();
    let mut warming = !plan.warm_up.is_zero();
    for (line, request) in lines.iter_mut().zip(&requests) {
        line.send(request)?;
    }
    loop {
        let left = if warming { plan.warm_up } else { plan.run }.saturating_sub(began.elapsed());
        if left.is_zero() || waiting == 0 {
            if !warming {
                break;
            }
            warming = false;
            times.clear();
            failed = 0;
            before = usage()?;
            began = Instant::now();
            continue;
        }
        poll.poll(&mut events, Some(left))?;
        for event in &events {
            let number = event.token().0;
            let Some(line) = lines.get_mut(number) else {
                continue;
            };
            let ok = match line.receive() {
                Ok(None) => continue,
                Ok(Some(ok)) => ok,
                Err(_) => false,
            };
            if ok {
                let took = line.since.elapsed().as_nanos();
                times.push(u32::try_from(took).unwrap_or(u32::MAX));
            } else {
                failed += 1;
            }
            let request = &requests[number];
            let keep = plan.mode == Use::Keep || plan.mode == Use::Mixed && number % 3 != 0;
            match plan.mode {
                Use::Once => waiting -= 1,
                // A refusal may leave the connection open; a new one is as good.
                _ if keep && ok => {
                    line.since = Instant::now();
                    line.send(request)?;
                }
                _ => {
                    *line = Line::open(plan, &poll, number)?;
                    line.send(request)?;
                }
            }
        }
    }
    let took = began.elapsed().as_secs_f64();
    let after = usage()?;
    let cpu = after.0.since(before.0);
    let answers = exact(times.len().max(1));
    let known = cpu.total() + after.1 - before.1;
    Ok(Load {
        answered: times.len(),
        failed,
        per_second: exact(times.len()) / took,
        cpu: Cpu {
            user: cpu.user / answers,
            system: cpu.system / answers,
        },
        server_share: cpu.total() / took / 1e6,
        foreign_share: ((after.2 - before.2 - known) / took / 1e6).max(0.0),
        latency: Latency::of(times),
    })
}

impl From<&Path> for Address {
    fn from(socket: &Path) -> Self {
        Self::Socket(socket.to_owned())
    }
}

impl Address {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Socket(path) => Box::new(UnixStream::connect(path)?),
            Self::Peer { port, .. } => {
                let stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nonblocking(true)?;
                Box::new(TcpStream::from_std(stream))
            }
        })
    }

    /// Whether somebody listens there.
    pub(crate) fn is_served(&self) -> bool {
        self.connect().is_ok()
    }

    /// The line that every request must bring, if any.
    fn header(&self) -> String {
        match self {
            Self::Socket(_) => String::new(),
            Self::Peer { header, .. } => format!("{header}\r\n"),
        }
    }
}

impl Line {
    fn open(plan: &Plan, poll: &Poll, number: usize) -> Outcome<Self> {
        let since = Instant::now();
        let mut stream = loop {
            match plan.address.connect() {
                Ok(stream) => break stream,
                // The backlog is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        };
        poll.registry()
            .register(&mut *stream, Token(number), Interest::READABLE)?;
        Ok(Self {
            stream,
            buffer: vec![0; 4096],
            filled: 0,
            since,
        })
    }

    /// Sends a request. A connection that the server has closed is found out by reading.
    fn send(&mut self, request: &[u8]) -> Outcome<()> {
        self.filled = 0;
        match self.stream.write(request) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is there: whether the answer, once it is whole, is a 200.
    fn receive(&mut self) -> io::Result<Option<bool>> {
        loop {
            let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
            let size = room.len();
            let read = match self.stream.read(room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            self.filled += read;
            if let Some(whole) = answer_length(&self.buffer[..self.filled]) {
                if self.filled >= whole {
                    return Ok(Some(self.buffer.starts_with(b"HTTP/1.1 200")));
                }
                if whole > self.buffer.len() {
                    self.buffer.resize(whole.min(LARGEST), 0);
                }
            }
            // Less than there was room for: nothing is left, and more wakes us again.
            if read < size {
                return Ok(None);
            }
        }
    }
}

/// The length of the answer that begins here, once its head is whole.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    Some(end + length.unwrap_or_default())
}

impl Latency {
    /// The percentiles of times in nanoseconds.
    pub(crate) fn of(mut times: Vec<u32>) -> Self {
        times.sort_unstable();
        let at = |thousandth: usize| {
            let place = (times.len() * thousandth / 1000).min(times.len().saturating_sub(1));
            times
                .get(place)
                .map_or(0.0, |time| f64::from(*time) / 1000.0)
        };
        Self {
            p50: at(500),
            p99: at(990),
            p999: at(999),
        }
    }
}

/// A count as a number to reckon with.
pub(crate) fn exact(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
