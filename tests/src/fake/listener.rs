//! The sockets: HTTP on loopback, plain or over TLS; each can be closed for a while and reopened at the same port.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{BrokenOff, ReplyBody};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 4096;

/// What answers a request.
type Handler<B> = Arc<
    dyn Fn(Request<Incoming>) -> BoxFuture<'static, Result<Response<B>, BrokenOff>> + Send + Sync,
>;

/// A port that is ours, whether or not anybody listens on it.
pub(crate) struct Port {
    /// Bound but never listening: connections are refused, and no other process gets the port in the meantime.
    _bound: TcpSocket,
    address: SocketAddr,
}

/// What becomes of connections that something on their way has forgotten.
#[derive(Clone, Copy, Debug)]
pub enum Forgotten {
    /// They break when they are next used.
    Broken,
    /// They are not closed, but nothing comes over them anymore.
    Silent,
}

/// One address that is served, or closed.
pub struct Listener<B = ReplyBody> {
    port: Port,
    served: Arc<Served<B>>,
    /// Where the sockets live, which may not be the runtime of the task that stops and resumes them.
    runtime: Handle,
    /// `None` while it is closed.
    open: Mutex<Option<Open>>,
}

struct Served<B> {
    handler: Handler<B>,
    tls: Option<TlsAcceptor>,
    /// Lets the connections go silent that are open now.
    silence: watch::Sender<()>,
    /// How many times the connections were broken that were open then.
    breaks: AtomicUsize,
    /// How many connections were opened.
    opened: AtomicUsize,
    /// Ends everything when the fake is dropped.
    ended: CancellationToken,
}

#[derive(Clone)]
struct Open {
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl<B> fmt::Debug for Listener<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.address()).finish()
    }
}

impl Port {
    /// Takes an address, of which port 0 means any port.
    pub(crate) fn take(address: SocketAddr) -> io::Result<Self> {
        let bound = bind(address)?;
        Ok(Self {
            address: bound.local_addr()?,
            _bound: bound,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn listen(&self) -> io::Result<TcpListener> {
        bind(self.address)?.listen(BACKLOG)
    }
}

impl<B> Listener<B> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address
    }

    /// How many connections were opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.served.opened.load(Ordering::Relaxed)
    }

    /// Lets something on their way forget the open connections.
    pub(crate) fn forget_connections(&self, how: Forgotten) {
        match how {
            Forgotten::Broken => {
                self.served.breaks.fetch_add(1, Ordering::Relaxed);
            }
            Forgotten::Silent => {
                self.served.silence.send_replace(());
            }
        }
    }

    /// Refuses connections and breaks the open ones; returns when that is done.
    pub(crate) async fn stop(&self) {
        if let Some(Open { closing, tasks }) = self.open.lock().await.take() {
            closing.cancel();
            tasks.close();
            tasks.wait().await;
        }
    }
}

impl<B> Listener<B>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    /// Answers what comes to the port with `answer`, over TLS if there is an acceptor, until `ended`.
    pub(crate) fn open<F>(
        port: Port,
        tls: Option<TlsAcceptor>,
        ended: CancellationToken,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Result<Response<B>, BrokenOff>> + Send + 'static,
    {
        let served = Served {
            handler: Arc::new(move |request| Box::pin(answer(request))),
            tls,
            silence: watch::Sender::new(()),
            breaks: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            ended,
        };
        let mut listener = Self {
            port,
            served: Arc::new(served),
            runtime: Handle::current(),
            open: Mutex::new(None),
        };
        *listener.open.get_mut() = Some(listener.begin()?);
        Ok(listener)
    }

    /// Listens again at the same address.
    pub(crate) async fn resume(&self) -> io::Result<()> {
        let mut open = self.open.lock().await;
        if open.is_none() {
            *open = Some(self.begin()?);
        }
        Ok(())
    }

    fn begin(&self) -> io::Result<Open> {
        let _runtime = self.runtime.enter();
        let listener = self.port.listen()?;
        let open = Open {
            closing: self.served.ended.child_token(),
            tasks: TaskTracker::new(),
        };
        let accept = self.served.clone().accept(listener, open.clone());
        open.tasks.spawn(accept);
        Ok(open)
    }
}

impl<B> Served<B>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    async fn accept(self: Arc<Self>, listener: TcpListener, open: Open) {
        let Open { closing, tasks } = open;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = closing.cancelled() => return,
            };
            // The connection died in the backlog, or there is no file descriptor for it: the next one may succeed.
            let Ok((stream, _)) = accepted else {
                tokio::task::yield_now().await;
                continue;
            };
            self.opened.fetch_add(1, Ordering::Relaxed);
            let (served, closing) = (self.clone(), closing.clone());
            let mut silence = self.silence.subscribe();
            tasks.spawn(async move {
                let connection = pin!(served.connection(stream));
                tokio::select! {
                    () = connection => {}
                    // It stays open.
                    _ = silence.changed() => closing.cancelled().await,
                    () = closing.cancelled() => {}
                }
            });
        }
    }

    async fn connection(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve(stream).await,
            // A client that does not trust the certificate leaves here.
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.serve(stream).await;
                }
            }
        }
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let breaks = || self.breaks.load(Ordering::Relaxed);
        let born = breaks();
        let service = service_fn(|request| async move {
            if breaks() != born {
                return Err(BrokenOff);
            }
            (self.handler)(request).await
        });
        // How a connection ends is the client's business: it sees the same end.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
