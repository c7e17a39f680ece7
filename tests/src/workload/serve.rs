//! What a pod does: it takes tasks and does them, many at a time, on one thread.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, process};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustix::event::epoll;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::child::Children;
use super::descriptors;
use super::protocol::{
    Flood, Flooded, Line, Order, Outcome, Raw, Received, Request, Response, Status, Task,
};

/// How long one request may take: longer than any deadline of the agent's.
const PATIENCE: Duration = Duration::from_secs(45);

/// Named connections; one that is in use is not in the map.
type Connections = Arc<Mutex<HashMap<String, Connection>>>;

/// The pod's end of the line to the test.
type Writer = Arc<tokio::sync::Mutex<OwnedWriteHalf>>;

enum Connection {
    /// Connected and silent.
    Fresh(UnixStream),
    Http(SendRequest<Full<Bytes>>),
}

/// Serves tasks until the test closes the line.
pub(super) fn run(control: StdStream) -> io::Result<()> {
    control.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(control))
}

async fn serve(control: StdStream) -> io::Result<()> {
    let (reader, writer) = UnixStream::from_std(control)?.into_split();
    let writer = Writer::new(tokio::sync::Mutex::new(writer));
    let connections = Connections::default();
    let children = Children::default();
    say(&writer, &Line::Ready { pid: process::id() }).await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let Order { id, task } = serde_json::from_str(&line)?;
        let (connections, children) = (Arc::clone(&connections), children.clone());
        let work = async move { perform(task, &connections, &children).await };
        tokio::spawn(answer(id, work, Arc::clone(&writer)));
    }
    Ok(())
}

async fn say(writer: &Writer, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    writer.lock().await.write_all(&text).await
}

/// Does a task and reports its outcome, even if that is a panic: the test waits for an answer.
async fn answer(
    id: u64,
    work: impl Future<Output = io::Result<Outcome>> + Send + 'static,
    writer: Writer,
) {
    let worked = tokio::spawn(work).await.map_err(io::Error::other).flatten();
    let result = worked.map_err(Into::into);
    // If this fails, the test has gone, and the loop that takes tasks sees that too.
    let _gone = say(&writer, &Line::Done { id, result }).await;
}

async fn perform(
    task: Task,
    connections: &Connections,
    children: &Children,
) -> io::Result<Outcome> {
    match task {
        Task::AwaitEnd { pid } => children.ended(pid).await.map(Outcome::Executed),
        Task::AwaitText { pid, text } => children.said(pid, &text).await.map(Outcome::Executed),
        Task::Close { name } => take(connections, &name).map(|_closed| Outcome::Nothing),
        Task::Connect { name, socket } => {
            let stream = UnixStream::connect(socket).await?;
            keep(connections, name, Connection::Fresh(stream));
            Ok(Outcome::Nothing)
        }
        Task::Flood { socket, flood } => Ok(Outcome::Flooded(pour(&socket, flood).await)),
        Task::Pass { name, to } => pass(connections, name, &to).map(|()| Outcome::Nothing),
        Task::Raw { socket, raw } => exchange(connections, &socket, raw)
            .await
            .map(Outcome::Received),
        Task::Receive { name, at } => receive(connections, name, &at)
            .await
            .map(|()| Outcome::Nothing),
        Task::Request {
            socket,
            connection,
            request,
        } => {
            let work = ask(connections, &socket, connection, &request);
            let answer = timeout(PATIENCE, work)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            answer.map(Outcome::Response)
        }
        Task::Signal { pid, signal } => children.signal(pid, signal).map(|()| Outcome::Nothing),
        Task::Spawn { command } => children.spawn(&command).map(Outcome::Spawned),
        Task::Status => status().map(Outcome::Status),
        Task::Watch { name, times } => watch(connections, name, times).map(|()| Outcome::Nothing),
    }
}

fn take(connections: &Connections, name: &str) -> io::Result<Connection> {
    let taken = connections
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(name);
    taken.ok_or_else(|| io::Error::other(format!("no connection named {name}, or it is in use")))
}

fn take_fresh(connections: &Connections, name: &str) -> io::Result<UnixStream> {
    match take(connections, name)? {
        Connection::Fresh(stream) => Ok(stream),
        Connection::Http(_) => Err(io::Error::other(format!(
            "the connection {name} has been used for HTTP"
        ))),
    }
}

fn keep(connections: &Connections, name: String, connection: Connection) {
    connections
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(name, connection);
}

async fn ask(
    connections: &Connections,
    socket: &Path,
    name: Option<String>,
    request: &Request,
) -> io::Result<Response> {
    let connection = match &name {
        Some(name) => take(connections, name)?,
        None => Connection::Fresh(UnixStream::connect(socket).await?),
    };
    let mut sender = match connection {
        Connection::Fresh(stream) => greet(stream).await?,
        Connection::Http(sender) => sender,
    };
    let response = send(&mut sender, request).await?;
    if let Some(name) = name {
        keep(connections, name, Connection::Http(sender));
    }
    Ok(response)
}

