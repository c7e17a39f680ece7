//! `latchkey proxy`: the socket on a TCP port of this pod's own loopback, for programs that cannot use Unix sockets.
//!
//! Whoever reaches the port has this pod's identity. So it is bound to loopback, it is not opened where the loopback is
//! the whole node's, and it answers nothing that a browser would send on behalf of a web page.

mod guard;

use super::failure::Failure;
use super::{Leave, Reach, terminal};
use crate::Client;
use crate::client::LONGEST;
use crate::protocol::{BATCH_BODY, Code, TARGET_LIMIT, WAIT_LIMIT};
use crate::transport::Pool;
use bytes::Bytes;
use guard::Guard;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long a connection may be idle, or take to send a request's head: as long as the agent allows an idle one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// The most open connections. An idle one takes nothing from the agent.
const CONNECTIONS: usize = 1024;

/// How many requests are passed on at a time: as many as the agent lets a pod have in flight, and half of the
/// connections that it allows a pod.
const REQUESTS: usize = 32;

/// How long the accept loop rests when there are no descriptors left.
const EXHAUSTED_REST: Duration = Duration::from_millis(50);

/// How long answers may still take once the proxy is told to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// Serve the agent's HTTP API on a loopback TCP port of this pod
///
/// For programs that cannot use Unix sockets: http://localhost:8080/v1/secrets/NAME. Every process that can reach the
/// port gets this pod's secrets, so use it only in pods with their own network.
#[derive(Debug, clap::Args)]
pub(crate) struct Proxy {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,
    /// Answer requests for this host too, whatever the port; may be repeated
    #[arg(long, value_name = "HOST", value_parser = guard::host)]
    allow_host: Vec<String>,
    /// Answer only requests with this header, which no web page can send
    #[arg(long, value_name = "NAME")]
    require_header: Option<HeaderName>,
    /// Listen even where others than this pod can reach it
    #[arg(long)]
    force: bool,
}

/// What all connections are served with.
struct Relay {
    socket: std::path::PathBuf,
    http: Pool,
    guard: Guard,
    requests: Arc<Semaphore>,
    /// How long a request may take until its answer begins, in addition to a requested wait.
    patience: Duration,
    /// Is closed when the proxy is told to stop.
    stays: watch::Receiver<()>,
}

/// Parses an address to listen on.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an address and a port, such as 127.0.0.1:8080".to_owned())
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

impl Proxy {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        if !self.listen.ip().is_loopback() && !self.force {
            return Err(Failure::usage(format!(
                "{} is no loopback address: whoever reaches it would get this pod's secrets; \
                 --force listens there all the same",
                self.listen.ip()
            )));
        }
        super::serve(self.serve(&reach.client()?, reach.timeout))
    }

    async fn serve(self, client: &Client, patience: Duration) -> Result<ExitCode, Failure> {
        let mut leave = Leave::listen()?;
        tokio::select! {
            outcome = self.check_network(client) => outcome?,
            _ = leave.asked() => return Ok(ExitCode::SUCCESS),
        }
        let (staying, stays) = watch::channel(());
        let relay = Arc::new(Relay {
            socket: client.socket().to_owned(),
            http: client.pool(),
            guard: Guard::new(self.allow_host, self.require_header),
            requests: Arc::new(Semaphore::new(REQUESTS)),
            patience: patience.min(LONGEST),
            stays,
        });
        let listener = TcpListener::bind(self.listen).await.map_err(|error| {
            Failure::other(format!("cannot listen on {}: {error}", self.listen))
        })?;
        let address = listener.local_addr().unwrap_or(self.listen);
        terminal::note(&format!("listening on http://{address}"));
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let drain = GracefulShutdown::new();
        loop {
            let accepted = async {
                // A connection beyond the limit waits in the kernel's queue.
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted,
                _ = leave.asked() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = drain.watch(connection(stream, relay.clone()));
                    tokio::spawn(async move {
                        // An error here is the caller's: it left, or sent something that is not HTTP.
                        let _ = connection.await;
                        drop(place);
                    });
                }
                Err(_) => sleep(EXHAUSTED_REST).await,
            }
        }
        drop((listener, staying));
        if timeout(DRAIN, drain.shutdown()).await.is_err() {
            terminal::note("some requests were not answered in time");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Refuses a machine's own network, where every process of the machine could send requests here.
    async fn check_network(&self, client: &Client) -> Result<(), Failure> {
        if self.force {
            return Ok(());
        }
        let identity = client.identity().await?;
        match (identity.host_network, identity.pod.is_empty()) {
            (false, _) => Ok(()),
            (true, false) => Err(Failure::usage(
                "this pod uses the node's network (hostNetwork): every process of the node would \
                 get this pod's secrets; use the socket, or --force",
            )),
            (true, true) => Err(Failure::usage(
                "this is no pod: every process of this machine, whoever's it is, would get your \
                 secrets; use the socket, or --force",
            )),
        }
    }
}

