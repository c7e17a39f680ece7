//! gRPC over a Unix socket, for root alone.
//!
//! Requests carry tokens, so no connection lasts: its buffers go with it, and the mounter's allocator wipes them.

use super::plugin::Plugin;
use crate::passed::Listener;
use crate::server::{EXHAUSTED_REST, Warnings};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// How long a connection is kept for further calls.
const CONNECTION_AGE: Duration = Duration::from_secs(15);

/// How long a call in progress may still take once its connection is closing; the kubelet gives up after two minutes.
const LAST_CALL: Duration = Duration::from_secs(120);

/// The longest message. A token has some 1,500 bytes; the rest is the volume's attributes, which the pod's author may
/// make as long as they like.
const MESSAGE_LIMIT: usize = 192 << 10;

/// How many bytes of a message may arrive before any of them is read.
const WINDOW: u32 = 64 << 10;

/// The most connections served at a time. More have to wait: the kubelet can, and the mounter's memory is limited.
const CONNECTIONS: usize = 32;

/// Serves every client that is root, until this is dropped. Then the connections end too, once calls in
/// progress are answered.
pub(super) async fn serve(listener: Arc<Listener>, plugin: Arc<Plugin>, calls: TaskTracker) {
    let ending = CancellationToken::new();
    let _ends_with_this = ending.clone().drop_guard();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let warnings = Warnings::default();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
                if is_root {
                    let connection = connection(stream, plugin.clone(), ending.clone());
                    calls.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                } else {
                    tracing::warn!("somebody who is not root connected");
                }
            }
            Err(error) => {
                if warnings.is_due("cannot_accept", None) {
                    tracing::error!(%error, "cannot accept a connection now");
                }
                sleep(EXHAUSTED_REST).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, plugin: Arc<Plugin>, ending: CancellationToken) {
    let service = service_fn(move |request| {
        let plugin = plugin.clone();
        async move { Ok::<_, Infallible>(plugin.call(request).await) }
    });
    let mut http = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        ended = &mut http => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            return;
        }
        () = sleep(CONNECTION_AGE) => {}
        () = ending.cancelled() => {}
    }
    http.as_mut().graceful_shutdown();
    let _ = timeout(LAST_CALL, http).await;
}

/// Answers a call that takes one message and returns one.
pub(super) async fn unary<Q, A, F>(
    request: http::Request<Incoming>,
    answer: impl FnOnce(Q) -> F + Send,
) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    let codec = ProstCodec::<A, Q>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MESSAGE_LIMIT);
    grpc.unary(Once(Some(answer)), request).await
}

/// The answer to a call of an unknown method.
pub(super) fn unimplemented(path: &str) -> http::Response<Body> {
    Status::unimplemented(format!("there is no {path}")).into_http()
}

/// A function, called at most once.
struct Once<T>(Option<T>);

impl<Q, A, F, T> UnaryService<Q> for Once<T>
where
    T: FnOnce(Q) -> F,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = self.0.take().map(|answer| answer(request.into_inner()));
        Box::pin(async move {
            match answer {
                Some(answer) => answer.await.map(Response::new),
                None => Err(Status::internal("called twice")),
            }
        })
    }
}