async fn greet(stream: UnixStream) -> io::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // The request fails with the same errors.
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, request: &Request) -> io::Result<Response> {
    let mut built = http::Request::builder()
        .method(request.method.as_str())
        .uri(&request.path);
    if !request
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        built = built.header(http::header::HOST, "localhost");
    }
    for (name, value) in &request.headers {
        built = built.header(name, value);
    }
    let built = built
        .body(Full::new(Bytes::from(request.body.clone())))
        .map_err(io::Error::other)?;
    sender.ready().await.map_err(failed)?;
    let response = sender.send_request(built).await.map_err(failed)?;
    let (parts, body) = response.into_parts();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Response {
        status: parts.status.as_u16(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
        body: body.collect().await.map_err(failed)?.to_bytes().to_vec(),
    })
}

/// Turns a failure of hyper's into that of the socket that it comes from.
fn failed(error: hyper::Error) -> io::Error {
    if error.is_canceled() || error.is_closed() {
        return io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string());
    }
    let source =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    let kind = match source {
        Some(source) => source.kind(),
        None if error.is_incomplete_message() => io::ErrorKind::UnexpectedEof,
        None => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string())
}

async fn exchange(connections: &Connections, socket: &Path, raw: Raw) -> io::Result<Received> {
    let mut stream = match &raw.connection {
        Some(name) => take_fresh(connections, name)?,
        None => UnixStream::connect(socket).await?,
    };
    if raw.descriptors > 0 {
        descriptors::send(&stream, &raw).await?;
    } else {
        // If the other side has hung up, what it said before can still be read.
        match stream.write_all(&raw.bytes).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    if raw.shut {
        let _hung_up = stream.shutdown().await;
    }
    let mut received = Received {
        bytes: Vec::new(),
        closed: false,
    };
    let mut end = tokio::time::Instant::now() + Duration::from_millis(raw.read_millis);
    let mut awaited = raw.answers;
    while !received.closed && raw.read_millis > 0 {
        tokio::select! {
            read = stream.read_buf(&mut received.bytes) => match read {
                Ok(0) => received.closed = true,
                Ok(_) if awaited.is_some_and(|answers| received.statuses().len() >= answers) => {
                    awaited = None;
                    end = tokio::time::Instant::now() + Duration::from_millis(raw.watch_millis);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => received.closed = true,
                Err(error) => return Err(error),
            },
            () = sleep_until(end) => break,
        }
    }
    if let (Some(name), false) = (raw.connection, received.closed) {
        keep(connections, name, Connection::Fresh(stream));
    }
    Ok(received)
}

fn pass(connections: &Connections, name: String, to: &Path) -> io::Result<()> {
    let passed = take_fresh(connections, &name)?;
    let line = StdStream::connect(to)?;
    let descriptors = [passed.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        &line,
        &[IoSlice::new(b"fd")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    keep(connections, name, Connection::Fresh(passed));
    Ok(())
}

/// Each of some descriptors of the connection counts as another one for each of some instances of epoll.
fn watch(connections: &Connections, name: String, times: usize) -> io::Result<()> {
    let watched = take_fresh(connections, &name)?;
    let duplicates = (0..times.isqrt())
        .map(|_| watched.as_fd().try_clone_to_owned())
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    for _ in 0..times.div_ceil(duplicates.len()) {
        let instance = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for duplicate in &duplicates {
            let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(&instance, duplicate, epoll::EventData::new_u64(0), events)?;
        }
        let _stays_open = instance.into_raw_fd();
    }
    for duplicate in duplicates {
        let _stays_open = duplicate.into_raw_fd();
    }
    keep(connections, name, Connection::Fresh(watched));
    Ok(())
}

async fn receive(connections: &Connections, name: String, at: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(at)?;
    let (line, _) = listener.accept().await?;
    let line = line.into_std()?;
    line.set_nonblocking(false)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        &line,
        &mut [IoSliceMut::new(&mut [0; 8])],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor: Option<OwnedFd> = descriptors.by_ref().flatten().next();
    let stream = StdStream::from(descriptor.ok_or(io::ErrorKind::UnexpectedEof)?);
    stream.set_nonblocking(true)?;
    keep(
        connections,
        name,
        Connection::Fresh(UnixStream::from_std(stream)?),
    );
    Ok(())
}

async fn pour(socket: &Path, flood: Flood) -> Flooded {
    let flood = Arc::new(flood);
    let mut streams = JoinSet::new();
    for _ in 0..flood.connections {
        let (socket, flood) = (socket.to_owned(), Arc::clone(&flood));
        streams.spawn(async move { pour_one(&socket, &flood).await });
    }
    total(streams, flood.requests).await
}

/// The sum of all streams. If one has died, all of its requests count as failed, whatever it had got before.
async fn total(mut streams: JoinSet<Flooded>, requests: usize) -> Flooded {
    let mut total = Flooded::default();
    while let Some(part) = streams.join_next().await {
        let part = part.unwrap_or_else(|died| Flooded {
            failures: requests,
            errors: [(died.to_string(), requests)].into(),
            ..Flooded::default()
        });
        for (status, count) in part.statuses {
            *total.statuses.entry(status).or_default() += count;
        }
        total.failures += part.failures;
        total.retried += part.retried;
        for (error, count) in part.errors {
            *total.errors.entry(error).or_default() += count;
        }
        total.wrong += part.wrong;
        total.micros.extend(part.micros);
    }
    total.micros.sort_unstable();
    total
}

async fn pour_one(socket: &Path, flood: &Flood) -> Flooded {
    let mut flooded = Flooded::default();
    let request = Request::get(&flood.path);
    let mut sender = None;
    for _ in 0..flood.requests {
        let begin = Instant::now();
        let kept = sender.take().filter(|_| !flood.reconnect);
        let reused = kept.is_some();
        let mut outcome = timeout(PATIENCE, pour_once(socket, kept, &request)).await;
        if reused && matches!(&outcome, Ok(Err(error)) if unsent(error)) {
            flooded.retried += 1;
            outcome = timeout(PATIENCE, pour_once(socket, None, &request)).await;
        }
        match outcome {
            Ok(Ok((used, response))) => {
                sender = Some(used);
                *flooded.statuses.entry(response.status).or_default() += 1;
                flooded
                    .micros
                    .push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
                let expected = flood
                    .expect
                    .as_ref()
                    .is_none_or(|text| response.text().contains(text));
                flooded.wrong += usize::from(response.status == 200 && !expected);
            }
            Ok(Err(error)) => {
                flooded.failures += 1;
                *flooded.errors.entry(error.to_string()).or_default() += 1;
            }
            Err(_) => {
                flooded.failures += 1;
                *flooded
                    .errors
                    .entry("no answer in time".to_owned())
                    .or_default() += 1;
            }
        }
        if flood.interval_micros > 0 {
            sleep_until((begin + Duration::from_micros(flood.interval_micros)).into()).await;
        }
    }
    flooded
}

async fn pour_once(
    socket: &Path,
    kept: Option<SendRequest<Full<Bytes>>>,
    request: &Request,
) -> io::Result<(SendRequest<Full<Bytes>>, Response)> {
    let mut sender = match kept {
        Some(sender) => sender,
        None => greet(UnixStream::connect(socket).await?).await?,
    };
    let response = send(&mut sender, request).await?;
    Ok((sender, response))
}

/// Whether the request was never sent: the kept connection was closed before, or refused the write. Then every client
/// retries; a request that was sent but not answered is lost.
fn unsent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
    )
}

fn status() -> io::Result<Status> {
    // Two heading lines, then one line per interface (proc_pid_net(5)).
    let devices = fs::read_to_string("/proc/self/net/dev")?;
    let interfaces = devices
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    Ok(Status {
        pid: process::id(),
        uid: nix::unistd::geteuid().as_raw(),
        cgroup: fs::read_to_string("/proc/self/cgroup")?,
        interfaces: interfaces.map(|(name, _)| name.trim().to_owned()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_answered() {
        let (test, pod) = UnixStream::pair().expect("a line");
        let (_reader, writer) = pod.into_split();
        let writer = Writer::new(tokio::sync::Mutex::new(writer));
        tokio::spawn(answer(7, async { panic!("a bug") }, writer));
        let mut lines = BufReader::new(test).lines();
        let line = timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("in time").expect("readable");
        let line = serde_json::from_str(&line.expect("a word")).expect("a line");
        let Line::Done { id: 7, result } = line else {
            panic!("not the answer: {line:?}")
        };
        let error = io::Error::from(result.expect_err("a failure"));
        assert!(error.to_string().contains("a bug"), "{error}");
    }

    #[tokio::test]
    async fn a_stream_that_panics_has_failed_with_all_its_requests() {
        let answered = Flooded {
            statuses: [(200, 3)].into(),
            ..Flooded::default()
        };
        let mut streams = JoinSet::new();
        streams.spawn(async { panic!("a bug") });
        streams.spawn(async {
            tokio::task::yield_now().await;
            answered
        });
        let flooded = total(streams, 3).await;
        assert_eq!((flooded.count(200), flooded.failures), (3, 3));
        let errors: Vec<&String> = flooded.errors.keys().collect();
        assert!(errors[0].contains("a bug"), "{errors:?}");
    }
}
