//! The sockets: HTTP on loopback, plain or over TLS, each of which can be closed for a while and opened again at the same port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{BrokenOff, ReplyBody};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 4096;

/// What answers a request.
type Handler = Arc<
    dyn Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<ReplyBody>, BrokenOff>>
        + Send
        + Sync,
>;

/// One address that is served, or closed.
pub(crate) struct Listener {
    address: SocketAddr,
    served: Served,
    /// Where the sockets live, which may not be the runtime of whoever stops and resumes.
    runtime: Handle,
    door: Mutex<Door>,
}

#[derive(Clone)]
struct Served {
    handler: Handler,
    tls: Option<TlsAcceptor>,
    /// Ends everything, when the fake is dropped.
    ended: CancellationToken,
}

#[derive(Debug)]
enum Door {
    /// The port is kept, so that nobody else gets it, but nobody listens: connections are refused.
    Closed(TcpSocket),
    Open {
        closing: CancellationToken,
        tasks: TaskTracker,
    },
    /// A change of state failed half-way.
    Lost,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Listener").field(&self.address).finish()
    }
}

impl Listener {
    /// Binds `address` and answers what comes by `answer`, until `ended`.
    pub(crate) fn bind<F>(
        address: SocketAddr,
        ended: CancellationToken,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Result<Response<ReplyBody>, BrokenOff>> + Send + 'static,
    {
        Self::bind_with(address, None, ended, answer)
    }

    /// [`Listener::bind`], over TLS if there is an acceptor.
    pub(crate) fn bind_with<F>(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        ended: CancellationToken,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Result<Response<ReplyBody>, BrokenOff>> + Send + 'static,
    {
        let listener = reserve(address)?.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let handler: Handler = Arc::new(move |request| Box::pin(answer(request)));
        let served = Served {
            handler,
            tls,
            ended,
        };
        let door = Mutex::new(served.open(listener));
        Ok(Self {
            address,
            served,
            runtime: Handle::current(),
            door,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Refuses connections and breaks those that are open; returns when it is so.
    pub(crate) async fn stop(&self) -> io::Result<()> {
        let mut door = self.door.lock().await;
        if let Door::Open { closing, tasks } = &*door {
            closing.cancel();
            tasks.close();
            tasks.wait().await;
            *door = Door::Lost;
            *door = Door::Closed(reserve(self.address)?);
        }
        Ok(())
    }

    /// Listens again at the same address.
    pub(crate) async fn resume(&self) -> io::Result<()> {
        let mut door = self.door.lock().await;
        if matches!(*door, Door::Open { .. }) {
            return Ok(());
        }
        let socket = match std::mem::replace(&mut *door, Door::Lost) {
            Door::Closed(socket) => socket,
            _ => reserve(self.address)?,
        };
        let served = self.served.clone();
        let opened = self
            .runtime
            .spawn(async move { Ok(served.open(socket.listen(BACKLOG)?)) })
            .await;
        *door = opened.map_err(io::Error::other).flatten()?;
        Ok(())
    }
}

impl Served {
    fn open(&self, listener: TcpListener) -> Door {
        let closing = self.ended.child_token();
        let tasks = TaskTracker::new();
        tasks.spawn(
            self.clone()
                .accept(listener, closing.clone(), tasks.clone()),
        );
        Door::Open { closing, tasks }
    }

    async fn accept(self, listener: TcpListener, closing: CancellationToken, tasks: TaskTracker) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = closing.cancelled() => return,
            };
            // A connection that died in the backlog, or no file descriptor for it: the next one may do better.
            let Ok((stream, _)) = accepted else {
                tokio::task::yield_now().await;
                continue;
            };
            let (served, closing) = (self.clone(), closing.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = served.connection(stream) => {}
                    () = closing.cancelled() => {}
                }
            });
        }
    }

    async fn connection(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve(stream).await,
            // Who does not trust the certificate leaves here.
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.serve(stream).await;
                }
            }
        }
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| (self.handler)(request));
        // How a connection ends is the client's business: it sees the same end.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
