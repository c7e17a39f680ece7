//! The way out of many companies' clusters: a proxy that ends TLS itself, by an authority of its own, and looks into what
//! goes by. Behind it is one fake cloud, whatever host was asked for.

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
pub struct InspectingProxy {
    address: SocketAddr,
    inside: Arc<Inside>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Inside {
    authority: Authority,
    cloud: SocketAddr,
    asked: Mutex<Vec<String>>,
}

// === impl InspectingProxy ===

impl InspectingProxy {
    /// A proxy that leads to `cloud`, which speaks plain HTTP.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub async fn start(cloud: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let inside = Arc::new(Inside {
            authority: Authority::new()?,
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
    /// If the file cannot be written.
    pub fn ca_file(&self, directory: &Path) -> io::Result<PathBuf> {
        let path = directory.join("proxy-ca.pem");
        std::fs::write(&path, self.inside.authority.certificate())?;
        Ok(path)
    }

    /// Where somebody wanted to go, as `HOST:PORT`, each once and in the order of its first time.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let asked = &self.inside.asked;
        asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// === impl Inside ===

impl Inside {
    /// One connection: `CONNECT` (RFC 9110, section 9.3.6), then TLS as that host, then plainly to the cloud.
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
        let host = to.rsplit_once(':').map_or(&*to, |(host, _)| host);
        let acceptor = self.authority.acceptor(vec![host.to_owned()])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        let mut stream = acceptor.accept(stream).await?;
        let mut cloud = TcpStream::connect(self.cloud).await?;
        copy_bidirectional(&mut stream, &mut cloud).await?;
        Ok(())
    }

    fn note(&self, to: &str) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.iter().any(|other| other == to) {
            asked.push(to.to_owned());
        }
    }
}
