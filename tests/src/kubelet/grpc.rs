//! A small gRPC client: one call per connection, as the kubelet makes them.

use std::fmt;
use std::io;
use std::path::Path;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::percent_decode_str;
use prost::Message;
use tokio::net::UnixStream;

/// How a call failed: a gRPC status or, without one, 14 (`UNAVAILABLE`), as the kubelet's client has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// The code's number.
    pub code: u16,
    /// What it says.
    pub message: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// A connection, which stays open until this is dropped.
pub struct Connection {
    requests: http2::SendRequest<Full<Bytes>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// If nobody listens there.
    pub async fn open(socket: &Path) -> io::Result<Self> {
        let stream = TokioIo::new(UnixStream::connect(socket).await?);
        let (requests, connection) = http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { requests })
    }

    /// Makes one call.
    ///
    /// # Errors
    ///
    /// What it ended with.
    pub async fn call<A: Message + Default>(
        &mut self,
        path: &str,
        message: &impl Message,
    ) -> Result<A, Status> {
        self.exchange(path, message)
            .await
            .unwrap_or_else(|error| Err(unavailable(&error)))
    }

    async fn exchange<A: Message + Default>(
        &mut self,
        path: &str,
        message: &impl Message,
    ) -> io::Result<Result<A, Status>> {
        // A byte that says "not compressed", the length, the message.
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.encoded_len()).map_err(io::Error::other)?);
        message.encode(&mut frame).map_err(io::Error::other)?;
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame.freeze()))
            .map_err(io::Error::other)?;
        let answer = self
            .requests
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let field = |name: &str| {
            let value = trailers.get(name).or_else(|| head.headers.get(name));
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        let code = field("grpc-status").parse().unwrap_or(2);
        if code != 0 {
            let message = field("grpc-message");
            let message = percent_decoded(&message);
            return Ok(Err(Status { code, message }));
        }
        let bytes = body.to_bytes();
        let message = bytes.get(5..).unwrap_or_default();
        A::decode(message).map(Ok).map_err(io::Error::other)
    }
}

/// Makes one call on a connection of its own.
///
/// # Errors
///
/// What it ended with.
pub async fn call<A: Message + Default>(
    socket: &Path,
    path: &str,
    message: &impl Message,
) -> Result<A, Status> {
    let mut connection = Connection::open(socket)
        .await
        .map_err(|error| unavailable(&error))?;
    connection.call(path, message).await
}

fn unavailable(error: &io::Error) -> Status {
    Status {
        code: 14,
        message: error.to_string(),
    }
}

/// Decodes gRPC's messages, in which only some characters are escaped.
fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_whatever_it_names() {
        let told = percent_decoded("no file a&b=c+d in %22/run/%C3%BC%22");
        assert_eq!(told, "no file a&b=c+d in \"/run/ü\"");
    }
}
