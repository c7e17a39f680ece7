//! The way out of many companies' clusters: a proxy. Some end TLS themselves, with a certificate authority of their
//! own, and inspect the traffic. Behind it is one fake cloud, whatever host the client wanted.

use crate::fake::Authority;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A running proxy, until it is dropped.
#[derive(Debug)]
pub struct EgressProxy {
    address: SocketAddr,
    inside: Arc<Inside>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Inside {
    /// The authority of a proxy that ends TLS.
    authority: Option<Authority>,
    cloud: SocketAddr,
    asked: Mutex<Vec<String>>,
}

// === impl EgressProxy ===

impl EgressProxy {
    /// A proxy that ends TLS and leads to `cloud`, which speaks plain HTTP.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub async fn inspecting(cloud: SocketAddr) -> io::Result<Self> {
        Self::start(cloud, Some(Authority::new()?)).await
    }

    /// A proxy that passes encrypted traffic on to `cloud`, which speaks TLS.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub async fn blind(cloud: SocketAddr) -> io::Result<Self> {
        Self::start(cloud, None).await
    }

    async fn start(cloud: SocketAddr, authority: Option<Authority>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let inside = Arc::new(Inside {
            authority,
            cloud,
            asked: Mutex::default(),
        });
        let serving = inside.clone();
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let inside = serving.clone();
                open.spawn(async move { inside.tunnel(stream).await });
            }
        });
        Ok(Self {
            address,
            inside,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Its URL, for `HTTPS_PROXY`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes the certificate of its authority into `directory`, for the agent's `SSL_CERT_FILE`.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or the proxy has no authority.
    pub fn ca_file(&self, directory: &Path) -> io::Result<PathBuf> {
        let path = directory.join("proxy-ca.pem");
        let authority = self.inside.authority.as_ref();
        let authority = authority.ok_or_else(|| io::Error::other("this proxy ends no TLS"))?;
        std::fs::write(&path, authority.certificate())?;
        Ok(path)
    }

    /// Where clients wanted to go, as `HOST:PORT`, each once, in the order of first requests.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let asked = &self.inside.asked;
        asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Inside ===

impl Inside {
    /// Serves a connection: `CONNECT` (RFC 9110, section 9.3.6), then TLS as that host, then plain HTTP to the cloud.
    async fn tunnel(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let to = match *line.split(' ').collect::<Vec<_>>() {
            ["CONNECT", to, _] => to.to_owned(),
            _ => {
                return stream
                    .write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
                    .await;
            }
        };
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
        }
        self.note(&to);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        let mut cloud = TcpStream::connect(self.cloud).await?;
        if let Some(authority) = &self.authority {
            let host = to.rsplit_once(':').map_or(&*to, |(host, _)| host);
            let acceptor = authority.acceptor(vec![host.to_owned()])?;
            let mut stream = acceptor.accept(stream).await?;
            copy_bidirectional(&mut stream, &mut cloud).await?;
        } else {
            copy_bidirectional(&mut stream, &mut cloud).await?;
        }
        Ok(())
    }

    fn note(&self, to: &str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.iter().any(|other| other == to) {
            asked.push(to.to_owned());
        }
    }
}
