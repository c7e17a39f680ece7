//! `latchkey healthcheck`: for probes that run a command.

use super::failure::{Failure, UNAVAILABLE};
use super::{Reach, block_on};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Exit with 0 if the agent of this node is ready; for exec probes
///
/// It asks the agent only about itself: nobody is identified, and no vault is called.
#[derive(Debug, clap::Args)]
pub(crate) struct Healthcheck {
    /// Check that `latchkey proxy` answers there, too
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = super::proxy::address)]
    proxy: Option<SocketAddr>,
}

impl Healthcheck {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let client = reach.client()?;
        let health = block_on(async {
            if let Some(address) = self.proxy {
                timeout(reach.timeout, answers(address))
                    .await
                    .map_err(Into::into)
                    .flatten()
                    .map_err(|error| {
                        Failure::new(UNAVAILABLE, format!("no proxy at {address}: {error}"))
                    })?;
            }
            Ok(client.readiness().await?)
        })?;
        if health.missing.is_empty() && health.status == "healthy" {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::new(
            UNAVAILABLE,
            format!(
                "the agent is not ready: it waits for {}",
                health.missing.join(", ")
            ),
        ))
    }
}

/// Makes a request whose answer says only that somebody answers.
async fn answers(address: SocketAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    // The request fails with the same errors.
    tokio::spawn(connection);
    let request = Request::get("/health")
        .header(HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    sender.send_request(request).await?;
    Ok(())
}