fn connection(
    stream: TcpStream,
    relay: Arc<Relay>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send {
    let service = service_fn(move |request| {
        let relay = relay.clone();
        async move { Ok::<_, Infallible>(relay.answer(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
}

impl Relay {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        if let Err(reason) = self.guard.admit(&head) {
            return refusal(StatusCode::BAD_REQUEST, Code::InvalidRequest, reason);
        }
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        if target.len() > TARGET_LIMIT {
            let text = "what is asked for takes more than 8 KiB to name";
            return refusal(StatusCode::URI_TOO_LONG, Code::TooLarge, text);
        }
        let query = head.uri.query().unwrap_or_default();
        let waits = query.split('&').any(|pair| pair.starts_with("wait="));
        let patience = if waits {
            self.patience.saturating_add(WAIT_LIMIT)
        } else {
            self.patience
        };
        let deadline = Instant::now() + patience;
        // No request has a longer body than a batch.
        let body = match timeout_at(deadline, whole(body)).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                return refusal(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    Code::TooLarge,
                    "the body is longer than 64 KiB, or did not arrive whole",
                );
            }
            Err(_) => return late("the body does not arrive; try again"),
        };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = head.method;
        *request.uri_mut() = hyperlocal::Uri::new(&self.socket, target).into();
        *request.headers_mut() = head.headers;
        guard::remove_hop_by_hop(request.headers_mut());
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_static("localhost"));
        if !waits {
            return self.pass_on(request, deadline).await;
        }
        tokio::select! {
            answer = self.pass_on(request, deadline) => answer,
            // As the agent ends them when it leaves.
            () = self.has_to_leave() => {
                let mut answer = Response::new(Full::default().map_err(|never| match never {}).boxed());
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
                answer
            }
        }
    }

    /// Passes on a whole request, when it is its turn.
    async fn pass_on(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Answer {
        let place = self.requests.clone().acquire_owned();
        let Ok(place) = timeout_at(deadline, place).await else {
            return late("too many requests are under way; try again");
        };
        let Ok(outcome) = timeout_at(deadline, self.http.request(request)).await else {
            return late("the agent does not answer; try again");
        };
        match outcome {
            Ok(mut answer) => {
                guard::remove_hop_by_hop(answer.headers_mut());
                // The place is held until the answer has been read.
                answer.map(|body| {
                    let held = move |frame| {
                        let _place = &place;
                        frame
                    };
                    body.map_frame(held).boxed()
                })
            }
            Err(error) => {
                let text = unreachable(&self.socket, error.is_connect());
                refusal(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, &text)
            }
        }
    }

    /// Waits until the proxy is told to stop.
    async fn has_to_leave(&self) {
        let mut stays = self.stays.clone();
        while stays.changed().await.is_ok() {}
    }
}

/// What a request gets that has waited for longer than it may.
fn late(text: &str) -> Answer {
    refusal(StatusCode::GATEWAY_TIMEOUT, Code::Timeout, text)
}

/// Reads a whole body of at most [`BATCH_BODY`] bytes. Each part is copied: otherwise it keeps the buffer that it was
/// read into, even if it is a single byte.
async fn whole(mut body: Incoming) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(part) = body.frame().await {
        let Ok(data) = part.ok()?.into_data() else {
            continue;
        };
        if whole.len() + data.len() > BATCH_BODY {
            return None;
        }
        whole.extend_from_slice(&data);
    }
    Some(whole)
}

fn unreachable(socket: &Path, connect: bool) -> String {
    if connect {
        format!(
            "the proxy cannot reach the agent at {}; try again",
            socket.display()
        )
    } else {
        "the agent's answer did not arrive; try again".to_owned()
    }
}

/// A refusal by the proxy itself, in both shapes that the agent has for one: its own, and that of AWS' agent.
fn refusal(status: StatusCode, code: Code, text: &str) -> Answer {
    let body = serde_json::json!({
        "error": text,
        "code": code,
        "request_id": "",
        "__type": code.aws_type(),
        "message": text,
    });
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}
