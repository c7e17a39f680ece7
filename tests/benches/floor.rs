//! The floor: hyper alone on a Unix socket, answering the same bytes with the same headers and knowing nobody. Or
//! asking the kernel who has connected, which is the least that it takes to answer one and not another.

use crate::Outcome;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};

/// The argument that makes this program the floor.
pub(crate) const PART: &str = "--part-floor";

/// What the floor answers, by the request's path.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) socket: PathBuf,
    /// Whether it asks who has connected, and then does nothing with it.
    pub(crate) asks: bool,
    pub(crate) answers: Vec<Canned>,
}

/// An answer of the agent's to be given again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Canned {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

struct Answer {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

pub(crate) fn main(plan: &str) -> Outcome<()> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(plan))
}

async fn serve(plan: Plan) -> Outcome<()> {
    let answers: Arc<Vec<Answer>> = Arc::new(
        plan.answers
            .iter()
            .map(Answer::of)
            .collect::<Outcome<_>>()?,
    );
    let listener = UnixListener::bind(&plan.socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Kept until the connection ends, so that the number cannot come to mean another process.
        let pidfd = match plan.asks.then(|| ask(&stream)) {
            Some(Ok(pidfd)) => pidfd,
            Some(Err(_)) => continue,
            None => None,
        };
        let answers = answers.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answers
                .iter()
                .find(|answer| answer.path == request.uri().path());
            let mut response = Response::new(Full::new(
                answer.map(|a| a.body.clone()).unwrap_or_default(),
            ));
            for (name, value) in answer.iter().flat_map(|answer| &answer.headers) {
                response.headers_mut().insert(name, value.clone());
            }
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = served.await;
            drop(pidfd);
        });
    }
}

/// Asks the kernel for the peer, its cgroup, and, where it hands out pidfds, whether the one is still the other's.
fn ask(stream: &UnixStream) -> Outcome<Option<OwnedFd>> {
    let pidfd = match getsockopt(stream, PeerPidfd) {
        Err(Errno::ENOPROTOOPT) => None,
        pidfd => Some(pidfd?),
    };
    let peer = getsockopt(stream, PeerCredentials)?;
    let mut cgroup = [0; 4096];
    let read = File::open(format!("/proc/{}/cgroup", peer.pid()))?.read(&mut cgroup)?;
    let mut fds: Vec<_> = pidfd
        .iter()
        .map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN))
        .collect();
    if read == 0 || poll(&mut fds, PollTimeout::ZERO)? > 0 {
        return Err("the peer has gone".into());
    }
    Ok(pidfd)
}

impl Answer {
    fn of(canned: &Canned) -> Outcome<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &canned.headers {
            // hyper writes these itself.
            if !matches!(
                name.to_ascii_lowercase().as_str(),
                "date" | "content-length" | "connection"
            ) {
                headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
            }
        }
        Ok(Self {
            path: canned.path.clone(),
            headers,
            body: canned.body.clone().into(),
        })
    }
}
