//! The listening side: a port that stays ours, and connections that a test can cut.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Cluster, FakeKube, api};

/// A loopback port that is ours whether or not anybody listens on it.
pub(super) struct Port {
    /// Bound and never listening: connections are refused, and no other process is given the port meanwhile.
    _bound: TcpSocket,
    address: SocketAddr,
}

/// The server's running part.
#[derive(Debug)]
pub(super) struct Server {
    port: Port,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Port {
    pub(super) fn reserve() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = socket.local_addr()?;
        Ok(Self {
            _bound: socket,
            address,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        socket.listen(1024)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Server {
    pub(super) fn new(port: Port) -> Self {
        Self {
            port,
            running: Mutex::new(None),
        }
    }

    fn replace(&self, running: Option<Running>) -> Option<Running> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, running)
    }

    async fn stop(&self) {
        if let Some(running) = self.replace(None) {
            running.stop.cancel();
            running.tasks.close();
            running.tasks.wait().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.replace(None) {
            running.stop.cancel();
        }
    }
}

impl FakeKube {
    /// Stops the server: its connections are cut and new ones refused. The cluster stays as it is.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Starts a stopped server again, on the same port.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub async fn start_again(&self) -> io::Result<()> {
        self.stop().await;
        let listener = self.server.port.listen()?;
        let running = Running {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        // The tasks hold the cluster and not the server, so that the last handle's end is the server's.
        let accept = accept(
            listener,
            Arc::clone(&self.cluster),
            running.stop.clone(),
            running.tasks.clone(),
        );
        running.tasks.spawn(accept);
        self.server.replace(Some(running));
        Ok(())
    }

    /// Cuts all connections, watches included, and listens again.
    ///
    /// # Errors
    ///
    /// If it cannot listen again.
    pub async fn restart(&self) -> io::Result<()> {
        self.start_again().await
    }
}

async fn accept(
    listener: TcpListener,
    cluster: Arc<Cluster>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (cluster, stop) = (Arc::clone(&cluster), stop.clone());
        tasks.spawn(async move {
            let service = service_fn(move |request| {
                let cluster = Arc::clone(&cluster);
                async move { Ok::<_, Infallible>(api::answer(cluster, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                // How a client ends its connection is its own business.
                _ = connection => {}
            }
        });
    }
}
