//! The admin port: `/livez`, `/readyz`, `/metrics`. It calls no vault, and nobody can read a secret there.

use crate::handler::Services;
use crate::server::{EXHAUSTED_REST, Warnings};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::task::AbortOnDropHandle;

/// How many scrapers and probes may be connected at once; beyond that, the oldest connection is closed.
const CONNECTIONS: usize = 64;

/// How long one of them may take to send its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The limit on a request's head, in bytes.
const HEAD_LIMIT: usize = 8 * 1024;

/// How many bytes of a connection are read at most. No request here needs a body; the server would otherwise read ahead
/// through one without end.
const READ_LIMIT: u64 = 2 * HEAD_LIMIT as u64;

/// Binds the port. During a handover, both agents hold it together (`SO_REUSEPORT`, socket(7)); the kernel lets only
/// processes with the same uid share it. On a node without IPv6 (`ipv6.disable=1`), the unspecified IPv6 address
/// becomes that of IPv4.
///
/// # Errors
///
/// If the address is taken or not one of this machine.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => match TcpSocket::new_v6() {
            Err(error) if is_without_ipv6(&error) && address.ip().is_unspecified() => {
                return bind((Ipv4Addr::UNSPECIFIED, address.port()).into());
            }
            socket => socket?,
        },
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::EAFNOSUPPORT)
}

/// Serves until dropped. Just before showing the metrics, `gauge` sets those that are not counted as they happen.
pub(crate) async fn serve(
    listener: &TcpListener,
    services: Arc<Services>,
    gauge: Arc<dyn Fn() + Send + Sync>,
) {
    let mut open: VecDeque<AbortOnDropHandle<()>> = VecDeque::new();
    let warnings = Warnings::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if warnings.is_due("cannot_accept", None) {
                    tracing::error!(%error, "cannot accept the operator's connection now");
                }
                tokio::time::sleep(EXHAUSTED_REST).await;
                continue;
            }
        };
        let (services, gauge) = (services.clone(), gauge.clone());
        open.retain(|connection| !connection.is_finished());
        // Somebody who holds connections without sending requests must not keep the kubelet's probe out.
        if open.len() >= CONNECTIONS {
            open.pop_front();
        }
        let connection = tokio::spawn(async move {
            let (reader, writer) = stream.into_split();
            let stream = tokio::io::join(reader.take(READ_LIMIT), writer);
            let service = service_fn(|request| {
                let answer = answer(&services, &*gauge, &request);
                async { Ok::<_, Infallible>(answer) }
            });
            let _ = http1::Builder::new()
                // Repeated requests go through the accept loop, which gives everybody else a turn.
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                // Unfinished heads are kept in memory for everybody who can reach the port.
                .max_buf_size(HEAD_LIMIT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        open.push_back(AbortOnDropHandle::new(connection));
        tokio::task::yield_now().await;
    }
}

fn answer(
    services: &Services,
    gauge: &dyn Fn(),
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let text = |status, text: String| {
        let mut answer = Response::new(Full::new(Bytes::from(text)));
        *answer.status_mut() = status;
        answer.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        answer
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".into());
    }
    match request.uri().path() {
        // If stderr is closed, only a new container gets a new one: the only fault that a restart fixes.
        "/livez" if services.audit.is_broken() => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "the audit trail cannot be written any more\n".into(),
        ),
        "/livez" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => {
            let missing = services.missing();
            if missing.is_empty() {
                text(StatusCode::OK, "ok\n".into())
            } else {
                let missing = missing.join(", ");
                text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not ready: {missing}\n"),
                )
            }
        }
        "/metrics" => {
            gauge();
            text(StatusCode::OK, services.metrics.text())
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz and /metrics\n".into(),
        ),
    }
}
